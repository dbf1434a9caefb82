"""Prompted pixels: what a prompt and a style become, who is told which, and what training may not have seen."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn import functional

from models.calibration.probes import stacked
from models.calibration.result import fixed_calibration
from models.classifiers import NoiseAwareClassifier, load_steering
from models.denoisers import load_denoiser
from models.denoisers.prompted import told
from models.engine import Engine
from models.networks.sentences import FAMILIAR, SentenceEncoder, encoder_folder, pack_encoder, towards_known
from models.pack import InvalidPack, open_pack
from models.spec import Guidance, InvalidSpec, SampleSpec
from models.training.__main__ import command as train_command
from models.training.captions import Captions, captions_of, held_out_pairs, held_out_prompts
from models.training.data import MissingData, mirrored
from models.training.diffusion import Schedule
from models.training.emoji import STYLES, Concept, draw_pictures, other_concepts
from models.training.emoji_recipe import EMOJI, ENCODER, UNET
from models.training.judge import worn
from models.training.loop import LoopConfig, train
from models.training.prompted import PromptedImages, PromptedTask, StyleTask, start_from_denoiser

CPU = torch.device("cpu")
SCHEDULE = Schedule.of_scheduler(EMOJI.scheduler())
SMALL = {**UNET, "block_out_channels": (32, 32, 32), "attention_head_dim": 8}
SMALL_CLASSIFIER = {
    **EMOJI.classifier,
    "block_out_channels": SMALL["block_out_channels"],
    "attention_head_dim": SMALL["attention_head_dim"],
}
CONFIG = LoopConfig(
    steps=2,
    batch_size=4,
    learning_rate=1e-3,
    warmup_steps=1,
    decay_fraction=0.1,
    weight_decay=0.0,
    ema_decay=0.9,
    seed=0,
)


def small_classifier() -> NoiseAwareClassifier:
    return NoiseAwareClassifier(**SMALL_CLASSIFIER)


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder(encoder_folder(ENCODER), CPU)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, encoder: SentenceEncoder) -> Path:
    """A pack of the emoji pack's making, but small and trained for two steps on noise."""
    made = tmp_path_factory.mktemp("prompted") / "small"
    torch.manual_seed(0)
    captions = Captions(
        vectors=encoder.batch(["apple", "car", "noto apple", "noto car"]),
        plain=torch.tensor([[0, 0], [1, 1]]),
        styled=torch.tensor([[[2, 2]] * 3, [[3, 3]] * 3]),
    )
    pictures = PromptedImages(
        torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8), torch.arange(8) % 3, torch.arange(8) % 2, captions
    )
    task = PromptedTask(
        network=UNet2DConditionModel(**SMALL),
        scheduler=EMOJI.scheduler(),
        pixel_unshuffle=2,
        captions=captions,
    )
    train(task, pictures, CONFIG, made, name="diffusion")
    classifier = small_classifier()
    start_from_denoiser(classifier, task.network)
    steering = StyleTask(network=classifier, schedule=SCHEDULE, pixel_unshuffle=2, captions=captions)
    train(steering, pictures, CONFIG, made, name="classifier")
    (made / "model_index.json").write_text(json.dumps(EMOJI.model_index(with_classifier=True)))
    return made


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[Engine]:
    with Engine([str(folder)], precision="float32", calibrate=fixed_calibration) as running:
        yield running


def test_words_that_mean_the_same_lie_near_each_other(encoder: SentenceEncoder) -> None:
    puppy, dog, car, automobile = (encoder(word) for word in ("puppy", "dog", "car", "automobile"))
    assert puppy @ dog > puppy @ car + 0.2
    assert automobile @ car > automobile @ dog + 0.2


def test_a_word_that_no_caption_has_moves_towards_the_nearest(encoder: SentenceEncoder) -> None:
    dog, car, house = known = torch.stack([encoder(word) for word in ("dog", "car", "house")])
    puppy = encoder("puppy")
    moved = towards_known(puppy, known)
    assert moved.norm() == pytest.approx(1.0, abs=1e-5)
    assert moved @ dog > puppy @ dog + 0.1
    assert moved @ car < dog @ car + 0.05
    assert moved @ house < dog @ house + 0.05
    assert towards_known(dog, known) @ dog > 0.99, "a caption means what it meant in training"


def test_a_prompt_has_one_vector_whoever_asks(encoder: SentenceEncoder) -> None:
    prompts = ["a happy cat", "red apple", "rain " * 200] * 8
    with ThreadPoolExecutor(8) as threads:
        vectors = list(threads.map(encoder, prompts))
    again = SentenceEncoder(encoder_folder(ENCODER), CPU)
    for prompt, vector in zip(prompts, vectors, strict=True):
        assert torch.equal(vector, again(prompt)), prompt
        assert vector.norm() == pytest.approx(1.0, abs=1e-5)


def test_an_encoder_of_other_weights_is_refused() -> None:
    with pytest.raises(InvalidPack, match="SHA-256"):
        encoder_folder({**ENCODER, "sha256": "0" * 64})
    with pytest.raises(InvalidPack, match=r"cynosure\[worker\]"):
        encoder_folder({**ENCODER, "package": "no_such_package"})


def test_prompt_and_style_are_told_apart(folder: Path) -> None:
    denoiser = load_denoiser(open_pack(str(folder)), CPU)

    def told(guidance: Guidance, **fields: object) -> tuple[torch.Tensor, torch.Tensor]:
        rows = denoiser.conditioning(SampleSpec(pack="small", guidance=guidance, **fields))  # type: ignore[arg-type]
        return rows[0]["told"], rows[1]["told"]

    free = Guidance(free_scale=2.0)
    conditional, unconditional = told(free, prompt="red apple", label=1)
    assert conditional[-3:].count_nonzero() == 1
    assert conditional[-2] > 0
    assert not unconditional.any()
    left_open, _ = told(free, prompt="red apple")
    assert torch.equal(left_open[:-3], conditional[:-3])
    assert not left_open[-3:].any()
    assert not told(free, label=1)[0][:-3].any()
    assert told(free, prompt="red apple", negative_prompt="green")[1].any()


def test_the_classifier_tells_the_style_from_the_prompt_too(folder: Path) -> None:
    steering = load_steering(open_pack(str(folder)), CPU)
    assert steering is not None
    x, timesteps = torch.randn(8, 12, 16, 16).repeat_interleave(4, 0), torch.full((32,), 500)
    specs = [SampleSpec(pack="small", prompt=prompt, label=1) for prompt in ("apple", "car", None, "apple")]
    rows = [steering.condition(spec) for spec in specs]
    assert not rows[2]["text"].any()
    gradients, probabilities = steering.gradient(x, timesteps, stacked(rows * 8, CPU))
    by_prompt = probabilities.view(8, 4)
    apart = (by_prompt - by_prompt[:, :1]).abs().amax(0).tolist()  # of some noise the probability is all but certain
    assert apart[3] < 1e-7 < 1e-6 < min(apart[1:3])
    moved = (gradients[:4] - gradients[0]).flatten(1).norm(dim=1) / gradients[0].norm()
    assert moved[3] < 1e-5 < 1e-4 < moved[1:3].min()


def test_a_classifier_starts_as_the_encoder_of_its_denoiser() -> None:
    torch.manual_seed(0)
    denoiser, classifier = UNet2DConditionModel(**SMALL), small_classifier()
    start_from_denoiser(classifier, denoiser)
    kept, started = denoiser.state_dict(), classifier.state_dict()
    for name, value in started.items():
        if name.startswith(("conv_in", "time_embedding", "down_blocks", "mid_block")):
            assert torch.equal(value, kept[name]), name
    text = functional.normalize(torch.randn(2, EMOJI.classifier["text_size"]), dim=1)
    heard: list[torch.Tensor] = []
    assert classifier.text_embedding is not None
    assert denoiser.class_embedding is not None
    classifier.text_embedding.register_forward_hook(lambda *call: heard.append(call[-1]))
    classifier(torch.randn(2, 12, 16, 16), torch.tensor([10, 500]), text)
    torch.testing.assert_close(heard[0], denoiser.class_embedding(told(text, torch.zeros(2, len(STYLES)))))


def test_what_the_classifier_asks_of_a_pack_and_of_a_request(folder: Path, tmp_path: Path) -> None:
    steering = load_steering(open_pack(str(folder)), CPU)
    assert steering is not None
    with pytest.raises(InvalidSpec, match="a label or terms"):
        steering.condition(SampleSpec(pack="small", prompt="a cat"))
    x, timesteps = torch.zeros(1, 12, 16, 16), torch.zeros(1)
    with pytest.raises(ValueError, match="text_size"):
        small_classifier()(x, timesteps)
    for name, spoilt in (("text_encoder_package", None), ("captions.safetensors", "missing")):
        copy = shutil.copytree(folder, tmp_path / name)
        if spoilt:
            (copy / name).unlink()
        else:
            index = json.loads((copy / "model_index.json").read_text())
            (copy / "model_index.json").write_text(json.dumps({**index, name: spoilt}))
        with pytest.raises(InvalidPack, match=name):
            load_steering(open_pack(str(copy)), CPU)
    NoiseAwareClassifier(**{**SMALL_CLASSIFIER, "text_size": 8}).save_pretrained(copy / "classifier")
    shutil.copy(folder / "captions.safetensors", copy)
    with pytest.raises(InvalidPack, match="text_size is 8, not 384"):
        load_steering(open_pack(str(copy)), CPU)


def test_the_classifier_learns_from_what_is_drawn_twice_and_from_nothing_held_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    concepts = [Concept(emoji=str(number), name=f"thing {number}", words=(), keywords=()) for number in range(20)]

    def drawn(concepts: Sequence[Concept], folder: Path) -> torch.Tensor:
        """Each picture says which it is: its first value is the concept, its second the style."""
        marked = torch.zeros(len(concepts), len(STYLES), 3, 32, 32, dtype=torch.uint8)
        marked[..., 0, 0, 0] = torch.tensor([int(concept.emoji) for concept in concepts])[:, None]
        marked[..., 0, 0, 1] = torch.arange(len(STYLES))
        return marked

    recipe = "models.training.emoji_recipe"
    monkeypatch.setattr(f"{recipe}.fetch_packages", lambda folder: None)
    monkeypatch.setattr(f"{recipe}.read_concepts", lambda folder: concepts[:12])
    monkeypatch.setattr(f"{recipe}.other_concepts", lambda drawn, folder: concepts[12:])
    monkeypatch.setattr(f"{recipe}.draw_pictures", drawn)
    monkeypatch.setattr(f"{recipe}.encode_captions", lambda concepts, encoder, folder: len(concepts))
    learnt = EMOJI.classifier_pictures(tmp_path)
    assert learnt.captions == len(concepts)  # type: ignore[comparison-overlap]
    assert torch.equal(learnt.images[:, 0, 0, 0].long(), learnt.concepts)
    assert torch.equal(learnt.images[:, 0, 0, 1].long(), learnt.labels)
    times = Counter(zip(learnt.concepts.tolist(), learnt.labels.tolist(), strict=True))
    every = {(concept, style) for concept in range(20) for style in range(len(STYLES))}
    assert set(times) == every - set(held_out_pairs(12))
    assert all(count == (2 if concept < 12 else 1) for (concept, _), count in times.items())
    assert len(EMOJI.pictures(tmp_path)) == 12 * len(STYLES) - len(held_out_pairs(12))
    assert sorted(set(EMOJI.judge_pictures(tmp_path).images[:, 0, 0, 0].tolist())) == list(range(12, 20))


def test_the_classifier_wants_its_denoiser_first(tmp_path: Path) -> None:
    nothing = PromptedImages(torch.zeros(0), torch.zeros(0), torch.zeros(0), captions=None)  # type: ignore[arg-type]
    with pytest.raises(MissingData, match="train it first"):
        EMOJI.classifier_task(nothing, tmp_path)


@pytest.mark.parametrize(
    "guidance",
    [
        Guidance(),
        Guidance(free_scale=2.0),
        Guidance(classifier_scale=2.0),
        Guidance(free_scale=2.0, classifier_scale=2.0),
    ],
    ids=["none", "classifier_free", "classifier", "combined"],
)
def test_every_mode_draws_the_same_bytes_in_any_company(engine: Engine, guidance: Guidance) -> None:
    spec = SampleSpec(pack="small", prompt="a car", label=2, guidance=guidance, steps=4, seed=3)
    crowd = [
        SampleSpec(
            pack="small", prompt=f"{number} cats", label=number % 3, guidance=guidance, steps=3 + number, seed=number
        )
        for number in range(5)
    ]
    alone = engine.generate([spec])[0]
    assert alone.shape == (32, 32, 3)
    np.testing.assert_array_equal(engine.generate([*crowd, spec])[-1], alone)


def test_the_prompt_changes_the_picture(engine: Engine) -> None:
    cat, car = engine.generate([SampleSpec(pack="small", prompt=prompt, steps=4) for prompt in ("a cat", "a car")])
    assert (cat != car).any()


def test_training_saves_what_serving_loads(folder: Path, encoder: SentenceEncoder) -> None:
    captions = load_file(folder / "captions.safetensors")["vectors"].float()
    assert len(captions) == 2, "those that name a style are left out"
    for caption in ("apple", "car"):
        assert float((captions @ encoder(caption)).max()) == pytest.approx(1.0, abs=1e-3)
    saved = load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")
    assert {value.dtype for value in saved.values()} == {torch.float16}
    assert all(value.isfinite().all() for value in saved.values())


def test_no_caption_holds_a_held_out_prompt() -> None:
    held_out = held_out_prompts()
    keywords = ("puppy", "A Puppy", "puppy dog", "woof", "pet")
    dog = Concept(emoji="🐶", name="dog face", words=("dog",), keywords=keywords)
    captions = captions_of(dog, Counter(keywords))
    assert captions == ["dog face", "dog", "woof", "pet"]
    concepts = Path("models/training/emoji_concepts.txt").read_text().splitlines()
    listed = {line.partition(":")[0].strip() for line in concepts if not line.startswith("#")}
    words = {word.strip().casefold() for line in concepts for word in line.replace(":", ",").split(",")}
    assert not {prompt.casefold() for prompt in held_out} & words
    assert {name for names in held_out.values() for name in names} <= listed


def test_a_held_out_pair_leaves_its_concept_two_styles() -> None:
    pairs = held_out_pairs(381)
    assert len(pairs) == len({concept for concept, _ in pairs}) == 32
    assert {style for _, style in pairs} == set(range(len(STYLES)))


def test_pictures_are_drawn_anew_for_other_concepts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def drawing(body: str, side: int) -> np.ndarray:
        return np.full((3, 32, 32), side, np.uint8)

    monkeypatch.setattr("models.training.emoji._read_set", lambda folder: {"🐶": ("", 1), "🐱": ("", 2)})
    monkeypatch.setattr("models.training.emoji._rasterised", drawing)
    dog, cat = ([Concept(emoji=emoji, name="", words=(), keywords=())] for emoji in "🐶🐱")
    assert draw_pictures(dog, tmp_path)[:, :, 0, 0, 0].tolist() == [[1, 1, 1]]
    assert draw_pictures(cat, tmp_path)[:, :, 0, 0, 0].tolist() == [[2, 2, 2]]
    monkeypatch.setattr("models.training.emoji._rasterised", lambda body, side: pytest.fail("it was drawn before"))
    assert draw_pictures(dog, tmp_path)[:, :, 0, 0, 0].tolist() == [[1, 1, 1]]


def test_the_trainer_refuses_what_would_do_nothing(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as refusal:
        train_command(["emoji", "--only", "classifier", "--init-from", "emoji"])
    assert refusal.value.code == 2
    assert "--init-from: it is for the denoiser" in capsys.readouterr().err


def test_the_emoji_sets_are_not_downloaded_into_a_folder_of_pictures(tmp_path: Path) -> None:
    for name in ("iconify-json-noto-1.2.9", "pictures-0123456789abcdef.safetensors", "cat.png"):
        (tmp_path / name).touch()
    with pytest.raises(MissingData, match=r"holds 'cat\.png'"):
        EMOJI.pictures(tmp_path)
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize(("pack", "option"), [("emoji", "--data"), ("fashion", "--cache")])
def test_each_recipe_takes_the_folder_that_it_has_a_use_for(
    pack: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as refusal:
        train_command([pack, option, "folder"])
    assert refusal.value.code == 2
    assert f"No such option: {option}" in capsys.readouterr().err


def test_a_classifier_learns_from_pictures_that_were_moved_against_it(encoder: SentenceEncoder) -> None:
    captions = Captions(
        vectors=encoder.batch(["apple", "noto apple"]), plain=torch.tensor([[0]]), styled=torch.tensor([[[1]] * 3])
    )
    pictures = PromptedImages(
        torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8),
        torch.arange(16) % 3,
        torch.zeros(16).long(),
        captions,
    )
    torch.manual_seed(0)
    network = small_classifier()

    def loss(radius: float) -> float:
        task = StyleTask(network=network, schedule=SCHEDULE, pixel_unshuffle=2, captions=captions, attack_radius=radius)
        return task.loss(pictures, torch.Generator().manual_seed(1)).item()

    assert loss(3.0) > loss(0.0) + 1e-3


def test_a_judge_that_wears_pictures_learns_what_is_left_of_them() -> None:
    pictures = torch.zeros(64, 3, 32, 32, dtype=torch.uint8)
    pictures[:, 0, :, 16:] = 200
    some = worn(pictures, torch.Generator().manual_seed(0))
    assert some.shape == pictures.shape
    assert 0 <= some.min() <= some.max() <= 255
    assert (some != pictures).any(dim=(1, 2, 3)).all()
    red, others = some[:, 0, :, 16:].mean((1, 2)), some[:, 1:].mean((1, 2, 3))
    assert (red > 150).all()
    assert (others < 40).all()
    turned = mirrored(pictures, 0.5, torch.Generator().manual_seed(0))
    assert 16 < int((turned[:, 0, 0, 0] == 200).sum()) < 48


def test_the_judge_learns_from_emoji_that_the_pack_does_not_draw(tmp_path: Path) -> None:
    names = {
        "🐶": {"name": "dog face", "group": "Animals & Nature"},
        "🐱": {"name": "cat face", "group": "Animals & Nature"},
        "🐭": {"name": "mouse face", "group": "Animals & Nature"},
        "🏳️": {"name": "white flag", "group": "Flags"},
    }
    packages = {"unicode-emoji-json-0.9.0": {"data-by-emoji.json": names}}
    for package, drawn in (
        ("noto-1.2.9", "🐶🐱🐭🏳"),
        ("fluent-emoji-flat-1.2.6", "🐶🐱🏳"),
        ("twemoji-1.2.5", "🐶🐱🐭🏳"),
    ):
        icons = {f"i{number}": {"body": "<g/>"} for number in range(len(drawn))}
        packages[f"iconify-json-{package}"] = {
            "icons.json": {"width": 32, "icons": icons, "aliases": {}},
            "chars.json": {f"{ord(character):x}": f"i{number}" for number, character in enumerate(drawn)},
        }
    packages["emojilib-4.0.3"] = {"dist/emoji-en-US.json": {}}
    for package, files in packages.items():
        for name, content in files.items():
            path = tmp_path / package / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
    dog = Concept(emoji="🐶", name="dog face", words=(), keywords=())
    assert [other.emoji for other in other_concepts([dog], tmp_path)] == ["🐱"], "no flag, and none that a set lacks"


def test_prompts_that_the_model_can_not_know_are_remarked_on() -> None:
    encoder = pack_encoder(open_pack("emoji"))
    for prompt in ("a happy cat", "Two red apples, on a table!", *list(held_out_prompts())[:20]):
        assert encoder.reading(prompt).remarks == (), prompt
    assert encoder.known is not None
    likeness = encoder.batch(list(held_out_prompts())) @ encoder.known.T
    assert float(likeness.max(1).values.min()) > FAMILIAR
    [unlike] = encoder.reading("quantum chromodynamics").remarks
    assert unlike == "is like nothing that the model was trained on (similarity 0.27 of 1)"
    words, _ = encoder.reading("кошка, 猫 and a 🐱").remarks
    assert words == "has words that the model's text encoder doesn't know: 'кошка', '猫', '🐱'"
    *_, cut = encoder.reading("a happy cat " * 30).remarks
    assert cut.startswith("is too long: the model's text encoder reads 62 of its 90 tokens, and not 'cat a happy cat")


def test_an_empty_prompt_is_none() -> None:
    spec = SampleSpec(pack="emoji", prompt=" ", negative_prompt="\n", label=0)
    denoiser = load_denoiser(open_pack("emoji"), CPU)
    for blank, none in zip(
        denoiser.conditioning(spec),
        denoiser.conditioning(replace(spec, prompt=None, negative_prompt=None)),
        strict=True,
    ):
        assert torch.equal(blank["told"], none["told"])
    assert denoiser.readings(spec) == {}
