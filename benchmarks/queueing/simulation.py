"""The simulation: requests, and lanes that run ticks, or cores that run one request after another."""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from benchmarks.load import Answered, Measured, arrivals
from benchmarks.queueing.costs import Costs
from benchmarks.queueing.policies import Job, Picture, Policy
from benchmarks.stream import Asked

WARM_UP_S = 15.0


class _Clock:
    """Simulated time: calls to be made at a time, earliest first, and equal ones in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self._calls: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, call: Callable[[], None]) -> None:
        heapq.heappush(self._calls, (self.now + seconds, next(self._numbers), call))

    def run(self, until: float) -> None:
        while self._calls and self._calls[0][0] <= until:
            self.now, _, call = heapq.heappop(self._calls)
            call()


@dataclass(frozen=True)
class Clients:
    """A closed loop: each of so many clients sends a request when the last one is answered."""

    number: int

    def __str__(self) -> str:
        return f"{self.number} clients"


@dataclass(frozen=True)
class AtRandom:
    """An open loop: requests come at random (Poisson) times, whether or not earlier ones are answered."""

    requests_per_s: float

    def __str__(self) -> str:
        return f"{self.requests_per_s:.1f} requests/s"


Load = Clients | AtRandom


class Simulation:
    """One server under a load.

    Args:
        costs: of its ticks.
        stream: of requests.
        load: when they come.
    """

    def __init__(self, costs: Costs, stream: Iterator[Asked], load: Load) -> None:
        self.costs = costs
        self._stream = stream
        self._load = load
        self._clock = _Clock()
        self._answered: list[Answered] = []

    def measured(self, name: str, *, seconds: float) -> Measured:
        """What a window of `seconds` shows, with the same load before it.

        In an open loop the requests that are sent in the window count, whenever they end.
        """
        end = WARM_UP_S + seconds
        window = Measured(name, str(self._load), WARM_UP_S, end, is_steady=isinstance(self._load, Clients))
        if isinstance(self._load, Clients):
            for _ in range(self._load.number):
                self._send()
            self._clock.run(end)
        else:
            for at in arrivals(self._load.requests_per_s, end):
                self._clock.after(at, self._send)
            self._clock.run(math.inf)
            window.counted = {request.asked for request in self._answered if request.sent >= WARM_UP_S}
        window.answered += self._answered
        return window

    def _send(self) -> None:
        job = Job(next(self._stream), self._clock.now)
        self._clock.after(self.costs.request_ms / 1000, lambda: self._arrive(job))

    def _answer(self, job: Job) -> None:
        self._answered.append(Answered(job.asked, job.sent, self._clock.now))
        if isinstance(self._load, Clients):
            self._send()

    def _arrive(self, job: Job) -> None:
        raise NotImplementedError


class Ticks(Simulation):
    """Lanes that run ticks, whose pictures a policy chooses; one that leaves nothing to others runs over all lanes."""

    def __init__(self, costs: Costs, stream: Iterator[Asked], load: Load, policy: Policy) -> None:
        super().__init__(costs, stream, load)
        self._policy = policy
        self._lanes_in_use = 0
        self._groups = itertools.count()

    def _arrive(self, job: Job) -> None:
        group = str(next(self._groups))
        for _ in range(job.asked.count):
            self._policy.enqueue(Picture(job, group, job.asked.steps), now=self._clock.now)
        self._start()

    def _start(self) -> None:
        while self._lanes_in_use < self.costs.lanes and self._policy.has_idle:
            pictures = self._policy.take(now=self._clock.now)
            lanes = 1 if self._lanes_in_use or self._policy.has_idle else self.costs.lanes
            rows = sum(picture.rows_now for picture in pictures)
            classifier_rows = sum(picture.wants_classifier_now for picture in pictures)
            seconds = self.costs.tick_s(rows, classifier_rows, alone=lanes > 1)
            self._lanes_in_use += lanes
            self._clock.after(seconds, lambda pictures=pictures, lanes=lanes: self._end(pictures, lanes))  # type: ignore[misc]

    def _end(self, pictures: list[Picture], lanes: int) -> None:
        self._lanes_in_use -= lanes
        self._policy.put_back(pictures)
        for picture in pictures:
            picture.evaluations_left -= 1
            if not picture.evaluations_left:
                self._policy.remove(picture)
                picture.job.pictures_left -= 1
                if not picture.job.pictures_left:
                    self._answer(picture.job)
        self._start()


class OneEach(Simulation):
    """A process a core, each of which draws one request at a time, its rows in one batch: a Celery task each."""

    def __init__(self, costs: Costs, stream: Iterator[Asked], load: Load) -> None:
        super().__init__(costs, stream, load)
        self._waiting: list[Job] = []
        self._busy = 0

    def _arrive(self, job: Job) -> None:
        self._waiting.append(job)
        self._start()

    def _start(self) -> None:
        while self._waiting and self._busy < self.costs.lanes:
            job = self._waiting.pop(0)
            asked = job.asked
            rows = asked.denoiser_rows // asked.steps
            classifier_rows = asked.classifier_rows // asked.steps
            step_ms = self.costs.denoiser(rows) + self.costs.classifier(classifier_rows) + self.costs.step_ms
            self._busy += 1
            self._clock.after(asked.steps * step_ms / 1000, lambda job=job: self._end(job))  # type: ignore[misc]

    def _end(self, job: Job) -> None:
        self._busy -= 1
        self._answer(job)
        self._start()
