"""Classifiers: noise-aware networks that steer by their gradient, and the judge, which classifies clean pictures."""

from __future__ import annotations

import pkgutil

import torch

from models.classifiers.base import Steering
from models.classifiers.classes import (
    MAX_TERMS,
    ClassSteering,
    Judge,
    NoiseAwareClassifier,
    conditions,
    load_classifier,
    load_judge,
    log_probability_gradient,
)
from models.loading import with_float32_mode
from models.pack import Pack
from models.passes.graphs import Graphs, may_be_recorded
from models.precision import FLOAT32, Precision


def load_steering(pack: Pack, device: torch.device, precision: Precision = FLOAT32) -> Steering | None:
    """Load the pack's steering network with frozen parameters; `None` if it has none."""
    steering = _steering(pack, device, precision)
    if steering is not None:
        with_float32_mode(steering, device, gradient=precision)
        if may_be_recorded(device, precision, steering.num_parameters):
            steering.gradient = Graphs(steering.gradient)  # type: ignore[method-assign,assignment]
    return steering


def _steering(pack: Pack, device: torch.device, precision: Precision) -> Steering | None:
    if "classifier_text_encoder" in pack.index:  # resolved by name, because transformers takes seconds to import
        steering: Steering = pkgutil.resolve_name("models.classifiers.prompts:PromptSteering")(pack, device, precision)
        return steering
    network = load_classifier(pack, device, precision)
    if network is None:
        return None
    if network.config.get("text_size"):
        prompted: Steering = pkgutil.resolve_name("models.classifiers.prompts:PromptedClassSteering")(network, pack)
        return prompted
    return ClassSteering(network)


__all__ = [
    "MAX_TERMS",
    "ClassSteering",
    "Judge",
    "NoiseAwareClassifier",
    "Steering",
    "conditions",
    "load_classifier",
    "load_judge",
    "load_steering",
    "log_probability_gradient",
]
