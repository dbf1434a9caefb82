"""The Celery application: one task, whose argument is the model that has work."""

from __future__ import annotations

import logging

from celery import Celery
from celery.apps.worker import Worker
from kombu import Queue

from jobs.queue.doorbell import RUN_JOB, celery_settings, queue_of
from jobs.settings import StoreSettings
from workers.host import EngineHost


class SilentWorker(Worker):
    """Receives the bells of models that come and go.

    Leaves the log as it is, and signals to the drain: Celery's handlers print, and on SIGHUP restart the
    worker.
    """

    def listen(self, model: str, is_wanted: bool) -> None:
        """Receive the model's bells, or no longer. Takes effect within a second, on Celery's thread."""
        queue = queue_of(model)
        if is_wanted:
            self.app.amqp.queues.add(Queue(queue))
            self.consumer.call_soon(self.consumer.add_task_queue, queue)
        else:
            self.consumer.call_soon(self.consumer.cancel_task_queue, queue)

    def setup_logging(self, colorize: bool | None = None) -> bool:
        logging.getLogger("celery").setLevel(logging.WARNING)
        return True  # "it is set up"

    def install_platform_tweaks(self, worker: Worker) -> None:
        pass


def build_celery(settings: StoreSettings, host: EngineHost) -> Celery:
    """A Celery app whose `run_job` task makes `host` work; it consumes the queues of the host's models."""
    celery = Celery("cynosure", broker=settings.broker_url)
    celery.conf.update(celery_settings(settings))
    celery.conf.task_queues = [Queue(queue_of(model)) for model in host.cards]

    @celery.task(name=RUN_JOB)
    def run_job(model: str) -> None:
        host.run(model)

    return celery
