"""What pictures are compared by: features of the pack's judge, of Inception v3, or of a vision model."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModel, CLIPModel

from models.classifiers import Judge
from models.loading import load_tokenizer
from models.pack import HUB_ID, InvalidPack, downloaded, read_object

Features = Callable[[Tensor], Tensor]
"""Features (N,F), float64, of `uint8` pictures (N,C,H,W)."""
BATCH = 64
INCEPTION = "inception="
_CLIP_MEAN, _CLIP_DEVIATION = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def of_judge(judge: Judge) -> Features:
    """The features of a judge."""
    return _in_batches(judge.features)


def features_named(name: str) -> Features:
    """Features by name: `inception=FILE[@SHA256]`, or a vision model of transformers, by folder or owner/name@COMMIT.

    Raises:
        InvalidPack: there is no such model, or the file is not what its digest says.
    """
    if name.startswith(INCEPTION):
        return _inception(name.removeprefix(INCEPTION))
    folder = model_folder(name)
    network = _pretrained(AutoModel, folder)
    network = getattr(network, "vision_model", network)
    prepare = _preparation(folder)

    def features(pictures: Tensor) -> Tensor:
        output = network(pixel_values=prepare(pictures))
        pooled: Tensor | None = getattr(output, "pooler_output", None)
        return (output.last_hidden_state.mean(1) if pooled is None else pooled).flatten(1)

    return _in_batches(features)


def model_folder(name: str) -> Path:
    """The folder of a model of transformers: a path, or a repository on the hub at one commit.

    Raises:
        InvalidPack: neither.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
    if match := HUB_ID.fullmatch(name):
        return downloaded(match["repository"], match["revision"])
    raise InvalidPack(f"'{name}' is neither a folder nor owner/name@COMMIT (40 hex digits)")


def _pretrained(kind: Any, folder: Path) -> Any:
    try:
        return kind.from_pretrained(folder, use_safetensors=True, local_files_only=True).eval().requires_grad_(False)
    except (OSError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InvalidPack(f"{folder} can't be loaded with transformers: {reason}") from error


def _preparation(folder: Path) -> Callable[[Tensor], Tensor]:
    """How a model's pictures are scaled and normalized, as its preprocessor_config.json says."""
    file = folder / "preprocessor_config.json"
    config = read_object(file) if file.is_file() else {}
    size = config.get("crop_size") or config.get("size") or 224
    side = int(size if isinstance(size, int) else size.get("height") or size["shortest_edge"])
    mean, deviation = (
        torch.tensor(config.get(key, default)).view(1, 3, 1, 1)
        for key, default in (("image_mean", _CLIP_MEAN), ("image_std", _CLIP_DEVIATION))
    )

    def prepare(pictures: Tensor) -> Tensor:
        unit = pictures.expand(-1, 3, -1, -1).float() / 255
        scaled = functional.interpolate(unit, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
        return (scaled - mean) / deviation

    return prepare


def _inception(given: str) -> Features:
    """Inception v3 of the published Fréchet distances, through torch-fidelity, from a file of its weights."""
    name, _, digest = given.partition("@")
    path = Path(name).expanduser()
    if not path.is_file():
        raise InvalidPack(f"--features inception={name}: there is no such file; torch-fidelity's releases have it")
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if digest and not found.startswith(digest):
        raise InvalidPack(f"{path} has SHA-256 {found[:16]}…, not {digest[:16]}…")
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except (ImportError, RuntimeError) as error:  # the latter if torchvision is another build's than torch
        raise InvalidPack(
            f"--features inception needs torch-fidelity and a torchvision for this torch: {error}"
        ) from None
    torch.load(path, weights_only=True)  # torch-fidelity reads any pickle: this one must hold nothing but tensors
    network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(path))
    return _in_batches(lambda pictures: network(pictures.expand(-1, 3, -1, -1).contiguous())[0])


def _in_batches(features: Callable[[Tensor], Tensor]) -> Features:
    @torch.inference_mode()
    def batched(pictures: Tensor) -> Tensor:
        return torch.cat([features(part).double() for part in pictures.split(BATCH)])

    return batched


class ClipScore:
    """100 times the cosine of CLIP's embeddings of picture and prompt, at least 0 (Hessel et al. 2021, without 2.5).

    Args:
        name: CLIP's folder, or owner/name@COMMIT.

    Raises:
        InvalidPack: there is no such model.
    """

    def __init__(self, name: str) -> None:
        folder = model_folder(name)
        self._network = _pretrained(CLIPModel, folder)
        self._tokenizer = load_tokenizer(folder)
        self._prepare = _preparation(folder)

    @torch.inference_mode()
    def __call__(self, pictures: Tensor, prompts: Sequence[str]) -> float:
        total = 0.0
        for start in range(0, len(pictures), BATCH):
            part = list(prompts[start : start + BATCH])
            limit = self._network.config.text_config.max_position_embeddings
            tokens = self._tokenizer(part, padding=True, truncation=True, max_length=limit, return_tensors="pt")
            output = self._network(
                input_ids=tokens.input_ids,
                attention_mask=tokens.attention_mask,
                pixel_values=self._prepare(pictures[start : start + BATCH]),
            )
            cosines = functional.cosine_similarity(output.image_embeds, output.text_embeds)
            total += float(cosines.clamp(min=0).sum())
        return 100 * total / len(pictures)
