"""A classifier that looks at finished pictures."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging

from models.engine import OutOfMemory
from models.lanes import ran_out_of_memory
from models.reviewing.folder import InvalidReview, ReviewFolder

_THREADS = 1
"""On a CPU: with more, sums and so the last bits of scores would depend on the machine's cores."""


class Reviewer:
    """Looks at one picture at a time, on a thread of its own, so a score depends on its picture alone. Thread-safe.

    Args:
        found: the classifier's folder.
        thresholds: by label, the score, of 0 to 1, from which a picture is flagged.
        device: where the classifier runs, in float32.

    Raises:
        InvalidReview: it can't be loaded.
    """

    def __init__(self, found: ReviewFolder, thresholds: Mapping[str, float], device: str) -> None:
        self._device = torch.device(device)
        self._labels = found.labels
        self._thresholds = dict(thresholds)
        self._processor, self._model = _loaded(found, self._device)
        config = self._model.config
        is_apart = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self._to_scores = torch.sigmoid if is_apart else _softmax
        self._thread = ThreadPoolExecutor(1, "review", initializer=torch.set_num_threads, initargs=(_THREADS,))

    @property
    def num_parameters(self) -> int:
        return sum(parameter.numel() for parameter in self._model.parameters())

    def flags(self, picture: npt.NDArray[np.uint8]) -> dict[str, float]:
        """The labels whose score reaches their threshold, with it, highest first.

        Args:
            picture: (height, width, 1 or 3), 0 to 255.

        Raises:
            OutOfMemory: the device has no room for it.
        """
        try:
            scores = self._thread.submit(self._scores, picture).result()
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise OutOfMemory(f"no memory to review a picture: {error}") from error
        found = {label: scores[label] for label, least in self._thresholds.items() if scores[label] >= least}
        return dict(sorted(found.items(), key=lambda one: -one[1]))

    @torch.inference_mode()
    def _scores(self, picture: npt.NDArray[np.uint8]) -> dict[str, float]:
        seen = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture).convert("RGB")
        pixels = self._processor(images=seen, return_tensors="pt")["pixel_values"].to(self._device)
        logits = self._model(pixel_values=pixels).logits[0]
        return dict(zip(self._labels, self._to_scores(logits).tolist(), strict=True))


def _softmax(logits: torch.Tensor) -> torch.Tensor:
    return torch.softmax(logits, dim=-1)


def _loaded(found: ReviewFolder, device: torch.device) -> tuple[Any, Any]:
    """The image processor and the model.

    Raises:
        InvalidReview: they can't be loaded, or weights are missing.
    """
    from transformers import AutoImageProcessor, AutoModelForImageClassification  # only for a review

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]  # what it warns of is in the report
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        # Resized by Pillow everywhere: torchvision, where there is one, would give other scores.
        processor = AutoImageProcessor.from_pretrained(found.folder, backend="pil", **local)  # type: ignore[no-untyped-call]
        model, told = AutoModelForImageClassification.from_pretrained(
            found.folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **local
        )
    except Exception as error:  # whatever transformers raises for a folder that it does not understand
        reason = " ".join(str(error).split())
        raise InvalidReview(f"{found.folder} can't be loaded as an image classifier: {reason}") from error
    if lacking := sorted({*told["missing_keys"], *(str(key) for key in told["mismatched_keys"])}):
        raise InvalidReview(f"{found.folder} lacks weights, which would be random: {', '.join(lacking[:3])}")
    return processor, model.eval().requires_grad_(False).to(device)
