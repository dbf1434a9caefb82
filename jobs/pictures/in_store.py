"""Pictures in the job store: the record holds them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cynosure.errors import StorageUnavailable
from jobs.pictures.keeping import Picture, object_of

RETRY_S = 30  # for an operator to step in


@dataclass(frozen=True, slots=True)
class InlinePicture:
    """A picture that its record holds."""

    png: bytes

    @property
    def size(self) -> int:
        return len(self.png)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.png).hexdigest()

    async def read(self) -> bytes:
        return self.png

    async def part(self, first: int, last: int) -> bytes:
        return self.png[first : last + 1]

    async def address(self) -> str | None:
        return None


class PicturesInStore:
    """Keeps nothing itself: the scripts write pictures with the record, and delete them with it."""

    copies = False
    redirects = False

    def check(self) -> None:
        return

    def keep(self, job_id: str, attempt: int, pngs: Mapping[str, bytes]) -> Mapping[str, bytes]:
        return pngs

    def drop(self, job_id: str, attempt: int) -> None:
        return

    def find(self, job_id: str, kept: bytes) -> Picture:
        if object_of(kept) is not None:
            detail = "This picture is in S3, and CYNOSURE_PICTURES does not tell this gateway where."
            raise StorageUnavailable(detail, retry_after_s=RETRY_S)
        return InlinePicture(kept)

    async def copied(self, kept: Mapping[str, bytes], job_id: str) -> Mapping[str, bytes] | None:
        return None

    async def erase(self, job_id: str) -> None:
        return

    async def origin(self) -> str | None:
        return None
