"""What is wrong with a LoRA or a ControlNet, or with a spec that names it or has image prompts."""

from __future__ import annotations

from models.spec import InvalidSpec


class InvalidLora(ValueError):
    """A file that can't be used as a LoRA; the message says why."""


class InvalidLoras(InvalidSpec):
    """The LoRAs of a spec can't be used by its pack; the message names one and says what would be right."""

    field = "loras"


class InvalidControl(ValueError):
    """A folder that can't be used as a ControlNet; the message says why."""


class InvalidControls(InvalidSpec):
    """The controls of a spec can't be used by its pack; the message names one and says what would be right."""

    field = "controls"


class InvalidImagePrompts(InvalidSpec):
    """The image prompts of a spec can't be used by its pack; the message says what would be right."""

    field = "image_prompts"
