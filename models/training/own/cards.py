"""Model cards of packs that were trained on a user's pictures, and the figures in them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from models.calibration.result import fixed_calibration
from models.classifiers import load_judge
from models.engine import Engine
from models.pack import open_pack
from models.spec import Guidance, SampleSpec
from models.training.diffusion import Schedule
from models.training.own.pictures import Pictures
from models.training.recipe import PixelRecipe

DRAWN = 200  # pictures that a figure is measured on, at most
STEPS = 25  # that they are drawn in, at most
MOST_CLASSES = 30  # in a card


def recognised_by_mode(out: Path, recipe: PixelRecipe) -> dict[str, str]:
    """The share of drawn pictures that the pack's judge recognises, without guidance and with its default."""
    pack = open_pack(str(out.resolve()))
    judge = load_judge(pack)
    scale = float(pack.defaults["guidance_scale"])
    labels = [index % len(recipe.labels) for index in range(drawn_for(recipe))]
    plain = [
        SampleSpec(
            pack=pack.name,
            label=label,
            prompt=recipe.labels[label] if "text_encoder_package" in pack.index else None,
            sampler=pack.defaults["sampler"],
            steps=drawn_in(recipe),
            image_index=index,
        )
        for index, label in enumerate(labels)
    ]
    figures = {}
    device = str(PartialState().device)
    with torch.inference_mode(), Engine([pack], device=device, calibrate=fixed_calibration) as engine:
        for name, guidance in {
            "without guidance": Guidance(),
            f"at scale {scale:g}": Guidance(free_scale=scale),
        }.items():
            pictures = engine.generate([replace(spec, guidance=guidance) for spec in plain])
            batch = torch.stack([torch.from_numpy(picture) for picture in pictures]).permute(0, 3, 1, 2)
            share = (judge(batch).argmax(1) == torch.tensor(labels)).float().mean().item()
            figures[f"recognised by the judge, {name}"] = f"{share:.1%}"
    return figures


def drawn_for(recipe: PixelRecipe) -> int:
    """Number of pictures that a figure is measured on: few after a run of few steps, which is only a try."""
    return min(DRAWN, recipe.diffusion.steps)


def drawn_in(recipe: PixelRecipe) -> int:
    """Number of steps in which those pictures are drawn, likewise."""
    return min(STEPS, recipe.diffusion.steps)


def write_card(out: Path, recipe: PixelRecipe, pictures: Pictures, *, command: str, figures: Mapping[str, str]) -> None:
    """Write the pack's README.md: what it draws, from which pictures, how it was trained and how well it draws."""
    title, license = recipe.serving["title"], recipe.serving.get("license", "other")
    card = [
        "---",
        f"license: {license}",
        "tags: [diffusion, classifier-free-guidance]",
        "---",
        "",
        f"# {out.resolve().name}",
        "",
        f"Draws {title}. Serve it with `cynosure up --models {out}`.",
        "",
        *about(pictures),
        "",
        "## Training",
        "",
        f"    {command}",
        "",
        f"- {recipe.diffusion.steps} steps of {recipe.diffusion.batch_size} pictures; {recipe.prediction_type}; the "
        f"weights are an average with decay {recipe.diffusion.ema_decay:g}",
        f"- {recipe.pixel_unshuffle} by {recipe.pixel_unshuffle} pixels folded into channels; the levels have "
        f"{', '.join(map(str, recipe.unet['block_out_channels']))} channels",
        "- `training/` has the losses, a grid of samples at every checkpoint, and what is needed to go on",
        "",
        *table(figures, f"Shares are of {drawn_for(recipe)} pictures, drawn in {drawn_in(recipe)} steps."),
        "",
    ]
    (out / "README.md").write_text("\n".join(card))


def about(pictures: Pictures) -> list[str]:
    """The section on the pictures."""
    counts = Counter(pictures.labels.tolist())
    classes = ", ".join(f"{name} ({counts[index]})" for index, name in enumerate(pictures.names[:MOST_CLASSES]))
    more = f" and {len(pictures.names) - MOST_CLASSES} more" if len(pictures.names) > MOST_CLASSES else ""
    return [
        "## Pictures",
        "",
        f"{len(pictures)} pictures, one in ten held out from training" + (f": {classes}{more}." if classes else "."),
    ]


def table(figures: Mapping[str, str], note: str = "") -> list[str]:
    """The section with figures."""
    rows = [f"| {name} | {value} |" for name, value in figures.items()]
    return ["## Figures", "", *([note, ""] if note else []), "| measure | |", "|---|---|", *rows]


def accuracy_table(curve: Sequence[tuple[float, float]], schedule: Schedule) -> list[str]:
    """The section with a classifier's accuracy by noise level; `curve` is that of `ClassifierTask.accuracies`."""
    rows = []
    for share, accuracy in curve:
        level = round(share * (len(schedule) - 1))
        ratio = float(schedule.sigmas[level] / schedule.alphas[level].clamp(min=1e-9))
        rows.append(f"| {float(schedule.timesteps[level]):.0f} | {ratio:.3g} | {accuracy:.1%} |")
    head = [
        "## Accuracy by noise level",
        "",
        "On held-out pictures, with noise of each level of the pack's schedule.",
        "",
    ]
    return [*head, "| timestep | noise to signal, σ/α | recognised |", "|---|---|---|", *rows]
