"""Steering by the prompt: towards similarity with it (CLIP guidance), or towards a class given the prompt."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional
from transformers import CLIPTextModelWithProjection

from models.classifiers.classes import ClassSteering, NoiseAwareClassifier
from models.configs import every_key
from models.configs.text_encoders import CLIP_TEXT
from models.loading import load_component, load_tokenizer, token_limit
from models.memory import load_shared
from models.networks.sentences import pack_encoder
from models.networks.tokens import parts_of, reading_of, readings_on, remarks_on
from models.pack import InvalidPack, Pack
from models.precision import Precision
from models.spec import InvalidSpec, SampleSpec

LOGIT_SCALE = 100.0  # the maximum that CLIP's learned temperature is clipped to (Radford et al. 2021, section 2.5)


def _words_of(spec: SampleSpec) -> str:
    """The spec's prompt without weights: similarity with it has none."""
    return "".join(text for text, _ in parts_of(spec, "prompt"))


class PromptSteering:
    """A noise-aware image tower and a text tower: the gradient of 100 times the cosine of their embeddings.

    CLIP guidance (Nichol et al. 2021, GLIDE, section 3.2). The image tower has the classifier's architecture, and
    outputs an embedding instead of logits. Like GLIDE's, it takes the noised latent and its timestep, because a CLIP
    trained on clean pictures fails on noise. The text tower and its tokenizer are the components
    `classifier_text_encoder` and `classifier_tokenizer`.
    """

    takes_prompt = True
    score_name = "similarity"

    def __init__(self, pack: Pack, device: torch.device, precision: Precision) -> None:
        self.device = device
        self.network = load_component(
            NoiseAwareClassifier, pack, "classifier", device, precision, keys=every_key(NoiseAwareClassifier)
        )
        self.num_parameters = sum(parameter.numel() for parameter in self.network.parameters())
        self.text = load_shared(
            CLIPTextModelWithProjection,
            pack,
            "classifier_text_encoder",
            device,
            precision.of_encoders,
            keys=CLIP_TEXT,
        )
        folder = pack.component("classifier_tokenizer")
        self.tokenizer = load_tokenizer(folder)
        self.max_length = token_limit(self.tokenizer, self.text, folder)
        self._embedded = functools.lru_cache(maxsize=256)(self._embed)

    def condition(self, spec: SampleSpec) -> Mapping[str, Tensor]:
        if not spec.prompt or not spec.prompt.strip():
            raise InvalidSpec("this model's classifier needs a prompt; the spec has none")
        return {"embedding": self._embedded(_words_of(spec))}

    def remarks(self, spec: SampleSpec) -> tuple[str, ...]:
        read = partial(reading_of, self.tokenizer, max_length=self.tokenizer.model_max_length)
        return remarks_on(readings_on(replace(spec, negative_prompt=None, long_prompt=None), [read]))

    @torch.inference_mode()
    def _embed(self, prompt: str) -> Tensor:
        tokens = self.tokenizer(
            prompt, padding="max_length", max_length=self.max_length, truncation=True, return_tensors="pt"
        )
        embedding = self.text(tokens.input_ids.to(self.device)).text_embeds[0].float()
        return functional.normalize(embedding, dim=-1)

    def gradient(self, x: Tensor, timesteps: Tensor, condition: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        with torch.enable_grad():
            x = x.detach().clone().requires_grad_(True)
            embedding = functional.normalize(self.network(x.view_as(x), timesteps).float(), dim=-1)
            # Cloned, because autograd refuses to multiply by a tensor that was created in inference mode.
            similarity = (embedding * condition["embedding"].clone()).sum(-1)
            return torch.autograd.grad(LOGIT_SCALE * similarity.sum(), x)[0], similarity.detach()

    def examples(self) -> Sequence[Mapping[str, Tensor]]:
        return [{"embedding": self._embedded(prompt)} for prompt in ("a cat", "two red apples on a table", "rain")]


class PromptedClassSteering(ClassSteering):
    """A noise-aware classifier conditioned on the prompt: the gradient of log p(y | xₜ, t, prompt).

    By Bayes' rule this is the term to add to a denoiser of p(x | prompt) to draw from p(x | prompt, y).
    """

    def __init__(self, network: NoiseAwareClassifier, pack: Pack) -> None:
        super().__init__(network)
        self.encoder = pack_encoder(pack)
        text_size = network.config.text_size
        if text_size != self.encoder.size:
            raise InvalidPack(f"'{pack.name}': the classifier's text_size is {text_size}, not {self.encoder.size}")

    def condition(self, spec: SampleSpec) -> Mapping[str, Tensor]:
        text = self.encoder(spec.prompt) if spec.prompt and spec.prompt.strip() else torch.zeros(self.encoder.size)
        return {**super().condition(spec), "text": text}

    def examples(self) -> Sequence[Mapping[str, Tensor]]:
        prompts = ("a cat", "two red apples on a table", "rain")
        return [
            {**condition, "text": self.encoder(prompt)}
            for condition, prompt in zip(super().examples(), prompts, strict=True)
        ]
