"""The multipart forms of POST /v1/images/edits and /v1/images/variations."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any, get_args

from fastapi.concurrency import run_in_threadpool
from PIL import Image
from starlette.datastructures import FormData, UploadFile

from app.gateway.door.complexity import parts_of, too_many_parts
from app.gateway.json_bodies import parsed_json
from app.gateway.openai.shapes import ImageFields, ImageParams
from cynosure.errors import InvalidRequest, MalformedBody
from cynosure.metadata import encoded_picture
from cynosure.pictures import check_picture, opened, rgba
from cynosure.refusals import parsed

MAX_PARTS = 64
_TEXT_FIELDS = {
    name for name, field in ImageParams.model_fields.items() if str in (field.annotation, *get_args(field.annotation))
} | {"class_label"}
VARIATION_STRENGTH = 0.6
"""Where a request for variations gives none."""


def _form(properties: dict[str, Any], *required: str) -> dict[str, Any]:
    """The OpenAPI description of a route that takes a form with these fields, and any other."""
    picture = {"image": {"type": "string", "format": "binary", "description": "PNG, JPEG or WebP."}}
    schema = {
        "type": "object",
        "required": ["image", *required],
        "properties": {**picture, **properties},
        "additionalProperties": {"type": "string", "description": "Any field of POST /v1/images/generations."},
    }
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}


EDIT_FORM = _form(
    {
        "mask": {
            "type": "string",
            "format": "binary",
            "description": "Transparent where the picture is redrawn. Default: the picture's alpha.",
        },
        "prompt": {"type": "string", "description": "What to draw; for a class model, a label."},
    },
    "prompt",
)
VARIATION_FORM = _form(
    {
        "strength": {
            "type": "string",
            "description": f"How far to depart from it, 0 to 1. Default: {VARIATION_STRENGTH}.",
        }
    }
)


async def edit_of(form: FormData, max_json_parts: int) -> ImageParams:
    """Turn the form's fields, picture and mask into one request.

    Raises:
        InvalidRequest, MalformedBody: names the field.
        BodyTooLarge: the fields together have more than `max_json_parts` parts.
    """
    fields, files = await _read(form, max_json_parts, {"image": "one", "mask": "at most one"})
    mask = await run_in_threadpool(_mask_of, files["image"][0], files["mask"][0] if files["mask"] else None)
    if mask is not None:
        fields["mask_image"] = encoded_picture(mask)
    return parsed(ImageParams, fields)


async def variation_of(form: FormData, max_json_parts: int) -> ImageFields:
    """Turn the form's fields and picture into one request; errors as those of `edit_of`."""
    fields, _ = await _read(form, max_json_parts, {"image": "one"})
    await run_in_threadpool(check_picture, fields["init_image"], "image")
    return parsed(ImageFields, {"strength": VARIATION_STRENGTH, **fields})


async def _read(
    form: FormData, max_json_parts: int, takes: Mapping[str, str]
) -> tuple[dict[str, Any], dict[str, list[bytes]]]:
    """The form's fields, with the picture as `init_image`, and its files, which it `takes` in such numbers."""
    left = max_json_parts
    fields: dict[str, Any] = {}
    files: dict[str, list[bytes]] = {name: [] for name in takes}
    for name, value in form.multi_items():
        field = name.removesuffix("[]")
        if isinstance(value, UploadFile):
            if field not in files:
                only = f"only {' and '.join(takes)} {'are files' if takes.keys() > {'image'} else 'is one'}"
                raise InvalidRequest(f"{field} must not be a file; {only}.", field=field)
            files[field].append(await value.read())
        elif field in files:
            raise InvalidRequest(f"{field} must be a file.", field=field)
        else:
            left -= parts_of(value.encode())
            if left < 0:
                raise too_many_parts("The form", max_json_parts)
            fields[field] = _value_of(field, value)
    if len(files["image"]) != 1 or any(len(sent) > 1 for sent in files.values()):
        counts = ", and ".join(f"{count} file as {name}" for name, count in takes.items())
        raise InvalidRequest(f"Send {counts}.", field="image")
    fields["init_image"] = encoded_picture(files["image"][0])
    return fields, files


def _value_of(field: str, text: str) -> Any:
    """Convert a form's text to the value that JSON would hold, unless the field is text itself."""
    if field in _TEXT_FIELDS or text[:1] not in ("[", "{"):
        return text
    try:
        return parsed_json(text.encode(errors="surrogatepass"), field)
    except MalformedBody as error:
        error.field = field
        raise


def _mask_of(image: bytes, mask: bytes | None) -> bytes | None:
    """Convert OpenAI's mask, or else the picture's alpha, to ours: transparent areas become white and are redrawn."""
    field = "image" if mask is None else "mask"
    source = opened(encoded_picture(image if mask is None else mask), field)
    if "A" not in source.getbands() and "transparency" not in source.info:
        if mask is None:
            return None
        raise InvalidRequest(
            "The mask must be transparent where the picture is to be redrawn; this one has no transparency.",
            field="mask",
        )
    alpha = rgba(source, field).getchannel("A")
    if mask is None and alpha.getextrema() == (255, 255):
        return None
    buffer = io.BytesIO()
    Image.eval(alpha, lambda opacity: 255 - opacity).save(buffer, "PNG")
    return buffer.getvalue()
