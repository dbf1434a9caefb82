"""Pictures that clients send: checked before they are decoded."""

from __future__ import annotations

import base64
import io
import struct
import zlib

from PIL import Image

from cynosure.contract import MAX_PIXELS
from cynosure.errors import InvalidRequest

FORMATS = ("PNG", "JPEG", "WEBP")
DAMAGE = (OSError, ValueError, SyntaxError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
"""What Pillow raises for malformed bytes; ValueError (and binascii.Error) also for a bomb of compressed text."""


def check_picture(encoded: str, field: str) -> None:
    """Refuse data that is not a picture, or a picture that is too large, by its header alone.

    Raises:
        InvalidRequest: naming `field`.
    """
    opened(encoded, field)


def opened(encoded: str, field: str) -> Image.Image:
    """A base64 picture (a `data:` URL too), opened but not yet decoded.

    Raises:
        InvalidRequest: naming `field`.
    """
    _, _, data = encoded.rpartition("base64,")
    try:
        picture = Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=FORMATS)
    except DAMAGE as error:
        raise InvalidRequest(f"{field} must be a base64-encoded PNG, JPEG or WebP picture.", field=field) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise InvalidRequest(
            f"{field} has {picture.width}×{picture.height} pixels; at most {MAX_PIXELS:,} are allowed.", field=field
        )
    return picture


def decoded(picture: Image.Image, mode: str, field: str) -> Image.Image:
    """The opened picture's pixels, converted to `mode`.

    Raises:
        InvalidRequest: naming `field`, if the picture is cut short or damaged.
    """
    try:
        return picture.convert(mode)
    except DAMAGE as error:
        raise InvalidRequest(f"{field} can't be decoded: it is cut short or damaged.", field=field) from error
