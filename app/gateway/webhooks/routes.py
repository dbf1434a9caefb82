"""GET /webhooks/secret, GET /jobs/{id}/webhook and POST /jobs/{id}/webhook/replay."""

from __future__ import annotations

from fastapi import APIRouter

from app.gateway.door.auth import Reader, Submitter
from app.gateway.shaping import moment
from app.gateway.state import State, StateDep
from app.gateway.webhooks.signing import decoded_secret, encoded_secret, secret_of
from cynosure.contract import Problem
from cynosure.errors import WebhookNotFound
from cynosure.webhooks import WebhookDelivery, WebhookSecret
from jobs.accounts.api_keys import Caller
from jobs.webhooks import Delivery

router = APIRouter(tags=["webhooks"])


def secret_for(state: State, caller: Caller) -> str:
    """The secret that signs the webhooks of the caller's jobs.

    Raises:
        WebhookNotFound: this deployment sends none.
    """
    configured = state["settings"].webhook_secret
    if configured is None:
        raise WebhookNotFound("This deployment sends no webhooks: CYNOSURE_GATEWAY_WEBHOOK_SECRET is not set.")
    return encoded_secret(secret_of(decoded_secret(configured.get_secret_value()), caller.owner))


@router.get("/webhooks/secret", summary="Secret that signs your webhooks", responses={404: {"model": Problem}})
async def get_secret(state: StateDep, caller: Submitter) -> WebhookSecret:
    """The secret that signs the webhooks of this API key's jobs; the libraries of Standard Webhooks verify with it."""
    return WebhookSecret(secret=secret_for(state, caller))


@router.get("/jobs/{job_id}/webhook", summary="Delivery status of a webhook")
async def get_webhook(job_id: str, state: StateDep, caller: Reader) -> WebhookDelivery:
    """Whether the job's webhook was delivered, after how many attempts, and when the next one is due."""
    return _shown(await state["store"].webhooks.get(job_id, caller.sees))


@router.post("/jobs/{job_id}/webhook/replay", status_code=202, summary="Redeliver a webhook")
async def replay_webhook(job_id: str, state: StateDep, caller: Submitter) -> WebhookDelivery:
    """Send the same message again under the same id, whether or not it was delivered before."""
    await state["store"].webhooks.get(job_id, caller.sees)
    await state["store"].webhooks.replay(job_id)
    return _shown(await state["store"].webhooks.get(job_id, caller.sees))


def _shown(delivery: Delivery) -> WebhookDelivery:
    return WebhookDelivery(
        id=f"msg_{delivery.job_id}",
        url=delivery.url,
        status=delivery.status,
        attempts=delivery.attempts,
        http_status=delivery.http_status,
        error=delivery.error,
        attempted_at=moment(delivery.attempted_ms),
        next_attempt_at=moment(delivery.next_ms),
    )
