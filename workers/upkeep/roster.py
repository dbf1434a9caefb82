"""Loading and unloading models while the worker serves."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cynosure.contract import JobError, LeavingJobs, LoadState, ModelAtWorker
from jobs.queue.record import Claim
from jobs.queue.worker import WorkerStore
from jobs.roster import RosterDesk, Wanted
from models.engine import EngineDied, PackInUse
from models.pack import InvalidPack, Pack
from workers.background import BackgroundThread
from workers.host import EngineHost

log = logging.getLogger(__name__)

LOOK_S = 0.5
MAX_ENDED = 2  # workers that may end while they load a model; the next one refuses it


@dataclass(frozen=True)
class _Held:
    """A model that was loaded, or could not be: then `reason` says why."""

    wanted: Wanted
    reason: str | None = None


class RosterKeeper(BackgroundThread):
    """Makes what this worker holds, besides its own models, what the roster wants.

    Args:
        host: loads and unloads.
        store: refuses jobs of models that leave.
        desk: the roster.
        worker_name: the name under which the worker tells how far it is.
        open_pack: opens what is wanted, by its name and model.
        listen: called with a model and whether its bells are to be received from now on.
        publish: publishes the cards.
    """

    def __init__(
        self,
        host: EngineHost,
        store: WorkerStore,
        desk: RosterDesk,
        *,
        worker_name: str,
        open_pack: Callable[[str, str], Pack],
        listen: Callable[[str, bool], None],
        publish: Callable[[], None],
    ) -> None:
        super().__init__("roster", every_s=LOOK_S)
        self._host = host
        self._store = store
        self._desk = desk
        self._worker_name = worker_name
        self._open_pack = open_pack
        self._listen = listen
        self._publish = publish
        self._own = frozenset(host.cards)
        self._held: dict[str, _Held] = {}
        self._loading: Wanted | None = None
        self._is_kept = False

    def stop(self) -> None:
        super().stop()
        self._end_loading()  # the worker was told to end, and did not fall over it

    def _turn(self) -> None:
        if self._host.claims.is_stopping:
            return
        if not self._is_kept:
            self._desk.keep(self._own)
            self._is_kept = True
        self._end_loading()  # the store was away when it ended
        wanted = {name: wish for name, wish in self._desk.wanted().items() if name not in self._own}
        leaving = {name for name, (_, jobs) in wanted.items() if jobs is not None}
        for name, held in list(self._held.items()):
            if name not in wanted or wanted[name][0] != held.wanted:
                leaving.add(name)
                self._unload(name)
        self._tell(leaving)
        for name, (wish, jobs) in wanted.items():
            if jobs is not None:
                self._finish_with(name, wish, jobs)
            if name not in self._held and jobs is not LeavingJobs.REFUSE:
                self._load(name, wish, leaving)

    def _tell(self, leaving: set[str], loading: str | None = None) -> None:
        def at(state: LoadState, **more: Any) -> ModelAtWorker:
            return ModelAtWorker(worker=self._worker_name, state=state, **more)

        states: dict[str, tuple[Wanted | None, ModelAtWorker]] = {}
        for name, held in self._held.items():
            state = LoadState.LEAVING if name in leaving else LoadState.SERVING
            if held.reason is not None:
                state = LoadState.FAILED
            states[name] = held.wanted, at(state, reason=held.reason)
        if loading is not None:
            states[loading] = None, at(LoadState.LOADING)
        states |= {name: (None, at(LoadState.SERVING, own=True)) for name in self._own}
        self._desk.tell(self._worker_name, states)

    def _load(self, name: str, wanted: Wanted, leaving: set[str]) -> None:
        log.info("loading model %s: %s", name, wanted.model)
        self._tell(leaving, loading=name)
        begun = self._desk.begin_loading(wanted)
        self._loading = wanted
        reason: str | None = None
        try:
            if begun - self._desk.workers_in(name, {LoadState.LOADING}) >= MAX_ENDED:
                raise InvalidPack(f"{MAX_ENDED} workers have ended while they loaded it: perhaps memory is short")
            self._host.add(self._open_pack(name, wanted.model))
        except EngineDied:
            return
        except (InvalidPack, MemoryError) as error:
            reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        except Exception as error:
            log.exception("loading model %s failed", name)
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        self._held[name] = _Held(wanted, reason)
        if reason is None:
            self._listen(name, True)
            log.info("model %s is loaded", name)
        else:
            log.warning("model %s can't be loaded: %s", name, reason)
        self._end_loading()
        self._publish()
        self._tell(leaving)

    def _end_loading(self) -> None:
        if self._loading is not None:
            self._desk.end_loading(self._loading)
            self._loading = None

    def _unload(self, name: str) -> None:
        """Unload the model once no job that is being drawn needs it; until then, try again at each turn."""
        if self._held[name].reason is None:
            self._host.withdraw(name)
            try:
                self._host.remove(name)
            except PackInUse:
                return
            self._listen(name, False)
            log.info("model %s is unloaded", name)
        del self._held[name]
        self._publish()

    def _finish_with(self, name: str, wanted: Wanted, jobs: LeavingJobs) -> None:
        """Have the model's last jobs drawn or refused; once there is none left, no worker needs it any more."""
        holding = {LoadState.LOADING, LoadState.SERVING, LoadState.LEAVING}
        if jobs is LeavingJobs.REFUSE or (self._is_failed(name) and not self._desk.workers_in(name, holding)):
            self._host.withdraw(name)
            self._refuse_waiting(name)
        if not self._desk.has_jobs(name, self._host.cards):
            self._desk.drop(name, wanted)

    def _is_failed(self, name: str) -> bool:
        return name in self._held and self._held[name].reason is not None

    def _refuse_waiting(self, name: str) -> None:
        error = JobError(code="model_removed", message=f"The model '{name}' was unloaded before the job was drawn.")
        while isinstance(claim := self._store.claim(name, self._worker_name, held=0), Claim):
            self._store.fail(claim, error)
