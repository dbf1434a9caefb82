"""Model cards: what each model can do."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field

from cynosure.contract.conditions import ControlOnCard, IpAdapterOnCard, LoraOnCard
from cynosure.contract.sizes import Sizes
from cynosure.contract.terms import MAX_IMAGES, ClassifierBase, GuidanceMode, LongPrompt, PromptSyntax


class ModelDefaults(BaseModel):
    """A model's values for fields that a request leaves out."""

    model_config = ConfigDict(frozen=True)

    guidance_mode: GuidanceMode = Field(description="Used if the request has a class label or prompt.")
    guidance_scale: float = Field(description="Classifier-free w.")
    classifier_scale: float | None = Field(None, description="Classifier s, if the model has a classifier.")
    sampler: str
    steps: int
    profile: str
    clip: bool


class ComponentMemory(BaseModel):
    """Weights of one part of a model."""

    model_config = ConfigDict(frozen=True)

    parameters: int
    bytes: int = Field(
        description="In the number format that they run in; with --offload, of the layers on the device at once."
    )


class ModelMemory(BaseModel):
    """Memory that a model needs in each worker."""

    model_config = ConfigDict(frozen=True)

    weights: dict[str, ComponentMemory] = Field(
        description="By part: denoiser, text encoders, autoencoder, image prompts, classifier. Models with the same "
        "text encoder or autoencoder share it."
    )
    batch_bytes: int | None = Field(
        None, description="What the largest batches need beside the weights; null until it is measured."
    )
    largest_picture_bytes: int | None = Field(
        None,
        description="What pictures of the largest size need beside the weights, one at a time on each lane: estimated "
        "from the model's own size by the pixels; null until that is measured.",
    )
    kept_row_bytes: int | None = Field(
        None,
        description="What each row of a picture with `cache` holds between its evaluations, beside all that; null "
        "until it is measured. With classifier-free guidance a picture has two rows.",
    )
    total_bytes: int = Field(description="The weights, and the larger of batch_bytes and largest_picture_bytes.")


class Review(BaseModel):
    """How finished pictures are reviewed before they are stored."""

    model_config = ConfigDict(frozen=True)

    action: Literal["flag", "grey", "refuse"] = Field(
        description="What becomes of a flagged picture: only a mark in the job, also grey instead of it, or the job "
        "fails with `picture_refused`."
    )
    thresholds: dict[str, float] = Field(description="The score from which each label flags a picture.")
    digest: str = Field(description="SHA-256 of the classifier that looks at pictures.")

    @property
    def hides(self) -> bool:
        """Whether flagged pictures are kept from clients."""
        return self.action != "flag"


class ModelCard(BaseModel):
    """The abilities and limits of a model. Workers publish it; the gateway decides by it alone."""

    model_config = ConfigDict(frozen=True)

    name: str
    title: str
    family: str = Field(description="Kind of denoiser, such as `unet2d`.")
    labels: tuple[str, ...] = Field(
        description="Class names, in order of class index. If commas separate several, each of them names the class."
    )
    guidance_modes: tuple[GuidanceMode, ...]
    classifier_takes_prompt: bool = Field(
        False, description="Whether the classifier is conditioned on the prompt (CLIP guidance), not on a label."
    )
    classifier_bases: tuple[ClassifierBase, ...] = Field((), description="The first is the default.")
    samplers: tuple[str, ...]
    eta_samplers: tuple[str, ...] = Field((), description="Samplers that take `eta`.")
    respaced_samplers: tuple[str, ...] = Field(("ddpm", "ddim"), description="Samplers that take `timestep_respacing`.")
    cfg_plus_plus_samplers: tuple[str, ...] = Field((), description="Samplers that take guidance_rule `cfg++`.")
    profiles: tuple[str, ...]
    sizes: Sizes = Field(description="The sizes of pictures that it can draw.")
    takes_size_conditioning: bool = Field(False, description="Whether it takes original_size and its like, as XL does.")
    max_steps: int = Field(description="Largest number of steps: the number of training timesteps.")
    sampler_max_steps: dict[str, int] = Field({}, description="Samplers with a limit below max_steps, and that limit.")
    certain_steps: dict[str, int] = Field(
        {},
        description="Numbers of steps, by sampler, up to which a request without options such as timestep_spacing is "
        "certain to work. Before anything else is accepted, a worker checks it; if this is empty, none does.",
    )
    max_images: int = MAX_IMAGES
    takes_prompt: bool = False
    long_prompts: tuple[LongPrompt, ...] = Field(
        (), description="Values of `long_prompt`, the default first; if empty, prompts that are too long are cut off."
    )
    prompt_syntaxes: tuple[PromptSyntax, ...] = Field(
        (), description="Values of `prompt_syntax`, the default first; if empty, prompts are plain."
    )
    max_clip_skip: int = Field(0, description="Greatest `clip_skip`; 0 if the model takes none.")
    takes_loras: bool = Field(False, description="Whether requests may name `loras`.")
    loras: tuple[LoraOnCard, ...] = Field((), description="The LoRAs that the workers have, also those with a fault.")
    takes_controls: bool = Field(False, description="Whether requests may have `controls`.")
    controls: tuple[ControlOnCard, ...] = Field(
        (), description="The ControlNets that the workers have, also those with a fault."
    )
    ip_adapter: IpAdapterOnCard | None = Field(
        None, description="The IP-Adapter by which requests may have `image_prompts`; null if they may not."
    )
    takes_cache: bool = Field(False, description="Whether requests may have `cache`: its network has deep blocks.")
    takes_init_image: bool = Field(True, description="Whether pictures can start from `init_image`.")
    needs_init_image: bool = Field(False, description="Whether `init_image` is required: the model enlarges pictures.")
    spacings: dict[str, tuple[str, ...]] = Field({}, description="Timestep spacings, by sampler.")
    sigma_schedules: dict[str, tuple[str, ...]] = Field({}, description="Sigma schedules, by sampler.")
    clipping_profiles: tuple[str, ...] = Field((), description="Profiles that clip unless the request sets `clip`.")
    profile_samplers: dict[str, str] = Field(
        {}, description="Default samplers by profile, for profiles that do not use that of `defaults`."
    )
    clipped_samplers: dict[str, tuple[str, ...]] = Field(
        {}, description="For profiles not in clipping_profiles: samplers with which they clip nevertheless."
    )
    must_clip: bool = Field(False, description="Whether classifier guidance without clipping would ruin the picture.")
    defaults: ModelDefaults
    digest: str = Field(description="SHA-256 of the pack's weights and configuration.")
    precision: str = Field("float32", description="Number format that the denoiser runs in.")
    reproducible: bool = Field(
        True, description="Whether a picture's bytes are the same whatever else is in its batch."
    )
    served: bool = Field(
        True, description="Whether a worker holds it at present; if none does, jobs wait until one comes."
    )
    measured: bool = Field(
        True, description="Whether the workers have measured batch sizes; until then pictures take longer."
    )
    num_parameters: int
    memory: ModelMemory
    license: str | None = None
    review: Review | None = Field(None, description="How its pictures are reviewed; null if they are not.")

    def default_sampler(self, profile: str | None) -> str:
        """The sampler of a request that names none."""
        return self.profile_samplers.get(profile or self.defaults.profile, self.defaults.sampler)

    def clips(self, profile: str, sampler: str) -> bool:
        """Whether D is clipped if a request doesn't say."""
        return profile in self.clipping_profiles or sampler in self.clipped_samplers.get(profile, ())

    @property
    def drawn_by(self) -> str:
        """Everything but the request that determines its pictures: weights and number format, and their review."""
        review = f" {self.review.model_dump_json()}" if self.review is not None else ""
        return f"{self.digest} {self.precision}{review}"


class ModelList(BaseModel):
    """GET /models."""

    models: tuple[ModelCard, ...]
