"""The options of the programs in this package, apart from them: help and completion need no torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Literal

import typer

Preset = Literal["tiny", "small", "base"]
Size = Literal["32", "64", "128"]
Fit = Literal["crop", "pad"]
TrainedSchedule = Literal["cosine", "flow"]
ClassifierStart = Literal["fresh", "denoiser"]
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
Precision = Literal["auto", "float32", "tf32", "bfloat16", "float16", "int8"]
EncoderPrecision = Literal["auto", "float32", "bfloat16", "float16"]
Quantize = Literal["int8"]
LoraLayers = Literal["attention", "all"]
NetworkName = Literal["diffusion", "classifier", "judge"]

Pack = Annotated[str, typer.Argument(metavar="PACK", help="name of a bundled pack, or a folder")]
Device = Annotated[str, typer.Option(help="torch device, such as cpu or cuda:0")]


Pictures = Annotated[
    Path,
    typer.Option(
        metavar="FOLDER",
        help="your pictures: a folder for each class, or metadata.jsonl, captions.txt or NAME.txt beside them",
    ),
]
Out = Annotated[Path, typer.Option("-o", "--out", metavar="OUT", help="folder of the pack to write")]
Steps = Annotated[int | None, typer.Option(min=1, help="optimiser steps; by preset")]
Batch = Annotated[int | None, typer.Option(min=1, help="pictures per step; by preset")]
Rate = Annotated[float | None, typer.Option(min=0.0, help="peak learning rate; by preset")]
Accumulate = Annotated[int, typer.Option(min=1, help="parts that a batch is computed in, to save memory")]
EvalEvery = Annotated[
    int | None, typer.Option(min=1, help="steps between checkpoints; each draws a grid and measures held-out pictures")
]
Seed = Annotated[int, typer.Option(min=0, help="of weights, order and noise")]
Flip = Annotated[bool, typer.Option("--flip", help="mirror half of the pictures at random")]
Shift = Annotated[bool, typer.Option("--shift", help="move half of the pictures by a pixel at random")]
Colour = Annotated[float, typer.Option(min=0.0, max=1.0, help="greatest random change of brightness and saturation")]
FitTo = Annotated[Fit, typer.Option(help="pictures that are not square: cut out the middle, or put them on white")]
Gpus = Annotated[int, typer.Option(min=1, help="processes that share each batch, one a GPU")]
Checkpointing = Annotated[
    bool, typer.Option("--gradient-checkpointing", help="compute activations twice instead of keeping them")
]
Compile = Annotated[bool, typer.Option("--compile", help="torch.compile the network: slow to start, then faster")]
Force = Annotated[bool, typer.Option("--force", help="start anew, and replace what OUT holds")]


def train_folder(
    data: Pictures,
    out: Out,
    size: Annotated[Size, typer.Option(help="side of the pictures that the pack draws")] = "32",
    preset: Annotated[Preset, typer.Option(help="size of the networks; tiny is for CPUs")] = "tiny",
    text: Annotated[bool, typer.Option("--text", help="draw from prompts: the pictures have captions")] = False,
    schedule: Annotated[
        TrainedSchedule, typer.Option(help="noise: cosine (Nichol & Dhariwal 2021), or straight paths (flow)")
    ] = "cosine",
    min_snr: Annotated[
        float, typer.Option(min=0.0, help="weigh the loss by noise level (Hang et al. 2023); 0 for all alike")
    ] = 5.0,
    label_dropout: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="share of pictures trained without label, for classifier-free")
    ] = 0.1,
    ema: Annotated[float, typer.Option(min=0.0, max=0.99999, help="decay of the weights' moving average")] = 0.998,
    steps: Steps = None,
    batch: Batch = None,
    rate: Rate = None,
    accumulate: Accumulate = 1,
    eval_every: EvalEvery = None,
    flip: Flip = False,
    shift: Shift = False,
    colour: Colour = 0.0,
    fit: FitTo = "crop",
    license: Annotated[str, typer.Option(help="of the pictures, for the model card")] = "",
    seed: Seed = 0,
    gpus: Gpus = 1,
    gradient_checkpointing: Checkpointing = False,
    compile: Compile = False,
    force: Force = False,
) -> None:
    """Train a pack that draws the classes, or captions, of your pictures. If started again, resume where it stopped."""


def train_classifier(
    pack: Annotated[str, typer.Option(metavar="PACK", help="pack that it is to steer: name, folder or hub id")],
    data: Pictures,
    out: Annotated[Path, typer.Option("-o", "--out", metavar="PACK2", help="folder to write: PACK with a classifier")],
    preset: Annotated[Preset, typer.Option(help="size of the classifier; tiny is for CPUs")] = "tiny",
    start: Annotated[
        ClassifierStart, typer.Option(help="fresh weights, or those of the denoiser's encoder, in its shape")
    ] = "fresh",
    robust: Annotated[
        bool, typer.Option("--robust", help="train against adversarial steps, as `emoji` is: about twice the time")
    ] = False,
    steps: Steps = None,
    batch: Batch = None,
    rate: Rate = None,
    accumulate: Accumulate = 1,
    eval_every: EvalEvery = None,
    flip: Flip = False,
    shift: Shift = False,
    colour: Colour = 0.0,
    fit: FitTo = "crop",
    seed: Seed = 0,
    gpus: Gpus = 1,
    compile: Compile = False,
    force: Force = False,
) -> None:
    """Train a noise-aware classifier for a pack, from pictures in a folder for each class."""


def train_finetune(
    pack: Annotated[str, typer.Option(metavar="PACK", help="pack to continue: name, folder or hub id")],
    data: Pictures,
    out: Out,
    min_snr: Annotated[
        float, typer.Option(min=0.0, help="weigh the loss by noise level (Hang et al. 2023); 0 for all alike")
    ] = 5.0,
    label_dropout: Annotated[
        float, typer.Option(min=0.0, max=0.9, help="share of pictures trained without label and prompt")
    ] = 0.1,
    ema: Annotated[float, typer.Option(min=0.0, max=0.99999, help="decay of the weights' moving average")] = 0.99,
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps")] = 1000,
    batch: Annotated[int, typer.Option(min=1, help="pictures per step")] = 16,
    rate: Annotated[float, typer.Option(min=0.0, help="peak learning rate")] = 5e-5,
    accumulate: Accumulate = 1,
    eval_every: EvalEvery = None,
    flip: Flip = False,
    shift: Shift = False,
    colour: Colour = 0.0,
    fit: FitTo = "crop",
    seed: Seed = 0,
    gpus: Gpus = 1,
    gradient_checkpointing: Checkpointing = False,
    compile: Compile = False,
    force: Force = False,
) -> None:
    """Continue a pack's denoiser on your pictures, by the pack's labels or by captions."""


BundledOut = Annotated[Path | None, typer.Option("-o", "--out", help="folder of the pack; out/train/NAME by default")]
Only = Annotated[NetworkName | None, typer.Option(help="train only this network")]
FewSteps = Annotated[int | None, typer.Option(min=1, help="optimiser steps, instead of the recipe's, for a quick try")]
InitFrom = Annotated[str | None, typer.Option(help="pack whose denoiser to start from, if there is no checkpoint")]


def train_fashion(
    out: BundledOut = None,
    data: Annotated[Path | None, typer.Option(help="folder that holds the four files of Fashion-MNIST")] = None,
    only: Only = None,
    steps: FewSteps = None,
    init_from: InitFrom = None,
    compile: Compile = False,
) -> None:
    """Train the bundled pack's denoiser, classifier and judge. If started again, resume where it stopped."""


def train_emoji(
    out: BundledOut = None,
    cache: Annotated[
        Path | None, typer.Option(help="folder for downloads and drawn pictures, empty or an earlier cache")
    ] = None,
    only: Only = None,
    steps: FewSteps = None,
    init_from: InitFrom = None,
    compile: Compile = False,
) -> None:
    """Train the bundled pack's denoiser, classifier and judge. If started again, resume where it stopped."""


TRAIN: Mapping[str, Callable[..., None]] = {
    "folder": train_folder,
    "classifier": train_classifier,
    "finetune": train_finetune,
    "fashion": train_fashion,
    "emoji": train_emoji,
}
"""The commands of `cynosure train`."""


def train_lora(
    pack: Annotated[str, typer.Option(help="model that it is for: name of a bundled pack, or a folder")],
    data: Annotated[
        Path,
        typer.Option(
            help="folder of pictures, each with its caption in NAME.txt or in metadata.jsonl (file_name, text)",
            exists=True,
            file_okay=False,
        ),
    ],
    out: Annotated[
        Path, typer.Option("-o", "--out", metavar="FILE", help="the LoRA, a .safetensors file", dir_okay=False)
    ],
    caption: Annotated[str | None, typer.Option(help="caption of the pictures that have none")] = None,
    trigger: Annotated[
        str | None, typer.Option(help="words that it answers to, for the file's metadata; part of the captions")
    ] = None,
    rank: Annotated[int, typer.Option(min=1, max=256, help="rank of each layer's change")] = 8,
    layers: Annotated[LoraLayers, typer.Option(help="which layers are changed")] = "attention",
    steps: Annotated[int, typer.Option(min=1, help="optimiser steps")] = 500,
    batch: Annotated[int, typer.Option(min=1, help="pictures per step")] = 8,
    rate: Annotated[float, typer.Option(min=0, help="peak learning rate")] = 1e-3,
    every: Annotated[int, typer.Option(min=1, help="steps between checkpoints, each with a grid of samples")] = 100,
    seed: Annotated[int, typer.Option(help="of the weights, the order of pictures and the noise")] = 0,
) -> None:
    """Train a LoRA on a folder of pictures. If started again, resume where it stopped.

    Beside FILE, a folder of its name gets the loss of every step's batch, grids of samples, and the checkpoint.
    """


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
    count: Annotated[int | None, typer.Option("-n", "--count", min=2, help="pictures a point (1000)")] = None,
    data: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="real pictures to compare with; the pack's own by default")
    ] = None,
    reference: Annotated[
        Path | None, typer.Option(metavar="FILE", help="real pictures as guided-diffusion's .npz", dir_okay=False)
    ] = None,
    modes: Annotated[
        str,
        typer.Option(help="of none, classifier_free, classifier, classifier_alone (unconditional base) and combined"),
    ] = "",
    scales: Annotated[str, typer.Option(help="guidance scales, such as 1,2,5,10")] = "",
    judge: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="judge to use: a pack's judge/; else trained on --data")
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(help="inception=FILE[@SHA256], or a vision model of transformers; the judge's by default"),
    ] = None,
    clip: Annotated[str | None, typer.Option(help="CLIP model, by folder or hub id, for the CLIP score")] = None,
    sampler: Annotated[str | None, typer.Option(help="sampler; the pack's by default")] = None,
    steps: Annotated[int | None, typer.Option(min=1, help="sampling steps; the pack's by default")] = None,
    cache: Annotated[
        str | None, typer.Option(metavar="EVERY[:UNTIL]", help="step caching, such as 3:0.8; none by default")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="of the pictures")] = 0,
    precision: Annotated[Precision, typer.Option(help="number format of the networks; auto: by rule")] = "auto",
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="write each measure here, and go on from those in it"),
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="write the plot here, .png or .svg")] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="print the table for a document, too")] = False,
    only: Annotated[str, typer.Option(help="emoji: only settings whose name contains this")] = "",
    sheets: Annotated[
        Path | None, typer.Option(help="emoji: write contact sheets of its pictures to this folder")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="replace what the file of --json holds")] = False,
    device: Device = "cpu",
) -> None:
    """Measure a pack's pictures along the guidance scale: recognition, Fréchet distance, precision and recall."""
