"""Lanes run the calls of a tick on as many threads as they are, the caller's among them."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from models.lanes import Lanes, Layout, set_thread_count


def called_from(threads: int, work: Callable[[], object]) -> object:
    """The result of `work` on a thread whose operators use so many threads."""
    with ThreadPoolExecutor(1, "caller", initializer=set_thread_count, initargs=(threads,)) as caller:
        return caller.submit(work).result()


@pytest.mark.parametrize("threads", [1, 2])
def test_two_calls_run_at_once_and_the_caller_runs_one_if_it_has_a_lanes_threads(threads: int) -> None:
    both, names = threading.Barrier(2), set[str]()

    def call() -> str:
        both.wait(10)  # breaks unless another call runs now
        names.add(threading.current_thread().name.partition("_")[0])
        return "done"

    with Lanes(Layout(lanes=2, threads=1)) as lanes:
        assert called_from(threads, lambda: lanes.run([call] * 6)) == ["done"] * 6
    assert names == ({"caller", "lane"} if threads == 1 else {"lane"})


def test_never_more_calls_run_than_there_are_lanes_and_the_first_error_is_raised_once_all_are_over() -> None:
    running, most, over = 0, 0, list[int]()
    lock, meeting = threading.Lock(), threading.Barrier(2)

    def call(number: int) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        meeting.wait(10)
        with lock:
            running -= 1
            over.append(number)
        if number % 2:
            raise ValueError(f"call {number}")

    with Lanes(Layout(lanes=2, threads=1)) as lanes, pytest.raises(ValueError, match="call 1"):
        called_from(1, lambda: lanes.run([lambda number=number: call(number) for number in range(6)]))
    assert (most, sorted(over)) == (2, list(range(6)))
