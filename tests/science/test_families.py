"""Each family against diffusers' own pipeline: tiny random networks, saved to disk, the same noise and steps."""

from __future__ import annotations

import inspect
import io
import itertools
import json
import random
from collections.abc import Callable, Sequence
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
from cynosure.contract import GenerateRequest
from cynosure.metadata import again, encoded_picture
from cynosure.resolving import resolve
from harness.processes import wait_until
from models.calibration import FileCalibrations
from models.calibration.result import Calibration, fixed_calibration
from models.classifiers import NoiseAwareClassifier, load_steering
from models.configs.networks import SD3_TRANSFORMER
from models.engine import Engine
from models.loading import load_network
from models.noise import draw_noise
from models.pack import InvalidPack, Pack, open_pack
from models.precision import Precision
from models.spec import Guidance, InvalidSpec, Pixels, SampleSpec, SizeConditioning
from workers.drawing.cards import card_of
from workers.drawing.pictures import png_of
from workers.drawing.specs import specs_of

STEPS, SCALE, SIDE, TOKENS = 6, 3.0, 8, 16
SIZES = ((16, 16), (24, 16), (8, 24))
"""(height, width) of pictures: the packs' own, and two that are not square."""


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


SHIFTED_FROM = {"base_image_seq_len": 10, "max_image_seq_len": 22}  # so that the shifts of small pictures differ


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
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=not t5, **SHIFTED_FROM),
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
        scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=shifts, **SHIFTED_FROM),
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
    [picture] = drawn_at([(16, 16)], pack, **what)
    return picture


def drawn_at(sizes: Sequence[tuple[int, int]], pack: Path, **what: Any) -> list[np.ndarray]:
    """One picture of each (height, width), drawn together."""
    spec = SampleSpec(pack="pack", steps=STEPS, seed=7, clip=False, profile="diffusers", **what)
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration) as engine:
        pictures = engine.generate([replace(spec, height=height, width=width) for height, width in sizes])
        assert engine.packs["pack"].denoiser.default_scale == usual_scale(engine.packs["pack"].pack)
    assert [picture.shape[:2] for picture in pictures] == list(sizes)
    assert all(picture.std() > 5 for picture in pictures)  # random networks, but pictures
    return pictures


def noise_for(height: int, width: int) -> torch.Tensor:
    """The first noise of a picture, (1,4,H,W)."""
    return draw_noise(7, 0, 0, (4, height // 2, width // 2))[None]


def differ_by_more_than_rounding(mine: np.ndarray, expected: np.ndarray) -> bool:
    return bool(np.abs(mine.astype(int) - (expected * 255).round().astype(int)).max() > 1)


def usual_scale(pack: Pack) -> float:
    """The classifier-free scale that diffusers' pipeline has by default; Flux's `guidance_scale` is another thing."""
    parameters = inspect.signature(getattr(diffusers, pack.index["_class_name"]).__call__).parameters
    return float(parameters["true_cfg_scale" if "true_cfg_scale" in parameters else "guidance_scale"].default)


def compare_at_every_size(pipeline: Any, pictures: Sequence[np.ndarray], **asked: Any) -> None:
    """Compare pictures of the sizes in `SIZES` with those that the pipeline draws of "a red cat"."""
    for (height, width), mine in zip(SIZES, pictures, strict=True):
        with torch.inference_mode():
            expected = pipeline(
                "a red cat",
                num_inference_steps=STEPS,
                guidance_scale=SCALE,
                height=height,
                width=width,
                latents=noise_for(height, width),
                output_type="np",
                **asked,
            ).images[0]
        assert not differ_by_more_than_rounding(mine, expected), (height, width)


@pytest.mark.parametrize("build", [stable_diffusion, stable_diffusion_v, stable_diffusion_xl])
@pytest.mark.parametrize("negative", [None, "blur"])
def test_text_pipelines_draw_what_diffusers_draws(
    build: Callable[[], Any], negative: str | None, tmp_path: Path
) -> None:
    pipeline, pack = saved(build, tmp_path)
    asked = {"prompt": "a red cat", "negative_prompt": negative, "guidance": Guidance(free_scale=SCALE)}
    compare_at_every_size(pipeline, drawn_at(SIZES, pack, **asked), negative_prompt=negative)


@pytest.mark.parametrize("is_negative", [False, True])
def test_xl_is_told_sizes_and_crops_as_diffusers_tells_it(is_negative: bool, tmp_path: Path) -> None:
    pipeline, pack = saved(stable_diffusion_xl, tmp_path)
    told = {"original_size": (40, 8), "crops_coords_top_left": (6, 2), "target_size": (30, 20)}
    if is_negative:
        told |= {f"negative_{name}": (high + 100, wide) for name, (high, wide) in told.items()}
    with torch.inference_mode():
        expected = pipeline(
            "a red cat",
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            height=24,
            width=16,
            latents=noise_for(24, 16),
            output_type="np",
            **told,
        ).images[0]
    asked = {"prompt": "a red cat", "guidance": Guidance(free_scale=SCALE)}
    [mine] = drawn_at([(24, 16)], pack, size_conditioning=SizeConditioning(**told), **asked)
    assert not differ_by_more_than_rounding(mine, expected)
    [untold] = drawn_at([(24, 16)], pack, **asked)
    assert differ_by_more_than_rounding(untold, expected)


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
    asked = {"prompt": "a red cat", "guidance": Guidance(free_scale=SCALE)}
    pictures = drawn_at(SIZES, pack, sampler="flow_euler", **asked)
    compare_at_every_size(pipeline, pictures)
    if t5:
        elsewhere = drawn(pack, sampler="flow_euler", prompt="a red dog", guidance=asked["guidance"])
        assert (elsewhere != pictures[0]).any()


def test_a_network_saved_in_float32_has_the_format_that_is_asked_for(tmp_path: Path) -> None:
    stable_diffusion_3(t5=False).transformer.save_pretrained(tmp_path)
    precision = Precision(dtype="bfloat16")
    network = load_network(SD3Transformer2DModel, tmp_path, torch.device("cpu"), precision, keys=SD3_TRANSFORMER)
    assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}


@pytest.mark.parametrize(
    ("distilled", "shifts"), [(True, True), (False, True), (False, False)], ids=["dev", "plain", "schnell"]
)
def test_flux_draws_what_diffusers_draws(distilled: bool, shifts: bool, tmp_path: Path) -> None:
    pipeline, pack = saved(partial(flux, distilled=distilled, shifts=shifts), tmp_path)
    index = json.loads((pack / "model_index.json").read_text())
    (pack / "model_index.json").write_text(json.dumps(index | {"cynosure": {"latent_size": SIDE}}))
    asked = {"prompt": "a red cat", "negative_prompt": "dog", "guidance": Guidance(free_scale=SCALE)}
    pictures = drawn_at(SIZES, pack, sampler="flow_euler", **asked)
    for (height, width), mine in zip(SIZES, pictures, strict=True):
        with torch.inference_mode():
            expected = pipeline(
                "a red cat",
                negative_prompt="dog",
                true_cfg_scale=SCALE,
                num_inference_steps=STEPS,
                height=height,
                width=width,
                latents=pipeline._pack_latents(noise_for(height, width), 1, 4, height // 2, width // 2),
                output_type="np",
            ).images[0]
        assert not differ_by_more_than_rounding(mine, expected), (height, width)
    elsewhere = drawn(pack, sampler="dpmpp_2m", **asked)
    assert (elsewhere != pictures[0]).any()


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


@pytest.mark.parametrize(("strength", "size"), [(1.0, (24, 16)), (0.7, (16, 16))])
def test_a_unet_trained_for_inpainting_draws_what_diffusers_draws(
    strength: float, size: tuple[int, int], tmp_path: Path
) -> None:
    def build() -> StableDiffusionInpaintPipeline:
        parts = stable_diffusion().components
        parts["unet"] = unet(cross_attention_dim=32, in_channels=9)
        return StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)

    pipeline, pack = saved(build, tmp_path)
    dice = np.random.default_rng(0)
    start = dice.integers(0, 256, (*size, 3), dtype=np.uint8)
    mask = np.zeros((*size, 1), np.uint8)
    mask[4:12, 2:10] = 255
    noise = noise_for(*size)
    module = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_inpaint
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(module, "randn_tensor", lambda *args, **kwargs: noise.clone())
        patch.setattr(module, "retrieve_latents", lambda output, **kwargs: output.latent_dist.mode())
        expected = pipeline(
            "a red cat",
            image=Image.fromarray(start),
            mask_image=Image.fromarray(mask[..., 0]),
            height=size[0],
            width=size[1],
            strength=strength,
            num_inference_steps=STEPS,
            guidance_scale=SCALE,
            output_type="np",
        ).images[0]
    asked = {"prompt": "a red cat", "guidance": Guidance(free_scale=SCALE), "strength": strength}
    [mine] = drawn_at([size], pack, **asked, init_image=Pixels.of(start), mask=Pixels.of(mask))
    assert not differ_by_more_than_rounding(mine, expected)
    [elsewhere] = drawn_at([size], pack, **asked, init_image=Pixels.of(start), mask=Pixels.of(255 - mask))
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


def test_pictures_of_three_sizes_are_the_same_bytes_alone_and_mixed(tmp_path: Path) -> None:
    _, pack = saved(stable_diffusion, tmp_path)
    start = Pixels.of(np.random.default_rng(0).integers(0, 256, (20, 20, 3), dtype=np.uint8))
    mask = Pixels.of(np.pad(np.full((10, 20, 1), 255, np.uint8), ((0, 10), (0, 0), (0, 0))))
    plain = SampleSpec(
        pack="pack", prompt="a red cat", sampler="euler", guidance=Guidance(free_scale=SCALE), clip=False
    )
    kinds = [
        plain,
        replace(plain, sampler="dpmpp_2m_sde", steps=9, preview_every=2, telemetry=True),
        replace(plain, init_image=start, strength=0.6, mask=mask),
        replace(plain, prompt="a red cat " * 8),  # of more than one chunk
        replace(plain, guidance=Guidance(free_scale=SCALE, guide_pack="pack")),
        *(replace(plain, seed=9, guidance=Guidance(free_scale=scale, interval=(0.5, 1))) for scale in (2.0, 5.0)),
    ]
    specs = [
        replace(
            spec,
            height=height,
            width=width,
            steps=min(spec.steps, 5 + number % 3),
            group=str(number if spec.guidance.interval == (0.0, 1.0) else "forks"),
        )
        for number, (spec, (height, width)) in enumerate(itertools.product(kinds, SIZES))
    ]

    def in_two_lanes(pack: Pack, by_rule: Calibration) -> Calibration:
        return fixed_calibration(pack, by_rule, lanes=2, rows=4)

    how: dict[str, Any] = {"precision": "float32", "calibrate": in_two_lanes, "cores": 2}
    with Engine([str(pack)], **how) as engine:
        alone = [engine.generate([spec])[0] for spec in specs]
    previews: list[tuple[int, ...]] = []
    order = random.Random(0).sample(range(len(specs)), len(specs))
    with Engine([str(pack)], **how) as engine:
        shuffled = [specs[number] for number in order]
        handles = engine.submit_all(shuffled, on_preview=lambda _, done, picture: previews.append(picture.shape))
        together = dict(zip(order, [handle.result(120) for handle in handles], strict=True))
        assert all(len(handle.telemetry) == handle.evaluations for handle in handles if handle.telemetry)
    for number, spec in enumerate(specs):
        assert together[number].tobytes() == alone[number].tobytes(), spec
        assert together[number].shape == (spec.height, spec.width, 3)
    assert set(previews) == {(*size, 3) for size in SIZES}


def test_a_card_says_the_sizes_that_its_pack_can_draw(tmp_path: Path) -> None:
    _, pack = saved(stable_diffusion_xl, tmp_path)
    with Engine([str(pack)], precision="float32", calibrate=fixed_calibration) as engine:
        card = card_of(engine.packs["pack"])
        sizes = card.sizes
        assert (sizes.default, sizes.multiple_of, sizes.min_side, sizes.max_side) == ((16, 16), 2, 4, 64)
        assert sizes.max_pixels == 8 * 16 * 16
        assert {(14, 18), (18, 14), (24, 10)} < set(sizes.suggested)
        assert card.takes_size_conditioning
        asked = GenerateRequest(prompt="a cat", width=24, height=16, steps=2, original_size=(100, 50))
        request = resolve(asked, card, seed=3)
        [spec] = specs_of("", request, card)
        png = png_of(engine.generate([spec])[0], request, 0, card)
        plans = [engine.outline([replace(spec, height=high, width=wide)]) for high, wide in ((16, 16), (32, 32))]
        assert plans[0].denoiser_rows == plans[1].denoiser_rows
        refused = [
            replace(spec, height=6, width=7),
            replace(spec, height=64, width=64),
            replace(spec, height=2),
            replace(spec, guidance=Guidance(classifier_scale=1.0)),
        ]
        for one in refused:
            with pytest.raises(InvalidSpec, match=r"height|classifier"):
                engine.submit(one)
    picture = Image.open(io.BytesIO(png))
    assert picture.size == (24, 16)
    assert "Size: 24x16" in picture.info["parameters"]
    repeated, _ = again(GenerateRequest(from_image=encoded_picture(png)))
    assert resolve(repeated, card, seed=0) == request


def test_another_size_is_measured_when_idle_and_its_bytes_stay(tmp_path: Path) -> None:
    _, pack = saved(stable_diffusion, tmp_path)
    specs = [
        SampleSpec(
            pack="pack", prompt="a cat", steps=3, seed=seed, height=24, width=16, guidance=Guidance(free_scale=2)
        )
        for seed in range(6)
    ]
    with Engine([str(pack)], precision="float32", calibrations=FileCalibrations(tmp_path / "kept")) as engine:
        runner = engine.packs["pack"].runner
        alone = [engine.generate([spec])[0] for spec in specs]
        assert engine.wait_until_measured(300)
        engine.generate(specs[:1])
        wait_until(lambda: (4, 12, 8) in runner.measured_shapes, seconds=300, what="the size is measured")
        wait_until(lambda: engine.outline(specs[:1]).seconds is not None, seconds=300, what="and timed")
        measured = runner.calibration_for((4, 12, 8))
        for network in (measured.denoiser, measured.decoder):
            assert network.is_measured
            assert network.is_bitwise
            assert max(network.sizes) > 1
        together = engine.generate(specs)
        assert engine.packs["pack"].halve_batches(2, (4, 12, 8)), "without memory they run alone again"
        assert runner.limit((4, 12, 8)) == 1
        assert not engine.packs["pack"].halve_batches(1, (4, 12, 8))
        shrunk = engine.generate(specs[:2])
    assert len(list((tmp_path / "kept").glob("*.json"))) == 1, "only the pack's own size is kept"
    for one, other in zip(alone + alone[:2], together + shrunk, strict=True):
        assert one.tobytes() == other.tobytes()
