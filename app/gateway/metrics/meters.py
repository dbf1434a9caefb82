"""What a gateway counts."""

from __future__ import annotations

from typing import Literal, get_args

from prometheus_client import Counter, Histogram

from cynosure.contract import JobStatus
from jobs.metrics import Metrics
from jobs.queue.gateway import Accepted

HTTP_S = (0.005, 0.025, 0.1, 0.5, 1, 5, 30)

JobRoute = Literal["generate", "sweeps", "jobs", "batches", "openai", "replicate", "a1111"]
"""How a job came: by which of Cynosure's own routes, or in whose API."""
DeliveryOutcome = Literal["delivered", "failed", "retried"]


class GatewayMetrics(Metrics):
    """Those of a gateway's requests."""

    def __init__(self) -> None:
        super().__init__()
        self._accepted = Counter(
            "cynosure_jobs_accepted_total",
            "Jobs accepted, those that the result cache answers included.",
            ["model", "route"],
            registry=self.registry,
        )
        self._hits = Counter(
            "cynosure_result_cache_hits_total", "Jobs that the result cache answered.", registry=self.registry
        )
        self._misses = Counter(
            "cynosure_result_cache_misses_total",
            "Jobs that it could have answered, had they been drawn before.",
            registry=self.registry,
        )
        self._deliveries = Counter(
            "cynosure_webhook_deliveries_total",
            "Calls to webhooks; a retried one failed and is tried again.",
            ["outcome"],
            registry=self.registry,
        )
        for outcome in get_args(DeliveryOutcome):
            self._deliveries.labels(outcome)  # 0 from the start, so that the first one shows as a rise
        self._requests = Histogram(
            "cynosure_http_request_seconds",
            "Time until the answer began, by the route's template; without one, the request reached no route.",
            ["method", "route", "status"],
            buckets=HTTP_S,
            registry=self.registry,
        )

    def job_accepted(self, model: str, route: JobRoute, accepted: Accepted, *, may_be_cached: bool) -> None:
        """A job was accepted, or an earlier one stands for it."""
        if not (accepted.waits or accepted.is_cached):
            return
        self._accepted.labels(model, route).inc()
        if accepted.is_cached:
            self.job_finished(model, JobStatus.SUCCEEDED)
        if may_be_cached:
            (self._hits if accepted.is_cached else self._misses).inc()

    def webhook_called(self, outcome: DeliveryOutcome) -> None:
        """A webhook was called."""
        self._deliveries.labels(outcome).inc()

    def request_answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """A request was answered. `method` and `route` are those of the code, or empty."""
        self._requests.labels(method, route, status).observe(seconds)
