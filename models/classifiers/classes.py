"""Class classifiers: a noise-aware one that guides by its gradient, and the judge, which classifies clean pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.models.embeddings import TimestepEmbedding, Timesteps
from diffusers.models.unets.unet_2d_blocks import UNetMidBlock2D, get_down_block
from torch import Tensor, nn
from torch.nn import functional

from models.configs import every_key
from models.loading import load_component
from models.networks import AdmClassifier
from models.pack import Pack
from models.precision import FLOAT32, Precision
from models.spec import InvalidSpec, SampleSpec, Term

MAX_TERMS = 8
"""Most terms of a classifier condition; every row is padded to this many."""


class AttentionPool(nn.Module):
    """Pools a feature map by attention from its mean (Dhariwal & Nichol 2021, section 4; Radford et al. 2021)."""

    def __init__(self, channels: int, positions: int, heads: int, out_features: int) -> None:
        super().__init__()
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(positions + 1, channels) / channels**0.5)
        self.query, self.key, self.value = (nn.Linear(channels, channels) for _ in range(3))
        self.project = nn.Linear(channels, out_features)

    def forward(self, features: Tensor) -> Tensor:
        tokens = features.flatten(2).transpose(1, 2)  # (B,HW,C)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], dim=1) + self.positional_embedding  # (B,1+HW,C)

        def split(projected: Tensor) -> Tensor:
            return projected.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B,heads,N,C/heads)

        query = self.query(tokens[:, 0])[:, None]  # as a matrix, because a single (1,1,C) would sum in another order
        pooled = functional.scaled_dot_product_attention(
            split(query), split(self.key(tokens)), split(self.value(tokens))
        )
        return self.project(pooled.transpose(1, 2).flatten(1))


class NoiseAwareClassifier(ModelMixin, ConfigMixin):
    """ADM's classifier architecture: the UNet's encoder and middle with timestep embedding, then attention pooling.

    With a `text_size` it computes p(y | xₜ, t, prompt): knowing what a picture shows helps tell its class under noise.
    Without `mid_attention` the middle is a single residual block.
    """

    @register_to_config
    def __init__(
        self,
        sample_size: int = 14,
        in_channels: int = 4,
        num_classes: int = 10,
        block_out_channels: tuple[int, ...] = (64, 128),
        down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D"),
        layers_per_block: int = 1,
        attention_head_dim: int = 32,
        text_size: int = 0,
        mid_attention: bool = True,
    ) -> None:
        super().__init__()
        first, last = block_out_channels[0], block_out_channels[-1]
        embedding = first * 4
        self.time_proj = Timesteps(first, flip_sin_to_cos=True, downscale_freq_shift=0)
        self.time_embedding = TimestepEmbedding(first, embedding)
        self.text_embedding = TimestepEmbedding(text_size, embedding) if text_size else None
        self.conv_in = nn.Conv2d(in_channels, first, 3, padding=1)
        self.down_blocks = nn.ModuleList()
        for level, channels in enumerate(block_out_channels):
            self.down_blocks.append(
                get_down_block(
                    down_block_types[level],
                    num_layers=layers_per_block,
                    in_channels=block_out_channels[max(level - 1, 0)],
                    out_channels=channels,
                    temb_channels=embedding,
                    add_downsample=level < len(block_out_channels) - 1,
                    resnet_eps=1e-5,
                    resnet_act_fn="silu",
                    resnet_groups=32,
                    attention_head_dim=attention_head_dim,
                    downsample_padding=1,
                    resnet_time_scale_shift="scale_shift",
                    downsample_type="conv",
                )
            )
        self.mid_block = UNetMidBlock2D(
            in_channels=last,
            temb_channels=embedding,
            num_layers=1 if mid_attention else 0,
            add_attention=mid_attention,
            resnet_time_scale_shift="scale_shift",
            attention_head_dim=attention_head_dim,
            resnet_groups=32,
            attn_groups=32,
        )
        side = sample_size // 2 ** (len(block_out_channels) - 1)
        self.norm_out = nn.GroupNorm(32, last)
        self.act_out = nn.SiLU()
        self.pool = AttentionPool(last, side * side, last // attention_head_dim, num_classes)

    def forward(self, x: Tensor, timesteps: Tensor, text: Tensor | None = None) -> Tensor:
        """Logits (B,num_classes) for noised latents `x` (B,C,H,W) at `timesteps` (B,).

        `text` (B,text_size): prompt vectors of unit length, or zeros for no prompt; given exactly if `text_size` is
        set.
        """
        if (text is None) != (self.text_embedding is None):
            raise ValueError("a classifier takes text exactly if it has a text_size")
        x = x.to(self.dtype)
        embedding = self.time_embedding(self.time_proj(timesteps).to(x.dtype))
        if text is not None and self.text_embedding is not None:
            embedding = embedding + self.text_embedding(text.to(x.dtype) * text.shape[-1] ** 0.5)
        features = self.conv_in(x)
        for block in self.down_blocks:
            features, _ = block(hidden_states=features, temb=embedding)
        features = self.act_out(self.norm_out(self.mid_block(features, embedding)))
        return self.pool(features)


class Judge(ModelMixin, ConfigMixin):
    """A plain convolutional network on pictures, independent of the diffusion's noise, latents and timesteps."""

    @register_to_config
    def __init__(
        self,
        num_classes: int = 10,
        channels: tuple[int, ...] = (32, 64, 128),
        num_features: int = 64,
        in_channels: int = 1,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        before = in_channels
        for width in channels:
            layers += [nn.Conv2d(before, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
            layers += [nn.MaxPool2d(2)]
            before = width
        self.body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(before, num_features))
        self.head = nn.Sequential(nn.ReLU(), nn.Dropout(0.3), nn.Linear(num_features, num_classes))

    def features(self, pictures: Tensor) -> Tensor:
        """(N, num_features) for pictures (N,in_channels,H,W), `uint8` or float in 0..255."""
        return self.body(pictures.float() / 127.5 - 1)

    def forward(self, pictures: Tensor) -> Tensor:
        """Logits (N, num_classes) for pictures (N,in_channels,H,W), `uint8` or float in 0..255."""
        return self.head(self.features(pictures))


def conditions(terms: Sequence[Term], num_classes: int) -> dict[str, Tensor]:
    """One row's condition as tensors: weights (MAX_TERMS,) and members (MAX_TERMS, num_classes).

    The size is fixed, so that a row's arithmetic does not depend on its neighbours' conditions.

    Raises:
        InvalidSpec: too many terms.
    """
    if len(terms) > MAX_TERMS:
        raise InvalidSpec(f"a classifier condition has at most {MAX_TERMS} terms; this one has {len(terms)}")
    weights = torch.zeros(MAX_TERMS)
    members = torch.ones(MAX_TERMS, num_classes, dtype=torch.bool)  # unused terms: the log of the sum over all is 0
    for number, term in enumerate(terms):
        weights[number] = term.weight
        members[number] = False
        members[number, list(term.classes)] = True
    return {"weights": weights, "members": members}


def log_probability_gradient(
    classifier: NoiseAwareClassifier | AdmClassifier, x: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """∇ₓ log p(condition | xₜ, t) (B,C,H,W), and log p (B,); each row has a separate condition.

    Rows are independent, so the gradient of the sum over rows holds each row's gradient. `condition` is the stacked
    output of `conditions`: Σ weight · logsumexp of log p(y) over the term's members. If it has a `text`, p is
    p(y | xₜ, t, prompt).
    """
    with torch.enable_grad():
        x = x.detach().clone().requires_grad_(True)  # the network gets a view: torch's FLOP counter can't hook a leaf
        text = (condition["text"],) if "text" in condition else ()
        log_probabilities = functional.log_softmax(classifier(x.view_as(x), timesteps, *text).float(), dim=-1)
        kept = log_probabilities[:, None].masked_fill(~condition["members"], -torch.inf)  # (B,terms,classes)
        chosen = (condition["weights"] * kept.logsumexp(-1)).sum(-1)
        return torch.autograd.grad(chosen.sum(), x)[0], chosen.detach()


class ClassSteering:
    """A noise-aware classifier: the gradient of log p(y | xₜ, t) (Dhariwal & Nichol 2021, section 4)."""

    takes_prompt = False
    score_name = "probability"

    def __init__(self, network: NoiseAwareClassifier | AdmClassifier) -> None:
        self.network = network
        self.num_parameters = sum(parameter.numel() for parameter in network.parameters())

    @property
    def _num_classes(self) -> int:
        return int(self.network.config.num_classes)

    def condition(self, spec: SampleSpec) -> Mapping[str, Tensor]:
        if spec.guidance.terms:
            return conditions(spec.guidance.terms, self._num_classes)
        if spec.class_index is None:
            raise InvalidSpec("the classifier needs a label or terms; the spec has neither")
        return conditions([Term(1.0, (spec.class_index,))], self._num_classes)

    def remarks(self, spec: SampleSpec) -> tuple[str, ...]:
        return ()

    def gradient(self, x: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        gradient, log_probability = log_probability_gradient(self.network, x, timesteps, condition)
        return gradient, log_probability.exp()

    def examples(self) -> Sequence[Mapping[str, Tensor]]:
        return [conditions([Term(1.0, (number % self._num_classes,))], self._num_classes) for number in range(3)]


def load_classifier(
    pack: Pack, device: torch.device, precision: Precision = FLOAT32
) -> NoiseAwareClassifier | AdmClassifier | None:
    """Load the pack's classifier with frozen parameters; `None` if it has none."""
    if not pack.has_classifier:
        return None
    network = AdmClassifier if pack.declared_class("classifier") == "AdmClassifier" else NoiseAwareClassifier
    return load_component(network, pack, "classifier", device, precision, keys=every_key(network))


def load_judge(pack: Pack) -> Judge:
    """Load the pack's judge in float32 with frozen parameters, on the CPU."""
    return load_component(Judge, pack, "judge", torch.device("cpu"), keys=every_key(Judge))
