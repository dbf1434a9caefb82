"""The size of a request's pictures, and what models are told of it."""

from __future__ import annotations

from cynosure.contract import SIZE_CONDITIONING, GenerateRequest, ModelCard
from cynosure.errors import InvalidRequest, UnsupportedField


def drawn_size(request: GenerateRequest, card: ModelCard, *, is_classified: bool) -> tuple[int, int]:
    """(width, height) of the request's pictures; `is_classified` if the model's classifier sees them.

    Raises:
        InvalidRequest: the model can't draw it, or is told nothing of sizes; names the field.
    """
    _check_conditioning(request, card)
    sizes, (own_width, own_height) = card.sizes, card.sizes.default
    width = own_width if request.width is None else request.width
    height = own_height if request.height is None else request.height
    field = sizes.wrong_side(width, height)
    if field is None and is_classified and (width, height) != sizes.default:
        field = "width" if width != own_width else "height"
        raise UnsupportedField(
            field, f"The classifier of '{card.name}' sees only {own_width}×{own_height} pictures; leave {field} out."
        )
    if field is None:
        return width, height
    if sizes.is_one:
        raise UnsupportedField(field, f"'{card.name}' draws only {own_width}×{own_height} pictures.")
    wide, high = sizes.nearest(width, height)
    raise UnsupportedField(
        field,
        f"'{card.name}' can't draw {width}×{height}; the nearest that it can is width {wide}, height "
        f"{high}. Sides are multiples of {sizes.multiple_of} from {sizes.min_side} to {sizes.max_side}, with at most "
        f"{sizes.max_pixels:,} pixels.",
    )


def _check_conditioning(request: GenerateRequest, card: ModelCard) -> None:
    given = [field for field in SIZE_CONDITIONING if getattr(request, field) is not None]
    if not given:
        return
    if not card.takes_size_conditioning:
        raise UnsupportedField(given[0], f"'{card.name}' is told nothing of sizes; leave {given[0]} out.")
    needed = ("negative_original_size", "negative_target_size")
    negative = [field for field in given if field.startswith("negative")]
    missing = [field for field in needed if field not in given]
    if negative and missing:
        raise InvalidRequest(f"{negative[0]} needs {missing[0]} too.", field=negative[0])
