"""`cynosure train classifier`: a noise-aware classifier for any pack that draws pixels or latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from safetensors.torch import load_file

from models.classifiers import NoiseAwareClassifier
from models.command_line import ClassifierStart, Fit, Preset
from models.loading import weight_files
from models.networks import AdmClassifier
from models.pack import InvalidPack, Pack, open_pack, read_object
from models.training.classifier import ATTACK, ClassifierTask
from models.training.data import AS_THEY_ARE
from models.training.diffusion import Schedule
from models.training.loop import train
from models.training.own.cards import about, accuracy_table
from models.training.own.checks import check_classes
from models.training.own.pictures import Pictures, read_pictures
from models.training.own.presets import HEAD, PRESETS, run_of
from models.training.own.runs import HeldOut, augmentation_of, check_augmentation, said
from models.training.own.spaces import Space, encoded, labels_of_pack, space_of
from models.training.own.target import claim, refer

KIND = "classifier"
RATE, EMA, WEIGHT_DECAY = 1e-3, 0.998, 0.05


@dataclass(frozen=True, kw_only=True)
class ClassifierRun:
    """The options of `cynosure train classifier`; see `models.command_line.train_classifier`."""

    pack: str
    data: Path
    out: Path
    preset: Preset
    start: ClassifierStart
    robust: bool
    steps: int | None
    batch: int | None
    rate: float | None
    accumulate: int
    eval_every: int | None
    flip: bool
    shift: bool
    colour: float
    fit: Fit
    seed: int
    gpus: int
    compile: bool
    force: bool

    def settings(self, pictures: Pictures, pack: Pack) -> Mapping[str, Any]:
        """What a resumed run must not change, by option."""
        names = "preset start robust flip shift colour fit"
        own = {f"--{name}": getattr(self, name) for name in names.split()}
        return {
            **own,
            "--pack": str(pack.folder.resolve()),
            "--data (digest of its pictures)": pictures.digest,
        }


def run(options: ClassifierRun, command: str) -> None:
    """Train a classifier; `command` is how it was called, for the model card.

    Raises:
        InvalidPack: the pack can't be read, or its classes are others.
        InvalidPictures: as for `cynosure train folder`.
        NotLinear: the pack's noise levels can't be known.
    """
    pack = open_pack(options.pack)
    space = space_of(pack)
    check_augmentation(options, is_latent=space.is_latent)
    schedule = Schedule.of(pack.scheduler_config)
    state = PartialState()
    cache = options.out / "training"
    with state.main_process_first():
        claim(options.out, KIND, force=options.force and state.is_main_process)
        pictures = read_pictures(options.data, space.picture, fit=options.fit, cache=cache)
    if state.is_main_process:
        said(pictures.report())
    check_classes(pictures)
    names = pack.labels or pictures.names
    labels = labels_of_pack(pictures, pack, names)
    trained, held_out = pictures.split_rows()
    with state.main_process_first():
        data, tested = (
            encoded(pictures.only(part), labels[part], pack, space, flip=flip, cache=cache, device=state.device)
            for part, flip in ((trained, options.flip), (held_out, False))
        )
    size = PRESETS[options.preset]
    task = ClassifierTask(
        network=_network(options, pack, space, len(names)),
        schedule=schedule,
        pixel_unshuffle=space.pixel_unshuffle,
        augmentation=AS_THEY_ARE if space.is_latent else augmentation_of(options),
        attack_radius=options.robust * ATTACK * (space.channels * space.side**2) ** 0.5,
    )
    batch = options.batch or size.batch
    config = run_of(
        steps=options.steps or size.classifier_steps,
        batch=batch,
        rate=options.rate or RATE,
        ema=EMA,
        seed=options.seed,
        accumulate=options.accumulate,
        every=options.eval_every,
        weight_decay=WEIGHT_DECAY,
    )
    train(
        task,
        data,
        config,
        options.out,
        name="classifier",
        compile_network=options.compile,
        settings=options.settings(pictures, pack),
        measure=HeldOut(task, tested, batch),
    )
    if state.is_main_process:
        _finish(options, pack, pictures, names, task, tested, command)


def _network(options: ClassifierRun, pack: Pack, space: Space, num_classes: int) -> Any:
    torch.manual_seed(options.seed)
    if options.start == "denoiser":
        network = from_denoiser(pack, space, num_classes)
    else:
        network = NoiseAwareClassifier(**PRESETS[options.preset].classifier(space.side, space.channels, num_classes))
    return network


def from_denoiser(pack: Pack, space: Space, num_classes: int) -> Any:
    """A classifier of the shape of the denoiser's encoder, with its weights.

    Raises:
        InvalidPack: the denoiser has an encoder that no classifier has.
    """
    config = read_object(pack.component(space.network) / "config.json")
    weights = {
        name: value for file in weight_files(pack.component(space.network)) for name, value in load_file(file).items()
    }
    if pack.family == "AdmUNet":
        kept = "image_size in_channels model_channels num_res_blocks channel_mult attention_resolutions resblock_updown"
        shape = {key: config[key] for key in (*kept.split(), "use_scale_shift_norm") if key in config}
        heads = config.get("num_head_channels") or config["model_channels"] // config["num_heads"]
        network: Any = AdmClassifier(**shape, num_head_channels=heads, num_classes=num_classes)
    else:
        blocks = config["down_block_types"]
        plain = {"DownBlock2D", "AttnDownBlock2D"}
        if space.is_latent or set(blocks) - plain or config.get("norm_num_groups", 32) != 32:
            raise InvalidPack(
                f"--start denoiser: the encoder of '{pack.name}' ({pack.family}) has other layers than a classifier: "
                "leave it out, and choose a --preset"
            )
        network = NoiseAwareClassifier(
            sample_size=space.side,
            in_channels=space.channels,
            num_classes=num_classes,
            block_out_channels=tuple(config["block_out_channels"]),
            down_block_types=tuple(blocks),
            layers_per_block=config.get("layers_per_block", 2),
            attention_head_dim=config.get("attention_head_dim") or HEAD,
            mid_attention=any(name.startswith("mid_block.attentions.") for name in weights),
        )
    own = network.state_dict()
    fitting = {name: value for name, value in weights.items() if name in own and own[name].shape == value.shape}
    network.load_state_dict(fitting, strict=False)
    return network


def _finish(
    options: ClassifierRun,
    pack: Pack,
    pictures: Pictures,
    names: tuple[str, ...],
    task: ClassifierTask,
    tested: Any,
    command: str,
) -> None:
    """Write the index, the references to the pack, and the card with the accuracy by noise level."""
    out = options.out
    task.network = type(task.network).from_pretrained(out / "classifier", low_cpu_mem_usage=False).eval()
    curve = task.accuracies(tested, torch.device("cpu"))
    (out / "classifier" / "accuracy.json").write_text(json.dumps(curve) + "\n")
    package = "models.networks" if isinstance(task.network, AdmClassifier) else "models.classifiers"
    index = {
        **pack.index,
        "classifier": [package, type(task.network).__name__],
        "id2label": {str(number): name for number, name in enumerate(names)},
        "cynosure": {"classifier_scale": 5.0, **pack.defaults},
    }
    (out / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    refer(out, pack, options.pack, without=("classifier",))
    card = [
        "---",
        f"license: {pack.defaults.get('license', 'other')}",
        "tags: [diffusion, classifier-guidance]",
        "---",
        "",
        f"# {out.resolve().name}",
        "",
        f"`{pack.name}` with a noise-aware classifier over {len(names)} classes. Its other components are in "
        f"`{pack.folder}`: `components.json` has their digests. Serve it with `cynosure up --models {out}`.",
        "",
        *about(pictures),
        "",
        "## Training",
        "",
        f"    {command}",
        "",
        *accuracy_table(curve, task.schedule),
        "",
    ]
    (out / "README.md").write_text("\n".join(card))
    said([f"recognised on held-out pictures without noise: {curve[0][1]:.1%}; the card has all noise levels"])
