"""The distributions that the tests look at."""

from __future__ import annotations

import distributions
import pytest
import shared_folder


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> distributions.Dist:
    """The distributions, once for all test processes."""
    folder = shared_folder.filled(tmp_path_factory, "dist", distributions.build)
    return distributions.Dist(folder / "dist", (folder / "commit").read_text())
