"""The interface between the engine and a model family."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor

from models.networks.tokens import Readings
from models.spec import PromptOptions, SampleSpec

Conditioning = Mapping[str, Tensor]
"""A row's inputs other than latent and timestep, by name. In a batch they are stacked along a first axis."""


class Denoiser(Protocol):
    """Adapter of one model family: converts a spec to the network's input, and a latent to a picture.

    Attributes:
        latent_shape: (C, H, W) of the latents that the network denoises.
        picture_size: (height, width) in pixels.
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
    """

    latent_shape: tuple[int, int, int]
    picture_size: tuple[int, int]
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
