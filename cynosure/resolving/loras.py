"""The LoRAs of a request: those that it lists, and those that A1111's marks in its prompt name."""

from __future__ import annotations

import re
from collections.abc import Mapping

from cynosure.contract import MAX_LORA_SCALE, MAX_LORAS, GenerateRequest, Lora, LoraOnCard, ModelCard, PromptSyntax
from cynosure.errors import InvalidRequest, UnsupportedField
from cynosure.hints import listed, nearest, sentence, shown
from cynosure.refusals import parsed

_MARK = re.compile(r"<lora:([^<>:]+)(?::([^<>]*))?>")
_SPACES = re.compile(r" {2,}")


def marked(prompt: str) -> tuple[str, tuple[Lora, ...]]:
    """A prompt without its marks `<lora:NAME:SCALE>`, and the LoRAs that they name.

    Raises:
        InvalidRequest: a scale is no number within the limits, or a name a path; the field is `prompt`.
    """
    found = []
    for name, scale in _MARK.findall(prompt):
        try:
            found.append(parsed(Lora, {"name": name.strip(), "scale": float(scale) if scale else 1.0}))
        except (ValueError, InvalidRequest) as error:
            reason = f": {error.detail}" if isinstance(error, InvalidRequest) else ""
            raise InvalidRequest(
                f"prompt holds '<lora:{shown(name)}:{shown(scale)}>', which must be a name and a scale from "
                f"{-MAX_LORA_SCALE:g} to {MAX_LORA_SCALE:g}, such as <lora:ink:0.8>{reason}",
                field="prompt",
            ) from error
    return (_SPACES.sub(" ", _MARK.sub("", prompt)).strip() if found else prompt), tuple(found)


def without_marks(request: GenerateRequest) -> GenerateRequest:
    """The request with the marks in a weighted prompt as LoRAs in its list.

    Raises:
        InvalidRequest: as `marked`.
    """
    if request.prompt is None or request.prompt_syntax is not PromptSyntax.WEIGHTED:
        return request
    prompt, loras = marked(request.prompt)
    return request.model_copy(update={"prompt": prompt, "loras": (*request.loras, *loras)}) if loras else request


def resolved_loras(loras: tuple[Lora, ...], card: ModelCard, *, in_list: int) -> tuple[Lora, ...]:
    """The LoRAs with the digests of the files that they are drawn with.

    Args:
        loras: first those that the request lists, then those of its prompt.
        card: of the model.
        in_list: how many are listed.

    Raises:
        InvalidRequest: the model takes none, has none of that name, can't use one, or its file is another one.
    """
    if not loras:
        return ()
    if not card.takes_loras:
        raise UnsupportedField("loras", f"'{card.name}' takes no LoRAs here; leave loras out.")
    if len(loras) > MAX_LORAS:
        raise InvalidRequest(f"At most {MAX_LORAS} LoRAs per request, those in the prompt included.", field="loras")
    if len({lora.name for lora in loras}) < len(loras):
        raise InvalidRequest("loras names one LoRA twice; add up its scales.", field="loras")
    known = {one.name: one for one in card.loras}
    fields = [f"loras.{number}.name" if number < in_list else "prompt" for number in range(len(loras))]
    return tuple(_resolved(field, lora, known, card) for field, lora in zip(fields, loras, strict=True))


def _resolved(field: str, lora: Lora, known: Mapping[str, LoraOnCard], card: ModelCard) -> Lora:
    there = known.get(lora.name)
    if there is None:
        usable = [name for name, one in known.items() if one.fault is None]
        hint = sentence(nearest(lora.name, usable))
        raise InvalidRequest(
            f"No LoRA '{shown(lora.name)}' for '{card.name}'. {hint}Known: {listed(usable)}.", field=field
        )
    if there.fault is not None:
        raise InvalidRequest(f"'{card.name}' can't use the LoRA '{lora.name}': {there.fault}.", field=field)
    if lora.digest not in (None, there.digest):
        raise InvalidRequest(
            f"The LoRA '{lora.name}' was asked for with another file ({str(lora.digest)[:10]}…; here it is "
            f"{there.digest[:10]}…): leave its digest out to draw with this one.",
            field=field.replace("name", "digest"),
        )
    return lora.model_copy(update={"digest": there.digest})
