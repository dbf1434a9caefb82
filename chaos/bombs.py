"""Malicious pictures by name: false headers, decompression bombs, other formats. Each is created on first use."""

from __future__ import annotations

import base64
import functools
import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

from PIL import Image


def png(width: int, height: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """A base64 PNG whose header claims this size, with only a few bytes of pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = [(b"IHDR", header), *chunks, (b"IDAT", zlib.compress(b"\0" * 100)), (b"IEND", b"")]
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts))


def _drawn(format: str, width: int, height: int, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height)).save(buffer, format, **options)
    return base64.b64encode(buffer.getvalue())


def _animated() -> bytes:
    frames = [Image.new("RGB", (8, 8), (n, 0, 0)) for n in range(50)]
    return _drawn("PNG", 8, 8, save_all=True, append_images=frames)


_MAKERS: dict[str, Callable[[], bytes]] = {
    "60,000 pixels a side": lambda: png(60_000, 60_000),
    "as large as a PNG can say": lambda: png(2**31 - 1, 2**31 - 1),
    "no pixels": lambda: png(0, 0),
    "cut short": lambda: png(64, 64),
    "50 MB of zTXt": lambda: png(28, 28, (b"zTXt", b"parameters\0\0" + zlib.compress(b"A" * 50_000_000))),
    "50 MB of iTXt": lambda: png(28, 28, (b"iTXt", b"cynosure\0\1\0\0\0" + zlib.compress(b"{" * 50_000_000))),
    "nested metadata": lambda: png(28, 28, (b"tEXt", b"cynosure\0" + b"[" * 200_000)),
    "an EXIF header that ends within": lambda: png(28, 28, (b"eXIf", b"II*\0\x08")),
    "5,000 texts": lambda: png(28, 28, *((b"tEXt", b"k%d\0v" % n) for n in range(5000))),
    "192 MB of pixels in 200 kB": lambda: _drawn("PNG", 8000, 8000),
    "JPEG of 64 megapixels": lambda: _drawn("JPEG", 8000, 8000, quality=1),
    "GIF": lambda: _drawn("GIF", 16, 16),
    "TIFF": lambda: _drawn("TIFF", 16, 16),
    "BMP": lambda: _drawn("BMP", 16, 16),
    "animated": _animated,
    "SVG": lambda: base64.b64encode(
        b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>"
    ),
    "EPS": lambda: base64.b64encode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run"),
    "no base64": lambda: b"not base64 \xf0\x9f\x92\xa3",
    "empty": lambda: b"",
}
BOMBS = tuple(_MAKERS)


@functools.cache
def bomb(name: str) -> str:
    """One of `BOMBS`, base64-encoded for a JSON field."""
    return _MAKERS[name]().decode()
