"""What a place for pictures can do, and what a record holds of a picture."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from dataclasses import asdict, dataclass
from typing import Protocol

_MARK = b"s3 "  # no PNG begins so


@dataclass(frozen=True, slots=True, kw_only=True)
class Object:
    """What a record holds of a picture that lies elsewhere: the object's key, its bytes' number and SHA-256."""

    key: str
    size: int
    sha256: str

    def encoded(self) -> bytes:
        return _MARK + json.dumps(asdict(self)).encode()


def object_of(kept: bytes) -> Object | None:
    """The object that a record names, or `None` if it holds the picture itself."""
    return Object(**json.loads(kept.removeprefix(_MARK))) if kept.startswith(_MARK) else None


class Picture(Protocol):
    """A finished picture. Its size in bytes and its SHA-256 are known without reading it.

    Every method raises `JobExpired` if it is no longer kept, and `StorageUnavailable` if its place does not answer.
    """

    @property
    def size(self) -> int: ...

    @property
    def sha256(self) -> str: ...

    async def read(self) -> bytes:
        """All of it."""

    async def part(self, first: int, last: int) -> bytes | AsyncIterator[bytes]:
        """The bytes from `first` to `last`, both included, or a stream of them that is open."""

    async def address(self) -> str | None:
        """A signed address to which clients are redirected for a while; `None` if they are not."""


class Pictures(Protocol):
    """A place for pictures. What it returns as kept is what the record holds of each picture, by name.

    Attributes:
        copies: whether another job with the same pictures needs copies of its own.
        redirects: whether clients are redirected to it.
    """

    copies: bool
    redirects: bool

    def check(self) -> None:
        """Write, read and delete something.

        Raises:
            InvalidSettings: the place refuses that, and will again.
            StorageUnavailable: it does not answer.
        """

    def keep(self, job_id: str, attempt: int, pngs: Mapping[str, bytes]) -> Mapping[str, bytes]:
        """Keep an attempt's pictures, apart from those of other attempts. Idempotent; from any thread.

        Raises:
            StorageUnavailable: not all of them are kept.
        """

    def drop(self, job_id: str, attempt: int) -> None:
        """Delete the pictures of an attempt that did not end its job, as far as the place answers."""

    def find(self, job_id: str, kept: bytes) -> Picture:
        """A job's picture.

        Raises:
            StorageUnavailable: it lies where this process can't look.
        """

    async def copied(self, kept: Mapping[str, bytes], job_id: str) -> Mapping[str, bytes] | None:
        """Copy pictures for another job, so that each job's are erased, and expire, alone.

        `None` if some are gone, if they can't be copied now, or if the record holds them itself.
        """

    async def erase(self, job_id: str) -> None:
        """Delete all pictures of a job, those of lost attempts included, which the record does not name.

        Raises:
            StorageUnavailable: some may be left.
        """

    async def origin(self) -> str | None:
        """Scheme, host and port of the addresses to which clients are redirected; `None` if they are not."""
