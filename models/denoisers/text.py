"""Code shared by families that take prompts."""

from __future__ import annotations

import functools
from typing import Any

import torch

from models.configs import Keys
from models.loading import Network, load_component, load_tokenizer, token_limit, with_float32_mode
from models.networks.tokens import lost
from models.pack import Pack
from models.precision import FLOAT32


class TextEncoder:
    """A pack's text encoder with its tokenizer, in float32.

    Args:
        pack: the folder.
        suffix: of the names of both components.
        network: the encoder's class.
        device: where it runs.
        keys: what its config.json may hold.
        max_length: number of tokens that prompts are padded or truncated to; by default the tokenizer's limit.
    """

    def __init__(
        self,
        pack: Pack,
        suffix: str,
        network: type[Network],
        device: torch.device,
        keys: Keys,
        max_length: int | None = None,
    ) -> None:
        folder = pack.component(f"tokenizer{suffix}")
        self.tokenizer = load_tokenizer(folder)
        self.network: Any = load_component(network, pack, f"text_encoder{suffix}", device, keys=keys)
        with_float32_mode(self.network, device, forward=FLOAT32)
        self.device = device
        self.max_length = max_length or token_limit(self.tokenizer, self.network, folder)
        self.remarks = functools.lru_cache(maxsize=256)(self._lost)

    def _lost(self, prompt: str) -> tuple[str, ...]:
        """What of the prompt is not read, as `lost` says it."""
        return tuple(lost(self.tokenizer, prompt, self.max_length))

    def __call__(self, prompt: str) -> Any:
        """Run the network on the prompt; returns the states of every layer."""
        tokens = self.tokenizer(
            prompt,
            padding="max_length",
            max_length=self.max_length,
            truncation=True,
            return_tensors="pt",
        )
        return self.network(tokens.input_ids.to(self.device), output_hidden_states=True)
