"""The contract of webhooks: what is told of a job's end, and what came of telling it."""

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
    """What came of telling a job's end to its webhook."""

    model_config = ConfigDict(frozen=True)

    id: str = Field(description="`webhook-id` of the message, the same at every attempt.")
    url: str
    status: DeliveryStatus
    attempts: int
    http_status: int | None = Field(None, description="Of the last attempt, where anyone answered.")
    error: str | None = Field(None, description="Of the last attempt, where nobody did.")
    attempted_at: datetime | None = None
    next_attempt_at: datetime | None = None


class WebhookSecret(BaseModel):
    """GET /webhooks/secret."""

    secret: str = Field(description="`whsec_` and base64, as Standard Webhooks' libraries take it.")


class JobEvent(BaseModel):
    """The body of a webhook."""

    model_config = ConfigDict(frozen=True)

    type: str = Field(description="`job.succeeded`, `job.failed` or `job.cancelled`.")
    timestamp: datetime = Field(description="When the job ended.")
    data: Job
