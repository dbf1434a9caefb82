"""The ControlNets of a request."""

from __future__ import annotations

from collections.abc import Mapping

from cynosure.contract import Control, ControlOnCard, ModelCard
from cynosure.errors import InvalidRequest, UnsupportedField
from cynosure.hints import listed, nearest, sentence, shown


def resolved_controls(controls: tuple[Control, ...], card: ModelCard) -> tuple[Control, ...]:
    """The controls with the digests of the ControlNets that they are drawn with.

    Raises:
        InvalidRequest: the model takes none, has none of that name, can't use one, or its files are others; or a
            picture is missing.
    """
    if not controls:
        return ()
    if not card.takes_controls:
        raise UnsupportedField("controls", f"'{card.name}' takes no ControlNets here; leave controls out.")
    known = {one.name: one for one in card.controls}
    return tuple(_resolved(number, control, known, card) for number, control in enumerate(controls))


def _resolved(number: int, control: Control, known: Mapping[str, ControlOnCard], card: ModelCard) -> Control:
    field, there = f"controls.{number}", known.get(control.model)
    if there is None:
        usable = [name for name, one in known.items() if one.fault is None]
        hint = sentence(nearest(control.model, usable))
        raise InvalidRequest(
            f"No ControlNet '{shown(control.model)}' for '{card.name}'. {hint}Known: {listed(usable)}.",
            field=f"{field}.model",
        )
    if there.fault is not None:
        raise InvalidRequest(
            f"'{card.name}' can't use the ControlNet '{control.model}': {there.fault}.", field=f"{field}.model"
        )
    if control.digest not in (None, there.digest):
        raise InvalidRequest(
            f"The ControlNet '{control.model}' was asked for with other files ({str(control.digest)[:10]}…; here they "
            f"are {there.digest[:10]}…): leave its digest out to draw with these.",
            field=f"{field}.digest",
        )
    if control.image is None:
        raise InvalidRequest(
            f"controls.{number} has no image: give the picture that '{control.model}' is to steer by.",
            field=f"{field}.image",
        )
    return control.model_copy(update={"digest": there.digest})
