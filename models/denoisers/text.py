"""Code shared by families that take prompts."""

from __future__ import annotations

import functools
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from models.adapters import Adapters, RowExtras, given
from models.batching import Alone, Batching, batch_calls
from models.configs import Keys
from models.denoisers.base import Conditioning
from models.loading import Network, load_tokenizer, token_limit
from models.memory import load_shared
from models.networks.chunks import Chunk, chunks_of
from models.networks.tokens import Reading, parts_of, reading_of
from models.networks.weights import Part
from models.pack import Pack
from models.precision import Precision
from models.spec import InvalidSpec, LongPrompt, Lora, SampleSpec
from models.weights import turn

Key = TypeVar("Key", bound=Hashable)


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
        keeps_layers: whether the states of every layer are wanted, and not only the last one's.

    Attributes:
        batching: how many chunks may share a batch; one until it is measured.
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
        *,
        keeps_layers: bool = True,
    ) -> None:
        folder = pack.component(f"tokenizer{suffix}")
        self.name = f"text_encoder{suffix}"
        self.tokenizer = load_tokenizer(folder)
        self.network: Any = load_shared(network, pack, self.name, device, precision.of_encoders, keys=keys)
        self.device = device
        self.max_length = max_length or token_limit(self.tokenizer, self.network, folder)
        self.keeps_layers = keeps_layers
        self.batching: Batching = Alone()
        self.reading = functools.lru_cache(maxsize=256)(self._reading)

    def _reading(self, texts: tuple[str, ...], chunked: bool = False) -> Reading:
        """How the encoder reads the texts of a prompt."""
        return reading_of(self.tokenizer, texts, self.max_length, encoder=self.name, chunked=chunked)

    @property
    def vocabulary(self) -> int:
        """Number of different tokens."""
        return int(self.network.config.vocab_size)

    def __call__(self, prompts: Sequence[str], extras: Sequence[RowExtras | None] = ()) -> Iterator[dict[str, Any]]:
        """Run the network on prompts, padded or truncated; arguments and results are those of `read`."""
        tokens = self.tokenizer(list(prompts), padding="max_length", max_length=self.max_length, truncation=True)
        return self.read(tokens.input_ids, extras)

    def chunks(self, parts: Sequence[Part]) -> list[Chunk]:
        """Split a prompt into chunks of `max_length` tokens."""
        return chunks_of(self.tokenizer, parts, self.max_length)

    def read(self, rows: Sequence[Sequence[int]], extras: Sequence[RowExtras | None] = ()) -> Iterator[dict[str, Any]]:
        """Run the network on rows of `max_length` tokens, in batches; yields each row's outputs by name.

        `extras` are what the rows have for themselves, if any has something.

        Outputs are views of the batch's, of the row alone; those of layers are tuples. Copy what is to be kept.
        """
        start = 0
        for count, call in batch_calls(self.output, torch.tensor(rows), self.batching):
            with given(extras[start : start + count]):
                output = call()
            start += count
            for row in range(count):
                own = slice(row, row + 1)
                yield {
                    name: tuple(layer[own] for layer in value) if isinstance(value, tuple) else value[own]
                    for name, value in output.items()
                }

    def output(self, ids: Tensor) -> Any:
        """The network's output for tokens (B,`max_length`)."""
        with turn(self.network):
            return self.network(ids.to(self.device), output_hidden_states=self.keeps_layers)


class Encodings(Generic[Key]):
    """Encoded prompts: the latest ones are kept. For one thread.

    Args:
        encode: encodes prompts together, each as it would alone.
    """

    most = 256

    def __init__(self, encode: Callable[[Sequence[Key]], Sequence[Conditioning]]) -> None:
        self._encode = encode
        self._kept: OrderedDict[Key, Conditioning] = OrderedDict()

    def __call__(self, prompt: Key) -> Conditioning:
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        [encoded] = self._encode([prompt])
        self._keep(prompt, encoded)
        return encoded

    def add(self, prompts: Sequence[Key]) -> None:
        """Encode those prompts together that are not kept yet."""
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._kept]
        if not new:
            return
        for prompt, encoded in zip(new, self._encode(new), strict=True):
            self._keep(prompt, encoded)

    def _keep(self, prompt: Key, encoded: Conditioning) -> None:
        self._kept[prompt] = encoded
        if len(self._kept) > self.most:
            self._kept.popitem(last=False)


class AdaptedReading:
    """What text families share about LoRAs, which may change how prompts are read."""

    adapters: Adapters | None

    def loras_read(self, spec: SampleSpec) -> tuple[Lora, ...]:
        """The spec's LoRAs if one of them changes a text encoder, else none."""
        return self.adapters.reading(spec.loras) if self.adapters is not None else ()

    def extras_of(self, loras: Sequence[Lora]) -> RowExtras | None:
        """What rows with these LoRAs have for themselves."""
        return self.adapters.of(loras) if self.adapters is not None else None


@dataclass(frozen=True)
class Wording:
    """A prompt as CLIP is to read it.

    Attributes:
        parts: its texts with their weights.
        chunked: whether it is read in chunks, and not cut off after the first.
        clip_skip: the layer that it is read from, counted from the one that the family uses, which is 1.
        loras: those that change how it is read.
    """

    parts: tuple[Part, ...]
    chunked: bool = True
    clip_skip: int = 1
    loras: tuple[Lora, ...] = ()

    @classmethod
    def of(cls, spec: SampleSpec, field: str, *, skips: bool = True, loras: tuple[Lora, ...] = ()) -> Wording:
        """A spec's prompt; `skips` says whether its `clip_skip` counts for this one.

        Raises:
            InvalidPrompt: as for `parts_of`.
        """
        chunked = spec.long_prompt is not LongPrompt.TRUNCATE
        return cls(parts_of(spec, field), chunked, spec.clip_skip if skips else 1, loras)

    @property
    def empty(self) -> Wording:
        """No prompt, read from the same layer."""
        return replace(self, parts=(("", 1.0),))


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
