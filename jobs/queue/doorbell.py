"""The doorbell: a Celery message (a bell) that tells a model's workers that its queue has work.

A bell carries no job. The worker that fetches it claims whatever job the queue has next, so a surplus bell is harmless,
and a lost one only costs time: the reaper rings again for jobs that have waited too long.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from celery import Celery
from kombu.transport.redis import Channel, Transport
from kombu.utils.json import dumps

from jobs.settings import StoreSettings
from jobs.store.connection import connect, sentinel_options, tls_options
from jobs.store.masters import MasterConnection, MasterSSLConnection

RUN_JOB = "cynosure.run_job"
CONNECTION_TIMEOUT_S = 5
MOST_BELLS = 1024
"""That wait at a model's workers. Whoever answers one goes on until no job waits, so more would wake nobody."""
_ID = "the-id-of-a-job"


class _MasterChannel(Channel):
    connection_class, connection_class_ssl = MasterConnection, MasterSSLConnection


class _MasterTransport(Transport):
    Channel = _MasterChannel


def queue_of(model: str) -> str:
    """The Celery queue of a model."""
    return f"cynosure.{model}"


def bells_of(settings: StoreSettings, model: str) -> str:
    """The key of the list of the model's bells that no worker has fetched yet."""
    return f"{_prefix(settings)}{queue_of(model)}"


def bell_for(model: str, job_id: str) -> str:
    """A bell as Celery writes it, for `bells_of`: the script that accepts a job rings it."""
    return _bell(model).replace(_ID, job_id)


@lru_cache(maxsize=256)
def _bell(model: str) -> str:
    """A bell in which `_ID` stands for the job's id, sent through a broker in this process's memory."""
    with Celery("cynosure-bells", broker="memory://localhost/", set_as_current=False) as celery:
        celery.send_task(RUN_JOB, args=[model], task_id=_ID, queue=queue_of(model), ignore_result=True)
        with celery.connection() as connection:
            message = connection.default_channel._get(queue_of(model))
    message["properties"]["delivery_tag"] = _ID
    text: str = dumps(message)
    return text


def _prefix(settings: StoreSettings) -> str:
    return f"{settings.key_prefix}:bell:"


def celery_settings(settings: StoreSettings) -> dict[str, Any]:
    """Celery configuration that the sender and the receiver of a bell share."""
    address = settings.sentinels
    found = {"master_name": address.service, "sentinel_kwargs": sentinel_options(settings)} if address else {}
    is_one = address is None and not settings.redis_url.startswith("unix:")
    return {
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": False,
        "task_create_missing_queues": True,
        "worker_disable_prefetch": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "broker_connection_retry": True,
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,  # retry for ever: a worker is useless without its broker
        "broker_channel_error_retry": True,  # such as "unblocked": its server has become a replica
        "broker_transport": _MasterTransport if is_one else None,  # None: by the address
        "broker_use_ssl": tls_options(settings) if settings.uses_tls else False,
        "broker_transport_options": {
            "global_keyprefix": _prefix(settings),
            # Fetched bells are listed in the worker's memory, which puts them back at its end. In the store they would
            # take two round trips each, to be rung again an hour after a crash: the reaper rings within seconds.
            "ack_emulation": False,
            # Without these, a half-open connection blocks for a minute, or for ever.
            "socket_timeout": CONNECTION_TIMEOUT_S,
            "socket_connect_timeout": CONNECTION_TIMEOUT_S,
            "socket_keepalive": True,
            "health_check_interval": CONNECTION_TIMEOUT_S,
            **found,
        },
    }


class Doorbell:
    """Rings workers. Thread-safe."""

    def __init__(self, settings: StoreSettings) -> None:
        self._celery = Celery("cynosure-doorbell", broker=settings.broker_url)
        self._celery.conf.update(celery_settings(settings))
        self._client = connect(settings, "cynosure-doorbell")
        self._settings = settings

    def ring(self, model: str, job_id: str | None = None) -> None:
        """Tell the model's workers that there is work. `job_id`, if any, becomes the id of the message.

        Raises:
            kombu.exceptions.OperationalError: the broker is away; the reaper rings again.
        """
        self._celery.send_task(RUN_JOB, args=[model], task_id=job_id, queue=queue_of(model), retry=False)

    def pending_bells(self, model: str) -> int:
        """The number of bells that no worker has fetched yet."""
        return int(self._client.llen(bells_of(self._settings, model)))

    def check_fetching(self) -> None:
        """Check that bells can be fetched at all: to fetch one is a write.

        Raises:
            RedisError: the store is away, or refuses writes at its memory limit.
        """
        self._client.set(f"{_prefix(self._settings)}heard", "1", px=1000)

    def close(self) -> None:
        self._celery.close()
        self._client.close()
