"""Which model a request is for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from cynosure.contract import GenerateRequest, ModelCard
from cynosure.errors import InvalidRequest, UnknownLabel, UnknownModel
from cynosure.resolving.labels import has_label, label_index

Cards = Mapping[str, ModelCard]
"""All served models by name, in their order; at least one."""


def real_name(name: str, cards: Cards, aliases: Mapping[str, str], field: str = "model") -> str:
    """The name of the served model that `name` or an alias of it stands for; models come before aliases.

    Raises:
        UnknownModel: there is none.
    """
    real = name if name in cards else aliases.get(name, name)
    if real not in cards:
        known = [*cards, *(alias for alias, stands_for in aliases.items() if stands_for in cards)]
        raise UnknownModel(name, known, alias_of=aliases.get(name), field=field)
    return real


def with_real_names(request: GenerateRequest, cards: Cards, aliases: Mapping[str, str]) -> GenerateRequest:
    """The request with aliases of models replaced.

    Raises:
        UnknownModel: it names a model that is not served.
    """
    named = {field: name for field in ("model", "guide_model") if (name := getattr(request, field)) is not None}
    real = {field: real_name(name, cards, aliases, field) for field, name in named.items()}
    return request.model_copy(update=real) if real != named else request


def labels_in(request: GenerateRequest) -> list[int | str]:
    """All class labels that the request names."""
    condition = request.classifier_condition
    of_classifier = () if condition is None else (*condition.labels, *condition.any_of, *condition.none_of)
    return [*(() if request.class_label is None else (request.class_label,)), *of_classifier]


def choose(cards: Cards, *, model: str | None, prompted: bool, labels: Sequence[int | str]) -> ModelCard:
    """The named model, or else the first that has all the labels.

    With a prompt only models that take prompts count; without one, those that take none come before those that do.
    If there are no labels, or no model has classes, it is the first in that order.

    Raises:
        UnknownLabel: a label is not to be found; says which other model has it.
        InvalidRequest: no model has all of them.
    """
    if model is not None:
        return cards[model]
    in_order = sorted(cards.values(), key=lambda card: card.takes_prompt != prompted)  # stable
    fitting = [card for card in in_order if card.takes_prompt or not prompted]
    classed = [card for card in cards.values() if card.labels]
    if not labels or not fitting or not classed:
        return in_order[0]
    for card in fitting:
        if all(has_label(label, card) for label in labels):
            return card
    missing = next((one for one in labels if not any(has_label(one, card) for card in fitting)), None)
    if missing is None:
        raise InvalidRequest(f"No model has all of these classes: {', '.join(map(str, labels))}.", field="class_label")
    others = [card.name for card in classed if card not in fitting and has_label(missing, card)]
    if others:
        raise UnknownLabel(
            missing,
            {fitting[0].name: fitting[0].labels},
            instead=f"'{fitting[0].name}' was chosen because of prompt; '{others[0]}' has that class: set model to "
            f"'{others[0]}', and leave prompt out.",
        )
    raise UnknownLabel(missing, {card.name: card.labels for card in classed})


def choose_by_prompt(cards: Cards, *, model: str | None, prompt: str, labels: Sequence[int | str]) -> ModelCard:
    """`choose`, for other tools' requests, in which a prompt stands for a label if no model takes prompts.

    Raises:
        UnknownLabel, InvalidRequest: as `choose`; a prompt that is no label is named as `prompt`.
    """
    if model is not None or any(card.takes_prompt for card in cards.values()):
        return choose(cards, model=model, prompted=True, labels=labels)
    with _as_prompt():
        return choose(cards, model=None, prompted=False, labels=[prompt])


def label_in_prompt(prompt: str, card: ModelCard) -> int:
    """The class index of a prompt that stands for a label.

    Raises:
        UnknownLabel, InvalidRequest: it is no label, or that of several classes; the field is `prompt`.
    """
    with _as_prompt():
        return label_index(prompt, card)


@contextmanager
def _as_prompt() -> Iterator[None]:
    """Let a refusal of the label name the field that it came in."""
    try:
        yield
    except InvalidRequest as error:
        error.field = "prompt"
        raise
