"""The thread that prepares samples."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from models.engine.preparing.preparation import Preparation
from models.engine.sample import Inputs
from models.lanes import set_thread_count
from models.spec import SampleSpec

MOST_TOGETHER = 32  # specs: the first of them waits until the prompts of all are encoded
Asked = tuple[Preparation, SampleSpec]


class PreparingThread:
    """Prepares the samples of all callers; the prompts that wait while it is busy are then encoded together.

    It is one thread, because an encoder's sums may round differently with another number of threads, and a fast
    tokenizer must not be used by two threads at once.

    Attributes:
        executor: for other work that needs this thread.
    """

    def __init__(self, name: str) -> None:
        self.executor = ThreadPoolExecutor(1, name, initializer=set_thread_count, initargs=(1,))
        self._waiting: deque[Asked] = deque()
        self._ahead = 0  # specs whose prompts were encoded, and that are not prepared yet

    def prepare(self, asked: Sequence[Asked]) -> list[Inputs]:
        """Prepare specs by their packs' preparations.

        Raises:
            Exception: what `Preparation.prepare` raises for the first of them that can't be prepared.
        """
        self._waiting.extend(asked)
        futures = [self.executor.submit(self._prepare, *each) for each in asked]
        return [future.result() for future in futures]

    def _prepare(self, preparation: Preparation, spec: SampleSpec) -> Inputs:
        if not self._ahead:
            self._ahead = self._encode_waiting()
        self._ahead -= 1
        return preparation.prepare(spec)

    def _encode_waiting(self) -> int:
        """Encode the prompts of the specs that wait; returns how many specs."""
        asked = [self._waiting.popleft() for _ in range(min(len(self._waiting), MOST_TOGETHER))]
        by_pack: dict[Preparation, list[SampleSpec]] = {}
        for preparation, spec in asked:
            by_pack.setdefault(preparation, []).append(spec)
        for preparation, specs in by_pack.items():
            with suppress(Exception):  # each is then prepared alone, and what is wrong is raised for that one
                preparation.encode_prompts(specs)
        return len(asked)
