"""Calibrations shared by the workers of a deployment."""

from __future__ import annotations

import logging

from pydantic import ValidationError
from redis.exceptions import RedisError

from jobs.fleet import FleetRegistry
from models.calibration import Calibration, FileCalibrations

log = logging.getLogger(__name__)


class SharedCalibrations:
    """Kept in the user's cache folder and in the store, so that a new worker need not measure again.

    This only saves time: a calibration changes no bytes of a picture, so an unreachable store is not an error.
    """

    def __init__(self, fleet: FleetRegistry) -> None:
        self._fleet = fleet
        self._files = FileCalibrations()

    def load(self, key: str) -> Calibration | None:
        if (kept := self._files.load(key)) is not None:
            return kept
        try:
            raw = self._fleet.calibration(key)
            return Calibration.from_json(raw) if raw is not None else None
        except (RedisError, ValidationError) as error:
            log.warning("could not read a calibration from the store: %s", error)
            return None

    def save(self, key: str, calibration: Calibration) -> None:
        self._files.save(key, calibration)
        try:
            self._fleet.keep_calibration(key, calibration.to_json())
        except RedisError as error:
            log.warning("could not keep a calibration in the store: %s", error)
