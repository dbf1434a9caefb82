"""How CLIP reads prompts: in chunks, with weights, from another layer; against diffusers' pipelines, and in batches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTextModelWithProjection

from benchmarks.packs import letters_tokenizer
from cynosure.contract import GenerateRequest, PromptTokens
from cynosure.metadata import parameters_of
from cynosure.resolving import resolve
from models.calibration.probes import example_conditionings, shape_of
from models.calibration.result import fixed_calibration
from models.engine import Engine
from models.networks.chunks import chunks_of
from models.noise import draw_noise
from models.spec import Guidance, InvalidPrompt, InvalidSpec, LongPrompt, SampleSpec
from tests.science.test_families import (
    SCALE,
    SIDE,
    STEPS,
    TOKENS,
    drawn,
    saved,
    stable_diffusion,
    stable_diffusion_3,
    stable_diffusion_xl,
    text_config,
)
from workers.drawing.cards import card_of
from workers.drawing.planner import plan_of
from workers.drawing.specs import specs_of

READ = TOKENS - 2
WORDS = [f"{letter}{letter}" for letter in "abcdefghij"]  # two tokens each, so that 7 of them fill a chunk
LONG, FIRST, SECOND = " ".join(WORDS), " ".join(WORDS[: READ // 2]), " ".join(WORDS[READ // 2 :])


def test_a_prompt_is_split_after_as_many_tokens_as_the_encoder_reads() -> None:
    tokenizer = letters_tokenizer(TOKENS)

    def padded(text: str) -> list[int]:
        ids: list[int] = tokenizer(text, padding="max_length", max_length=TOKENS, truncation=True).input_ids
        return ids

    for text, expected in (("", [""]), ("a red cat", ["a red cat"]), (FIRST, [FIRST]), (LONG, [FIRST, SECOND])):
        chunks = chunks_of(tokenizer, [(text, 1.0)], TOKENS)
        assert [list(chunk.ids) for chunk in chunks] == [padded(one) for one in expected]
        assert not any(chunk.is_weighted for chunk in chunks)
    first, second = chunks_of(tokenizer, [(FIRST, 1.0), (SECOND, 1.5)], TOKENS)
    assert not first.is_weighted
    assert second.weights == (1.0, *[1.5] * 6, *[1.0] * 9)


def encoded(pipeline: Any, *texts: str, clip_skip: int = 1) -> tuple[Tensor, Tensor]:
    """States (1,tokens,width) of the texts one after another, and the pooled vector of the first, by hand."""
    is_xl = hasattr(pipeline, "text_encoder_2")
    encoders = [(pipeline.tokenizer, pipeline.text_encoder)]
    if is_xl:
        encoders.append((pipeline.tokenizer_2, pipeline.text_encoder_2))
    states, pooled = [], torch.empty(0)
    for tokenizer, encoder in encoders:
        outputs = [
            encoder(
                tokenizer(
                    text, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt"
                ).input_ids,
                output_hidden_states=True,
            )
            for text in texts
        ]
        pooled = outputs[0][0]
        layers = [
            output.hidden_states[-1 - clip_skip]
            if is_xl
            else encoder.final_layer_norm(output.hidden_states[-clip_skip])
            for output in outputs
        ]
        states.append(torch.cat(layers, dim=1))
    return torch.cat(states, dim=-1), pooled


def expected_from(pipeline: Any, prompt: tuple[Tensor, Tensor], negative: tuple[Tensor, Tensor]) -> np.ndarray:
    """What diffusers draws from these states and pooled vectors, in grey levels."""
    is_xl = hasattr(pipeline, "text_encoder_2")
    pooled = {"pooled_prompt_embeds": prompt[1], "negative_pooled_prompt_embeds": negative[1]}
    with torch.inference_mode():
        picture = pipeline(
            prompt_embeds=prompt[0],
            negative_prompt_embeds=negative[0],
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            height=2 * SIDE,
            width=2 * SIDE,
            latents=draw_noise(7, 0, 0, (4, SIDE, SIDE))[None],
            output_type="np",
            **(pooled if is_xl else {}),
        ).images[0]
    return (picture * 255).round().astype(int)


def deeper(build: Callable[[], Any]) -> Any:
    """The pipeline with text encoders of four layers."""
    pipeline = build()
    torch.manual_seed(11)
    pipeline.text_encoder = CLIPTextModel(text_config(32, layers=4)).eval()
    if hasattr(pipeline, "text_encoder_2"):
        pipeline.text_encoder_2 = CLIPTextModelWithProjection(text_config(32, layers=4)).eval()
    return pipeline


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_xl])
@pytest.mark.parametrize("clip_skip", [1, 3])
def test_chunks_are_joined_and_the_shorter_prompt_is_filled_up(
    build: Callable[[], Any], clip_skip: int, tmp_path: Path
) -> None:
    pipeline, pack = saved(partial(deeper, build), tmp_path)
    with torch.inference_mode():
        prompt, negative = encoded(pipeline, FIRST, SECOND, clip_skip=clip_skip), encoded(pipeline, "no", "")
    guidance = Guidance(free_scale=SCALE)
    mine = drawn(pack, prompt=LONG, negative_prompt="no", guidance=guidance, clip_skip=clip_skip)
    assert np.abs(mine - expected_from(pipeline, prompt, negative)).max() <= 1
    if clip_skip == 1:
        other = drawn(pack, prompt=FIRST, negative_prompt="no", guidance=guidance)
        assert (other != mine).any()


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_xl])
def test_clip_skip_is_diffusers_plus_one(build: Callable[[], Any], tmp_path: Path) -> None:
    pipeline, pack = saved(partial(deeper, build), tmp_path)
    # diffusers looks for the norm where transformers had it before version 5.
    object.__setattr__(pipeline.text_encoder, "text_model", pipeline.text_encoder)
    with torch.inference_mode():
        expected = pipeline(
            "a red cat",
            negative_prompt="no",
            clip_skip=1,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            height=2 * SIDE,
            width=2 * SIDE,
            latents=draw_noise(7, 0, 0, (4, SIDE, SIDE))[None],
            output_type="np",
        ).images[0]
    asked = {"prompt": "a red cat", "negative_prompt": "no", "guidance": Guidance(free_scale=SCALE)}
    mine = drawn(pack, clip_skip=2, **asked)
    assert np.abs(mine - (expected * 255).round().astype(int)).max() <= 1
    assert (drawn(pack, **asked) != mine).any()
    with pytest.raises(InvalidSpec, match="this model takes 1 to"):
        drawn(pack, clip_skip=5, **asked)


def test_weights_multiply_the_states_and_the_mean_is_restored(tmp_path: Path) -> None:
    pipeline, pack = saved(stable_diffusion, tmp_path)
    with torch.inference_mode():
        states, pooled = encoded(pipeline, "a red cat")
        negative = encoded(pipeline, "no")
    weighted = states.clone()
    weighted[:, 2:5] *= 1.5  # "red", after the token that begins the text and that of "a"
    weighted *= states.mean() / weighted.mean()
    asked = {"negative_prompt": "no", "guidance": Guidance(free_scale=SCALE)}
    mine = drawn(pack, prompt="a (red:1.5) cat", weighted=True, **asked)
    assert np.abs(mine - expected_from(pipeline, (weighted, pooled), negative)).max() <= 1
    assert (drawn(pack, prompt="a red cat", weighted=True, **asked) != mine).any()


def test_prompts_of_any_length_draw_the_same_bytes_in_any_company(tmp_path: Path) -> None:
    _, pack = saved(stable_diffusion, tmp_path)
    prompts = ["a red cat", LONG, f"{LONG} {LONG} {LONG}", "", LONG[::-1]]
    specs = [
        SampleSpec(
            pack="pack",
            prompt=prompt,
            negative_prompt=[None, LONG][number % 2],
            steps=STEPS + number,
            seed=number,
            guidance=Guidance(free_scale=SCALE),
        )
        for number, prompt in enumerate(prompts)
    ]
    with Engine([str(pack)], precision="float32", calibrate=partial(fixed_calibration, lanes=2)) as engine:
        runner = engine.packs["pack"].runner
        examples = example_conditionings(runner.denoiser, engine.packs["pack"].pack)
        assert {shape_of(example) for example in examples} == {runner.evaluator.measured}
        together = engine.generate(specs)
        alone = [engine.generate([spec])[0] for spec in specs]
        assert all(np.array_equal(one, other) for one, other in zip(together, alone, strict=True))
        outline = engine.outline(specs[2:3])
        [prompt], [negative] = outline.readings["prompt"], outline.readings.get("negative_prompt", [None])
        assert (prompt.tokens, prompt.limit, prompt.chunks, prompt.cut) == (60, READ, 5, "")
        assert negative is None
        assert outline.remarks == ()


def test_prompts_that_are_too_long_are_cut_or_refused(tmp_path: Path) -> None:
    _, pack = saved(stable_diffusion, tmp_path)
    spec = partial(SampleSpec, pack="pack", steps=STEPS, guidance=Guidance(free_scale=SCALE))
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration) as engine:
        cut, whole, first = engine.generate(
            [
                spec(prompt=LONG, long_prompt=LongPrompt.TRUNCATE),
                spec(prompt=LONG),
                spec(prompt=FIRST, long_prompt=LongPrompt.REFUSE),
            ]
        )
        assert np.array_equal(cut, first)
        assert not np.array_equal(whole, first)
        outline = engine.outline([spec(prompt=LONG, long_prompt=LongPrompt.TRUNCATE)])
        card = card_of(engine.packs["pack"])
        asked = GenerateRequest(prompt=LONG, negative_prompt="no", long_prompt="truncate", steps=STEPS, clip_skip=2)
        request = resolve(asked, card, seed=1)
        [translated] = specs_of("", request, card)
        assert (translated.long_prompt, translated.weighted, translated.clip_skip) == (LongPrompt.TRUNCATE, False, 2)
        prompt, negative = plan_of(request, card, engine.outline([translated])).tokens
        assert prompt == PromptTokens(
            field="prompt", encoder="text_encoder", tokens=20, limit=READ, chunks=1, cut=SECOND
        )
        assert (negative.field, negative.tokens, negative.cut) == ("negative_prompt", 2, None)
        assert parameters_of(request, card).endswith("Model: pack, Clip skip: 2")
        said = f"the model's text encoder reads {READ} of its 20 tokens, and not '{SECOND}'"
        assert outline.remarks == (f"prompt is too long: {said}.",)
        refused = spec(prompt="a cat", negative_prompt=LONG, long_prompt=LongPrompt.REFUSE)
        for refusing in (lambda: engine.submit(refused), lambda: engine.check([refused])):
            with pytest.raises(InvalidPrompt, match=f"^negative_prompt has 20 tokens, .* reads {READ}: shorten it"):
                refusing()
        with pytest.raises(InvalidPrompt, match="adapters"):
            engine.check([spec(prompt="a cat"), spec(prompt="<lora:a:1>", weighted=True)])


def test_stable_diffusion_3_reads_each_prompt_up_to_its_encoders_limits(tmp_path: Path) -> None:
    _, pack = saved(partial(stable_diffusion_3, t5=True), tmp_path)
    spec = SampleSpec(pack="pack", prompt=LONG, sampler="flow_euler", steps=STEPS)
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration) as engine:
        readings = engine.outline([spec]).readings["prompt"]
        assert {reading.encoder: (reading.tokens, bool(reading.cut)) for reading in readings} == {
            "text_encoder": (20, True),
            "text_encoder_2": (20, True),
            "text_encoder_3": (10, False),
        }
        with pytest.raises(InvalidSpec, match="long_prompt is 'chunk'; known: truncate, refuse"):
            engine.submit(SampleSpec(pack="pack", prompt=LONG, sampler="flow_euler", long_prompt=LongPrompt.CHUNK))
