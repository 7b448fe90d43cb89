"""Locations of a transform's files: in folders, or in a bucket of a real server."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from pathlib import Path

    import s3_server


# Where source and target are, in tests of buckets.
SIDES = (("s3", "s3"), ("local", "s3"), ("s3", "local"))


class Place(Protocol):
    """Location of one side of a transform."""

    def put(self, folder: Path) -> str:
        """Return the address under which a folder's files can be read."""

    def new(self) -> str:
        """Return an address without files."""

    def get(self, address: str) -> Path:
        """Return a folder with a copy of the files at an address."""


@dataclass(frozen=True)
class Folder:
    """A place on the file system."""

    root: Path

    def put(self, folder: Path) -> str:
        return str(folder)

    def new(self) -> str:
        return str(self.root / uuid.uuid4().hex)

    def get(self, address: str) -> Path:
        return self.root / address


@dataclass(frozen=True)
class Bucket:
    """A place on a server."""

    server: s3_server.Server
    name: str
    root: Path

    def put(self, folder: Path) -> str:
        return self.server.upload(self.name, folder, uuid.uuid4().hex)

    def new(self) -> str:
        return f"s3://{self.name}/{uuid.uuid4().hex}"

    def get(self, address: str) -> Path:
        assert self.server.uploads(self.name) == []
        return self.server.download(address, self.root / uuid.uuid4().hex)


@dataclass(frozen=True)
class Sides:
    """The places of source and target."""

    source: Place
    target: Place
