"""How the clients reach a server, and what they make of one that is away or refuses: pure, and shared by both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from cynosure.contract import Problem
from cynosure.errors import CynosureError, Unreachable, error_of

_TRY_AGAIN = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Retries:
    """When a call that failed is sent again: after what the server says in `Retry-After`, else ever later.

    Attributes:
        times: tries after the first one; by default with pauses of 32 s in all, enough for a gateway to restart.
        times_unmet: at most this many until the server has answered once: the address may be wrong.
        first_s: pause before the first of them; each further one is twice as long.
        longest_s: if `Retry-After` exceeds this, do not wait: raise the error.
    """

    times: int = 7
    times_unmet: int = 4
    first_s: float = 0.25
    longest_s: float = 60.0

    def pause(self, failures: int, retry_after_s: float | None = None, *, has_served: bool) -> float | None:
        """Seconds until the next try after so many failures, or `None` where there is none."""
        if failures > (self.times if has_served else min(self.times, self.times_unmet)):
            return None
        pause = self.first_s * 2 ** (failures - 1) if retry_after_s is None else retry_after_s
        return pause if pause <= self.longest_s else None


def connection(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Keyword arguments of httpx's clients."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    return {"base_url": url, "headers": headers, "timeout": timeout_s}


@dataclass
class Server:
    """A server as one client knows it.

    Attributes:
        has_served: whether it ever did what this client asked for.
    """

    url: str
    retries: Retries
    has_served: bool = False


@dataclass
class Attempts:
    """One exchange with a server, however often it has to be tried.

    Attributes:
        failures: consecutive failures so far.
    """

    server: Server
    failures: int = 0

    def succeeded(self) -> None:
        """Note that the server did what it was asked for."""
        self.failures, self.server.has_served = 0, True

    def pause_after(self, failure: httpx.TransportError | httpx.Response) -> float:
        """Seconds until the next try.

        Raises:
            CynosureError: there is none, and this is what the failure tells of.
        """
        self.failures += 1
        retry_after_s, may_pass = None, True
        if isinstance(failure, httpx.Response):
            retry_after_s, may_pass = _retry_after_of(failure), failure.status_code in _TRY_AGAIN
        pause = self.server.retries.pause(self.failures, retry_after_s, has_served=self.server.has_served)
        if may_pass and pause is not None:
            return pause
        if isinstance(failure, httpx.Response):
            raise error_in(failure)
        said = str(failure) or type(failure).__name__
        raise Unreachable(f"No answer from {self.server.url}: {said}. Is `cynosure up` running?") from failure


def error_in(response: httpx.Response) -> CynosureError:
    """The error that an answer tells of."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return CynosureError(f"{response.url} answered {response.status_code} {response.reason_phrase}.")
    problem = Problem.model_validate_json(response.content)
    error = error_of(problem.code, problem.detail, field=problem.field, job_code=problem.job_code)
    error.line = problem.line
    error.retry_after_s = _retry_after_of(response)
    return error


def _retry_after_of(response: httpx.Response) -> int | None:
    told = response.headers.get("retry-after", "")
    return int(told) if told.isdecimal() else None
