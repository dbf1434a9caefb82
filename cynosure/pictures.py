"""Pictures that clients send: checked before they are decoded."""

from __future__ import annotations

import base64
import io
import struct
import zlib

from PIL import Image, ImageCms, ImageOps

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


def content_of(encoded: str) -> bytes:
    """The file's bytes from base64 (a `data:` URL too).

    Raises:
        ValueError: it is not base64.
    """
    data = "".join(encoded.rpartition("base64,")[2].split())  # many tools break lines after 76 characters
    return base64.b64decode(data, validate=True)


def opened(encoded: str, field: str) -> Image.Image:
    """A base64 picture (a `data:` URL too), opened but not yet decoded.

    Raises:
        InvalidRequest: naming `field`.
    """
    try:
        picture = Image.open(io.BytesIO(content_of(encoded)), formats=FORMATS)
    except DAMAGE as error:
        raise InvalidRequest(f"{field} must be a base64-encoded PNG, JPEG or WebP picture.", field=field) from error
    if picture.width * picture.height > MAX_PIXELS:
        raise InvalidRequest(
            f"{field} has {picture.width}×{picture.height} pixels; at most {MAX_PIXELS:,} are allowed.", field=field
        )
    return picture


def rgba(picture: Image.Image, field: str) -> Image.Image:
    """An opened picture as viewers show it: its first frame, upright, in sRGB, 8 bits for red, green, blue and alpha.

    Raises:
        InvalidRequest: naming `field`, if the picture is cut short or damaged.
    """
    try:
        picture.load()
        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I"):  # 16 bits of grey, which `convert` would cut off at 255
            upright = upright.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        profile = picture.info.get("icc_profile")
        return _in_srgb(upright, profile) if profile else upright.convert("RGBA")
    except DAMAGE as error:
        raise InvalidRequest(f"{field} can't be decoded: it is cut short or damaged.", field=field) from error


def on_white(picture: Image.Image, field: str) -> Image.Image:
    """An opened picture as RGB, its transparent parts white; errors as those of `rgba`."""
    return _composed(rgba(picture, field), "white").convert("RGB")


def on_black(mask: Image.Image, field: str) -> Image.Image:
    """An opened mask as grey, its transparent parts black: they are kept; errors as those of `rgba`."""
    return _composed(rgba(mask, field), "black").convert("L")


def _composed(picture: Image.Image, background: str) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, background), picture)


def _in_srgb(picture: Image.Image, profile: bytes) -> Image.Image:
    """The picture converted from its colour profile; as it is if the profile is sRGB's own, or can't be read."""
    alpha = picture.convert("RGBA").getchannel("A")
    colours = picture if picture.mode in ("RGB", "L", "CMYK") else picture.convert("RGB")
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if "srgb" not in ImageCms.getProfileDescription(source).lower():
            converted = ImageCms.profileToProfile(colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
            colours = converted or colours
    except (ImageCms.PyCMSError, *DAMAGE):
        pass
    shown = colours.convert("RGBA")
    shown.putalpha(alpha)
    return shown
