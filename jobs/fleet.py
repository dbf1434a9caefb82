"""The live workers: the model cards that they publish, how they are, and who is told to drain."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import redis
import redis.asyncio
from pydantic import ValidationError

from cynosure.contract import ModelCard, WorkerStatus
from cynosure.refusals import no_such_model, no_such_worker
from jobs.settings import StoreSettings
from jobs.store.answering import answering
from jobs.store.connection import StoreClient, connect
from jobs.store.keyspace import Keys

log = logging.getLogger(__name__)

REGISTRATION_S = 15
DRAIN_ORDER_S = 300  # a worker looks every second, unless the store is away
_CACHE_S = 1.0
_CALIBRATION_TTL_S = 30 * 86_400
_KNOWN_TTL_S = 30 * 86_400  # after the last worker, or gateway that accepts jobs without one


class FleetRegistry:
    """The worker's side: publish several times per `REGISTRATION_S`, and withdraw before leaving."""

    def __init__(self, settings: StoreSettings) -> None:
        self._client = connect(settings, "cynosure-fleet")
        self._keys = Keys(settings.key_prefix)

    def publish(self, worker: str, cards: Sequence[ModelCard]) -> None:
        shown = [card.model_dump(mode="json") for card in cards]
        payload = json.dumps(shown)
        now = self._client.time()[0]
        with self._client.pipeline() as pipe:
            pipe.set(self._keys.worker(worker), payload, ex=REGISTRATION_S)
            _register(pipe, self._keys.workers, worker, now)
            pipe.execute()
        self._remember({card["name"]: json.dumps({"place": place, "card": card}) for place, card in enumerate(shown)})

    def _remember(self, entries: dict[str, str]) -> None:
        """Keep these in the models that are known, but for those that leave. What is there already is not written."""
        if not entries:
            return
        with self._client.pipeline() as pipe:
            pipe.hmget(self._keys.models_known, list(entries))
            pipe.hkeys(self._keys.models_leaving)
            pipe.expire(self._keys.models_known, _KNOWN_TTL_S)
            known, leaving, _ = pipe.execute()
        new: dict[Any, Any] = {
            name: entry
            for (name, entry), before in zip(entries.items(), known, strict=True)
            if entry.encode() != before and name.encode() not in leaving
        }
        if new:
            with self._client.pipeline() as pipe:
                pipe.hset(self._keys.models_known, mapping=new)
                pipe.expire(self._keys.models_known, _KNOWN_TTL_S)
                pipe.execute()

    def tell(self, status: WorkerStatus) -> bool:
        """Say how a worker is; whether it was told to drain."""
        now = self._client.time()[0]
        with self._client.pipeline() as pipe:
            pipe.get(self._keys.worker_drain(status.name))
            pipe.set(self._keys.worker_status(status.name), status.model_dump_json(), ex=REGISTRATION_S)
            _register(pipe, self._keys.workers_seen, status.name, now)
            order, *_ = pipe.execute()
        return order is not None

    def calibration(self, key: str) -> bytes | None:
        """The calibration that a worker of this deployment stored under `key`, if any."""
        raw: Any = self._client.getex(self._keys.calibration(key), ex=_CALIBRATION_TTL_S)
        return raw if raw is None else bytes(raw)

    def keep_calibration(self, key: str, calibration: bytes) -> None:
        self._client.set(self._keys.calibration(key), calibration, ex=_CALIBRATION_TTL_S)

    def withdraw(self, worker: str) -> None:
        """Publish no cards any more: the worker takes no more jobs."""
        with self._client.pipeline() as pipe:
            pipe.delete(self._keys.worker(worker))
            pipe.zrem(self._keys.workers, worker)
            pipe.execute()

    def leave(self, worker: str) -> None:
        """The worker has ended."""
        with self._client.pipeline() as pipe:
            pipe.delete(self._keys.worker_status(worker), self._keys.worker_drain(worker))
            pipe.zrem(self._keys.workers_seen, worker)
            pipe.execute()


def _register(pipe: redis.client.Pipeline, members: str, worker: str, now: int) -> None:
    """Keep a worker in a set for as long as a registration lasts, and others no longer than theirs."""
    pipe.zadd(members, {worker: now + REGISTRATION_S})
    pipe.zremrangebyscore(members, "-inf", now)
    # Ends too far ahead: the store's clock was set back. Live workers register again within seconds.
    pipe.zremrangebyscore(members, now + 2 * REGISTRATION_S, "+inf")
    pipe.expire(members, 2 * REGISTRATION_S)


@dataclass(frozen=True)
class Workers:
    """How many workers take jobs, and how many of them hold each model, in the order of the cards; 0 if none does."""

    count: int
    by_model: Mapping[str, int]


class Fleet(StoreClient):
    """The gateway's side: the cards of all live workers, at most a second old.

    If jobs are accepted without a worker, also those of models that no worker holds any more.
    """

    def __init__(self, client: redis.asyncio.Redis, settings: StoreSettings) -> None:
        super().__init__(client, settings)
        self._cards: dict[str, ModelCard] = {}
        self._workers = Workers(0, {})
        self._names: list[str] = []
        self._read_at = float("-inf")

    async def card(self, name: str) -> ModelCard:
        """The card of one model.

        Raises:
            ModelNotFound: no live worker holds it.
            StoreUnavailable: Redis is away.
        """
        cards = await self.cards()
        if name not in cards:
            raise no_such_model(name, cards)
        return cards[name]

    def look_again(self) -> None:
        """Read the cards at the next call, even if those at hand are new."""
        self._read_at = float("-inf")

    async def workers(self) -> Workers:
        """The workers, as new as the cards.

        Raises:
            StoreUnavailable: Redis is away.
        """
        await self.cards()
        return self._workers

    async def statuses(self) -> list[WorkerStatus]:
        """All live workers, also those that drain, by name.

        Raises:
            StoreUnavailable: Redis is away.
        """
        async with answering():
            members: list[Any] = list(await self._client.zrange(self._keys.workers_seen, 0, -1))
            names = sorted(raw.decode() for raw in members)
            told = await self._client.mget([self._keys.worker_status(name) for name in names]) if names else []
        return [WorkerStatus.model_validate_json(raw) for raw in told if raw]

    async def drain(self, name: str) -> WorkerStatus:
        """Tell a worker to drain; it hears that within a second or two.

        Raises:
            WorkerNotFound: there is none of that name.
            StoreUnavailable: Redis is away.
        """
        statuses = {status.name: status for status in await self.statuses()}
        if name not in statuses:
            raise no_such_worker(name, statuses)
        async with answering():
            await self._client.set(self._keys.worker_drain(name), "1", ex=DRAIN_ORDER_S)
        return statuses[name]

    async def cards(self) -> dict[str, ModelCard]:
        """Cards by model name, in the order in which the workers name their models.

        Models that are being unloaded are left out. If the workers' orders differ, a model's place is the foremost that
        it has at any worker; equal places go by name.

        Raises:
            StoreUnavailable: Redis is away.
        """
        if time.monotonic() - self._read_at < _CACHE_S and self._cards:
            return self._cards
        async with answering():
            payloads, leaving, known = await self._published()
        leave = {raw.decode() for raw in leaving}
        cards: dict[str, ModelCard] = {}
        places: dict[str, int] = {}
        rosters = [json.loads(raw) for raw in payloads if raw]
        for published in rosters:
            for place, card in enumerate(map(ModelCard.model_validate, published)):
                other = cards.get(card.name, card)  # another worker's: promise only what both can keep
                both = {
                    "measured": card.measured and other.measured,
                    "reproducible": card.reproducible and other.reproducible,
                    "loras": tuple(lora for lora in card.loras if lora in other.loras),
                    "controls": tuple(control for control in card.controls if control in other.controls),
                }
                cards[card.name] = card.model_copy(update=both)
                places[card.name] = min(place, places.get(card.name, place))
        for name, (place, card) in _remembered(known, without=set(cards)).items():
            cards[name], places[name] = card, place
        self._cards = {
            name: cards[name] for name in sorted(cards.keys() - leave, key=lambda name: (places[name], name))
        }
        counts = Counter(card["name"] for published in rosters for card in published)
        self._workers = Workers(len(rosters), {name: counts[name] for name in self._cards})
        self._read_at = time.monotonic()
        return self._cards

    async def _published(self) -> tuple[list[bytes | None], list[bytes], dict[bytes, bytes]]:
        """The live workers' cards, names of models that leave, and what is known of models without workers, if need be.

        In one round trip, unless workers came or went since the last time.
        """
        async with self._client.pipeline(transaction=False) as pipe:
            while True:
                asked = self._names
                pipe.zrange(self._keys.workers, 0, -1)
                pipe.hkeys(self._keys.models_leaving)
                for name in asked:
                    pipe.get(self._keys.worker(name))
                if self._settings.accept_without_worker:
                    pipe.hgetall(self._keys.models_known)
                    pipe.expire(self._keys.models_known, _KNOWN_TTL_S)
                members, leaving, *rest = await pipe.execute()
                self._names = sorted(raw.decode() for raw in members)
                if asked == self._names:
                    return rest[: len(asked)], leaving, rest[len(asked)] if len(rest) > len(asked) else {}

    async def known(self) -> list[str]:
        """Names of all models that a worker has held, those that left included.

        Raises:
            StoreUnavailable: Redis is away.
        """
        async with answering():
            names: Any = await self._client.hkeys(self._keys.models_known)
        return [name.decode() for name in names]


def _remembered(known: Mapping[bytes, bytes], *, without: Collection[str]) -> dict[str, tuple[int, ModelCard]]:
    """Places and cards of the models that no worker holds; cards that this version can't read are left out."""
    found: dict[str, tuple[int, ModelCard]] = {}
    for raw, entry in known.items():
        if (name := raw.decode()) in without:
            continue
        fields = json.loads(entry)
        try:
            found[name] = fields["place"], ModelCard.model_validate(fields["card"] | {"served": False})
        except ValidationError:
            log.warning("the card of model %s is another version's; it is known again once a worker holds it", name)
    return found
