"""Each family against diffusers' own pipeline: tiny random networks, saved to disk, the same noise and steps."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMPipeline,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LCMScheduler,
    PNDMScheduler,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    UNet2DModel,
)
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)

from benchmarks.packs import letters_tokenizer
from models.calibration.result import fixed_calibration
from models.classifiers import NoiseAwareClassifier, load_steering
from models.engine import Engine
from models.noise import draw_noise
from models.pack import InvalidPack, Pack, open_pack
from models.spec import Guidance, InvalidSpec, Pixels, SampleSpec
from workers.drawing.cards import card_of

STEPS, SCALE, SIDE, TOKENS = 6, 3.0, 8, 16


def autoencoder(**more: Any) -> AutoencoderKL:
    torch.manual_seed(1)
    return AutoencoderKL(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
        **more,
    ).eval()


def scheduler(prediction_type: str = "epsilon") -> DDIMScheduler:
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        prediction_type=prediction_type,
    )


def text_config(width: int, layers: int = 2) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=54,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=32,
        bos_token_id=0,
        eos_token_id=1,
    )


def unet(**more: Any) -> UNet2DConditionModel:
    torch.manual_seed(2)
    return UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(32, 64),
        layers_per_block=1,
        norm_num_groups=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        **more,
    ).eval()


def stable_diffusion(prediction_type: str = "epsilon") -> StableDiffusionPipeline:
    torch.manual_seed(3)
    return StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(32)).eval(),
        tokenizer=letters_tokenizer(TOKENS),
        unet=unet(cross_attention_dim=32),
        scheduler=scheduler(prediction_type),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_v() -> StableDiffusionPipeline:
    return stable_diffusion("v_prediction")


def stable_diffusion_xl() -> StableDiffusionXLPipeline:
    torch.manual_seed(4)
    return StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=CLIPTextModel(text_config(32)).eval(),
        text_encoder_2=CLIPTextModelWithProjection(text_config(32)).eval(),
        tokenizer=letters_tokenizer(TOKENS),
        tokenizer_2=letters_tokenizer(TOKENS),
        unet=unet(
            cross_attention_dim=64,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 32,
            transformer_layers_per_block=1,
        ),
        scheduler=scheduler(),
        add_watermarker=False,
    )


def t5_words(model_max_length: int) -> PreTrainedTokenizerFast:
    letters = Tokenizer(WordLevel({word: index for index, word in enumerate(["<pad>", "<unk>", "a", "red", "cat"])}))
    letters.pre_tokenizer = Whitespace()  # type: ignore[assignment]
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", unk_token="<unk>", model_max_length=model_max_length
    )


def stable_diffusion_3(*, t5: bool) -> StableDiffusion3Pipeline:
    torch.manual_seed(8)
    transformer = SD3Transformer2DModel(
        sample_size=SIDE,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=4,
        joint_attention_dim=80,
        caption_projection_dim=32,
        pooled_projection_dim=64,
        pos_embed_max_size=SIDE,
    ).eval()
    # CLIP's states are 64 wide and T5's 80: the narrower ones are filled up with zeros
    config = T5Config(vocab_size=30, d_model=80, d_ff=64, d_kv=8, num_layers=2, num_heads=4)
    return StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=autoencoder(shift_factor=0.0609),
        text_encoder=CLIPTextModelWithProjection(text_config(32)).eval(),
        tokenizer=letters_tokenizer(TOKENS),
        text_encoder_2=CLIPTextModelWithProjection(text_config(32)).eval(),
        tokenizer_2=letters_tokenizer(TOKENS),
        text_encoder_3=T5EncoderModel(config).eval() if t5 else None,
        tokenizer_3=t5_words(256) if t5 else None,
    )


def flux(*, distilled: bool, shifts: bool) -> FluxPipeline:
    torch.manual_seed(9)
    transformer = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=80,
        pooled_projection_dim=32,
        axes_dims_rope=(4, 4, 8),
        guidance_embeds=distilled,
    ).eval()
    config = T5Config(vocab_size=30, d_model=80, d_ff=64, d_kv=8, num_layers=2, num_heads=4)
    return FluxPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=shifts),
        vae=autoencoder(shift_factor=0.1159),
        text_encoder=CLIPTextModel(text_config(32)).eval(),
        tokenizer=letters_tokenizer(TOKENS),
        text_encoder_2=T5EncoderModel(config).eval(),
        tokenizer_2=t5_words(512),
        transformer=transformer,
    )


def saved(build: Callable[[], Any], folder: Path) -> tuple[Any, Path]:
    pipeline = build()
    pipeline.save_pretrained(folder / "pack", safe_serialization=True)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline, folder / "pack"


def drawn(pack: Path, **what: Any) -> np.ndarray:
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration) as engine:
        spec = SampleSpec(pack="pack", steps=STEPS, seed=7, clip=False, profile="diffusers", **what)
        [picture] = engine.generate([spec])
        assert picture.std() > 5  # random networks, but a picture
        assert engine.packs["pack"].denoiser.default_scale == usual_scale(engine.packs["pack"].pack)
        return picture


def usual_scale(pack: Pack) -> float:
    """The classifier-free scale that diffusers' pipeline has by default; Flux's `guidance_scale` is another thing."""
    parameters = inspect.signature(getattr(diffusers, pack.index["_class_name"]).__call__).parameters
    return float(parameters["true_cfg_scale" if "true_cfg_scale" in parameters else "guidance_scale"].default)


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_v, stable_diffusion_xl])
@pytest.mark.parametrize("negative", [None, "blur"])
def test_text_pipelines_draw_what_diffusers_draws(
    build: Callable[[], Any], negative: str | None, tmp_path: Path
) -> None:
    pipeline, pack = saved(build, tmp_path)
    with torch.inference_mode():
        expected = pipeline(
            "a red cat",
            negative_prompt=negative,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            latents=draw_noise(7, 0, 0, (4, SIDE, SIDE))[None],
            output_type="np",
            **({"height": 16, "width": 16} if build is stable_diffusion_xl else {}),
        ).images[0]
    mine = drawn(pack, prompt="a red cat", negative_prompt=negative, guidance=Guidance(free_scale=SCALE))
    assert np.abs(mine.astype(int) - (expected * 255).round().astype(int)).max() <= 1


def test_a_distilled_folder_is_drawn_with_its_own_sampler_and_few_steps(tmp_path: Path) -> None:
    _, pack = saved(with_scheduler(stable_diffusion, LCMScheduler), tmp_path)
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration) as engine:
        defaults = card_of(engine.packs["pack"]).defaults
    assert (defaults.sampler, defaults.steps) == ("lcm", 4)


def with_scheduler(build: Callable[[], Any], kind: Any, **config: Any) -> Callable[[], Any]:
    """The pipeline with another scheduler, as its users change it."""

    def built() -> Any:
        pipeline = build()
        pipeline.scheduler = kind.from_config(pipeline.scheduler.config, **config)
        return pipeline

    return built


@pytest.mark.parametrize(
    ("build", "sampler", "options"),
    [
        (with_scheduler(stable_diffusion_xl, EulerDiscreteScheduler, timestep_spacing="leading"), "euler", {}),
        (with_scheduler(stable_diffusion, PNDMScheduler, skip_prk_steps=True), "pndm", {}),
        (
            with_scheduler(stable_diffusion_v, DDIMScheduler, rescale_betas_zero_snr=True, timestep_spacing="trailing"),
            "ddim",
            {"guidance_rescale": 0.7},
        ),
        (stable_diffusion, "ddim", {"guidance_rescale": 0.7}),
    ],
    ids=["XL, Euler, leading", "PNDM", "zero terminal SNR, rescaled", "rescaled"],
)
def test_the_folders_own_sampling_is_what_diffusers_draws(
    build: Callable[[], Any], sampler: str, options: dict[str, float], tmp_path: Path
) -> None:
    pipeline, pack = saved(build, tmp_path)
    with torch.inference_mode():
        expected = pipeline(
            "a red cat",
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            latents=draw_noise(7, 0, 0, (4, SIDE, SIDE))[None],
            height=16,
            width=16,
            output_type="np",
            **options,
        ).images[0]
    guidance = Guidance(free_scale=SCALE, rescale=options.get("guidance_rescale", 0.0))
    mine = drawn(pack, prompt="a red cat", sampler=sampler, guidance=guidance)
    assert np.abs(mine.astype(int) - (expected * 255).round().astype(int)).max() <= 1


def test_a_pixel_pipeline_that_clips_draws_what_diffusers_draws(tmp_path: Path) -> None:
    torch.manual_seed(6)
    unet = UNet2DModel(
        sample_size=16,
        block_out_channels=(32, 32),
        norm_num_groups=16,
        down_block_types=("DownBlock2D",) * 2,
        up_block_types=("UpBlock2D",) * 2,
        layers_per_block=1,
    ).eval()
    pipeline, pack = saved(lambda: DDIMPipeline(unet, DDIMScheduler()), tmp_path)  # clip_sample is its default
    noise = draw_noise(7, 0, 0, (3, 16, 16))[None]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(diffusers.pipelines.ddim.pipeline_ddim, "randn_tensor", lambda *args, **kwargs: noise.clone())
        expected = pipeline(num_inference_steps=STEPS, output_type="np").images[0]
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration) as engine:
        spec = SampleSpec(pack="pack", steps=STEPS, seed=7, profile="diffusers", guidance=Guidance(conditional=False))
        [mine] = engine.generate([spec])
        card = card_of(engine.packs["pack"])
        [unclipped] = engine.generate([replace(spec, clip=False)])
    assert np.abs(mine.astype(int) - (expected * 255).round().astype(int)).max() <= 1
    assert (unclipped != mine).any()
    assert card.default_sampler("diffusers") == "ddim"
    assert card.defaults.steps == 50
    assert card.clips("diffusers", "ddim")
    assert not card.clips("diffusers", "euler")


@pytest.mark.parametrize("t5", [True, False], ids=["with T5", "without"])
def test_stable_diffusion_3_draws_what_diffusers_draws(t5: bool, tmp_path: Path) -> None:
    pipeline, pack = saved(partial(stable_diffusion_3, t5=t5), tmp_path)
    with torch.inference_mode():
        expected = pipeline(
            "a red cat",
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            height=16,
            width=16,
            latents=draw_noise(7, 0, 0, (4, SIDE, SIDE))[None],
            output_type="np",
        ).images[0]
    asked = {"prompt": "a red cat", "guidance": Guidance(free_scale=SCALE)}
    mine = drawn(pack, sampler="flow_euler", **asked)
    assert np.abs(mine.astype(int) - (expected * 255).round().astype(int)).max() <= 1
    if t5:
        elsewhere = drawn(pack, sampler="flow_euler", prompt="a red dog", guidance=asked["guidance"])
        assert (elsewhere != mine).any()


@pytest.mark.parametrize(
    ("distilled", "shifts"), [(True, True), (False, True), (False, False)], ids=["dev", "plain", "schnell"]
)
def test_flux_draws_what_diffusers_draws(distilled: bool, shifts: bool, tmp_path: Path) -> None:
    pipeline, pack = saved(partial(flux, distilled=distilled, shifts=shifts), tmp_path)
    index = json.loads((pack / "model_index.json").read_text())
    (pack / "model_index.json").write_text(json.dumps(index | {"cynosure": {"latent_size": SIDE}}))
    latents = draw_noise(7, 0, 0, (4, SIDE, SIDE))[None]
    with torch.inference_mode():
        expected = pipeline(
            "a red cat",
            negative_prompt="dog",
            true_cfg_scale=SCALE,
            num_inference_steps=STEPS,
            height=16,
            width=16,
            latents=pipeline._pack_latents(latents, 1, 4, SIDE, SIDE),
            output_type="np",
        ).images[0]
    guidance = Guidance(free_scale=SCALE)
    mine = drawn(pack, sampler="flow_euler", prompt="a red cat", negative_prompt="dog", guidance=guidance)
    assert np.abs(mine.astype(int) - (expected * 255).round().astype(int)).max() <= 1
    elsewhere = drawn(pack, sampler="dpmpp_2m", prompt="a red cat", negative_prompt="dog", guidance=guidance)
    assert (elsewhere != mine).any()


def test_dit_draws_what_diffusers_draws(tmp_path: Path) -> None:
    def build() -> DiTPipeline:
        torch.manual_seed(5)
        transformer = DiTTransformer2DModel(
            sample_size=SIDE,
            num_layers=2,
            patch_size=2,
            attention_head_dim=8,
            num_attention_heads=4,
            in_channels=4,
            out_channels=8,
            num_embeds_ada_norm=1000,
            norm_type="ada_norm_zero",
        ).eval()
        for parameter in transformer.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        return DiTPipeline(transformer, autoencoder(), scheduler(), id2label={n: f"class {n}" for n in range(1000)})

    pipeline, pack = saved(build, tmp_path)
    index = json.loads((pack / "model_index.json").read_text())
    assert index["transformer"][1] == "DiTTransformer2DModel"
    noise = draw_noise(7, 0, 0, (4, SIDE, SIDE))[None]
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(diffusers.pipelines.dit.pipeline_dit, "randn_tensor", lambda *args, **kwargs: noise.clone())
        expected = pipeline([207], num_inference_steps=STEPS, guidance_scale=SCALE, output_type="np").images[0]
    mine = drawn(pack, label=207, guidance=Guidance(free_scale=SCALE))
    assert np.abs(mine.astype(int) - (expected * 255).round().astype(int)).max() <= 1


def test_image_to_image_draws_what_diffusers_draws(tmp_path: Path) -> None:
    pipeline, pack = saved(stable_diffusion, tmp_path)
    start = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    redraw = StableDiffusionImg2ImgPipeline(**pipeline.components, requires_safety_checker=False)
    redraw.set_progress_bar_config(disable=True)
    noise = draw_noise(7, 0, 0, (4, SIDE, SIDE))[None]
    module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise.clone())
        patch.setattr(module, "retrieve_latents", lambda output, **kwargs: output.latent_dist.mode())
        expected = redraw(
            "a red cat",
            image=torch.from_numpy(start).permute(2, 0, 1)[None].float() / 255,
            strength=0.7,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            output_type="np",
        ).images[0]
    mine = drawn(
        pack,
        prompt="a red cat",
        guidance=Guidance(free_scale=SCALE),
        init_image=Pixels.of(start),
        strength=0.7,
    )
    assert np.abs(mine.astype(int) - (expected * 255).round().astype(int)).max() <= 1


@pytest.mark.parametrize("strength", [1.0, 0.7])
def test_a_unet_trained_for_inpainting_draws_what_diffusers_draws(strength: float, tmp_path: Path) -> None:
    def build() -> StableDiffusionInpaintPipeline:
        parts = stable_diffusion().components
        parts["unet"] = unet(cross_attention_dim=32, in_channels=9)
        return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)

    pipeline, pack = saved(build, tmp_path)
    dice = np.random.default_rng(0)
    start = dice.integers(0, 256, (16, 16, 3), dtype=np.uint8)
    mask = np.zeros((16, 16, 1), np.uint8)
    mask[4:12, 2:10] = 255
    noise = draw_noise(7, 0, 0, (4, SIDE, SIDE))[None]
    module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise.clone())
        patch.setattr(module, "retrieve_latents", lambda output, **kwargs: output.latent_dist.mode())
        expected = pipeline(
            "a red cat",
            image=Image.fromarray(start),
            mask_image=Image.fromarray(mask[..., 0]),
            height=16,
            width=16,
            strength=strength,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            output_type="np",
        ).images[0]
    asked = {"prompt": "a red cat", "guidance": Guidance(free_scale=SCALE), "strength": strength}
    mine = drawn(pack, **asked, init_image=Pixels.of(start), mask=Pixels.of(mask))
    assert np.abs(mine.astype(int) - (expected * 255).round().astype(int)).max() <= 1
    elsewhere = drawn(pack, **asked, init_image=Pixels.of(start), mask=Pixels.of(255 - mask))
    assert (elsewhere != mine).any()


def test_a_strength_of_less_than_a_step_is_refused(tmp_path: Path) -> None:
    _, pack = saved(stable_diffusion, tmp_path)
    start = Pixels.of(np.zeros((16, 16, 3), np.uint8))
    with pytest.raises(InvalidSpec, match=r"less than one step; at least 0\.167"):
        drawn(pack, prompt="a cat", init_image=start, strength=0.1)


def with_towers(folder: Path) -> Path:
    """A Stable Diffusion folder with a noise-aware image tower and a text tower to steer by."""
    stable_diffusion().save_pretrained(folder / "pack")
    pack = folder / "pack"
    torch.manual_seed(6)
    NoiseAwareClassifier(sample_size=SIDE, in_channels=4, num_classes=32, block_out_channels=(32, 64)).save_pretrained(
        pack / "classifier"
    )
    CLIPTextModelWithProjection(text_config(32)).save_pretrained(pack / "classifier_text_encoder")
    letters_tokenizer(TOKENS).save_pretrained(pack / "classifier_tokenizer")
    index = json.loads((pack / "model_index.json").read_text())
    index["classifier"] = ["models.classifiers", "NoiseAwareClassifier"]
    index["classifier_text_encoder"] = ["transformers", "CLIPTextModelWithProjection"]
    index["classifier_tokenizer"] = ["transformers", "CLIPTokenizer"]
    (pack / "model_index.json").write_text(json.dumps(index))
    return pack


def test_clip_guidance_pulls_towards_the_prompt(tmp_path: Path) -> None:
    steered = SampleSpec(pack="pack", prompt="a cat", steps=8, telemetry=True, guidance=Guidance(classifier_scale=0.05))
    watched = replace(steered, guidance=Guidance(classifier_scale=1e-9))
    with Engine([str(with_towers(tmp_path))], precision="float32", calibrate=fixed_calibration) as engine:
        handles = engine.submit_all([steered, watched])
        for handle in handles:
            handle.result()
        with_guidance, without = (handle.telemetry[-1]["similarity"] for handle in handles)
        with pytest.raises(InvalidSpec, match="prompt"):
            engine.submit(replace(steered, prompt=None))
        [cut] = engine.submit_all([replace(steered, prompt="aa " * TOKENS, negative_prompt="no")])
        cut.cancel()
        [remark] = cut.remarks
        said = f"prompt is too long: the model's text encoder reads {TOKENS - 2} of its {2 * TOKENS} tokens, and not"
        assert remark == f"{said} '{'aa ' * (TOKENS // 2 + 1)}".rstrip() + "'."
    assert with_guidance > without + 0.01


def test_a_prompt_towers_gradient_is_that_of_the_similarity(tmp_path: Path) -> None:
    steering = load_steering(open_pack(str(with_towers(tmp_path))), torch.device("cpu"))
    assert steering is not None
    generator = torch.Generator().manual_seed(0)
    x, direction = torch.randn(2, 1, 4, SIDE, SIDE, generator=generator)
    timesteps = torch.tensor([500.0])
    condition = {name: value[None] for name, value in steering.examples()[0].items()}
    gradient, similarity = steering.gradient(x, timesteps, condition)
    h = 1e-2
    _, above = steering.gradient(x + h * direction, timesteps, condition)
    _, below = steering.gradient(x - h * direction, timesteps, condition)
    slope = 100 * float(above - below) / (2 * h)
    assert abs(float(similarity)) <= 1
    assert float((gradient * direction).sum()) == pytest.approx(slope, rel=0.05, abs=1e-2)


def test_a_pack_comes_from_the_hub_at_a_pinned_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "cache" / "models--someone--tiny" / "snapshots" / commit
    stable_diffusion().save_pretrained(snapshot)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert open_pack(f"someone/tiny@{commit}").name == "tiny"
    with pytest.raises(InvalidPack, match="someone/other"):
        open_pack(f"someone/other@{commit}")
    with pytest.raises(InvalidPack, match="COMMIT"):
        open_pack("someone/tiny@main")
