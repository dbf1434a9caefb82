"""Plans: the cost of a request, before it is run."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cynosure.contract.requests import ResolvedRequest


class NetworkCalls(BaseModel):
    """Rows through each network; they are batched with rows of other jobs."""

    model_config = ConfigDict(frozen=True)

    denoiser: int
    reusing: int = Field(
        0, description="Of denoiser and guide_model together, those in which deep blocks don't run (`cache`)."
    )
    guide_model: int = 0
    classifier: int = Field(0, description="Each row is one forward and one backward pass.")


class PromptTokens(BaseModel):
    """How one of the model's text encoders reads a prompt."""

    model_config = ConfigDict(frozen=True)

    field: str = Field(description="The prompt's field.")
    encoder: str = Field(description="Name of the text encoder in the model's folder.")
    tokens: int = Field(description="Number of the prompt's tokens.")
    limit: int = Field(description="Number of tokens that the encoder reads at once.")
    chunks: int = Field(description="Number of times that it reads.")
    cut: str | None = Field(None, description="The end of the prompt, if it is cut off.")


class Plan(BaseModel):
    """The cost of a request, worked out without running it."""

    model_config = ConfigDict(frozen=True)

    request: ResolvedRequest = Field(description="The request with everything decided; a seed left out is random.")
    timesteps: tuple[float, ...] = Field(description="Timestep given to the network at each evaluation.")
    sigmas: tuple[float, ...] = Field(description="Noise level sigma/alpha of its input at each evaluation.")
    guided_evaluations: int = Field(description="Number of evaluations inside the guidance interval.")
    rows: NetworkCalls
    flop: int | None = Field(None, description="Floating-point operations of the networks; null if not counted.")
    seconds: float | None = Field(None, description="Estimate for an idle worker, networks only; null if unknown.")
    tokens: tuple[PromptTokens, ...] = Field((), description="The prompts' tokens, for each text encoder.")
    warnings: tuple[str, ...] = Field((), description="Settings that are legal but probably not intended.")
