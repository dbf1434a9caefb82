"""The doorbell: a Celery message that holds a job's id and nothing else."""

from __future__ import annotations

from typing import Any

import redis
from celery import Celery

from app.jobs.record import PRIORITIES
from app.jobs.settings import StoreSettings
from cynosure.contract import Priority

RUN_JOB = "cynosure.run_job"
_SEPARATOR = "\x06\x16"  # kombu's own between a queue's name and its priority step
_STEPS = {priority: step for step, priority in enumerate(PRIORITIES)}


def queue_of(model: str) -> str:
    """The Celery queue of a model."""
    return f"cynosure.{model}"


def celery_settings(settings: StoreSettings) -> dict[str, Any]:
    """Configuration that both ends of the bell share."""
    return {
        "task_serializer": "json",
        "accept_content": ["json"],
        "task_ignore_result": True,
        "task_acks_late": False,
        "task_create_missing_queues": True,
        "worker_disable_prefetch": True,
        "worker_hijack_root_logger": False,
        "worker_redirect_stdouts": False,
        "broker_connection_retry_on_startup": True,
        "broker_transport_options": {
            "priority_steps": list(_STEPS.values()),
            "queue_order_strategy": "priority",
            "global_keyprefix": f"{settings.key_prefix}:bell:",
        },
    }


class Doorbell:
    """Rings workers. Thread-safe."""

    def __init__(self, settings: StoreSettings) -> None:
        self._celery = Celery("cynosure-doorbell", broker=settings.broker_url)
        self._celery.conf.update(celery_settings(settings))
        self._client = redis.Redis.from_url(settings.redis_url, client_name="cynosure-doorbell")
        self._prefix = f"{settings.key_prefix}:bell:"

    def ring(self, job_id: str, model: str, priority: Priority) -> None:
        """Tell the model's workers of a job.

        Raises:
            kombu.exceptions.OperationalError: the broker is away; the reaper rings again.
        """
        self._celery.send_task(
            RUN_JOB, args=[job_id], task_id=job_id, queue=queue_of(model), priority=_STEPS[priority], retry=False
        )

    def pending_bells(self, model: str) -> int:
        """Bells that no worker has fetched yet."""
        names = [queue_of(model) + (f"{_SEPARATOR}{step}" if step else "") for step in _STEPS.values()]
        return sum(int(self._client.llen(self._prefix + name)) for name in names)

    def close(self) -> None:
        self._celery.close()
        self._client.close()
