"""Cross-attentions that look at the pictures of single rows as well (Ye et al. 2023, equation 5).

Each row looks by itself, with tensors of the same shapes and strides whatever else is in the batch, so its bits don't
depend on the neighbours.
"""

from __future__ import annotations

import threading
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from models.adapters.rows import rows_in_batch
from models.lanes import first_call

_called: set[tuple[object, ...]] = set()


class _Asking(threading.local):
    """What the attention that this thread is in asks for, (B,positions,width); `None` if no row looks at pictures."""

    query: Tensor | None = None


_asking = _Asking()


def make_attentive(query: nn.Module, output: nn.Module) -> None:
    """Have an attention look at the rows' pictures from now on, while other threads may use it.

    Args:
        query: its layer that makes the query.
        output: its layer that reads what was found; `RowImage` has the keys and values by this layer.
    """
    query.register_forward_hook(_keep_query)
    output.register_forward_pre_hook(_add_pictures)


def _keep_query(layer: nn.Module, args: Any, output: Tensor) -> None:
    is_looking = any(row is not None and row.images for row in rows_in_batch())
    _asking.query = output if is_looking else None


def _add_pictures(layer: nn.Module, args: tuple[Tensor, ...]) -> None:
    query, _asking.query = _asking.query, None
    if query is None:
        return
    found = args[0]
    for number, row in enumerate(rows_in_batch()):
        for image in () if row is None else row.images:
            key, value = image.seen[layer]
            with first_call(_called, (query.shape[1:], key.shape, query.dtype)):
                found[number] += image.scale * _looked(query[number].contiguous(), key, value)


def _looked(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """What (positions,width) finds among the tokens of a picture, whose keys are (heads,tokens,width per head)."""
    heads, _, each = key.shape
    asked = query.view(1, -1, heads, each).transpose(1, 2)
    seen = functional.scaled_dot_product_attention(asked, key[None], value[None])
    return seen.transpose(1, 2).reshape(query.shape)
