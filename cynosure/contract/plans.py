"""What a request would take."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from cynosure.contract.requests import ResolvedRequest


class NetworkCalls(BaseModel):
    """Rows through each network; they are batched with those of other jobs."""

    model_config = ConfigDict(frozen=True)

    denoiser: int
    guide_model: int = 0
    classifier: int = Field(0, description="Forward and backward.")


class Plan(BaseModel):
    """What a request would take, without running it."""

    model_config = ConfigDict(frozen=True)

    request: ResolvedRequest = Field(description="With everything decided; a seed that was left out is a random one.")
    timesteps: tuple[float, ...] = Field(description="What the network is told, evaluation by evaluation.")
    sigmas: tuple[float, ...] = Field(description="Noise level sigma/alpha of its input, evaluation by evaluation.")
    guided_evaluations: int = Field(description="Evaluations inside the guidance interval.")
    rows: NetworkCalls
    flop: int | None = Field(None, description="Floating-point operations of the networks; null where not counted.")
    seconds: float | None = Field(None, description="Estimate for an idle worker, networks alone; null where unknown.")
    warnings: tuple[str, ...] = Field((), description="What is legal and probably not meant.")
