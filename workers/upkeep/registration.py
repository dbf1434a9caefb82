"""Registering the worker, so that gateways know its models."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from cynosure.contract import ModelCard
from jobs.fleet import REGISTRATION_S, FleetRegistry
from workers.background import BackgroundThread
from workers.claims import Claims


class Registration(BackgroundThread):
    """Publishes the worker's model cards, three times per registration period, so that one lost call does no harm."""

    def __init__(
        self, fleet: FleetRegistry, claims: Claims, worker_name: str, cards: Callable[[], Sequence[ModelCard]]
    ) -> None:
        super().__init__("registration", every_s=REGISTRATION_S / 3)
        self._fleet = fleet
        self._claims = claims
        self._worker_name = worker_name
        self._cards = cards

    def publish(self) -> None:
        """Publish the cards now, unless the worker takes no more jobs.

        Raises:
            RedisError: the store is away.
        """
        if not self._claims.is_stopping:
            self._fleet.publish(self._worker_name, self._cards())

    def _turn(self) -> None:
        self.publish()
