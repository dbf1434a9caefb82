"""Encodes prompts as sentence vectors, with an encoder from a Python package (Reimers & Gurevych 2019; MiniLM-L6)."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional
from transformers import BertModel

from models.configs.text_encoders import BERT
from models.lanes import set_thread_count
from models.loading import load_network, load_tokenizer
from models.networks.tokens import Reading, reading_of
from models.pack import InvalidPack, Pack

CAPTIONS_FILE = "captions.safetensors"
"""Holds `vectors` (N,size): the captions that a pack's network was trained on."""

MAX_TOKENS = 64
KNOWN_TEMPERATURE = 0.03  # for cosine similarities: a caption nearer by 0.1 weighs 28 times as much
KNOWN_SHARE = 0.7
FAMILIAR = 0.43
"""Similarity to the nearest caption below which a prompt is unlike all of them. All of emoji's 69 held-out prompts have
more; "quantum chromodynamics" has 0.27."""


def encoder_folder(reference: Mapping[str, str]) -> Path:
    """Find the encoder's folder in the Python package that a pack names, and check the SHA-256 of its weights.

    `reference` is the pack's `text_encoder_package`: `package` (an importable name), `folder` in it, `sha256` of
    `model.safetensors`. The package is located but never imported.

    Raises:
        InvalidPack: the package is not installed, or its weights differ from those the pack was trained with.
    """
    package = reference["package"]
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise InvalidPack(f"the pack's text encoder is the Python package '{package}': install cynosure[worker]")
    folder = Path(spec.submodule_search_locations[0]) / reference["folder"]
    with (folder / "model.safetensors").open("rb") as weights:
        digest = hashlib.file_digest(weights, "sha256").hexdigest()
    if digest != reference["sha256"]:
        raise InvalidPack(
            f"the weights in '{package}' have SHA-256 {digest[:12]}…, the pack was trained with "
            f"{reference['sha256'][:12]}…: install the version that pyproject.toml names"
        )
    return folder


def pooled(states: Tensor, mask: Tensor) -> Tensor:
    """Sentence vectors (N,size) of unit length: the mean of token states (N,T,size) under a mask (N,T)."""
    return functional.normalize((states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True), dim=-1)


def towards_known(vector: Tensor, known: Tensor) -> Tensor:
    """Move a sentence vector (size,) towards the captions that a network was trained on, `known` (N,size).

    All have unit length. Words that occur in no caption lie outside the training data, where a small network has learnt
    nothing. So the result is mostly the mean of the nearest captions, similar to retrieval in kNN-Diffusion (Sheynin et
    al. 2022). A caption itself hardly moves.
    """
    mean = torch.softmax(known @ vector / KNOWN_TEMPERATURE, 0) @ known
    return functional.normalize(torch.lerp(vector, functional.normalize(mean, dim=0), KNOWN_SHARE), dim=0)


class SentenceEncoder:
    """Encodes sentences as the normalized mean of the last layer's token states; similar meanings give near vectors.

    Args:
        known: float32 (N,size), captions that prompts are moved towards; `None` to leave prompts unchanged.
    """

    def __init__(self, folder: Path, device: torch.device, known: Tensor | None = None) -> None:
        self.tokenizer = load_tokenizer(folder)
        self.network = load_network(BertModel, folder, device, keys=BERT)
        self.device = device
        self.known = known
        self.size = int(self.network.config.hidden_size)
        self._encoded = functools.lru_cache(maxsize=1024)(self._encode_alone)
        # One thread for all callers: a fast tokenizer can't be shared, and a prompt is too short for several cores.
        self._thread = ThreadPoolExecutor(1, "encoder", initializer=set_thread_count, initargs=(1,))

    def __call__(self, prompt: str) -> Tensor:
        """One prompt's vector, float32 (size,). Encoded alone and unpadded, so it does not depend on other prompts."""
        return self._encoded(prompt)[0]

    def reading(self, prompt: str) -> Reading:
        """How the prompt is read; its remarks also say whether no caption is like it."""
        return self._encoded(prompt)[1]

    def _encode_alone(self, prompt: str) -> tuple[Tensor, Reading]:
        return self._thread.submit(self._encode, prompt).result()

    @torch.inference_mode()
    def _encode(self, prompt: str) -> tuple[Tensor, Reading]:
        vector, reading = self.batch([prompt])[0], reading_of(self.tokenizer, (prompt,), MAX_TOKENS)
        if self.known is None:
            return vector, reading
        likeness = float((self.known @ vector).max())
        if likeness < FAMILIAR:
            unlike = f"is like nothing that the model was trained on (similarity {likeness:.2f} of 1)"
            reading = replace(reading, remarks=(*reading.remarks, unlike))
        return towards_known(vector, self.known), reading

    @torch.inference_mode()
    def states(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The last layer's token states (N,T,size), and a mask (N,T) that is 0 for padding."""
        tokens = self.tokenizer(
            list(prompts), padding=True, truncation=True, max_length=MAX_TOKENS, return_tensors="pt"
        ).to(self.device)
        return self.network(**tokens).last_hidden_state, tokens.attention_mask.float()

    @torch.inference_mode()
    def batch(self, prompts: Sequence[str]) -> Tensor:
        """Vectors (N,size) of many prompts at once, for training: padding may change the last bits."""
        return pooled(*self.states(prompts))


def pack_encoder(pack: Pack) -> SentenceEncoder:
    """Load the pack's sentence encoder, with the captions that its network was trained on.

    Raises:
        InvalidPack: the pack names no encoder or has no captions; or as for `encoder_folder`.
    """
    package, captions = pack.index.get("text_encoder_package"), pack.component(CAPTIONS_FILE)
    if not package or not captions.is_file():
        raise InvalidPack(f"'{pack.name}' takes prompts: it needs a text_encoder_package and {CAPTIONS_FILE}")
    return _encoder(tuple(package.items()), captions)


@functools.lru_cache(maxsize=4)
def _encoder(package: tuple[tuple[str, str], ...], captions: Path) -> SentenceEncoder:
    """Cached, because checking and loading the weights is slow, and networks and number formats share the encoder."""
    known = load_file(captions)["vectors"].float()
    return SentenceEncoder(encoder_folder(dict(package)), torch.device("cpu"), known)
