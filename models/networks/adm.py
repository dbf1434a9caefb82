"""ADM's networks (Dhariwal & Nichol 2021): UNet, super-resolution UNet and noise-aware classifier.

Parameters have the names of the published checkpoints, which therefore load strictly and unchanged. `channel_mult` may
be a fraction (the 512 network starts with 0.5). Both orders of q, k and v in a projection are supported: "legacy"
checkpoints store them head by head, newer ones store all heads' q, then k, then v.
"""

from __future__ import annotations

import math

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from torch import Tensor, nn
from torch.nn import functional

GROUPS = 32


def timestep_embedding(timesteps: Tensor, width: int) -> Tensor:
    """Sinusoids (B,width), cosines first; `timesteps` (B,) may be fractions (Vaswani et al. 2017, period 10,000)."""
    half = width // 2
    frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=timesteps.device).float() / half)
    angles = timesteps[:, None].float() * frequencies
    return functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, width % 2))


def _attend(qkv: Tensor, heads: int, *, legacy: bool) -> Tensor:
    """Attention over positions: `qkv` (B,3C,N) → (B,C,N)."""
    batch, channels, length = qkv.shape
    width = channels // (3 * heads)
    if legacy:
        q, k, v = qkv.view(batch, heads, 3, width, length).unbind(2)
    else:
        q, k, v = qkv.view(batch, 3, heads, width, length).unbind(1)
    q, k, v = (part.transpose(-1, -2) for part in (q, k, v))
    attended = functional.scaled_dot_product_attention(q, k, v)  # (B,heads,N,C)
    return attended.transpose(-1, -2).reshape(batch, heads * width, length)


class AttentionBlock(nn.Module):
    """Self-attention over positions, added to its input."""

    def __init__(self, channels: int, *, heads: int, legacy: bool) -> None:
        super().__init__()
        self.heads, self.legacy = heads, legacy
        self.norm = nn.GroupNorm(GROUPS, channels)
        self.qkv = nn.Conv1d(channels, 3 * channels, 1)
        self.proj_out = nn.Conv1d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        return (flat + self.proj_out(_attend(self.qkv(self.norm(flat)), self.heads, legacy=self.legacy))).view_as(x)


class ResBlock(nn.Module):
    """Two convolutions, with the timestep embedding added between them; `resample` halves or doubles the sides."""

    def __init__(
        self, channels: int, out_channels: int, embedding: int, *, scale_shift: bool, resample: str | None = None
    ) -> None:
        super().__init__()
        self.scale_shift, self.resample = scale_shift, resample
        self.in_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, channels), nn.SiLU(), nn.Conv2d(channels, out_channels, 3, padding=1)
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(embedding, out_channels * (2 if scale_shift else 1)))
        self.out_layers = nn.Sequential(
            nn.GroupNorm(GROUPS, out_channels),
            nn.SiLU(),
            nn.Identity(),  # stands for dropout, to keep the published numbering
            nn.Conv2d(out_channels, out_channels, 3, padding=1),
        )
        self.skip_connection = nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        norm, activation, convolution = self.in_layers
        features = convolution(self._resampled(activation(norm(x))))
        shortcut = self.skip_connection(self._resampled(x))
        embedded = self.emb_layers(embedding)[..., None, None]
        if not self.scale_shift:
            return shortcut + self.out_layers(features + embedded)
        scale, shift = embedded.chunk(2, dim=1)
        norm, *rest = self.out_layers
        features = norm(features) * (1 + scale) + shift
        for layer in rest:
            features = layer(features)
        return shortcut + features

    def _resampled(self, x: Tensor) -> Tensor:
        match self.resample:
            case "down":
                return functional.avg_pool2d(x, 2)
            case "up":
                return functional.interpolate(x, scale_factor=2, mode="nearest")
        return x


class Downsample(nn.Module):
    """Strided convolution, for networks whose residual blocks don't resample."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Nearest-neighbour upsampling, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(functional.interpolate(x, scale_factor=2, mode="nearest"))


class _Stage(nn.ModuleList):
    """Layers in sequence; residual blocks also get the timestep embedding."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__(layers)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        for layer in self:
            x = layer(x, embedding) if isinstance(layer, ResBlock) else layer(x)
        return x


class _Encoder(ModelMixin, ConfigMixin):
    """Base of UNet and classifier: timestep embedding, encoder and middle."""

    def _build(
        self,
        *,
        image_size: int,
        in_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: tuple[int, ...],
        channel_mult: tuple[float, ...],
        num_heads: int | None,
        num_head_channels: int | None,
        scale_shift: bool,
        resblock_updown: bool,
        legacy: bool,
    ) -> None:
        if (num_heads is None) is (num_head_channels is None):
            raise ValueError("give num_heads or num_head_channels, not both")
        self.model_channels = model_channels
        self.embedding = 4 * model_channels
        self.scale_shift, self.resblock_updown = scale_shift, resblock_updown
        self.num_heads, self.num_head_channels, self.legacy = num_heads, num_head_channels, legacy
        self.widths = [int(mult * model_channels) for mult in channel_mult]
        self.attention_sides = frozenset(attention_resolutions)
        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, self.embedding), nn.SiLU(), nn.Linear(self.embedding, self.embedding)
        )
        channels, side = self.widths[0], image_size
        self.input_blocks = nn.ModuleList([_Stage(nn.Conv2d(in_channels, channels, 3, padding=1))])
        self.skipped = [channels]  # widths of the skip connections
        for level, width in enumerate(self.widths):
            for _ in range(num_res_blocks):
                self.input_blocks.append(_Stage(*self._layers(channels, width, side)))
                channels = width
                self.skipped.append(channels)
            if level < len(self.widths) - 1:
                self.input_blocks.append(_Stage(self._resampling(channels, "down")))
                self.skipped.append(channels)
                side //= 2
        self.middle_block = _Stage(
            self._residual(channels, channels), self._attention(channels), self._residual(channels, channels)
        )
        self.side = side

    def _residual(self, channels: int, width: int, resample: str | None = None) -> ResBlock:
        return ResBlock(channels, width, self.embedding, scale_shift=self.scale_shift, resample=resample)

    def _attention(self, channels: int) -> AttentionBlock:
        heads = self.num_heads or channels // (self.num_head_channels or channels)
        return AttentionBlock(channels, heads=heads, legacy=self.legacy)

    def _layers(self, channels: int, width: int, side: int) -> list[nn.Module]:
        attention = [self._attention(width)] if side in self.attention_sides else []
        return [self._residual(channels, width), *attention]

    def _resampling(self, channels: int, direction: str) -> nn.Module:
        if self.resblock_updown:
            return self._residual(channels, channels, resample=direction)
        return Downsample(channels) if direction == "down" else Upsample(channels)

    def embed(self, timesteps: Tensor, dtype: torch.dtype) -> Tensor:
        return self.time_embed(timestep_embedding(timesteps, self.model_channels).to(dtype))


class AdmUNet(_Encoder):
    """ADM's UNet; with `low_res_size` its super-resolution form, which also takes a small picture as input.

    Args:
        image_size: side of the pictures.
        channel_mult: multiples of `model_channels`, level by level.
        attention_resolutions: sides of the feature maps that have attention.
        num_classes: of the label embedding, or `None` for an unconditional network.
        learn_sigma: whether the output has C more channels, for the variance (Nichol & Dhariwal 2021, eq. 15).
        legacy_attention: whether q, k and v are in the legacy order.
        low_res_size: side of the small picture.
    """

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        model_channels: int = 192,
        num_res_blocks: int = 3,
        channel_mult: tuple[float, ...] = (1, 2, 3, 4),
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        num_classes: int | None = 1000,
        learn_sigma: bool = True,
        num_heads: int | None = None,
        num_head_channels: int | None = 64,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
        legacy_attention: bool = True,
        low_res_size: int | None = None,
    ) -> None:
        super().__init__()
        self._build(
            image_size=image_size,
            in_channels=in_channels * (2 if low_res_size else 1),
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            channel_mult=channel_mult,
            num_heads=num_heads,
            num_head_channels=num_head_channels,
            scale_shift=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            legacy=legacy_attention,
        )
        if num_classes is not None:
            self.label_emb = nn.Embedding(num_classes, self.embedding)
        self.output_blocks = nn.ModuleList()
        channels, side, skipped = self.widths[-1], self.side, list(self.skipped)
        for level, width in reversed(list(enumerate(self.widths))):
            for number in range(num_res_blocks + 1):
                layers = self._layers(channels + skipped.pop(), width, side)
                channels = width
                if level and number == num_res_blocks:
                    layers.append(self._resampling(channels, "up"))
                    side *= 2
                self.output_blocks.append(_Stage(*layers))
        self.out = nn.Sequential(
            nn.GroupNorm(GROUPS, channels),
            nn.SiLU(),
            nn.Conv2d(channels, in_channels * (2 if learn_sigma else 1), 3, padding=1),
        )

    def forward(
        self, x: Tensor, timesteps: Tensor, labels: Tensor | None = None, low_res: Tensor | None = None
    ) -> Tensor:
        """ε, and the variance's channels if learnt: (B,C or 2C,H,W), for `x` (B,C,H,W) at `timesteps` (B,).

        Args:
            x: noised pictures.
            timesteps: may be fractions.
            labels: (B,), for a network with classes.
            low_res: (B,C,h,w) in [-1, 1], for super-resolution.
        """
        if low_res is not None:
            x = torch.cat([x, functional.interpolate(low_res, x.shape[-2:], mode="bilinear")], dim=1)
        embedding = self.embed(timesteps, x.dtype)
        if labels is not None:
            embedding = embedding + self.label_emb(labels)
        skips: list[Tensor] = []
        for block in self.input_blocks:
            x = block(x, embedding)
            skips.append(x)
        x = self.middle_block(x, embedding)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), embedding)
        return self.out(x)


class AttentionPool2d(nn.Module):
    """A mean token attends to all positions (Radford et al. 2021); q, k and v are always in the newer order."""

    def __init__(self, side: int, channels: int, *, head_channels: int, num_outputs: int) -> None:
        super().__init__()
        self.heads = channels // head_channels
        self.positional_embedding = nn.Parameter(torch.randn(channels, side * side + 1) / channels**0.5)
        self.qkv_proj = nn.Conv1d(channels, 3 * channels, 1)
        self.c_proj = nn.Conv1d(channels, num_outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2)
        tokens = torch.cat([tokens.mean(-1, keepdim=True), tokens], dim=-1) + self.positional_embedding
        return self.c_proj(_attend(self.qkv_proj(tokens), self.heads, legacy=False))[..., 0]


class AdmClassifier(_Encoder):
    """ADM's noise-aware classifier p(y | xₜ, t): the UNet's encoder and middle, then attention pooling."""

    @register_to_config
    def __init__(
        self,
        image_size: int = 64,
        in_channels: int = 3,
        model_channels: int = 128,
        num_res_blocks: int = 2,
        channel_mult: tuple[float, ...] = (1, 2, 3, 4),
        attention_resolutions: tuple[int, ...] = (32, 16, 8),
        num_classes: int = 1000,
        num_head_channels: int = 64,
        use_scale_shift_norm: bool = True,
        resblock_updown: bool = True,
    ) -> None:
        super().__init__()
        self._build(
            image_size=image_size,
            in_channels=in_channels,
            model_channels=model_channels,
            num_res_blocks=num_res_blocks,
            attention_resolutions=attention_resolutions,
            channel_mult=channel_mult,
            num_heads=None,
            num_head_channels=num_head_channels,
            scale_shift=use_scale_shift_norm,
            resblock_updown=resblock_updown,
            legacy=True,
        )
        channels = self.widths[-1]
        pool = AttentionPool2d(self.side, channels, head_channels=num_head_channels, num_outputs=num_classes)
        self.out = nn.Sequential(nn.GroupNorm(GROUPS, channels), nn.SiLU(), pool)

    def forward(self, x: Tensor, timesteps: Tensor) -> Tensor:
        """Logits (B,num_classes) for noised pictures `x` (B,C,H,W) at `timesteps` (B,)."""
        x = x.to(self.dtype)
        embedding = self.embed(timesteps, x.dtype)
        for block in self.input_blocks:
            x = block(x, embedding)
        return self.out(self.middle_block(x, embedding))
