"""The image prompts of a request."""

from __future__ import annotations

from cynosure.contract import ImagePrompt, ModelCard
from cynosure.errors import InvalidRequest, UnsupportedField


def check_image_prompts(prompts: tuple[ImagePrompt, ...], card: ModelCard) -> None:
    """Refuse image prompts that the model can't take, and those without a picture.

    Raises:
        InvalidRequest: names the field and says what would be right.
    """
    if prompts and card.ip_adapter is None:
        raise UnsupportedField(
            "image_prompts", f"'{card.name}' takes no image prompts: it has no IP-Adapter; leave image_prompts out."
        )
    for number, prompt in enumerate(prompts):
        if prompt.image is None:
            field = f"image_prompts.{number}"
            raise InvalidRequest(f"{field} has no image: give the picture to prompt with.", field=f"{field}.image")
