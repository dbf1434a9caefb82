"""Signed links: pictures for browsers, which can't send an API key with an address."""

from __future__ import annotations

import re
from urllib.parse import parse_qs

from starlette.types import Scope

from app.gateway.state import State
from cynosure.errors import InvalidLink, JobExpired, JobNotFound
from jobs.accounts.api_keys import Caller
from jobs.accounts.api_keys import Scope as KeyScope
from jobs.queue.record import EVERYONE

_PICTURE = re.compile(r"/jobs/([^/]+)/(?:images/[^/]+|sheet\.png)")
_EXPIRES = re.compile(r"\d{1,11}")


async def linked_caller(state: State, scope: Scope) -> Caller | None:
    """The owner of the picture that a signed link leads to, as a caller who may only look; `None` if it has no link.

    Raises:
        InvalidLink: it has one whose signature is wrong, or whose owner's key is no longer valid.
        LinkExpired: its time is over.
    """
    match = _PICTURE.fullmatch(scope["path"])
    query = parse_qs(scope["query_string"].decode("latin-1"))
    if match is None or scope["method"] != "GET" or not query.keys() & {"expires", "signature"}:
        return None
    expires, signature = query.get("expires", [""])[0], query.get("signature", [""])[0]
    try:
        owner = (await state["store"].jobs.get(match.group(1), EVERYONE)).owner
    except (JobExpired, JobNotFound):
        owner = ""  # nobody's signature fits: a stranger learns nothing about the job
    seconds = int(expires) if _EXPIRES.fullmatch(expires) else 0
    await state["store"].links.verify(owner, scope["path"], seconds, signature)
    known = await state["store"].api_keys.caller_of(owner)
    if known is None:
        raise InvalidLink("The API key that this link belongs to is no longer valid.")
    return Caller(owner, frozenset({KeyScope.READ}), known.limits)


async def signed(state: State, owner: str, paths: list[str]) -> tuple[int, list[str]]:
    """The time at which the links end, in seconds since 1970, and each path with its signature."""
    lifetime_s = state["settings"].link_lifetime_s
    expires, signatures = await state["store"].links.sign(owner, paths, lifetime_s=lifetime_s)
    return expires, [f"{path}?expires={expires}&signature={one}" for path, one in zip(paths, signatures, strict=True)]
