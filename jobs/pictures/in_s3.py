"""Pictures in S3 or what speaks like it, as objects `PREFIX/JOB/ATTEMPT/NAME.png`."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import copy_context
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError, PermissionDeniedError, UnauthenticatedError
from obstore.store import S3Store

from cynosure.errors import JobExpired, StorageUnavailable
from jobs.metrics import Metrics
from jobs.pictures.in_store import InlinePicture
from jobs.pictures.keeping import Object, Picture, object_of
from jobs.settings import StoreSettings
from jobs.starting import InvalidSettings

if TYPE_CHECKING:
    from obstore.store import ClientConfig, RetryConfig, S3Config

log = logging.getLogger(__name__)

SIGNED_FOR = timedelta(minutes=5)
RETRY_S = 5
# An answer may take as long as a slow client reads it; only what S3 itself takes is limited.
_CONFIG: ClientConfig = {"allow_http": True, "connect_timeout": "3s", "read_timeout": "10s", "timeout": "1h"}
# Only for a connection that broke: workers retry by themselves, and clients are told to.
_RETRY: RetryConfig = {"max_retries": 2, "retry_timeout": timedelta(seconds=5)}
_AT_ONCE = 8
_CHUNK = 256 * 1024
_HEADERS = {"Content-Type": "image/png", "Cache-Control": "private, max-age=86400, immutable"}
_REFUSED = re.compile(r"status code: (3\d\d|4(?!08|29)\d\d)")  # 408 and 429 pass
_METADATA_SERVICE = "/latest/api/token"  # where the library asks last, if the environment has no credentials


def _reason(error: Exception) -> str:
    """What went wrong, in a line: S3's own message, or the first line of the library's."""
    text = str(error)
    message = re.search(r"<Message>(.*?)</Message>", text, re.DOTALL)
    return (message[1] if message else text.partition("\n")[0]).strip()


def _away(operation: str, error: Exception) -> StorageUnavailable:
    """What clients are told, while the log gets the reason."""
    log.warning("the picture storage failed to %s: %s", operation, _reason(error))
    detail = "The picture storage does not answer; the pictures are kept. Try again."
    return StorageUnavailable(detail, retry_after_s=RETRY_S)


def _has_no_bucket(error: FileNotFoundError) -> bool:
    return "NoSuchBucket" in str(error)


def _check_endpoint() -> None:
    """Refuse an endpoint that is no address, at which the library would panic."""
    for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"):
        value = os.environ.get(name)
        if value is not None and not re.match(r"https?://[^/]", value):
            raise InvalidSettings(f"{name}={value!r}: write an address, such as https://s3.example.org, or unset it")


@dataclass(frozen=True)
class S3Picture:
    """A picture that is an object."""

    place: PicturesInS3
    job_id: str
    object: Object

    @property
    def size(self) -> int:
        return self.object.size

    @property
    def sha256(self) -> str:
        return self.object.sha256

    async def read(self) -> bytes:
        async with self.place.at_once:
            return b"".join([part async for part in await self.part(0, self.size - 1)])

    async def part(self, first: int, last: int) -> AsyncIterator[bytes]:
        with self.place.answering("get", job_id=self.job_id):
            options: obstore.GetOptions = {"range": (first, last + 1)}
            found = await obstore.get_async(self.place.store, self.object.key, options=options)
        return self._parts(found)

    async def _parts(self, found: obstore.GetResult) -> AsyncIterator[bytes]:
        try:
            async for part in found.stream(min_chunk_size=_CHUNK):
                yield bytes(part)
        except BaseError as error:
            raise self.place.failed("get", error) from error

    async def address(self) -> str | None:
        return await self.place.signed(self.object.key)


class PicturesInS3:
    """Keeps pictures in a bucket. A rule of the bucket's deletes them once their records have expired.

    Args:
        url: `s3://BUCKET/PREFIX`; the library reads its endpoint, region and credentials from `AWS_…`.
        settings: whether clients are redirected, and to which endpoint.
        metrics: are told how long each operation took, and which failed.

    Raises:
        InvalidSettings: a variable `AWS_…` is wrong.
    """

    copies = True

    def __init__(self, url: str, settings: StoreSettings, metrics: Metrics) -> None:
        location = urlsplit(url)
        self._url, self._bucket, self._prefix = url, location.netloc, location.path.strip("/")
        self._metrics = metrics
        self.redirects = settings.pictures_redirect
        public = settings.pictures_endpoint
        elsewhere: S3Config = {"endpoint": public, "aws_endpoint_url_s3": public} if public else {}
        _check_endpoint()
        try:
            self.store = S3Store(self._bucket, client_options=_CONFIG, retry_config=_RETRY)
            self._signer = S3Store(self._bucket, config=elsewhere, client_options=_CONFIG, retry_config=_RETRY)
        except BaseError as error:  # one of the library's variables
            raise self._refused("a variable AWS_… is wrong", error) from None
        self._origin: str | None = None
        self._threads = ThreadPoolExecutor(_AT_ONCE, "pictures")
        self.at_once = asyncio.Semaphore(_AT_ONCE)

    def check(self) -> None:
        key = self._key(f"check-{secrets.token_hex(8)}")
        try:
            obstore.put(self.store, key, b"")
            obstore.get(self.store, key).bytes()
            obstore.delete(self.store, [key])
        except FileNotFoundError as error:
            raise self._refused(f"there is no bucket '{self._bucket}'", error) from None
        except (PermissionDeniedError, UnauthenticatedError) as error:
            raise self._refused("the storage refuses these credentials (AWS_ACCESS_KEY_ID, …)", error) from None
        except BaseError as error:
            if _METADATA_SERVICE in str(error):
                raise self._refused("there are no credentials: set AWS_ACCESS_KEY_ID, …", error) from None
            if _REFUSED.search(str(error)):
                raise self._refused("the storage refuses to be written or read", error) from None
            raise StorageUnavailable(f"{self._url} does not answer: {_reason(error)}") from error

    def _refused(self, why: str, error: Exception) -> InvalidSettings:
        return InvalidSettings(f"CYNOSURE_PICTURES={self._url!r}: {why}: {_reason(error)}")

    def keep(self, job_id: str, attempt: int, pngs: Mapping[str, bytes]) -> Mapping[str, bytes]:
        def put(name: str, png: bytes) -> bytes:
            key = self._key(job_id, str(attempt), f"{name}.png")
            with self.answering("put"):
                obstore.put(self.store, key, png, attributes=_HEADERS)
            return Object(key=key, size=len(png), sha256=hashlib.sha256(png).hexdigest()).encoded()

        # In this thread's context: the log's lines name its job.
        kept = [self._threads.submit(copy_context().run, put, name, png) for name, png in pngs.items()]
        return {name: one.result() for name, one in zip(pngs, kept, strict=True)}

    def drop(self, job_id: str, attempt: int) -> None:
        try:
            with self.answering("delete"):
                keys = [found["path"] for page in self.store.list(self._key(job_id, str(attempt))) for found in page]
                obstore.delete(self.store, keys)
        except StorageUnavailable:
            log.warning("attempt %d left pictures, which the bucket's lifecycle rule will delete", attempt)

    def find(self, job_id: str, kept: bytes) -> Picture:
        named = object_of(kept)
        return InlinePicture(kept) if named is None else S3Picture(self, job_id, named)

    async def copied(self, kept: Mapping[str, bytes], job_id: str) -> Mapping[str, bytes] | None:
        objects = {name: named for name, one in kept.items() if (named := object_of(one)) is not None}
        if not objects or len(objects) < len(kept):
            return None

        async def copy(name: str, source: Object) -> bytes:
            key = self._key(job_id, "0", f"{name}.png")
            async with self.at_once:
                with self.answering("copy", job_id=job_id):
                    await obstore.copy_async(self.store, source.key, key)
            return replace(source, key=key).encoded()

        copies = await asyncio.gather(*(copy(*one) for one in objects.items()), return_exceptions=True)
        made = {name: one for name, one in zip(objects, copies, strict=True) if isinstance(one, bytes)}
        if len(made) == len(objects):
            return made
        for error in copies:
            if isinstance(error, BaseException) and not isinstance(error, JobExpired | StorageUnavailable):
                raise error
        if made:
            await asyncio.to_thread(self.drop, job_id, 0)
        return None

    async def erase(self, job_id: str) -> None:
        with self.answering("delete"):
            async for page in self.store.list(self._key(job_id)):
                await obstore.delete_async(self.store, [found["path"] for found in page])

    async def signed(self, key: str) -> str | None:
        """The address of an object for a while, if clients are redirected."""
        if not self.redirects:
            return None
        try:
            return await obstore.sign_async(self._signer, "GET", key, SIGNED_FOR)
        except BaseError as error:  # the credentials, if a service gives them
            raise _away("sign", error) from error

    async def origin(self) -> str | None:
        if self._origin is None and (address := await self.signed(self._key("any"))) is not None:
            parts = urlsplit(address)
            self._origin = f"{parts.scheme}://{parts.netloc}"
        return self._origin

    def failed(self, operation: str, error: Exception) -> StorageUnavailable:
        """Count a failure, and log its reason; the error is for clients."""
        self._metrics.storage_failed(operation)
        return _away(operation, error)

    def _key(self, *parts: str) -> str:
        return "/".join(filter(None, (self._prefix, *parts)))

    @contextmanager
    def answering(self, operation: str, job_id: str = "") -> Iterator[None]:
        """Time an operation, and raise what clients are told if it fails; without an object, as for an expired job."""
        started = time.perf_counter()
        try:
            yield
        except (BaseError, FileNotFoundError) as error:
            if isinstance(error, FileNotFoundError) and job_id and not _has_no_bucket(error):
                raise JobExpired(f"Job '{job_id}' and its pictures are no longer kept.") from error
            raise self.failed(operation, error) from error
        finally:
            self._metrics.storage_answered(operation, time.perf_counter() - started)
