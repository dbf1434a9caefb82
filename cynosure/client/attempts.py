"""Retries and errors of the clients: pure, and shared by both."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx

from cynosure.addresses import is_loopback
from cynosure.contract import Problem
from cynosure.errors import CynosureError, JobFailed, Unreachable

_TRY_AGAIN = frozenset({429, 502, 503, 504})


@dataclass(frozen=True)
class Retries:
    """When a failed call is sent again: after `Retry-After` if the server sent it, otherwise with exponential back-off.

    Attributes:
        times: retries after the first try; the default's pauses add up to 32 s, enough for a gateway to restart.
        times_unmet: most retries until the server has answered once: the address may be wrong.
        first_s: pause before the first retry; each further pause is twice as long.
        longest_s: if `Retry-After` exceeds this, do not wait: raise the error.
    """

    times: int = 7
    times_unmet: int = 4
    first_s: float = 0.25
    longest_s: float = 60.0

    def pause(self, failures: int, retry_after_s: float | None = None, *, has_served: bool) -> float | None:
        """Seconds until the next try after this many failures, or `None` if there is none."""
        if failures > (self.times if has_served else min(self.times, self.times_unmet)):
            return None
        pause = self.first_s * 2 ** (failures - 1) if retry_after_s is None else retry_after_s
        return pause if pause <= self.longest_s else None


def connection(url: str, api_key: str | None, timeout_s: float) -> dict[str, Any]:
    """Keyword arguments of httpx's clients."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    options = {"base_url": url, "headers": headers, "timeout": timeout_s}
    if is_loopback(
        httpx.URL(url).host
    ):  # this machine, which no proxy of the environment reaches; only its certificates
        options |= {"trust_env": False, "verify": httpx.create_ssl_context()}
    return options


@dataclass
class Server:
    """What one client knows about its server.

    Attributes:
        has_served: whether a call of this client has ever succeeded.
    """

    url: str
    retries: Retries
    has_served: bool = False


@dataclass
class Attempts:
    """One exchange with a server, over all its tries.

    Attributes:
        failures: consecutive failures so far.
    """

    server: Server
    failures: int = 0

    def succeeded(self) -> None:
        """Record that the call succeeded."""
        self.failures, self.server.has_served = 0, True

    def pause_after(self, failure: httpx.TransportError | httpx.Response) -> float:
        """Seconds until the next try.

        Raises:
            CynosureError: there is no further try; the error is the one that the failure stands for.
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
        reason = str(failure).rstrip(".") or type(failure).__name__
        raise Unreachable(f"No answer from {self.server.url}: {reason}. Is `cynosure up` running?") from failure


def error_in(response: httpx.Response) -> CynosureError:
    """The error that an answer stands for."""
    if not response.headers.get("content-type", "").startswith("application/problem+json"):
        return CynosureError(f"{response.url} answered {response.status_code} {response.reason_phrase}.")
    problem = Problem.model_validate_json(response.content)
    error = _error_of(problem.code, problem.detail, field=problem.field, job_code=problem.job_code)
    error.line = problem.line
    error.retry_after_s = _retry_after_of(response)
    return error


def _retry_after_of(response: httpx.Response) -> int | None:
    seconds = response.headers.get("retry-after", "")
    return int(seconds) if seconds.isdecimal() else None


def _kinds(root: type[CynosureError]) -> dict[str, type[CynosureError]]:
    below = [kind for child in root.__subclasses__() for kind in _kinds(child).items()]
    return {root.code: root, **dict(below)}


def _error_of(code: str, detail: str, *, field: str | None = None, job_code: str | None = None) -> CynosureError:
    """Rebuild a server's error: an instance of the class with this `code`, or of `CynosureError` if none has it."""
    kind = _kinds(CynosureError).get(code, CynosureError)
    error = kind.__new__(kind)  # the constructors compose the detail, which is complete here
    CynosureError.__init__(error, detail, field=field)
    if isinstance(error, JobFailed):
        error.job_code = job_code or "unknown"
    return error
