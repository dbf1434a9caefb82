"""`python -m models.evaluation PACK`: measure a pack's pictures along the guidance scale."""

from __future__ import annotations

import gc
import math
import sys
from dataclasses import asdict, dataclass, replace
from functools import wraps
from pathlib import Path
from typing import Any

import typer
from torch import Tensor

from models import command_line
from models.denoisers import Denoiser
from models.engine import Engine
from models.evaluation import prompts, references
from models.evaluation.dial import (
    CHUNK,
    HEAD,
    MODES,
    Dial,
    Instruments,
    Request,
    Setting,
    line_of,
    markdown_of,
    modes_of,
)
from models.evaluation.features import INCEPTION, ClipScore, features_named, of_judge
from models.evaluation.measures import frechet_distance
from models.evaluation.plot import save_plot
from models.evaluation.record import Record
from models.pack import InvalidPack, Pack, open_pack
from models.samplers import NotLinear, UnknownSampler
from models.spec import InvalidSpec, StepCache
from models.training.checkpoints import NoSpace
from models.training.loop import Interrupted
from models.training.own.folders import InvalidPictures
from models.training.own.pictures import Pictures, read_pictures
from models.training.own.recipe import texts_of
from models.training.own.spaces import coloured, labels_of_pack

DEFAULT_COUNT = 1000
INTERRUPTED = 130  # as shells report a program that SIGINT ended


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of `cynosure evaluate`; see `models.command_line.evaluate`."""

    pack: str
    count: int | None
    data: Path | None
    reference: Path | None
    modes: str
    scales: str
    judge: Path | None
    features: str | None
    clip: str | None
    sampler: str | None
    steps: int | None
    cache: str | None
    seed: int
    precision: command_line.Precision
    json_file: Path | None
    plot: Path | None
    markdown: bool
    only: str
    sheets: Path | None
    force: bool
    device: str

    @property
    def wants_dial(self) -> bool:
        return any((self.data, self.reference, self.modes, self.scales, self.plot, self.json_file, self.clip))


def run(options: Options) -> None:
    """Measure the pack, and print, save and plot what was measured.

    Raises:
        InvalidPack: the pack, or a model to measure with, can't be used.
        InvalidPictures: the pictures to compare with can't be read.
    """
    pack = open_pack(options.pack)
    if prompts.has_reference(pack) and not options.wants_dial:
        if options.sheets:
            return prompts.save_sheets(pack, options.sheets, options.precision)
        cache = _chosen_cache(options.cache)
        count, precision = options.count or 126, options.precision
        for line in prompts.measured(pack, count=count, only=options.only, cache=cache, precision=precision):
            print(line, flush=True)
        return None
    if options.sheets:
        raise typer.BadParameter(f"'{pack.name}' has no prompts of its own", param_hint="--sheets")
    with Engine([pack], device=options.device, precision=options.precision) as engine:
        _turn_the_dial(options, pack, engine)
    return None


def _turn_the_dial(options: Options, pack: Pack, engine: Engine) -> None:
    [loaded] = engine.packs.values()
    denoiser = loaded.denoiser
    is_conditional = denoiser.has_classes or denoiser.takes_prompt
    modes = _chosen_modes(options.modes, modes_of(pack, has_null=denoiser.has_null, is_conditional=is_conditional))
    scales = _chosen_scales(options.scales)
    setting = Setting(
        sampler=options.sampler or str(pack.defaults.get("sampler", "ddim")),
        steps=options.steps or int(pack.defaults.get("steps", 50)),
        seed=options.seed,
        count=options.count or DEFAULT_COUNT,
        cache=_chosen_cache(options.cache),
    )
    pictures = _pictures(options.data, denoiser)
    drawn = {name: value for name, value in asdict(setting).items() if value is not None}
    about = {"pack": pack.name, "digest": pack.digest(), **drawn, **_measured_with(options)}
    record = Record(options.json_file, about, force=options.force)
    dial = Dial(engine, pack, _requests(pack, denoiser, pictures), setting, _instruments(options, pack, pictures))
    if setting.count > CHUNK:
        engine.wait_until_measured()  # meanwhile a classifier's rows would run alone, at a seventh of the speed
    print(HEAD)
    _print_real(dial.instruments)
    points = []
    for point in dial.points(modes, scales, record, shows=options.plot is not None):
        points.append(point)
        print(line_of(point), flush=True)
    if options.markdown:
        print("\n" + markdown_of(points))
    if options.plot:
        title = f"{pack.name}: {setting.count} pictures a point, {setting.sampler}, {setting.steps} steps"
        save_plot(points, dial.shown, title, options.plot)


def _measured_with(options: Options) -> dict[str, str | None]:
    """What else the measures depend on, as it was given."""
    given = ("data", "reference", "judge", "features", "clip")
    chosen = {} if options.precision == "auto" else {"precision": options.precision}
    return {name: None if (value := getattr(options, name)) is None else str(value) for name in given} | chosen


def _chosen_modes(given: str, has: tuple[str, ...]) -> tuple[str, ...]:
    chosen = tuple(name.strip() for name in given.split(",")) if given else has
    if unknown := [name for name in chosen if name not in has]:
        why = "the pack has" if unknown[0] in MODES else "there are"
        listed = has if unknown[0] in MODES else MODES
        raise typer.BadParameter(
            f"'{unknown[0]}' is none of those that {why}: {', '.join(listed)}", param_hint="--modes"
        )
    return chosen


def _chosen_cache(given: str | None) -> StepCache | None:
    if given is None:
        return None
    every, colon, until = given.partition(":")
    try:
        return StepCache(int(every), float(until) if colon else 1.0)
    except ValueError:
        raise typer.BadParameter(f"'{given}' is not EVERY[:UNTIL], such as 3:0.8", param_hint="--cache") from None


def _chosen_scales(given: str) -> tuple[float, ...]:
    try:
        scales = tuple(float(scale) for scale in given.split(",")) if given else ()
    except ValueError:
        raise typer.BadParameter(f"must be numbers separated by commas, not '{given}'", param_hint="--scales") from None
    if not all(math.isfinite(scale) for scale in scales):
        raise typer.BadParameter("must be finite", param_hint="--scales")
    return scales


def _pictures(folder: Path | None, denoiser: Denoiser) -> Pictures | None:
    """The pictures to compare with, of the pack's size and colours."""
    if folder is None:
        return None
    (channels, high, wide), (height, width) = denoiser.latent_shape, denoiser.picture_size
    pictures = read_pictures(folder, height)
    colours = 3 if denoiser.has_autoencoder else channels * high * wide // (height * width)
    return replace(pictures, images=coloured(pictures.images, colours))


def _requests(pack: Pack, denoiser: Denoiser, pictures: Pictures | None) -> list[Request]:
    """What is asked for, in turn: the pack's classes, or the pictures' captions."""
    labels = range(len(pack.labels))
    if not denoiser.takes_prompt:
        return [Request(label, None) for label in labels] or [Request(None, None)]
    if pictures is not None and any(pictures.captions):
        names = labels_of_pack(pictures, pack, pack.labels).tolist() if pack.labels and pictures.names else None
        texts = texts_of(pictures)
        return [Request(names[row] if names else None, text) for row, text in enumerate(texts) if text]
    if labels:
        return [Request(label, pack.labels[label]) for label in labels]
    raise InvalidPictures(f"'{pack.name}' takes prompts: give --data with captions")


def _instruments(options: Options, pack: Pack, pictures: Pictures | None) -> Instruments:
    labels: Tensor | None = None
    if pictures is not None and pictures.names and pack.labels:
        labels = labels_of_pack(pictures, pack, pack.labels)
    judge = references.judge_of(pack, options.judge, pictures, labels)
    features = features_named(options.features) if options.features else of_judge(judge) if judge else None
    reference = None
    if features is not None:
        if options.reference is not None:
            is_inception = bool(options.features and options.features.startswith(INCEPTION))
            reference = references.of_npz(options.reference, features, is_inception=is_inception)
        elif pictures is not None:
            reference = references.of_pictures(pictures.images, features, judge, labels)
        elif options.features is None and options.judge is None:
            reference = references.of_pack(pack)
    clip = ClipScore(options.clip) if options.clip else None
    if judge is None and features is None and clip is None:
        raise InvalidPack(
            f"there is nothing to measure '{pack.name}' with: give --data with a folder for each class, --features or "
            "--clip"
        )
    return Instruments(judge=judge, features=features, reference=reference, clip=clip)


def _print_real(instruments: Instruments) -> None:
    """The line of the real pictures: what the judge recognises of them, and how far one half is from the other."""
    reference = instruments.reference
    if reference is not None and reference.halves is not None:
        share = "-" if reference.recognised is None else f"{reference.recognised:.1%}"
        print(f"{'real, half to half':<25} {share:>10} {frechet_distance(*reference.halves):>9.2f}")


command = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@command.command()
@wraps(command_line.evaluate)
def _main(**given: Any) -> None:
    try:
        run(Options(**given))
    except (InvalidPack, InvalidPictures, InvalidSpec, NoSpace, NotLinear, UnknownSampler) as error:
        sys.exit(f"cynosure evaluate: {error}")
    except (Interrupted, KeyboardInterrupt):
        sys.exit(INTERRUPTED)


if __name__ == "__main__":
    gc.freeze()  # libraries stay to the end, and searching them for garbage takes seconds
    command(prog_name="cynosure evaluate")
