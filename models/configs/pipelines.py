"""The keys of `model_index.json`, by the class of the pipeline; other pipelines compute otherwise and are refused."""

from __future__ import annotations

from collections.abc import Mapping

from models.configs.keys import METADATA, Keys, check_keys, honoured, unused
from models.pack import PROMPTED_PIXELS, InvalidPack, Pack

_ANY: Keys = {
    **METADATA,
    **honoured("scheduler id2label cynosure classifier classifier_text_encoder classifier_tokenizer"),
    **honoured("text_encoder_package judge"),
}
_PIXELS: Keys = {**_ANY, **honoured("unet"), "pixel_unshuffle": int}
_STABLE_DIFFUSION: Keys = {
    **_ANY,
    **honoured("unet vae text_encoder tokenizer"),
    **unused("safety_checker requires_safety_checker"),  # none is run
    **honoured("feature_extractor image_encoder"),  # of IP-Adapters
}
_XL: Keys = {
    **_ANY,
    **honoured("unet vae text_encoder tokenizer text_encoder_2 tokenizer_2 force_zeros_for_empty_prompt"),
    **honoured("feature_extractor image_encoder"),
    "requires_aesthetics_score": (False, None),  # the refiner
    "add_watermarker": (False, None),
}
_FLUX: Keys = {
    **_ANY,
    **honoured("transformer vae text_encoder tokenizer text_encoder_2 tokenizer_2"),
    **unused("feature_extractor image_encoder"),
}
_BY_PIPELINES: Mapping[str, Keys] = {
    "ClassConditionalPixelPipeline DDPMPipeline DDIMPipeline": {**_PIXELS, "null_label": int},
    PROMPTED_PIXELS: _PIXELS,
    "AdmPipeline": {**_ANY, **honoured("unet")},
    "DiTPipeline": {**_ANY, **honoured("transformer vae")},
    "StableDiffusionPipeline StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline": _STABLE_DIFFUSION,
    "LatentConsistencyModelPipeline LatentConsistencyModelImg2ImgPipeline": _STABLE_DIFFUSION,
    "StableDiffusionXLPipeline StableDiffusionXLImg2ImgPipeline StableDiffusionXLInpaintPipeline": _XL,
    "StableDiffusion3Pipeline StableDiffusion3Img2ImgPipeline StableDiffusion3InpaintPipeline": {
        **_FLUX,
        **honoured("text_encoder_3 tokenizer_3"),
    },
    "FluxPipeline FluxImg2ImgPipeline FluxInpaintPipeline": _FLUX,
}
PIPELINES: Mapping[str, Keys] = {name: keys for names, keys in _BY_PIPELINES.items() for name in names.split()}

_SERVING: Keys = honoured("title license profile sampler steps guidance_scale classifier_scale")
_SERVING_MORE: Mapping[str, Keys] = {
    "FluxTransformer2DModel": honoured("distilled_guidance latent_size"),
    "UNet2DConditionModel": honoured("distilled_guidance"),
}
"""Of `cynosure` in `model_index.json`, by family."""


def check_index(pack: Pack) -> None:
    """Check the keys of a pack's `model_index.json`.

    Raises:
        InvalidPack: of another pipeline, or a key or value that is not served, by name.
    """
    path = pack.folder / "model_index.json"
    pipeline = pack.index.get("_class_name")
    if not isinstance(pipeline, str) or pipeline not in PIPELINES:
        raise InvalidPack(f"{path}: _class_name is {pipeline}; served: {', '.join(PIPELINES)}")
    check_keys(pack.index, PIPELINES[pipeline], path)
    check_keys(pack.defaults, {**_SERVING, **_SERVING_MORE.get(pack.family, {})}, f"{path}: cynosure")
