"""Time by part of the program, each part without the parts that it calls."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from functools import wraps
from typing import Any


class Stopwatch:
    """Wraps functions, so that the time that threads spend in them counts for a part.

    A part's time leaves out the wrapped functions that it calls, so that parts add up. It is a thread's time on the
    clock: two threads in a part count twice.
    """

    def __init__(self) -> None:
        self._seconds, self._calls = Counter[str](), Counter[str]()
        self._lock, self._of_thread = threading.Lock(), threading.local()

    def time(self, owner: Any, name: str, part: str) -> None:
        """Replace `owner.name` by itself, timed, for good."""
        function: Callable[..., Any] = getattr(owner, name)

        @wraps(function)
        def timed(*arguments: Any, **named: Any) -> Any:
            inner: list[float] = self._of_thread.__dict__.setdefault("inner", [])  # time of parts called, by depth
            inner.append(0.0)
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                seconds = time.perf_counter() - started
                own = seconds - inner.pop()
                if inner:
                    inner[-1] += seconds
                with self._lock:
                    self._seconds[part] += own
                    self._calls[part] += 1

        setattr(owner, name, timed)

    def reset(self) -> None:
        """Forget what was timed."""
        with self._lock:
            self._seconds.clear()
            self._calls.clear()

    def seconds(self, part: str) -> float:
        return self._seconds[part]

    def calls(self, part: str) -> int:
        return self._calls[part]
