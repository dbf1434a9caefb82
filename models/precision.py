"""Number formats of networks."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Precision:
    """A network's number format, memory layout and kind of kernels; its inputs and outputs are float32.

    Attributes:
        dtype: name of a torch dtype.
        tf32: whether CUDA multiplies float32 with TF32's 10 bits of mantissa instead of 23.
        channels_last: whether convolutions use (N, H, W, C) memory; on a CPU oneDNN chooses.
        compiled: whether `torch.compile` makes kernels for each batch size, on CUDA with graphs.
        encoders: name of the torch dtype of the text encoders and the autoencoder that belong to the network.
        int8: whether the weights of linear layers are int8; so are those of the text encoders that belong to it.
        int8_products: whether wide linear layers and convolutions multiply int8 by int8; all else is in `dtype`.
        offloaded: whether weights wait in the host's memory until their layer runs, also those of text encoders and
            autoencoder. It changes no bits, so it is no part of the text.
    """

    dtype: str = "float32"
    tf32: bool = False
    channels_last: bool = False
    compiled: bool = False
    encoders: str = "float32"
    int8: bool = False
    int8_products: bool = False
    offloaded: bool = False

    def __str__(self) -> str:
        extras = {
            "TF32": self.tf32,
            "channels last": self.channels_last,
            "compiled": self.compiled,
            "int8 weights": self.int8,
            "int8 products": self.int8_products,
            f"encoders {self.encoders}": self.encoders != "float32",
        }
        return ", ".join([self.dtype, *(name for name, is_on in extras.items() if is_on)])

    @property
    def of_encoders(self) -> Precision:
        """The format of the text encoders; in float32 they multiply without TF32."""
        return Precision(dtype=self.encoders, int8=self.int8, offloaded=self.offloaded)

    @property
    def of_autoencoder(self) -> Precision:
        """The format of the autoencoder: that of the text encoders, with weights as they are."""
        return replace(self.of_encoders, int8=False)


FLOAT32 = Precision()
"""The default."""
