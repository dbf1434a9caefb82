"""Settings of a worker."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class ReviewSettings(BaseSettings):
    """Which classifier looks at pictures before they are stored, from the environment (`CYNOSURE_REVIEW…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_REVIEW_", frozen=True)

    model: str | None = Field(
        None,
        validation_alias=AliasChoices("CYNOSURE_REVIEW", "model"),
        description="Image classifier of transformers that looks at every picture before it is stored: a folder or "
        "owner/name@COMMIT. Without it, none does.",
    )
    labels: str = Field(
        "",
        description="Labels that flag a picture, each with the score from which it does, such as `nsfw:0.7,gore:0.5`.",
    )
    action: Literal["flag", "grey", "refuse"] = Field(
        "grey",
        description="What becomes of a flagged picture. flag: it is only marked in the job. grey: it is replaced by "
        "grey, too. refuse: the job fails with `picture_refused`.",
    )

    @field_validator("labels")
    @classmethod
    def _has_thresholds(cls, labels: str) -> str:
        _thresholds(labels)
        return labels

    @model_validator(mode="after")
    def _goes_together(self) -> ReviewSettings:
        if self.model is not None and not self.thresholds:
            raise ValueError("CYNOSURE_REVIEW is set: CYNOSURE_REVIEW_LABELS must say which labels flag a picture")
        if self.model is None and self.thresholds:
            raise ValueError("CYNOSURE_REVIEW_LABELS is set, but CYNOSURE_REVIEW names no classifier")
        return self

    @property
    def thresholds(self) -> dict[str, float]:
        """The score from which each label flags a picture."""
        return _thresholds(self.labels)


def _thresholds(text: str) -> dict[str, float]:
    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        label, _, written = part.rpartition(":")
        try:
            threshold = float(written)
        except ValueError:
            threshold = 0.0
        if not label or not 0 < threshold <= 1:
            raise ValueError(f"{part!r} must be a label and a score above 0, up to 1, such as nsfw:0.7")
        found[label] = threshold
    return found


class WorkerSettings(BaseSettings):
    """Settings of one worker, from the environment (`CYNOSURE_WORKER_…`)."""

    model_config = SettingsConfigDict(env_prefix="CYNOSURE_WORKER_", frozen=True)

    models: str = Field(
        "fashion,emoji",
        description="Packs to load, separated by commas: names, folders or owner/name@COMMIT. NAME= before one gives "
        "it another name. The first that fits a request is its default model.",
    )
    device: str = Field("cpu", description="Torch device of the engine.")
    device_name: str | None = Field(
        None,
        description="What the device is called where workers are listed, and in metrics; by default as torch calls it. "
        "`cynosure up` sets it.",
    )
    precision: Literal["auto", "float32", "tf32", "bfloat16", "float16", "int8"] = Field(
        "auto",
        description="Number format of the networks; by default chosen for the device. `int8`, on CPUs: denoisers "
        "multiply int8 by int8, and pictures differ.",
    )
    encoder_precision: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="Number format of text encoders and autoencoders; by default chosen for the device."
    )
    quantize: Literal["int8"] | None = Field(
        None,
        description="`int8`: weights of linear layers in denoisers and text encoders take a byte each, and pictures "
        "differ slightly. Needs torchao (`cynosure[memory]`).",
    )
    offload: bool = Field(
        False,
        description="On CUDA, keep weights of denoisers, text encoders and autoencoders in the host's memory until "
        "their layer runs. Needs accelerate (`cynosure[memory]`).",
    )
    compile: bool = Field(
        False,
        description="Use torch.compile for denoisers: batches are faster, but jobs wait half a minute while each batch "
        "size is compiled.",
    )
    concurrency: int = Field(64, ge=1, le=1024, description="Jobs held at once; each has a thread.")
    heartbeat_s: float = Field(
        0.5, gt=0, le=5, description="Seconds between renewals of leases and reports of progress."
    )
    reap_every_s: float = Field(3.0, gt=0, description="Seconds between searches for lost jobs.")
    drain_s: float = Field(20.0, ge=0, description="Seconds after SIGTERM before unfinished jobs are handed back.")
    deaf_after_s: float = Field(
        20.0,
        ge=1,
        description="Seconds for which a worker with room may miss waiting bells before it stops, to be restarted.",
    )
    job_timeout_s: float = Field(3600.0, gt=0, description="A job that runs longer fails with `deadline_exceeded`.")

    models_root: Path | None = Field(
        None,
        validation_alias=AliasChoices("CYNOSURE_MODELS_ROOT", "models_root"),
        description="Folder whose model folders POST /admin/models may load; without it, only bundled models.",
    )
    models_hub: bool = Field(
        False,
        validation_alias=AliasChoices("CYNOSURE_MODELS_HUB", "models_hub"),
        description="Whether POST /admin/models may download from the hub.",
    )

    loras: Path | None = Field(
        None,
        validation_alias=AliasChoices("CYNOSURE_LORAS", "loras"),
        description="Folder of LoRAs that requests may name; files may come and go while it is served.",
    )

    controls: Path | None = Field(
        None,
        validation_alias=AliasChoices("CYNOSURE_CONTROLS", "controls"),
        description="Folder of ControlNets that requests may name, each a folder as diffusers saves it; read when a "
        "worker starts.",
    )

    @field_validator("models_root", "loras", "controls")
    @classmethod
    def _is_folder(cls, root: Path | None) -> Path | None:
        if root is not None and not root.is_dir():
            raise ValueError("this is no folder")
        return root

    @field_validator("models")
    @classmethod
    def _names_one(cls, models: str) -> str:
        if not models.replace(",", "").strip():
            raise ValueError("it names no pack")
        return models

    @property
    def packs(self) -> tuple[str, ...]:
        return tuple(name.strip() for name in self.models.split(",") if name.strip())
