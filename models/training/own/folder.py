"""`cynosure train folder`: a pack from a folder of pictures."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState

from models.command_line import Fit, Preset, TrainedSchedule
from models.training.loop import train
from models.training.own.cards import recognised_by_mode, write_card
from models.training.own.checks import check_captions, check_classes
from models.training.own.pictures import Pictures, read_pictures
from models.training.own.presets import PRESETS, run_of
from models.training.own.recipe import OwnCaptions, OwnClasses, OwnRecipe, denoiser
from models.training.own.runs import HeldOut, augmentation_of, checkpoint_activations, said
from models.training.own.target import claim
from models.training.recipe import save_sample_grid

KIND = "folder"


@dataclass(frozen=True, kw_only=True)
class FolderRun:
    """The options of `cynosure train folder`; see `models.command_line.train_folder`."""

    data: Path
    out: Path
    size: str
    preset: Preset
    text: bool
    schedule: TrainedSchedule
    min_snr: float
    label_dropout: float
    ema: float
    steps: int | None
    batch: int | None
    rate: float | None
    accumulate: int
    eval_every: int | None
    flip: bool
    shift: bool
    colour: float
    fit: Fit
    license: str
    seed: int
    gpus: int
    gradient_checkpointing: bool
    compile: bool
    force: bool

    def settings(self, pictures: Pictures) -> Mapping[str, Any]:
        """What a resumed run must not change, by option."""
        names = "size preset text schedule min_snr label_dropout flip shift colour fit"
        own = {f"--{name.replace('_', '-')}": getattr(self, name) for name in names.split()}
        return {**own, "--data (digest of its pictures)": pictures.digest}


def run(options: FolderRun, command: str) -> None:
    """Train a pack; `command` is how it was called, for the model card.

    Raises:
        InvalidPictures: the pictures can't be trained on, or OUT would be overwritten; or as for `train`.
    """
    is_main = PartialState().is_main_process
    with PartialState().main_process_first():
        claim(options.out, KIND, force=options.force and is_main)
        pictures = read_pictures(options.data, int(options.size), fit=options.fit, cache=options.out / "training")
    if is_main:
        said(pictures.report())
    if options.text:
        check_captions(pictures)
    else:
        check_classes(pictures)
    recipe = recipe_of(pictures, options)
    _write_index(recipe, options.out)
    data = recipe.pictures(options.data)
    task = recipe.diffusion_task(data)
    if options.gradient_checkpointing:
        checkpoint_activations(task.network)
    held_out = HeldOut(task, recipe.test_pictures(), options.batch or PRESETS[options.preset].batch)

    def draw(step: int) -> None:
        save_sample_grid(options.out, recipe, step, device=str(PartialState().device))

    train(
        task,
        data,
        recipe.diffusion,
        options.out,
        name="diffusion",
        compile_network=options.compile,
        settings=options.settings(pictures),
        measure=held_out,
        on_checkpoint=draw,
    )
    if len(recipe.labels) > 1:
        train(recipe.judge_task(), recipe.trained.labelled(), recipe.judging, options.out, name="judge")
    if not is_main:
        return
    figures = {"loss on held-out pictures": f"{held_out.last:.4f}"}
    if len(recipe.labels) > 1:
        recipe.save_reference(options.data, options.out)
        figures |= recognised_by_mode(options.out, recipe)
    write_card(options.out, recipe, pictures, command=command, figures=figures)


def recipe_of(pictures: Pictures, options: FolderRun) -> OwnRecipe:
    """The recipe that the options describe."""
    size, side = PRESETS[options.preset], int(options.size)
    fold = size.folding(side)
    channels = pictures.images.shape[1] * fold**2
    trained, held_out = pictures.split()
    kind = OwnCaptions if options.text else OwnClasses
    flow = options.schedule == "flow"
    batch = options.batch or size.batch
    return kind(
        labels=pictures.names,
        pixel_unshuffle=fold,
        prediction_type="flow_prediction" if flow else "v_prediction",
        unet=denoiser(size, side // fold, channels, classes=len(pictures.names), text=options.text),
        classifier=size.classifier(side // fold, channels, len(pictures.names)),
        diffusion=run_of(
            steps=options.steps or size.steps,
            batch=batch,
            rate=options.rate or size.rate,
            ema=options.ema,
            seed=options.seed,
            accumulate=options.accumulate,
            every=options.eval_every,
        ),
        classifying=run_of(steps=size.classifier_steps, batch=batch, rate=1e-3, ema=0.998, seed=1),
        judging=run_of(
            steps=min(options.steps or size.judge_steps, size.judge_steps),
            batch=128,
            rate=1.5e-3,
            ema=0.99,
            seed=2,
            weight_decay=0.05,
        ),
        serving=_serving(pictures, options, flow=flow),
        data_folder=options.data,
        trained=trained,
        held_out=held_out,
        augmentation=augmentation_of(options),
        min_snr=options.min_snr or None,
        flow=flow,
        dropout=options.label_dropout,
    )


def _serving(pictures: Pictures, options: FolderRun, *, flow: bool) -> Mapping[str, Any]:
    of = f"{len(pictures.names)} classes" if pictures.names else "captions"
    license = {"license": options.license} if options.license else {}
    return {
        "title": f"{options.data.resolve().name}, {of}, {options.size}x{options.size}",
        **license,
        "sampler": "flow_euler" if flow else "ddim",
        "steps": 50,
        "guidance_scale": 2.5 if options.text else 2.0,
    }


def _write_index(recipe: OwnRecipe, out: Path) -> None:
    text = json.dumps(recipe.model_index(with_classifier=False), indent=2)
    (out / "model_index.json").write_text(text + "\n")
