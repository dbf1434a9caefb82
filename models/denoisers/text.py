"""Code shared by families that take prompts."""

from __future__ import annotations

import functools
from typing import Any

import torch

from models.loading import Network, load_component, load_tokenizer, with_float32_mode
from models.networks.tokens import lost
from models.pack import Pack
from models.precision import FLOAT32


class TextEncoder:
    """A pack's text encoder with its tokenizer, in float32."""

    def __init__(self, pack: Pack, suffix: str, network: type[Network], device: torch.device) -> None:
        self.tokenizer = load_tokenizer(pack.component(f"tokenizer{suffix}"))
        self.network: Any = load_component(network, pack, f"text_encoder{suffix}", device)
        with_float32_mode(self.network, device, forward=FLOAT32)
        self.device = device
        self._remarks = functools.lru_cache(maxsize=256)(self._lost)

    def remarks(self, prompt: str, max_length: int | None = None) -> tuple[str, ...]:
        """What of the prompt is not read, as `lost` says it."""
        return self._remarks(prompt, max_length or self.tokenizer.model_max_length)

    def _lost(self, prompt: str, max_length: int) -> tuple[str, ...]:
        return tuple(lost(self.tokenizer, prompt, max_length))

    def __call__(self, prompt: str, *, max_length: int | None = None) -> Any:
        """Run the network on the prompt, padded or truncated to `max_length` tokens; returns the states of every layer.

        `max_length` defaults to the tokenizer's limit.
        """
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=max_length or self.tokenizer.model_max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.network(tokens.input_ids.to(self.device), output_hidden_states=True)
