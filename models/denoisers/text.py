"""Code shared by families that take prompts."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from models.configs import Keys
from models.loading import Network, load_tokenizer, token_limit
from models.memory import load_shared
from models.networks.chunks import Chunk, chunks_of
from models.networks.tokens import Reading, parts_of, reading_of
from models.networks.weights import Part
from models.pack import Pack
from models.precision import Precision
from models.spec import InvalidSpec, LongPrompt, SampleSpec
from models.weights import turn


class TextEncoder:
    """A pack's text encoder with its tokenizer; packs with the same encoder share its weights.

    Args:
        pack: the folder.
        suffix: of the names of both components.
        network: the encoder's class.
        device: where it runs.
        keys: what its config.json may hold.
        precision: of the denoiser, which says in which format its encoders run.
        max_length: number of tokens that prompts are padded or truncated to; by default the tokenizer's limit.
    """

    def __init__(
        self,
        pack: Pack,
        suffix: str,
        network: type[Network],
        device: torch.device,
        keys: Keys,
        precision: Precision,
        max_length: int | None = None,
    ) -> None:
        folder = pack.component(f"tokenizer{suffix}")
        self.name = f"text_encoder{suffix}"
        self.tokenizer = load_tokenizer(folder)
        self.network: Any = load_shared(network, pack, self.name, device, precision.of_encoders, keys=keys)
        self.device = device
        self.max_length = max_length or token_limit(self.tokenizer, self.network, folder)
        self.reading = functools.lru_cache(maxsize=256)(self._reading)

    def _reading(self, texts: tuple[str, ...], chunked: bool = False) -> Reading:
        """How the encoder reads the texts of a prompt."""
        return reading_of(self.tokenizer, texts, self.max_length, encoder=self.name, chunked=chunked)

    def __call__(self, prompt: str) -> Any:
        """Run the network on the prompt, padded or truncated; returns the states of every layer."""
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self._run(tokens.input_ids)

    def chunks(self, parts: Sequence[Part]) -> list[Chunk]:
        """Split a prompt into chunks of `max_length` tokens."""
        return chunks_of(self.tokenizer, parts, self.max_length)

    def read(self, chunk: Chunk) -> Any:
        """Run the network on one chunk; returns the states of every layer."""
        return self._run(torch.tensor([chunk.ids]))

    def _run(self, ids: Tensor) -> Any:
        with turn(self.network):
            return self.network(ids.to(self.device), output_hidden_states=True)


@dataclass(frozen=True)
class Wording:
    """A prompt as CLIP is to read it.

    Attributes:
        parts: its texts with their weights.
        chunked: whether it is read in chunks, and not cut off after the first.
        clip_skip: the layer that it is read from, counted from the one that the family uses, which is 1.
    """

    parts: tuple[Part, ...]
    chunked: bool = True
    clip_skip: int = 1

    @classmethod
    def of(cls, spec: SampleSpec, field: str, *, skips: bool = True) -> Wording:
        """A spec's prompt; `skips` says whether its `clip_skip` counts for this one.

        Raises:
            InvalidPrompt: as for `parts_of`.
        """
        chunked = spec.long_prompt is not LongPrompt.TRUNCATE
        return cls(parts_of(spec, field), chunked, spec.clip_skip if skips else 1)

    @property
    def empty(self) -> Wording:
        """No prompt, read from the same layer."""
        return Wording((("", 1.0),), self.chunked, self.clip_skip)


def weighed(states: Tensor, chunk: Chunk) -> Tensor:
    """Multiply the states (tokens,width) of a chunk by its weights, and restore their mean, as A1111 does.

    The mean is that over all of the chunk's states, the tokens that begin and end it and its padding included.

    Raises:
        InvalidSpec: the weighted states have no mean that could be restored.
    """
    if not chunk.is_weighted:
        return states
    exact = states.float()
    weighted = exact * torch.tensor(chunk.weights, device=states.device)[:, None]
    restored = weighted * (exact.mean() / weighted.mean())
    if not torch.isfinite(restored).all():
        raise InvalidSpec("the weights in the prompt cancel each other: change one of them")
    return restored.to(states.dtype)
