"""The processes that `cynosure up` supervises."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from types import FrameType

from cynosure.programs import program

STOP_GRACE_S = 30.0
HURRY_S = 5.0  # after a second signal
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PR_SET_PDEATHSIG = 1  # prctl(2)
FIRST_BACKOFF_S = 1.0
MAX_BACKOFF_S = 30.0
STEADY_S = 60.0  # an exit after this much uptime resets the back-off

log = logging.getLogger("up")

_LIBC = ctypes.CDLL(None, use_errno=True)


def end_with_parent() -> None:
    """Have the kernel send this process SIGTERM when its parent ends for any reason."""
    _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)


def run(module: str, *arguments: str, environment: dict[str, str]) -> int:
    """Run a program to its end and return its exit code; if this is interrupted, the program is killed."""
    command = program(module, *arguments)
    with subprocess.Popen(command, env=environment, start_new_session=True, preexec_fn=end_with_parent) as process:
        try:
            return process.wait()
        except BaseException:
            process.kill()
            raise


class Child:
    """A supervised process: if it exits by itself, it is restarted with exponential back-off.

    Args:
        module: the program.
        arguments: its arguments.
        environment: its whole environment.
        name: what it is called in the log; by default as the program.
        cpus: those that it may run on; by default all.
        may_end: whether it stays away after it has exited with code 0.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        environment: dict[str, str],
        name: str | None = None,
        cpus: Collection[int] | None = None,
        may_end: bool = False,
    ) -> None:
        self.name = name or module
        self.command = program(module, *arguments)
        self.environment = environment
        self._cpus = cpus
        self._may_end = may_end
        self._has_ended = False
        self.backoff_s = FIRST_BACKOFF_S
        self.started_at = 0.0
        self.restart_at = 0.0
        self.process: subprocess.Popen[bytes] | None = None

    def tend(self) -> None:
        if self.process is not None and self.process.poll() is not None:
            if self.has_refused:
                sys.exit(os.EX_CONFIG)
            if self._may_end and self.process.returncode == os.EX_OK:
                log.info("%s: drained, and so not restarted", self.name)
                self.process, self._has_ended = None, True
                return
            log.warning("%s exited with code %d; restarting it", self.name, self.process.returncode)
            self.process = None
            if time.monotonic() - self.started_at >= STEADY_S:
                self.backoff_s = FIRST_BACKOFF_S
            self.restart_at = time.monotonic() + self.backoff_s
            self.backoff_s = min(MAX_BACKOFF_S, 2 * self.backoff_s)
        if self.process is None and not self._has_ended and time.monotonic() >= self.restart_at:
            # In its own session: the terminal's Ctrl-C reaches only the supervisor, which stops the children in order.
            # If the supervisor is killed, no child outlives it. It has a single thread, so preexec_fn is safe.
            self.started_at = time.monotonic()
            self.process = subprocess.Popen(
                self.command, env=self.environment, start_new_session=True, preexec_fn=self._prepare
            )

    def _prepare(self) -> None:
        end_with_parent()
        if self._cpus is not None:
            os.sched_setaffinity(0, self._cpus)

    def stop(self) -> None:
        if self._running is not None:
            self._running.terminate()

    @property
    def has_refused(self) -> bool:
        """Whether it ended with the code that says: it printed why, and a restart would end the same way."""
        return self.process is not None and self.process.poll() == os.EX_CONFIG

    @property
    def is_running(self) -> bool:
        return self._running is not None

    def kill(self) -> None:
        if (process := self._running) is not None:
            process.kill()
            process.wait()

    @property
    def _running(self) -> subprocess.Popen[bytes] | None:
        return self.process if self.process is not None and self.process.poll() is None else None


def stop(children: list[Child]) -> None:
    """Stop gracefully. A further signal is passed on, and makes workers hand back at once the jobs that they hold."""
    until = time.monotonic() + STOP_GRACE_S

    def hurry(number: int, frame: FrameType | None) -> None:
        nonlocal until
        until = min(until, time.monotonic() + HURRY_S)
        for child in children:
            child.stop()

    for number in STOP_SIGNALS:
        signal.signal(number, hurry)
    for child in children:
        child.stop()
    while any(child.is_running for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    for child in children:
        child.kill()
