"""Signatures of webhooks as specified by Standard Webhooks: HMAC-SHA256 over id, time and body."""

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
        ValueError: it is malformed or too short.
    """
    try:
        secret = base64.b64decode(text.removeprefix(PREFIX), validate=True)
    except binascii.Error as error:
        raise ValueError(f"a webhook secret must be {PREFIX} followed by base64") from error
    if len(secret) < MIN_SECRET_BYTES:
        raise ValueError(f"a webhook secret must have at least {MIN_SECRET_BYTES} bytes")
    return secret


def secret_of(deployment: bytes, owner: str) -> bytes:
    """Derive the secret of one API key, so that its holder can't forge messages to another's."""
    return hmac.digest(deployment, b"webhooks of " + owner.encode(), hashlib.sha256)


def encoded_secret(secret: bytes) -> str:
    """Encode a secret as receivers need it."""
    return PREFIX + base64.b64encode(secret).decode()


def headers_of(secret: bytes, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers of a signed message."""
    signed = f"{message_id}.{timestamp}.".encode() + body
    signature = base64.b64encode(hmac.digest(secret, signed, hashlib.sha256)).decode()
    return {"webhook-id": message_id, "webhook-timestamp": str(timestamp), "webhook-signature": f"v1,{signature}"}
