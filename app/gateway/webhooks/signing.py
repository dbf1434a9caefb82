"""Signatures of webhooks, by the Standard Webhooks specification: HMAC-SHA256 over id, time and body."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac

PREFIX = "whsec_"
MIN_SECRET_BYTES = 24  # the specification's own range is 24 to 64


def decoded_secret(text: str) -> bytes:
    """The bytes of a `whsec_…` secret.

    Raises:
        ValueError: it is none, or too short.
    """
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"a webhook secret is {PREFIX} and base64") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"a webhook secret has at least {MIN_SECRET_BYTES} bytes")
    return secret


def secret_of(deployment: bytes, owner: str) -> bytes:
    """The secret of one API key: no key can sign in another's name."""
    return hmac.digest(deployment, b"webhooks of " + owner.encode(), hashlib.sha256)


def encoded_secret(secret: bytes) -> str:
    """As receivers are told it."""
    return PREFIX + base64.b64encode(secret).decode()


def headers_of(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """What a signed message carries."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}
