"""Components of a single file, converted to what their networks in diffusers' layout hold."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from diffusers import ModelMixin

from models.importing.errors import Unfit
from models.importing.single_files.base import Base
from models.importing.single_files.families import CONV_IN, DENOISER, Layout, Weights, usual_base
from models.importing.single_files.file import SingleFile, under
from models.pack import InvalidPack

_WRAPPED = "text_model."  # CLIP's parameters are below it in files, and in some versions of its classes
_UNREAD = ("position_ids", "logit_scale", "text_projection.weight", "spiece_model")
"""Ends of names that text encoders in single files may have more than their networks."""


@dataclass(frozen=True, kw_only=True)
class Component:
    """A component of the folder.

    Attributes:
        name: of its sub-folder.
        layout: how it is held in single files.
        config: its config.json.
        weights: its tensors by diffusers' or transformers' names; the base's by the names that it has, old or new.
        source: where its weights come from, for messages.
    """

    name: str
    layout: Layout
    config: dict[str, Any]
    weights: Weights
    source: str

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in self.weights.values())

    @property
    def dtypes(self) -> list[str]:
        """Number formats, the most frequent first."""
        counts: dict[str, int] = {}
        for tensor in self.weights.values():
            kind = str(tensor.dtype).removeprefix("torch.")
            counts[kind] = counts.get(kind, 0) + tensor.numel()
        return sorted(counts, key=lambda kind: -counts[kind])

    @property
    def of_transformers(self) -> bool:
        return not issubclass(self.layout.network, ModelMixin)


def held(file: SingleFile, layout: Layout, others: Mapping[str, Layout]) -> Weights:
    """The tensors of a component in a file, without their prefix; none if the file lacks it."""
    elsewhere = [prefix for other in others.values() for prefix in other.prefixes if prefix not in (DENOISER, "")]
    for prefix in layout.prefixes:
        if found := under(file.tensors, prefix, () if prefix else elsewhere):
            return found
    return {}


def component(file: SingleFile, name: str, base: Base) -> Component | None:
    """A component from the file, or else from its base; `None` if it may be left out and neither has it.

    Raises:
        Unfit: neither has it, the base has no configuration for it, or its weights do not fit that.
    """
    layouts = base.family.layouts
    layout = layouts[name]
    config = base.config(name) if base.pack.has(name) else None
    tensors = held(file, layout, layouts)
    if config is None:
        if layout.optional and not tensors:
            return None
        raise Unfit(f"{base.name}: its model_index.json has no {name}; choose another base")
    if name == "unet" and CONV_IN in tensors:
        config = config | {"in_channels": tensors[CONV_IN].shape[1]}
    if tensors:
        weights, source = _converted(file, name, tensors, base, config), str(file.path)
    else:
        try:
            weights, source = base.weights(name), base.name
        except InvalidPack as error:
            if layout.optional:
                return None
            raise Unfit(f"{file.path} has no {name}, and neither has the base: {error}") from error
    made = Component(name=name, layout=layout, config=config, weights=weights, source=source)
    if made.of_transformers:
        config = {key: value for key, value in config.items() if key != "torch_dtype"} | {"dtype": made.dtypes[0]}
    return replace(made, config=config)


def _converted(file: SingleFile, name: str, tensors: Weights, base: Base, config: dict[str, Any]) -> Weights:
    layout = base.family.layouts[name]
    network = _outline(layout.network, config, f"{base.name}: {name}/config.json")
    try:
        weights = layout.convert(tensors, network)
    except (KeyError, RuntimeError, IndexError, ValueError) as error:
        raise Unfit(f"{file.path}: its {name} is not complete, or of an unknown kind: {error!r}") from error
    fits = f"the configuration of {base.name} (usual for this file: {usual_base(file, base.family)})"
    return _fitting(weights, network, f"{file.path}: its {name}", fits)


def _outline(network: type, config: dict[str, Any], path: str) -> Any:
    """The network without memory for its parameters.

    Raises:
        Unfit: its configuration is not valid.
    """
    maker: Any = network
    try:
        with torch.device("meta"):
            if issubclass(network, ModelMixin):
                return maker.from_config(config)
            return maker(maker.config_class.from_dict(config))
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise Unfit(f"{path} is no configuration of {network.__name__}: {' '.join(str(error).split())}") from error


def _fitting(weights: Weights, network: Any, what: str, fits: str) -> Weights:
    """The weights that the network holds, by the names that published folders have.

    Raises:
        Unfit: some are missing, too many, of other shapes or quantized.
    """
    is_clip = type(network).__name__.startswith("CLIP")
    wanted = {name.removeprefix(_WRAPPED): tensor for name, tensor in network.state_dict().items()}
    given = {name.removeprefix(_WRAPPED): tensor for name, tensor in weights.items()}
    tied: Mapping[str, str] = getattr(network, "_tied_weights_keys", None) or {}
    for copy, original in tied.items():
        alone = given.pop(copy, None)
        if original not in given and alone is not None:
            given[original] = alone
    extra = [name for name in given if name not in wanted]
    if not isinstance(network, ModelMixin):
        given = {name: tensor for name, tensor in given.items() if name in wanted or not name.endswith(_UNREAD)}
        extra = [name for name in extra if name in given]
    faults = {
        "lacks": sorted(wanted.keys() - given.keys() - set(tied)),
        "also has": sorted(extra),
        "has another shape of": sorted(
            name for name in given.keys() & wanted.keys() if given[name].shape != wanted[name].shape
        ),
    }
    for text, names in faults.items():
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise Unfit(
                f"{what} does not fit {fits}: it {text} {names[0]}{more}; choose the base that it was made from"
            )
    if quantized := next((name for name, tensor in given.items() if not tensor.is_floating_point()), None):
        raise Unfit(
            f"{what} is quantized ({quantized} is {given[quantized].dtype}); import a file in float16 or bfloat16"
        )
    return {_published(name) if is_clip else name: tensor for name, tensor in given.items()}


def _published(name: str) -> str:
    return name if name == "text_projection.weight" else _WRAPPED + name
