"""Webhook deliveries: every gateway has a deliverer, and each delivery is leased to one of them for one attempt."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping

import httpx

from app.gateway.addresses import public_address
from app.gateway.metrics.meters import DeliveryOutcome
from app.gateway.outbound import ForbiddenDestination, UnknownHost
from app.gateway.shaping import summary_of
from app.gateway.state import State
from app.gateway.webhooks.signing import decoded_secret, headers_of, secret_of
from cynosure.contract import ResolvedRequest
from cynosure.errors import CynosureError, InvalidRequest, JobExpired, JobNotFound, UnsupportedField, WebhookNotFound
from cynosure.webhooks import DeliveryStatus, JobEvent
from jobs import traces
from jobs.queue.pace import Outlook
from jobs.queue.record import EVERYONE, JobRecord
from jobs.webhooks import Delivery

log = logging.getLogger(__name__)

LOOK_S = 0.5
AT_ONCE = 16
GONE = 410  # by the specification, the receiver wants no more messages


def check_webhook(state: State, request: ResolvedRequest) -> None:
    """Refuse a webhook that could never be delivered.

    Raises:
        UnsupportedField: this deployment has no secret to sign webhooks with.
        InvalidRequest: the URL is not allowed.
    """
    if request.webhook_url is None:
        return
    if state["settings"].webhook_secret is None:
        raise UnsupportedField(
            "webhook_url",
            "This deployment sends no webhooks: its operator must set CYNOSURE_GATEWAY_WEBHOOK_SECRET. "
            "To learn when a job ends, use GET /jobs/{id}/events or Prefer: wait instead.",
        )
    try:
        state["outbound"].check(str(request.webhook_url))
    except ForbiddenDestination as error:
        raise InvalidRequest(f"webhook_url is not allowed: {error}.", field="webhook_url") from error


Write = Callable[[State, JobRecord], Awaitable[str]]
"""Writes what the webhook of a job that has ended is sent, as JSON."""


async def job_event(state: State, record: JobRecord) -> str:
    """The job as an event."""
    address = public_address(state["settings"])
    job = summary_of(record, Outlook(), "" if address is None else address.root)
    return JobEvent(type=f"job.{job.status}", timestamp=job.finished_at or job.created_at, data=job).model_dump_json()


class Deliverer:
    """Sends due webhooks and retries failed ones at growing intervals.

    Args:
        state: the gateway's state.
        secret: of the deployment.
        formats: what writes the body, by the request's `webhook_format`.
    """

    def __init__(self, state: State, secret: str, formats: Mapping[str, Write]) -> None:
        self._state = state
        self._formats = formats
        self._secret = decoded_secret(secret)
        self._retry_s = state["settings"].webhook_retry_s

    async def run(self) -> None:
        """Deliver until cancelled."""
        webhooks, call_s = self._state["store"].webhooks, self._state["outbound"].timeout_s
        while True:
            try:
                has_due = await webhooks.settle() > 0
                due = await webhooks.take(AT_ONCE, call_s=call_s) if has_due else []
                outcomes = await asyncio.gather(*(self._deliver(job_id) for job_id in due), return_exceptions=True)
                for job_id, failure in zip(due, outcomes, strict=True):
                    if isinstance(failure, Exception):  # its lease expires, and it is tried again
                        log.error("delivering a webhook failed", exc_info=failure, extra={"job": job_id})
            except CynosureError as error:
                due = []
                log.warning("delivering webhooks is paused: %s", error)
            except Exception:
                due = []
                log.exception("delivering webhooks failed; trying again")
            if len(due) < AT_ONCE:
                await asyncio.sleep(LOOK_S)

    async def _deliver(self, job_id: str) -> None:
        delivery = await self._delivery(job_id)
        if delivery is None:
            await self._state["store"].webhooks.drop(job_id)
            return
        with traces.span("webhook", parent=delivery.traceparent, job=job_id, attempt=delivery.attempts + 1):
            await self._attempt(delivery)

    async def _attempt(self, delivery: Delivery) -> None:
        body, http_status, error = delivery.body.encode(), None, ""
        secret = secret_of(self._secret, delivery.owner)
        # The id is derived from the job, so a receiver can recognise a repeated message.
        headers = headers_of(secret, f"msg_{delivery.job_id}", int(time.time()), body)
        headers |= {"traceparent": parent} if (parent := traces.traceparent()) else {}
        try:
            http_status = await self._state["outbound"].post(
                delivery.url, content=body, headers={**headers, "Content-Type": "application/json"}
            )
        except ForbiddenDestination as failure:
            error = f"not allowed: {failure}"
        except TimeoutError:
            error = f"no answer within {self._state['outbound'].timeout_s:g} s"
        except (UnknownHost, httpx.HTTPError) as failure:
            error = str(failure) or type(failure).__name__
        await self._note(delivery, http_status, error)

    async def _note(self, delivery: Delivery, http_status: int | None, error: str) -> None:
        status, again_s = DeliveryStatus.DELIVERED, 0.0
        if http_status is None or not 200 <= http_status < 300:
            is_last = delivery.attempts >= len(self._retry_s) or http_status == GONE
            status = DeliveryStatus.FAILED if is_last else DeliveryStatus.PENDING
            again_s = 0.0 if is_last else self._retry_s[delivery.attempts]
        outcome: dict[DeliveryStatus, DeliveryOutcome] = {
            DeliveryStatus.DELIVERED: "delivered",
            DeliveryStatus.FAILED: "failed",
            DeliveryStatus.PENDING: "retried",
        }
        self._state["metrics"].webhook_called(outcome[status])
        await self._state["store"].webhooks.note(
            delivery.job_id, status, http_status=http_status, error=error, again_s=again_s
        )
        told = {"job": delivery.job_id, "http_status": http_status, "error": error or None, "again_s": again_s or None}
        level = logging.INFO if status is DeliveryStatus.DELIVERED else logging.WARNING
        log.log(level, "webhook %s", status, extra={**told, "attempt": delivery.attempts + 1})

    async def _delivery(self, job_id: str) -> Delivery | None:
        webhooks = self._state["store"].webhooks
        try:
            return await webhooks.get(job_id, EVERYONE)
        except WebhookNotFound:
            pass  # the first attempt
        try:
            record = await self._state["store"].jobs.get(job_id, EVERYONE)
        except (JobExpired, JobNotFound):
            return None
        if record.request.webhook_url is None:
            return None
        body = await self._formats[record.request.webhook_format](self._state, record)
        url = str(record.request.webhook_url)
        await webhooks.begin(job_id, record.owner, url, body, record.origin.traceparent)
        return await webhooks.get(job_id, EVERYONE)
