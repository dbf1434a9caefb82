"""Weights of linear layers as int8, by torchao: a scale for each output, and products in the layer's own format."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

TABLES = frozenset(
    {
        "class_embedding",
        "embed_tokens",
        "embedding_table",
        "label_emb",
        "position_embedding",
        "relative_attention_bias",
        "shared",
        "token_embedding",
    }
)
"""Names of layers that look up rows of a matrix; a `class_embedding` that is linear stays as it is, too."""


def is_quantized(name: str, shape: Sequence[int]) -> bool:
    """Whether a parameter becomes int8: it is the matrix of a linear layer. Told by its name and shape alone.

    So what a network will need is known before its weights are read.
    """
    layer, _, kind = name.rpartition(".")
    return kind == "weight" and len(shape) == 2 and layer.rpartition(".")[2] not in TABLES


def int8_bytes(shape: Sequence[int]) -> int:
    """What a quantized matrix takes: a byte a number, and for each output a float32 scale and torchao's zero point."""
    outputs, inputs = shape
    return outputs * (inputs + 4 + 1)


def quantize(network: nn.Module) -> None:
    """Replace the matrices that `is_quantized` names by int8 ones, which torchao rounds to 255 levels an output."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    def is_chosen(layer: nn.Module, path: str) -> bool:
        return type(layer) is nn.Linear and is_quantized(f"{path}.weight", layer.weight.shape)

    # By default torchao also sets how all of this process multiplies float32 matrices.
    quantize_(network, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=is_chosen)
