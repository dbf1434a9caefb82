"""Which blocks of a network are deep, and how a pass leaves them out.

Of a UNet these are all levels but the first, as in DeepCache: what they hand up to it is kept. Of a transformer they
are all blocks but the first and the last, as in Δ-DiT: what they add to its tokens is kept.
"""

from __future__ import annotations

from typing import Any

from diffusers import (
    DiTTransformer2DModel,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
    UNet2DModel,
)
from torch import Tensor, nn

from models.networks import AdmUNet
from models.passes.state import now


def make_reusable(network: nn.Module) -> bool:
    """Have a network's deep blocks do from now on as `keeping` and `reusing` say.

    Returns:
        Whether it has any that are known: a UNet of one level doesn't, nor one of blocks of rarer kinds, nor a
        transformer of two blocks.
    """
    match network:
        case AdmUNet():
            return _adm(network)
        case UNet2DModel() | UNet2DConditionModel():
            return _unet(network)
        case DiTTransformer2DModel() | SD3Transformer2DModel() | FluxTransformer2DModel():
            return _transformer(network)
    return False


def _adm(network: Any) -> bool:
    level = network.config.num_res_blocks + 1  # blocks of the first level, on the way down and on the way up
    blocks = [*network.input_blocks[level:], network.middle_block, *network.output_blocks[:-level]]
    for block in blocks[:-1]:
        _become(block, _LeftOut)
    _become(blocks[-1], _HandsUp)
    return True


def _unet(network: Any) -> bool:
    first, *deeper = network.down_blocks
    across = 1 + sum(map(_across, network.down_blocks))
    if not deeper or across != sum(len(block.resnets) for block in network.up_blocks) or hasattr(first, "skip_conv"):
        return False
    *inner, last = network.up_blocks[:-1]
    for block in (*first.downsamplers, network.mid_block, *inner):
        if block is not None:
            _become(block, _LeftOut)
    for block in deeper:
        _become(block, _Down)
    _become(last, _HandsUp)
    return True


def _transformer(network: Any) -> bool:
    middle = [*network.transformer_blocks, *getattr(network, "single_transformer_blocks", ())][1:-1]
    for block in middle:
        _become(block, _Middle)
        block.is_first, block.is_last = block is middle[0], block is middle[-1]
    return bool(middle)


def _across(block: Any) -> int:
    """How many of a block's features go across to the way up, in most kinds of block."""
    return len(block.resnets) + (block.downsamplers is not None)


def _become(module: Any, kind: type[nn.Module]) -> None:
    """Put `kind` before the module's class: its `forward` calls that of the class by `super`."""
    module.__class__ = type(type(module).__name__, (kind, type(module)), {})


class _LeftOut(nn.Module):
    """A deep block of a UNet whose output only other deep blocks read; left out, it is of no channels."""

    def forward(self, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        return super().forward(hidden_states, *given, **named) if now.reused is None else hidden_states[:, :0]


class _Down(nn.Module):
    """A deep block on the way down, which also returns what goes across to the way up."""

    def forward(self, hidden_states: Tensor, *given: Any, **named: Any) -> Any:
        if now.reused is None:
            return super().forward(hidden_states, *given, **named)
        nothing = hidden_states[:, :0]
        return nothing, (nothing,) * _across(self)


class _HandsUp(nn.Module):
    """The deep block of a UNet whose output the first level reads."""

    def forward(self, *given: Any, **named: Any) -> Any:
        if now.reused is not None:
            return now.reused[0]
        found = super().forward(*given, **named)
        if now.kept is not None:
            now.kept.append(found)
        return found


class _Middle(nn.Module):
    """A deep block of a transformer, on the picture's tokens and perhaps the prompt's."""

    is_first: bool
    is_last: bool

    def forward(self, hidden_states: Tensor, *, encoder_hidden_states: Tensor | None = None, **named: Any) -> Any:
        before = (hidden_states,) if encoder_hidden_states is None else (encoder_hidden_states, hidden_states)
        if now.reused is not None:
            added = now.reused if self.is_last else ()
            after = tuple(tokens + more for tokens, more in zip(before, added, strict=True)) if added else before
            return after[0] if encoder_hidden_states is None else after
        if now.kept is not None and self.is_first:
            now.kept.extend(before)
        output = super().forward(hidden_states, encoder_hidden_states=encoder_hidden_states, **named)
        if now.kept is not None and self.is_last:
            after = (output,) if encoder_hidden_states is None else output
            now.kept[:] = [tokens - earlier for tokens, earlier in zip(after, now.kept, strict=True)]
        return output
