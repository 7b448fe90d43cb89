"""Number of random cases in tests, by profile."""

from __future__ import annotations

import os

from hypothesis import HealthCheck, settings

_PERCENT = {"few": 10, "all": 100}
PROFILE = os.environ.get("RESHARD_TEST_PROFILE") or "few"


def share(count: int) -> int:
    """Return how many of `count` cases the profile tries, at least one."""
    return max(1, count * _PERCENT[PROFILE] // 100)


def examples(count: int) -> settings:
    """Return hypothesis settings that try the profile's share of `count` examples."""
    return settings(max_examples=share(count))


def load_profile() -> None:
    """Make the profile the default of all tests. It has no deadlines, because machines are shared: benchmarks find slow code."""
    costly = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example, HealthCheck.filter_too_much]
    settings.register_profile("reshard", deadline=None, max_examples=share(100), suppress_health_check=costly)
    settings.load_profile("reshard")
