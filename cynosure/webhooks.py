"""The contract of webhooks: the event sent when a job ends, and its delivery."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import BaseModel, ConfigDict, Field

from cynosure.contract import Job


class DeliveryStatus(StrEnum):
    """States of a webhook: `pending → delivered | failed`, and back by a replay."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


class WebhookDelivery(BaseModel):
    """Delivery status of a job's webhook."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="`webhook-id` of the message, the same in every attempt.")
    url: str
    status: DeliveryStatus
    attempts: int
    http_status: int | None = Field(None, description="HTTP status of the last attempt, if the receiver answered.")
    error: str | None = Field(None, description="Error of the last attempt, if the receiver did not answer.")
    attempted_at: datetime | None = None
    next_attempt_at: datetime | None = None


class WebhookSecret(BaseModel):
    """GET /webhooks/secret."""

    secret: str = Field(description="`whsec_` and base64, as the libraries of Standard Webhooks expect it.")


class JobEvent(BaseModel):
    """The body of a webhook."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="`job.succeeded`, `job.failed` or `job.cancelled`.")
    timestamp: datetime = Field(description="When the job ended.")
    data: Job
