"""Pictures as PNG: results with their request inside, previews, and contact sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

from PIL import Image as PillowImage
from PIL import ImageDraw

from cynosure.contract import ModelCard, ResolvedRequest
from cynosure.metadata import png_bytes
from models.engine import Image

MAX_PREVIEW_SIDE = 256
SHEET_MARGIN, SHEET_HEADER, SHEET_MIN_CELL = 150, 20, 56


def png_of(
    picture: Image,
    request: ResolvedRequest,
    index: int,
    card: ModelCard,
    guide: ModelCard | None = None,
    replaced: tuple[str, ...] | None = None,
) -> bytes:
    """PNG bytes with the request inside. They do not depend on the time, the worker or the job's id.

    `replaced` are the labels for which a review made it grey, if it did.
    """
    return png_bytes(_pillow(picture), request, index, card, guide, replaced)


def preview_of(picture: Image) -> str:
    """Base64 PNG, reduced to the size of a preview."""
    small = _pillow(picture)
    small.thumbnail((MAX_PREVIEW_SIDE, MAX_PREVIEW_SIDE))
    buffer = io.BytesIO()
    small.save(buffer, "PNG")
    return base64.b64encode(buffer.getvalue()).decode()


def _pillow(picture: Image) -> PillowImage.Image:
    return PillowImage.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)


def sheet_of(pictures: Sequence[Image], request: ResolvedRequest, card: ModelCard) -> bytes | None:
    """PNG bytes of a sweep's contact sheet: a row for each label or prompt and seed, a column for each scale."""
    if request.sweep is None:
        return None
    scales = request.sweep.guidance_scales or (request.guidance_scale,)
    seeds = request.sweep.seeds or (request.seed,)
    subjects = [card.labels[label] for label in request.sweep.class_labels] or list(request.sweep.prompts) or [""]
    height, width = pictures[0].shape[:2]
    zoom = max(1, -(-SHEET_MIN_CELL // min(height, width)))
    cell_width, cell_height = width * zoom + 4, height * zoom + 4
    sheet = PillowImage.new(
        "RGB",
        (SHEET_MARGIN + cell_width * len(scales), SHEET_HEADER + cell_height * len(subjects) * len(seeds)),
        "white",
    )
    pen = ImageDraw.Draw(sheet)
    for column, scale in enumerate(scales):
        text = "" if scale is None else f"{scale:g}"
        pen.text((SHEET_MARGIN + cell_width * column + 4, 4), text, fill="black")
    for index, picture in enumerate(pictures):
        (subject, scale_index), seed_index = divmod(index // len(seeds), len(scales)), index % len(seeds)
        row = subject * len(seeds) + seed_index
        top = SHEET_HEADER + cell_height * row
        if scale_index == 0:
            pen.text((4, top + 4), f"{subjects[subject][:22]}\nseed {seeds[seed_index]}", fill="black")
        enlarged = _pillow(picture).convert("RGB").resize((width * zoom, height * zoom), PillowImage.Resampling.NEAREST)
        sheet.paste(enlarged, (SHEET_MARGIN + cell_width * scale_index, top))
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()
