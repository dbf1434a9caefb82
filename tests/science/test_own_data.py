"""From a folder of pictures to a pack: what is read, what is refused, and what a run leaves behind."""

from __future__ import annotations

import json
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from diffusers.training_utils import compute_snr
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from harness.processes import clean_environment
from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.pack import open_pack
from models.samplers.levels import levels_of
from models.spec import Guidance, SampleSpec
from models.training.__main__ import command
from models.training.checkpoints import NoSpace
from models.training.data import Augmentation, LabelledImages
from models.training.diffusion import Schedule, noised_at, prediction_loss
from models.training.loop import Interrupted, LoopConfig, train
from models.training.own import folder as folder_module
from models.training.own import pictures as pictures_module
from models.training.own.folders import pictures_in
from models.training.own.pictures import read_pictures
from tests.science.own_pictures import COLOURS, folder_run, write_pictures
from tests.science.test_training import CONFIG, Line, fresh_line
from tests.small_pack import write_small_pack

LABELLED = LabelledImages(
    torch.randint(0, 4, (40, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=torch.uint8),
    torch.arange(40) % 10,
)


@pytest.fixture(scope="module")
def colours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("own") / "colours", count=20)


@pytest.fixture(scope="module")
def pack(colours: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packs") / "colours-pack"
    folder_module.run(folder_run(colours, out, flip=True, shift=True, colour=0.1), "cynosure train folder …")
    return out


def test_pictures_are_read_in_every_layout(tmp_path: Path) -> None:
    picture = Image.new("RGB", (5, 7), "red")
    (tmp_path / "cats").mkdir()
    for name in ("cats/a.png", "cats/b.JPG", "c.png", "d.png", "e.png"):
        picture.convert("RGB").save(tmp_path / name, "PNG" if name.endswith("png") else "JPEG")
    (tmp_path / "cats/a.txt").write_text("a sleeping cat\n")
    (tmp_path / "metadata.jsonl").write_text(
        json.dumps({"file_name": "c.png", "label": "dogs", "text": "a dog"}) + "\n"
        '{"file_name": "d.png", "class": 3}\n{"file_name": "e.png", "label": "dogs"}\n'
    )
    (tmp_path / "captions.txt").write_text("image,caption\ne.png,a dog, asleep\n")
    (tmp_path / "notes.md").write_text("")
    (tmp_path / ".hidden.png").write_text("")
    listing = pictures_in(tmp_path)
    found = {one.path.name: (one.label, one.caption) for one in listing.pictures}
    assert found["a.png"] == ("cats", "a sleeping cat")
    assert found["b.JPG"] == ("cats", None)
    assert found["d.png"] == ("3", None)
    assert found["c.png"] == ("dogs", "a dog")
    assert set(found) == {"a.png", "b.JPG", "c.png", "d.png", "e.png"}
    assert listing.passed_over == 1


def test_what_is_odd_about_pictures_is_reported_and_the_rest_is_read_once(
    colours: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = tmp_path / "own"
    shutil.copytree(colours, own)
    (own / "red/broken.png").write_bytes((own / "red/0.png").read_bytes()[:60])
    (own / "red/notes.pdf").write_text("")
    shutil.copy(own / "red/0.png", own / "blue/same.png")
    shutil.copy(own / "red/0.png", own / "red/same.png")
    Image.new("RGBA", (30, 30), (0, 0, 0, 0)).save(own / "blue/clear.png")
    pictures = read_pictures(own, 16, cache=tmp_path / "cache")
    lines = "\n".join(pictures.report())
    for said in (
        "63 pictures of 3 classes:",
        "22  blue",
        "1 files can't be read and are left out:",
        "red/broken.png: ",
        "1 other files are no pictures",
        "their sizes differ: 4 sizes",
        "all are scaled to 16x16",
        "2 pictures are there more than once",
        "1 pictures are in several classes, such as blue and red",
    ):
        assert said in lines
    [clear] = [row for row in range(len(pictures)) if (pictures.images[row] == 255).all()]
    assert pictures.names[int(pictures.labels[clear])] == "blue"

    monkeypatch.setattr(pictures_module, "_squared", lambda *_: pytest.fail("it was read before"))
    again = read_pictures(own, 16, cache=tmp_path / "cache")
    assert torch.equal(again.images, pictures.images)
    assert again.report.__self__.digest == pictures.digest


def test_grey_pictures_have_one_channel_and_a_picture_is_held_out_or_trained_on_but_not_both(tmp_path: Path) -> None:
    chance = np.random.default_rng(0)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for number in range(40):
            pixels = chance.integers(0, 256, (8, 8), dtype=np.uint8)
            for copy in range(1 + number % 2):
                Image.fromarray(pixels).save(tmp_path / name / f"{number}-{copy}.png")
    pictures = read_pictures(tmp_path, 8)
    assert pictures.images.shape == (120, 1, 8, 8)
    trained, held_out = pictures.split()
    assert not set(trained.digests) & set(held_out.digests)
    assert len(set(held_out.digests)) == 8
    assert torch.bincount(held_out.labels).min() >= 4
    assert pictures.split()[1].digests == held_out.digests


def _broken(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        if path.is_file():
            path.write_bytes(b"nothing")


def _one_class(folder: Path) -> None:
    for name in ("green", "red"):
        shutil.rmtree(folder / name)


def _class_of_one(folder: Path) -> None:
    for path in sorted((folder / "red").iterdir())[1:]:
        path.unlink()


def _outside(folder: Path) -> None:
    Image.new("RGB", (8, 8)).save(folder / "alone.png")


def _only_svg(folder: Path) -> None:
    for path in folder.rglob("*.*"):
        if path.is_file():
            path.rename(path.with_suffix(".svg"))


def _wrong_metadata(folder: Path) -> None:
    (folder / "metadata.jsonl").write_text('{"name": "a.png"}\n')


def _missing_file(folder: Path) -> None:
    (folder / "captions.txt").write_text("gone.png\ta cat\n")


@pytest.mark.parametrize(
    ("spoil", "options", "said"),
    [
        (_broken, (), "none of the 60 pictures of"),
        (_one_class, (), "the only class is 'blue': guidance needs at least two"),
        (_class_of_one, (), "class 'red' has one picture that can be read"),
        (_outside, (), "alone.png and 0 others have no class"),
        (_only_svg, (), "has no pictures; it has .svg files, which are not read"),
        (_wrong_metadata, (), 'metadata.jsonl:1 must be a JSON object with a "file_name"'),
        (_missing_file, (), "gone.png is named by metadata.jsonl or captions.txt"),
        (shutil.rmtree, (), "is not a folder"),
    ],
)
def test_pictures_that_cannot_be_trained_on_are_refused_in_one_line(
    spoil: Callable[[Path], None], options: tuple[str, ...], said: str, colours: Path, tmp_path: Path
) -> None:
    own = tmp_path / "own"
    shutil.copytree(colours, own)
    spoil(own)
    with pytest.raises(SystemExit) as refusal:
        command(["folder", "--data", str(own), "-o", str(tmp_path / "out"), *options])
    assert said in str(refusal.value.code)
    assert "\n" not in str(refusal.value.code)


def _refused(*arguments: str) -> str:
    with pytest.raises(SystemExit) as refusal:
        command(list(arguments))
    return str(refusal.value.code)


def test_captions_are_needed_for_a_pack_of_prompts(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    out = str(tmp_path / "out")
    assert "1 of 1 pictures have none" in _refused("folder", "--text", "--data", str(tmp_path), "-o", out)


def test_what_the_machine_or_the_network_has_not_is_refused(colours: Path, tmp_path: Path) -> None:
    folder = ("folder", "--data", str(colours), "-o", str(tmp_path / "out"))
    assert "--gpus 99: this machine has" in _refused(*folder, "--gpus", "99")
    (tmp_path / "file").write_text("")
    assert "is a file" in _refused(*folder[:-1], str(tmp_path / "file"))


def test_what_does_not_fit_the_pack_is_refused(colours: Path, tmp_path: Path) -> None:
    small = write_small_pack(tmp_path / "small")
    given = ("--data", str(colours), "-o", str(tmp_path / "out"))
    assert "it has no 'blue', but t-shirt, trouser" in _refused("classifier", "--pack", str(small), *given)
    assert "it has no 'blue'" in _refused("finetune", "--pack", str(small), *given, "--force")
    config = small / "scheduler/scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_schedule": "unheard_of"}))
    assert "beta schedule 'unheard_of'" in _refused("classifier", "--pack", str(small), *given)
    config.unlink()
    assert "has no scheduler/scheduler_config.json" in _refused("classifier", "--pack", str(small), *given)


def test_a_run_makes_a_pack_with_card_grid_losses_and_judge(pack: Path, colours: Path) -> None:
    card = (pack / "README.md").read_text()
    for said in (
        "blue (20), green (20), red (20)",
        "2 steps of 4 pictures",
        "cynosure train folder …",
        "loss on held-out",
    ):
        assert said in card
    assert (pack / "training/samples/000002.png").is_file()
    lines = [json.loads(line) for line in (pack / "training/diffusion.loss.jsonl").read_text().splitlines()]
    assert [set(line) for line in lines] == [{"step", "loss", "learning_rate"}, {"step", "held_out_loss"}]
    reference = load_file(pack / "judge/reference.safetensors")
    assert reference["features"].shape == (6, 64)
    opened = open_pack(str(pack))
    assert opened.labels == tuple(COLOURS)
    with Engine([opened], precision="float32", calibrate=fixed_calibration) as engine:
        [picture] = engine.generate(
            [SampleSpec(pack=opened.name, label="red", steps=2, guidance=Guidance(free_scale=2.0))]
        )
    assert picture.shape == (32, 32, 3)


def test_nothing_is_overwritten_and_no_other_run_resumed_without_force(
    pack: Path, colours: Path, tmp_path: Path
) -> None:
    out = tmp_path / "pack"
    shutil.copytree(pack, out)
    same = ("folder", "--data", str(colours), "-o", str(out), "--steps", "2", "--rate", "1e-3", "--flip", "--shift")
    same = (*same, "--colour", "0.1", "--ema", "0.9")
    assert "a run with --batch 4, and this one has 5" in _refused(*same, "--batch", "5")
    assert "a run with --flip True, and this one has False" in _refused(
        *[one for one in same if one != "--flip"], "--batch", "4"
    )
    own = tmp_path / "more"
    shutil.copytree(colours, own)
    shutil.copy(own / "red/0.png", own / "red/another.png")
    more = [str(own) if one == str(colours) else one for one in same]
    assert "a run with --data (digest of its pictures)" in _refused(*more, "--batch", "4")
    assert "holds what `train folder` made" in _refused(
        "classifier", "--pack", "fashion", "--data", str(colours), "-o", str(out)
    )
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/letter.txt").write_text("dear")
    assert "is not empty" in _refused("folder", "--data", str(colours), "-o", str(tmp_path / "mine"))
    folder_module.run(folder_run(colours, tmp_path / "mine", force=True, schedule="flow"), "anew")
    assert (tmp_path / "mine/letter.txt").read_text() == "dear"
    scheduler = open_pack(str(tmp_path / "mine")).scheduler_config
    assert (scheduler["_class_name"], scheduler["prediction_type"]) == (
        "FlowMatchEulerDiscreteScheduler",
        "flow_prediction",
    )


def test_a_pack_of_captions_draws_prompts(tmp_path: Path) -> None:
    own = write_pictures(tmp_path / "own", count=8)
    for path in (own / "red").iterdir():
        path.with_suffix(".txt").write_text(f"a red thing called {path.stem}")
    out = tmp_path / "out"
    folder_module.run(folder_run(own, out, text=True), "the command")
    flat = tmp_path / "flat"
    flat.mkdir()
    for number, path in enumerate(sorted((own / "red").glob("*.png"))):
        shutil.copy(path, flat / f"{number}.png")
        (flat / f"{number}.txt").write_text(f"number {number}")
    folder_module.run(folder_run(flat, tmp_path / "no-classes", text=True), "the command")
    for folder, label in ((out, "red"), (tmp_path / "no-classes", None)):
        opened = open_pack(str(folder))
        with Engine([opened], precision="float32", calibrate=fixed_calibration) as engine:
            spec = SampleSpec(pack=opened.name, prompt="a red thing", label=label, steps=2)
            [picture] = engine.generate([replace(spec, guidance=Guidance(free_scale=2.0))])
            assert engine.packs[opened.name].denoiser.has_classes is (label is not None)
        assert picture.shape == (32, 32, 3)


@dataclass
class Stopped(Line):
    """Is interrupted in the middle of its sixth step."""

    steps: int = 0

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        self.steps += 1
        if self.steps == 6:
            signal.raise_signal(signal.SIGINT)
        return super().loss(batch, generator)


def test_an_interrupt_saves_and_the_run_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    train(fresh_line(), LABELLED, CONFIG, tmp_path / "unbroken", name="line")
    stopped = Stopped(fresh_line().network)
    with pytest.raises(Interrupted, match="stopped at step 6 of 12"):
        train(stopped, LABELLED, CONFIG, tmp_path / "broken", name="line")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    train(fresh_line(), LABELLED, CONFIG, tmp_path / "broken", name="line")
    for name, value in load_file(tmp_path / "unbroken/line.safetensors").items():
        assert torch.equal(load_file(tmp_path / "broken/line.safetensors")[name], value), name


def test_a_full_disk_is_said_and_keeps_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    short = replace(CONFIG, steps=4)
    train(fresh_line(), LABELLED, short, tmp_path, name="line")
    before = (tmp_path / "training/line.checkpoint.pt").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, limits[1]))  # the kernel refuses to write more to a file
    try:
        with pytest.raises(NoSpace, match="checkpoint of step 8 can't be written"):
            train(fresh_line(), LABELLED, replace(CONFIG, steps=8), tmp_path, name="line")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert (tmp_path / "training/line.checkpoint.pt").read_bytes() == before
    assert not list(tmp_path.rglob("*.partial"))
    full = shutil._ntuple_diskusage(10, 10, 0)  # type: ignore[attr-defined]
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    with pytest.raises(NoSpace, match="a checkpoint needs 0 MB, and 0 MB are free"):
        train(fresh_line(), LABELLED, CONFIG, tmp_path / "other", name="line")


@dataclass
class Fitted(Line):
    """Has no randomness, so that how a batch is split makes no difference."""

    def loss(self, batch: LabelledImages, generator: torch.Generator) -> Tensor:
        return (self.network(batch.images.float().flatten(1)).squeeze(1) - batch.labels).square().mean()


def fitted(folder: Path, config: LoopConfig = CONFIG) -> dict[str, Tensor]:
    train(Fitted(fresh_line().network), LABELLED, config, folder, name="line")
    return load_file(folder / "line.safetensors")


def test_a_batch_in_parts_or_on_two_processes_gives_the_same_weights(tmp_path: Path) -> None:
    whole = fitted(tmp_path / "whole")
    in_parts = fitted(tmp_path / "parts", replace(CONFIG, accumulate=3))
    out = f"pathlib.Path({str(tmp_path)!r}) / 'two'"
    code = f"import pathlib\nfrom tests.science.test_own_data import fitted\nfitted({out})\n"
    (tmp_path / "run.py").write_text(code)
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "2"]
    options = ["--mixed_precision", "no", "--num_machines", "1", "--dynamo_backend", "no", "--main_process_port", "0"]
    environment = {**clean_environment(), "PYTHONPATH": ".", "OMP_NUM_THREADS": "1"}
    answer = subprocess.run(
        [*launch, *options, str(tmp_path / "run.py")], env=environment, capture_output=True, text=True, timeout=300
    )
    assert answer.returncode == 0, answer.stderr
    for name, value in whole.items():
        assert torch.allclose(in_parts[name], value, atol=1e-5), name
        assert torch.allclose(load_file(tmp_path / "two/line.safetensors")[name], value, atol=1e-5), name


def test_noise_levels_are_those_of_the_published_schedulers() -> None:
    x_0, noise = torch.randn(2, 4, 3, 8, 8).unbind(0)
    levels = torch.tensor([0, 300, 700, 999])
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type="v_prediction")
    mixed = noised_at(x_0, Schedule.of_scheduler(scheduler), levels, noise)
    assert torch.allclose(mixed.x_t, scheduler.add_noise(x_0, noise, levels), atol=1e-4)
    v = scheduler.get_velocity(x_0, noise, levels)
    assert prediction_loss(v, mixed, "v_prediction", None) < 1e-7
    straight = FlowMatchEulerDiscreteScheduler(shift=3.0)
    straight.register_to_config(prediction_type="flow_prediction")
    schedule = Schedule.of_scheduler(straight)
    assert torch.allclose(schedule.sigmas.flip(0), straight.sigmas.cpu(), atol=1e-6)
    mixed = noised_at(x_0, schedule, levels, noise)
    assert prediction_loss(noise - x_0, mixed, "flow_prediction", 5.0) < 1e-10
    _, timestep, _, sigma = levels_of({"num_train_timesteps": 1000, "prediction_type": "flow_prediction"}).nearest(
        float(1 - schedule.sigmas[300]), float(schedule.sigmas[300])
    )
    assert timestep == pytest.approx(float(schedule.timesteps[300]), abs=1e-2)
    assert sigma == pytest.approx(float(schedule.sigmas[300]), abs=1e-5)


def test_the_loss_is_weighted_by_noise_level_as_in_the_paper() -> None:
    scheduler = DDPMScheduler(beta_schedule="scaled_linear")
    level = torch.tensor([50, 400, 900])
    x_0, noise = torch.randn(2, 3, 3, 4, 4).unbind(0)
    mixed = noised_at(x_0, Schedule.of_scheduler(scheduler), level, noise)
    snr = compute_snr(scheduler, level)
    weights = torch.minimum(snr, torch.full_like(snr, 5.0)) / snr
    output = torch.randn_like(noise)
    expected = (weights * (output - noise).square().mean((1, 2, 3))).mean()
    assert prediction_loss(output, mixed, "epsilon", 5.0).item() == pytest.approx(expected.item(), rel=1e-3)
    v = mixed.alpha * noise - mixed.sigma * x_0
    capped = torch.minimum(snr + 1, torch.full_like(snr, 5.0)) / (snr + 1)
    expected = (capped * (output - v).square().mean((1, 2, 3))).mean()
    assert prediction_loss(output, mixed, "v_prediction", 5.0).item() == pytest.approx(expected.item(), rel=1e-3)


def test_augmentations_keep_what_they_promise() -> None:
    images = torch.zeros(400, 3, 8, 8, dtype=torch.uint8)
    images[:, :, :, :4] = torch.tensor([200, 100, 50], dtype=torch.uint8).view(3, 1, 1)
    draws = torch.Generator().manual_seed(0)
    assert Augmentation()(images, draws) is images
    turned = Augmentation(flip=0.5)(images, draws)
    share = (turned[:, 0, 0, 0] == 0).float().mean()
    assert 0.4 < share < 0.6
    moved = Augmentation(shift=1.0)(images, draws)
    assert torch.equal(moved.sort(-1).values.sort(-2).values.float().mean((0, 2, 3)), images.float().mean((0, 2, 3)))
    recoloured = Augmentation(colour=0.2)(images, draws)[:, :, :, :4].float()
    assert (recoloured[:, 0] > recoloured[:, 1]).all()
    assert recoloured[:, 0].std() > 1
