"""The place for pictures that the settings name."""

from __future__ import annotations

import logging

from cynosure.errors import StorageUnavailable
from jobs.metrics import Metrics
from jobs.pictures.in_s3 import PicturesInS3
from jobs.pictures.in_store import PicturesInStore
from jobs.pictures.keeping import Pictures
from jobs.settings import StoreSettings

log = logging.getLogger(__name__)


def pictures_of(settings: StoreSettings, metrics: Metrics) -> Pictures:
    """The place that `CYNOSURE_PICTURES` names; the job store itself if it is not set. Opens no connection.

    Raises:
        InvalidSettings: a variable `AWS_…` is wrong.
    """
    if settings.pictures is None:
        return PicturesInStore()
    return PicturesInS3(settings.pictures, settings, metrics)


def check_pictures(settings: StoreSettings) -> None:
    """Try the place once, before anything needs it; if it does not answer, say so and go on.

    Raises:
        InvalidSettings: it refuses what the settings give it, or these are wrong.
    """
    try:
        pictures_of(settings, Metrics()).check()
    except StorageUnavailable as error:
        log.warning("%s", error.detail)
