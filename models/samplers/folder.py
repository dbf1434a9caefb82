"""A folder's own scheduler, as diffusers' pipelines run it."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import diffusers
import numpy as np

from models.samplers.kinds import FLOW_PREDICTION, SAMPLERS, NotLinear
from models.samplers.levels import alpha_bars

_SAME_STEP = {"DDIMParallelScheduler": "DDIMScheduler", "DDPMParallelScheduler": "DDPMScheduler"}
_OLD_FOLDERS = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline", "StableDiffusionInpaintPipeline")
"""Pipelines that set `steps_offset` to 1 and `clip_sample` to false in their folder's scheduler."""


def folder_class(pack_config: Mapping[str, Any]) -> str:
    """Class of the folder's scheduler, or "" if the folder does not name it."""
    name = str(pack_config.get("_class_name") or "")
    return _SAME_STEP.get(name, name)


def check_schedule(pack_config: Mapping[str, Any], prediction_type: str) -> None:
    """Check that the noise levels on which the network was trained can be known.

    Raises:
        NotLinear: the folder's scheduler is of a kind with other levels, or its betas are not valid.
    """
    name = folder_class(pack_config)
    scheduler_class: Any = getattr(diffusers, name, None)
    if name and not (inspect.isclass(scheduler_class) and issubclass(scheduler_class, diffusers.SchedulerMixin)):
        raise NotLinear(f"diffusers {diffusers.__version__} has no scheduler '{name}'")
    if prediction_type == FLOW_PREDICTION:
        if name and not (name.startswith("FlowMatch") or pack_config.get("use_flow_sigmas")):
            raise NotLinear(f"a network trained on straight paths needs a FlowMatch scheduler, not '{name}'")
        return
    if name and "beta_schedule" not in inspect.signature(scheduler_class).parameters:
        raise NotLinear(f"'{name}' is for networks trained on other noise levels than those of a schedule of betas")
    bars = alpha_bars(pack_config)
    if len(bars) != pack_config["num_train_timesteps"] or not (np.diff(bars) < 0).all() or bars[-1] < 0 or bars[0] >= 1:
        raise NotLinear("its betas must be num_train_timesteps numbers between 0 and 1")


def folder_sampler(pack_config: Mapping[str, Any]) -> str | None:
    """The sampler that the folder's scheduler is, or `None` if it is none of `SAMPLERS`.

    Solvers of another order or algorithm than our names of their class go by the first of these names.
    """
    names = [name for name, kind in SAMPLERS.items() if kind.scheduler == folder_class(pack_config)]
    if not names:
        return None
    config = folder_config(pack_config)
    exact = [name for name in names if all(config[key] == value for key, value in SAMPLERS[name].meaning.items())]
    return (exact or names)[0]


def folder_config(pack_config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Configuration of the folder's scheduler as its pipeline completes it.

    Raises:
        NotLinear: the folder's scheduler is none of our samplers', or its configuration is invalid.
    """
    return _folder_config(json.dumps(dict(pack_config), sort_keys=True))


@functools.lru_cache(maxsize=128)
def _folder_config(pack_config_json: str) -> Mapping[str, Any]:
    pack_config = json.loads(pack_config_json)
    name = folder_class(pack_config)
    if name not in {kind.scheduler for kind in SAMPLERS.values()}:
        raise NotLinear(f"the folder's scheduler is '{name or 'not named'}', which profile 'diffusers' can't repeat")
    try:
        config = getattr(diffusers, name).from_config(pack_config).config
    except (ValueError, NotImplementedError, TypeError) as error:
        raise NotLinear(f"the folder's {name} is not valid: {error}") from error
    if pack_config.get("_pipeline") in _OLD_FOLDERS:
        outdated = {"steps_offset": 1, "clip_sample": False}
        changes = {key: value for key, value in outdated.items() if key in config}
        config = getattr(diffusers, name).from_config(config, **changes).config
    return MappingProxyType(dict(config))


def folder_limits(sampler: str, pack_config: Mapping[str, Any]) -> bool:
    """Whether the folder's pipeline limits D to [-1, 1] when it runs with this sampler.

    Raises:
        NotLinear: it limits D in another way.
    """
    if not SAMPLERS[sampler].limits:
        return False
    scheduler_class = getattr(diffusers, SAMPLERS[sampler].scheduler)
    config = scheduler_class.from_config(dict(folder_config(pack_config))).config
    if config.get("thresholding"):
        bound = "sample_max_value"
    elif config.get("clip_sample"):
        bound = "clip_sample_range"
    else:
        return False
    if config[bound] != 1.0:
        raise NotLinear(f"the folder's scheduler has {bound} {config[bound]:g}; profile 'diffusers' can repeat 1 only")
    return True
