"""The interface between the engine and a model family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from models.adapters import AdapterBase, Adapters, ImagePrompts
from models.batching import Batching
from models.networks.tokens import Readings
from models.spec import PromptOptions, SampleSpec

Conditioning = Mapping[str, Tensor]
"""A row's inputs other than latent and timestep, by name. In a batch they are stacked along a first axis."""


MAX_SIDE = 2048
"""Longest side that a text model draws, unless its own is longer. More take minutes even on a GPU."""


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """The sizes of pictures that a model can draw, in pixels.

    Attributes:
        multiple_of: both sides are multiples of it.
        min_side, max_side: of either side.
        max_pixels: of height times width.
        suggested: (height, width) of pictures like those that the model was trained on.
    """

    multiple_of: int
    min_side: int
    max_side: int
    max_pixels: int
    suggested: tuple[tuple[int, int], ...]

    @classmethod
    def only(cls, height: int, width: int) -> Sizes:
        """One size."""
        least, most = sorted((height, width))
        return cls(
            multiple_of=1, min_side=least, max_side=most, max_pixels=height * width, suggested=((height, width),)
        )

    @classmethod
    def around(
        cls,
        own: tuple[int, int],
        *,
        multiple_of: int,
        shapes: Sequence[tuple[float, float]] = (),
        max_side: int = MAX_SIDE,
    ) -> Sizes:
        """Sizes from a quarter to four times the model's own side, of up to eight times its own pixels.

        Args:
            own: (height, width) that the model was trained on.
            multiple_of: both sides are multiples of it.
            shapes: suggested ones, (height, width) as factors of the model's own side.
            max_side: the longest side that the network can draw.
        """
        side, longest = (own[0] * own[1]) ** 0.5, max(own)
        most = min(max(longest, min(4 * longest, MAX_SIDE)), max_side) // multiple_of * multiple_of
        scaled = [(_rounded(side * high, multiple_of), _rounded(side * wide, multiple_of)) for high, wide in shapes]
        sizes = cls(
            multiple_of=multiple_of,
            min_side=max(multiple_of, min(own) // 4 // multiple_of * multiple_of),
            max_side=most,
            max_pixels=max(own[0] * own[1], min(8 * own[0] * own[1], most * most)),
            suggested=(),
        )
        return replace(sizes, suggested=tuple(dict.fromkeys(size for size in (own, *scaled) if sizes.take(*size))))

    def take(self, height: int, width: int) -> bool:
        """Whether the model can draw this size."""
        return (
            height % self.multiple_of == width % self.multiple_of == 0
            and self.min_side <= min(height, width)
            and max(height, width) <= self.max_side
            and height * width <= self.max_pixels
        )


def _rounded(side: float, multiple_of: int) -> int:
    return round(side / multiple_of) * multiple_of


class BatchedEncoder(Protocol):
    """A text encoder as its measurement sees it; `models.denoisers.text.TextEncoder` implements it.

    Attributes:
        name: of its component in the pack.
        max_length: tokens of a row.
        batching: how many rows may share a batch.
    """

    name: str
    max_length: int
    batching: Batching

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""

    def output(self, ids: Tensor) -> Mapping[str, Tensor | tuple[Tensor, ...]]:
        """The network's outputs by name, for tokens (B,`max_length`)."""


class Denoiser(Protocol):
    """Adapter of one model family: converts a spec to the network's input, and a latent to a picture.

    Attributes:
        latent_shape: (C, H, W) of the latents of a picture of the model's own size.
        picture_size: the model's own (height, width) in pixels.
        sizes: all sizes that it can draw.
        patch: side of the square of latents that is one token of its transformer; 1 for others.
        takes_size_conditioning: whether the network is told a size and a crop, as XL is.
        prediction_type: "epsilon", "v_prediction", "sample" or "flow_prediction".
        num_parameters: of the network that runs at every step.
        has_null: whether a row can be unconditional.
        takes_prompt: whether rows are conditioned on text.
        has_classes: whether rows are conditioned on a label.
        sees_mask: whether the network was trained for inpainting, and takes the mask and the unmasked picture as input.
        low_res_size: side of the small picture that a super-resolution model enlarges, or `None`.
        learns_variance: whether the output has C more channels, for the variance.
        prompt_options: what a spec may choose about the reading of its prompts.
        default_scale: classifier-free scale of diffusers' pipeline for the family, for packs that declare none.
        has_autoencoder: whether a network decodes its latents.
        adapter_base: what LoRAs can change; `None` if they can't.
        adapters: the LoRAs that are loaded, if there are any to load.
        image_prompts: the pack's IP-Adapter, if it has one.
        has_deep_blocks: whether its network's deep blocks can be left out (`models.caching`).
    """

    latent_shape: tuple[int, int, int]
    picture_size: tuple[int, int]
    sizes: Sizes
    patch: int
    takes_size_conditioning: bool
    prediction_type: str
    num_parameters: int
    has_null: bool
    takes_prompt: bool
    has_classes: bool
    sees_mask: bool
    low_res_size: int | None
    learns_variance: bool
    prompt_options: PromptOptions
    default_scale: float
    has_autoencoder: bool
    adapter_base: AdapterBase | None
    adapters: Adapters | None
    image_prompts: ImagePrompts | None
    has_deep_blocks: bool

    @property
    def encoders(self) -> Sequence[BatchedEncoder]:
        """Its text encoders that may read prompts in batches."""

    def encode_prompts(self, specs: Sequence[SampleSpec]) -> None:
        """Encode the specs' prompts together, so that `conditioning`, on the same thread, finds them encoded."""

    def conditioning(self, spec: SampleSpec) -> tuple[Conditioning, Conditioning]:
        """Conditioning of a conditional and an unconditional row. May be slow: not called on threads that run ticks.

        Raises:
            InvalidSpec: the spec lacks what the family needs.
        """

    def readings(self, spec: SampleSpec) -> Readings:
        """How the family's text encoders read the spec's prompts. Called where `conditioning` is.

        Raises:
            InvalidPrompt: a prompt is too long and the spec says to refuse it, or it can't be read as weighted.
        """

    def forward(self, x: Tensor, timesteps: Tensor, conditioning: Conditioning) -> Tensor:
        """The network's output, float32 (B,C or 2C,H,W), for `x` (B,C,H,W) at `timesteps` (B,)."""

    def decode(self, x: Tensor) -> Tensor:
        """Latents (B,C,H,W) to float pictures (B,channels,height,width), [-1, 1] and a little beyond."""

    def encode(self, pictures: Tensor) -> Tensor:
        """Float pictures in [-1, 1] to latents, for image-to-image; the inverse of `decode`."""

    def encode_mask(self, mask: Tensor) -> Tensor:
        """Convert a mask (B,1,height,width) to the latents' shape (B,C or 1,H,W)."""


def latent_shape_of(denoiser: Denoiser, spec: SampleSpec) -> tuple[int, int, int]:
    """(C, H, W) of the latents of the spec's picture; each stands for as many pixels as at the model's own size."""
    (channels, high, wide), (own_height, own_width) = denoiser.latent_shape, denoiser.picture_size
    height, width = spec.size(denoiser.picture_size)
    return channels, height * high // own_height, width * wide // own_width
