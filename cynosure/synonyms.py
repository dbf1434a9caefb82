"""Names that other tools have for our fields and samplers, for hints in refusals."""

from __future__ import annotations

import re
from collections.abc import Mapping

FIELDS: Mapping[str, str] = {
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "guidance": "guidance_scale",
    "true_cfg_scale": "guidance_scale",
    "n": "num_images",
    "n_iter": "num_images",
    "batch_size": "num_images",
    "num_images_per_prompt": "num_images",
    "sampler_name": "sampler",
    "sampler_index": "sampler",
    "scheduler": "sampler or sigma_schedule",
    "num_steps": "steps",
    "sample_steps": "steps",
    "size": "width and height",
    "resolution": "width and height",
    "aspect_ratio": "width and height",
    "crop": "crops_coords_top_left",
    "crop_w": "crops_coords_top_left",
    "crop_h": "crops_coords_top_left",
    "label": "class_label",
    "class": "class_label",
    "class_labels": "class_label",
    "image": "init_image",
    "init_images": "init_image",
    "mask": "mask_image",
    "denoising_strength": "strength",
    "text": "prompt",
    "neg_prompt": "negative_prompt",
    "model_name": "model",
    "sd_model_checkpoint": "model",
    "clip_denoised": "clip",
    "ckpt_name": "model",
    "manual_seed": "seed",
    "noise_seed": "seed",
    "generator": "seed",
    "denoise": "strength",
    "positive": "prompt",
    "negative": "negative_prompt",
    "id": "custom_id",
    "labels": "class_labels",
    "scales": "guidance_scales",
    "clip_stop_at_last_layers": "clip_skip",
    "stop_at_clip_layer": "clip_skip",
    "subseed": "",
}
"""By the names of A1111's and OpenAI's API, diffusers' pipelines and ComfyUI's nodes; empty if we have no such thing,
though a name of ours looks like it."""

MODES: Mapping[str, str] = {
    "cfg": "classifier_free",
    "cg": "classifier",
    "clip": "classifier",
    "clip_guidance": "classifier",
    "both": "combined",
}
"""Guidance modes by other names."""

A1111_SAMPLERS: Mapping[str, str] = {
    "DPM++ 2M": "dpmpp_2m",
    "DPM++ 2M SDE": "dpmpp_2m_sde",
    "Euler a": "euler_ancestral",
    "Euler": "euler",
    "LMS": "lms",
    "Heun": "heun",
    "DPM2": "kdpm2",
    "DPM2 a": "kdpm2_ancestral",
    "DDIM": "ddim",
    "PLMS": "pndm",
    "UniPC": "unipc",
    "LCM": "lcm",
}
"""A1111's samplers that there are here, by the names that it shows and writes."""

SAMPLERS: Mapping[str, str] = {
    **{name.lower(): ours for name, ours in A1111_SAMPLERS.items()},
    "k euler": "euler",
    "k euler a": "euler_ancestral",
    "k euler ancestral": "euler_ancestral",
    "dpm++ 2m karras": "dpmpp_2m with sigma_schedule karras",
    "dpmpp 2m karras": "dpmpp_2m with sigma_schedule karras",
    "uni pc": "unipc",
    "ddimscheduler": "ddim",
    "ddpmscheduler": "ddpm",
    "pndmscheduler": "pndm",
    "lmsdiscretescheduler": "lms",
    "eulerdiscretescheduler": "euler",
    "eulerancestraldiscretescheduler": "euler_ancestral",
    "heundiscretescheduler": "heun",
    "kdpm2discretescheduler": "kdpm2",
    "dpmsolvermultistepscheduler": "dpmpp_2m",
    "dpmsolversinglestepscheduler": "dpm_single",
    "deismultistepscheduler": "deis",
    "unipcmultistepscheduler": "unipc",
    "sasolverscheduler": "sa_solver",
    "lcmscheduler": "lcm",
    "tcdscheduler": "tcd",
    "flowmatcheulerdiscretescheduler": "flow_euler",
}
"""By the names in A1111 and ComfyUI, in lower case, hyphens and underscores as spaces, and by diffusers' classes."""


def field_for(name: str) -> str | None:
    """The field that another tool's field means."""
    return FIELDS.get(name.lower())


def sampler_for(name: str) -> str | None:
    """The sampler that another tool's sampler is."""
    return SAMPLERS.get(re.sub(r"[\s_-]+", " ", name.strip().lower()))
