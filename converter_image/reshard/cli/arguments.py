"""What arguments can be, beyond what click knows."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from click import Context, Parameter


class _Path(click.ParamType[str]):
    """A path that says something: an empty one would be read as the working folder, or as the root."""

    name = "path"

    def convert(self, value: str, param: Parameter | None, ctx: Context | None) -> str:
        if not value:
            self.fail("the path is empty", param, ctx)
        if any("\ud800" <= character <= "\udfff" for character in value):  # no document can hold it
            self.fail("the path is not in UTF-8", param, ctx)
        return value


PATH = _Path()
