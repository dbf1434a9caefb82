"""The sizes of pictures that a model can draw."""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

from cynosure.contract.numbers import Integer
from cynosure.contract.terms import MAX_SIDE

Side = Annotated[int, Field(ge=0, le=MAX_SIDE), Integer]


class Sizes(BaseModel):
    """The sizes that a model can draw, in pixels; pairs are (width, height)."""

    model_config = ConfigDict(frozen=True)

    default: tuple[int, int] = Field(description="Drawn if a request says nothing.")
    multiple_of: int = Field(1, description="Both sides must be multiples of it.")
    min_side: int
    max_side: int
    max_pixels: int = Field(description="Largest product of width and height.")
    suggested: tuple[tuple[int, int], ...] = Field(
        (), description="Sizes like those of the pictures that the model was trained on."
    )

    @classmethod
    def only(cls, width: int, height: int) -> Sizes:
        """One size."""
        least, most = sorted((width, height))
        size = (width, height)
        return cls(default=size, min_side=least, max_side=most, max_pixels=width * height, suggested=(size,))

    @property
    def is_one(self) -> bool:
        return self.suggested == (self.default,) and self.min_side == min(self.default)

    def wrong_side(self, width: int, height: int) -> str | None:
        """The field that makes a size one that can't be drawn, or `None` if it can."""
        for field, side in (("width", width), ("height", height)):
            if side % self.multiple_of or not self.min_side <= side <= self.max_side:
                return field
        return "width" if width * height > self.max_pixels else None

    def nearest(self, width: int, height: int) -> tuple[int, int]:
        """The drawable (width, height) that is nearest to a size; it keeps the proportions where that is possible."""
        step = self.multiple_of
        shrink = min(1.0, self.max_side / max(width, height, 1), (self.max_pixels / max(width * height, 1)) ** 0.5)
        up = 0.5 if shrink == 1.0 else 1e-9  # to the nearest multiple; if the size is too large, downwards

        def rounded(side: float) -> int:
            least, most = -(-self.min_side // step) * step, self.max_side // step * step
            return min(max(int(side / step + up) * step, least), most)

        wide, high = rounded(width * shrink), rounded(height * shrink)
        while wide * high > self.max_pixels:  # a side was rounded up, or raised to the least
            wide, high = (wide - step, high) if wide >= high else (wide, high - step)
        return wide, high
