"""The metadata inside pictures, and the way back from a picture to its request.

A PNG holds two text chunks: `parameters`, in the form that other programs read, and `cynosure`, a JSON object with the
whole resolved request. JPEG and WebP hold the same in EXIF: `UserComment` and `ImageDescription`. Nothing in them
depends on when, where or under which id a picture was made, so equal requests give equal bytes.
"""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any, Literal

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import BaseModel, ConfigDict, Field

from cynosure import __version__
from cynosure.contract import (
    DELIVERY_FIELDS,
    INPUT_FIELDS,
    INPUT_LISTS,
    Control,
    GenerateRequest,
    ImagePrompt,
    ModelCard,
    OutputFormat,
    ResolvedRequest,
)
from cynosure.errors import InvalidRequest
from cynosure.pictures import DAMAGE, content_of, opened
from cynosure.refusals import parsed
from cynosure.synonyms import A1111_SAMPLERS

WEBP_METHOD = 4  # libwebp's own default between speed (0) and size (6)
JPEG_QUALITY = 95  # Pillow's documentation: above it files grow with hardly any gain

_EXIF_IFD, _USER_COMMENT, _IMAGE_DESCRIPTION = 0x8769, 0x9286, 0x010E
_UNICODE = b"UNICODE\0"
_MAX_EXIF = 65_000  # a JPEG segment holds 65,533 bytes; two prompts of the full length may be longer

_NAMES_IN_A1111 = {ours: name for name, ours in A1111_SAMPLERS.items()}


class MadeFrom(BaseModel):
    """The `cynosure` text of a picture."""

    model_config = ConfigDict(frozen=True)

    version: str = Field(description="Version of Cynosure that made the picture.")
    digest: str = Field(description="SHA-256 of the model.")
    guide_digest: str | None = Field(None, description="SHA-256 of the `guide_model`, if there was one.")
    image_index: int = Field(description="Together with the request's seed, it determines the picture's noise.")
    replaced: tuple[str, ...] | None = Field(
        None, description="The labels for which a review replaced the picture by grey."
    )
    request: dict[str, Any] = Field(description="The resolved request, with digests in place of pictures.")


def digest_of(encoded: str) -> str:
    """SHA-256 of a base64 picture's bytes; a `data:` prefix makes no difference."""
    return hashlib.sha256(content_of(encoded)).hexdigest()


def made_from(
    request: ResolvedRequest,
    index: int,
    card: ModelCard,
    guide: ModelCard | None,
    replaced: tuple[str, ...] | None = None,
) -> MadeFrom:
    """The metadata of picture `index` of `request`, drawn by these models."""
    # Input pictures are too large for a text chunk: their digests stand for them.
    left_out = {*DELIVERY_FIELDS, *INPUT_FIELDS, *INPUT_LISTS, "num_images", "first_image"}
    fields = request.model_dump(mode="json", exclude=left_out, exclude_none=True)
    for field in INPUT_FIELDS:
        if (encoded := getattr(request, field)) is not None:
            fields[f"{field}_sha256"] = digest_of(encoded)
    for field in INPUT_LISTS:
        if entries := getattr(request, field):
            fields[field] = [_without_picture(entry) for entry in entries]
    guide_digest = guide.digest if guide else None
    return MadeFrom(
        version=__version__,
        digest=card.digest,
        guide_digest=guide_digest,
        image_index=index,
        replaced=replaced,
        request=fields,
    )


def _without_picture(entry: Control | ImagePrompt) -> dict[str, Any]:
    told = entry.model_dump(mode="json", exclude={"image"}, exclude_none=True)
    return told if entry.image is None else {**told, "image_sha256": digest_of(entry.image)}


def parameters_of(request: ResolvedRequest, card: ModelCard) -> str:
    """The request as text, in the form of the `parameters` chunk that A1111 writes and other programs read."""
    label = card.labels[request.class_label] if request.class_label is not None else ""
    negative = f"Negative prompt: {request.negative_prompt}\n" if request.negative_prompt else ""
    scale = "" if request.guidance_scale is None else f"CFG scale: {request.guidance_scale:g}, "
    schedule = f"Schedule type: {request.sigma_schedule.title()}, " if request.sigma_schedule else ""
    strength = "" if request.strength is None else f", Denoising strength: {request.strength:g}"
    marks = "".join(f" <lora:{lora.name}:{lora.scale:g}>" for lora in request.loras)
    hashes = ", ".join(f"{lora.name}: {(lora.digest or '')[:12]}" for lora in request.loras)
    loras = f', Lora hashes: "{hashes}"' if hashes else ""
    skipped = f", Clip skip: {request.clip_skip}" if (request.clip_skip or 1) > 1 else ""
    return (
        f"{request.prompt or label}{marks}\n{negative}Steps: {request.steps}, "
        f"Sampler: {_NAMES_IN_A1111.get(request.sampler, request.sampler)}, {schedule}{scale}"
        f"Seed: {request.seed}, Size: {request.width}x{request.height}, "
        f"Model hash: {card.digest[:10]}, Model: {request.model}{strength}{skipped}{loras}"
    )


def png_bytes(
    picture: Image.Image,
    request: ResolvedRequest,
    index: int,
    card: ModelCard,
    guide: ModelCard | None = None,
    replaced: tuple[str, ...] | None = None,
) -> bytes:
    """A PNG that holds both texts; `replaced` are the labels for which it is grey, if it is."""
    made = made_from(request, index, card, guide, replaced)
    text = PngInfo()
    text.add_text("parameters", parameters_of(request, card))
    text.add_text("cynosure", json.dumps(made.model_dump(mode="json", exclude_none=True)))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", pnginfo=text)
    return buffer.getvalue()


def transcoded(png: bytes, to: OutputFormat, quality: int | None = None) -> bytes:
    """A PNG made by Cynosure in another format, with its metadata.

    Args:
        png: PNG bytes.
        to: the format; a PNG stays as it is.
        quality: 0 to 100; by default WebP is lossless and JPEG uses quality 95.
    """
    if to is OutputFormat.PNG:
        return png
    buffer = io.BytesIO()
    with Image.open(io.BytesIO(png), formats=("PNG",)) as picture:
        exif = _exif_of(picture.info)
        if to is OutputFormat.WEBP:
            picture.save(buffer, "WEBP", lossless=quality is None, quality=quality or 0, method=WEBP_METHOD, exif=exif)
        else:
            sharp: Literal[0] = 0  # no subsampling of colour: these pictures are small
            jpeg_quality = JPEG_QUALITY if quality is None else max(1, quality)
            picture.save(buffer, "JPEG", quality=jpeg_quality, subsampling=sharp, exif=exif)
    return buffer.getvalue()


def _exif_of(texts: dict[Any, Any]) -> Image.Exif:
    exif = Image.Exif()
    if "cynosure" in texts:
        exif[_IMAGE_DESCRIPTION] = texts["cynosure"]
    comment = _UNICODE + texts.get("parameters", "").encode("utf-16-be")
    if len(exif.tobytes()) + len(comment) < _MAX_EXIF:
        exif.get_ifd(_EXIF_IFD)[_USER_COMMENT] = comment
    return exif


def read(encoded: str, field: str = "from_image") -> MadeFrom:
    """Read the metadata of a base64 PNG, JPEG or WebP made by Cynosure.

    Raises:
        InvalidRequest: it is not a picture, or holds no request.
    """
    picture = opened(encoded, field)
    try:
        text = picture.info.get("cynosure") or picture.getexif().get(_IMAGE_DESCRIPTION)
        return MadeFrom.model_validate_json(text or "")
    except DAMAGE as error:  # a ValidationError is a ValueError
        raise InvalidRequest(
            f"{field} holds no request: Cynosure did not make it, or a program that saved it again dropped its "
            "metadata.",
            field=field,
        ) from error


def texts_of(encoded: str, field: str) -> dict[str, str]:
    """The texts `parameters` and `cynosure` of a base64 PNG, JPEG or WebP, as far as it has them.

    Many programs write the former.

    Raises:
        InvalidRequest: it is not a picture.
    """
    picture = opened(encoded, field)
    texts = dict(picture.info)
    with suppress(*DAMAGE):
        exif = picture.getexif()
        texts.setdefault("cynosure", exif.get(_IMAGE_DESCRIPTION))
        comment = exif.get_ifd(_EXIF_IFD).get(_USER_COMMENT)
        if isinstance(comment, bytes) and comment.startswith(_UNICODE):
            texts.setdefault("parameters", comment.removeprefix(_UNICODE).decode("utf-16-be", "replace"))
    return {name: text for name in ("parameters", "cynosure") if isinstance(text := texts.get(name), str)}


def again(request: GenerateRequest) -> tuple[GenerateRequest, MadeFrom | None]:
    """Replace `from_image` by the request inside that picture; fields that `request` sets itself take precedence.

    Returns:
        the new request, and the picture's metadata if the picture's exact bytes are wanted. A request that names a
        model accepts that model's present weights, so it gets no metadata.

    Raises:
        InvalidRequest: the picture holds no request, or was made from pictures that aren't sent with it.
    """
    if request.from_image is None:
        return request, None
    made = read(request.from_image)
    base = dict(made.request)
    if request.model is not None and "loras" in base:  # as of the model's, their present files will do
        base["loras"] = [{"name": lora["name"], "scale": lora["scale"]} for lora in base["loras"]]
    overrides = request.model_dump(exclude_unset=True, exclude={"from_image"})
    lists = {field: base.pop(field, []) for field in INPUT_LISTS}
    _check_pictures_are_sent(made.request, lists, overrides)
    for field in lists.keys() & overrides.keys():
        overrides[field] = _completed(lists[field], overrides[field], same_files=request.model is None)
    for field in INPUT_FIELDS:
        base.pop(f"{field}_sha256", None)
    try:
        merged = parsed(GenerateRequest, {**base, "first_image": made.image_index, **overrides})
    except InvalidRequest as error:
        raise InvalidRequest(
            f"The request in from_image is not valid in this version: {error.detail}", field="from_image"
        ) from error
    return merged, None if request.model is not None else made


def _check_pictures_are_sent(
    made: Mapping[str, Any], lists: Mapping[str, list[dict[str, Any]]], sent: Mapping[str, Any]
) -> None:
    """Refuse to draw again what was made from pictures that are not sent; `lists` are the entries that held some."""
    for field in INPUT_FIELDS:
        if f"{field}_sha256" in made and field not in sent:
            raise InvalidRequest(f"The picture in from_image was made with {field}: send {field} too.", field=field)
    for field, entries in lists.items():
        if entries and field not in sent:
            names = ", ".join(entry.get("model", f"scale {entry.get('scale')}") for entry in entries)
            raise InvalidRequest(
                f"The picture in from_image was made with {field} ({names}): send {field} too, with their pictures.",
                field=field,
            )


def _completed(
    made: Sequence[Mapping[str, Any]], sent: Sequence[Mapping[str, Any]], *, same_files: bool
) -> list[dict[str, Any]]:
    """The entries sent, each with what it leaves out from the picture's own in the same place and of the same model."""
    left = {"image", "image_sha256", *(() if same_files else ("digest",))}

    def kept(told: Mapping[str, Any], entry: Mapping[str, Any]) -> Mapping[str, Any]:
        is_same = told.get("model") == entry.get("model")
        return {name: value for name, value in told.items() if is_same and name not in left}

    alongside = [*made[: len(sent)], *itertools.repeat({}, len(sent) - len(made))]
    return [{**kept(told, entry), **entry} for told, entry in zip(alongside, sent, strict=True)]


def encoded_picture(content: bytes) -> str:
    """Base64 of a file's bytes, as requests take pictures."""
    return base64.b64encode(content).decode()
