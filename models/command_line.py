"""The options of the programs in this package, apart from them: help and completion need no torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

RecipeName = Literal["emoji", "fashion"]
PresetName = Literal[
    "imagenet64",
    "imagenet128",
    "imagenet256",
    "imagenet256-uncond",
    "imagenet512",
    "imagenet64-256",
    "imagenet128-512",
    "lsun256",
]
Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16"]
EncoderPrecision = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["int8"]
NetworkName = Literal["diffusion", "classifier", "judge"]

Pack = Annotated[str, typer.Argument(metavar="PACK", help="name of a bundled pack, or a folder")]
Device = Annotated[str, typer.Option(help="torch device, such as cpu or cuda:0")]


def train(
    pack: Annotated[RecipeName, typer.Argument(metavar="PACK", help="pack to train")],
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="folder of the pack", show_default="out/train/PACK")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="fashion: folder that holds the four files of Fashion-MNIST")
    ] = None,
    cache: Annotated[
        Path | None, typer.Option(help="emoji: folder for downloads and drawn pictures, empty or an earlier cache")
    ] = None,
    only: Annotated[NetworkName | None, typer.Option(help="train only this network")] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="optimiser steps, instead of the recipe's, for a quick try")
    ] = None,
    init_from: Annotated[
        str | None, typer.Option(help="pack whose denoiser to start from, if the folder has no checkpoint")
    ] = None,
    compile: Annotated[
        bool, typer.Option("--compile", help="torch.compile the denoiser: slow to start, then faster")
    ] = False,
) -> None:
    """Train a bundled pack's denoiser, noise-aware classifier and judge. If started again, resume where it stopped."""


def import_file(
    checkpoint: Annotated[
        Path, typer.Argument(metavar="CHECKPOINT", help="the .safetensors file", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write; it must not exist yet")],
    base: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|OWNER/NAME@COMMIT",
            help="folder of the same family in diffusers' layout, on disk or on the hub: configuration, tokenizers "
            "and what the file lacks are taken from it",
        ),
    ] = None,
) -> None:
    """Convert a single file (Stable Diffusion 1, 2, XL, 3, Flux) to a folder that `cynosure up --models OUT` serves."""


def import_adm(
    diffusion: Annotated[
        Path, typer.Argument(metavar="DIFFUSION", help="the diffusion model's .pt", exists=True, dir_okay=False)
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="folder to write")],
    preset: Annotated[PresetName, typer.Option(help="the checkpoint's published configuration")],
    classifier: Annotated[
        Path | None, typer.Option(help="the noise-aware classifier's .pt", exists=True, dir_okay=False)
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="file of class names, one per line; numbers by default", exists=True, dir_okay=False),
    ] = None,
) -> None:
    """Convert a published ADM checkpoint, and its classifier, to a pack that `cynosure up --models OUT` serves."""


def selftest(
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table of docs/parity.md")] = False,
) -> None:
    """Compare this machine's results with those of the reference systems; exit with 1 if a difference is too large."""


def calibrate(
    pack: Pack = "fashion",
    device: Device = "cpu",
    precision: Annotated[Precision, typer.Option(help="number format of the networks; auto: by rule")] = "auto",
    encoder_precision: Annotated[
        EncoderPrecision, typer.Option(help="number format of text encoders and autoencoder; auto: by rule")
    ] = "auto",
    quantize: Annotated[
        Quantize | None, typer.Option(help="int8 weights in the linear layers of the denoiser and text encoders")
    ] = None,
    offload: Annotated[
        bool, typer.Option("--offload", help="CUDA: keep weights in the host's memory until their layer runs")
    ] = False,
    again: Annotated[bool, typer.Option("--again", help="measure even if a result is cached")] = False,
    compile: Annotated[
        bool, typer.Option("--compile", help="compile the kernels with torch.compile (takes minutes)")
    ] = False,
) -> None:
    """Print how a pack runs on this device: number format, time per row by batch size, bitwise class, row budget."""


def evaluate(
    pack: Pack = "fashion",
    count: Annotated[
        int | None, typer.Option(min=1, help="pictures per setting (500), or prompts of known names (126)")
    ] = None,
    only: Annotated[str, typer.Option(help="only settings whose name contains this")] = "",
    sheets: Annotated[
        Path | None, typer.Option(help="write contact sheets of a prompted pack's pictures to this folder")
    ] = None,
) -> None:
    """Measure a pack's pictures with a judge trained on clean pictures."""
