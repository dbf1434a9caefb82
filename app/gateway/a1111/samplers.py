"""A1111's samplers and schedulers, and what they are called here."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from cynosure.contract import ModelCard
from cynosure.errors import UnknownSampler, UnsupportedField
from cynosure.hints import listed
from cynosure.synonyms import A1111_SAMPLERS

_ALIASES: Mapping[str, tuple[str, ...]] = {
    "DPM++ 2M": ("k_dpmpp_2m",),
    "DPM++ 2M SDE": ("k_dpmpp_2m_sde",),
    "Euler a": ("k_euler_a", "k_euler_ancestral"),
    "Euler": ("k_euler",),
    "LMS": ("k_lms",),
    "Heun": ("k_heun",),
    "DPM2": ("k_dpm_2",),
    "DPM2 a": ("k_dpm_2_a", "k_dpm_2_ancestral"),
    "LCM": ("k_lcm",),
}
_OWN_SCHEDULES: Mapping[str, str] = {
    "dpmpp_2m": "karras",
    "dpmpp_2m_sde": "exponential",
    "kdpm2": "karras",
    "kdpm2_ancestral": "karras",
}
"""What `Automatic` means for a sampler; for the others it is the sampler's own way here."""
_UNSCHEDULED = ("ddim", "pndm", "unipc")
"""Samplers for which A1111 ignores the scheduler."""


@dataclass(frozen=True)
class Scheduler:
    """One of A1111's schedulers, with the fields that stand for it here; without any, the sampler's own way."""

    name: str
    label: str
    aliases: tuple[str, ...] = ()
    fields: Mapping[str, str] = field(default_factory=dict)


AUTOMATIC = Scheduler("automatic", "Automatic")
SCHEDULERS = (
    AUTOMATIC,
    Scheduler("uniform", "Uniform", fields={"timestep_spacing": "linspace"}),
    Scheduler("karras", "Karras", fields={"sigma_schedule": "karras"}),
    Scheduler("exponential", "Exponential", fields={"sigma_schedule": "exponential"}),
    Scheduler("sgm_uniform", "SGM Uniform", ("SGMUniform",), {"timestep_spacing": "trailing"}),
    Scheduler("beta", "Beta", fields={"sigma_schedule": "beta"}),
)
_BY_NAME = {name.lower(): one for one in SCHEDULERS for name in (one.name, one.label, *one.aliases)}


def names_of(sampler: str) -> tuple[str, ...]:
    """The names that a sampler has here and in A1111, the one to show first."""
    theirs = next((name for name, ours in A1111_SAMPLERS.items() if ours == sampler), None)
    return (sampler,) if theirs is None else (theirs, sampler, *_ALIASES.get(theirs, ()))


def samplers_of(cards: Iterable[ModelCard]) -> list[dict[str, Any]]:
    """The answer to GET samplers: those of all these models, first those that A1111 has."""
    ours = dict.fromkeys(sampler for card in cards for sampler in card.samplers)
    known = [sampler for sampler in A1111_SAMPLERS.values() if sampler in ours]
    return [
        {"name": name, "aliases": aliases, "options": {}}
        for name, *aliases in map(names_of, dict.fromkeys([*known, *ours]))
    ]


def schedulers() -> list[dict[str, Any]]:
    """The answer to GET schedulers."""
    return [
        {
            "name": one.name,
            "label": one.label,
            "aliases": list(one.aliases),
            "default_rho": -1.0,
            "need_inner_model": False,
        }
        for one in SCHEDULERS
    ]


def sampling_of(sampler: str | None, scheduler: str | None, card: ModelCard) -> dict[str, str]:
    """Our fields for A1111's two names.

    A scheduler behind the sampler's name (`DPM++ 2M Karras`) takes precedence, as there.

    Raises:
        UnknownSampler: the model has none of that name.
        UnsupportedField: there is no such scheduler.
    """
    ours, chosen = card.default_sampler(None), _scheduler(scheduler)
    if sampler is not None:
        sampler, behind = _split(sampler)
        by_name = {name.lower(): one for one in card.samplers for name in names_of(one)}
        if sampler.lower() not in by_name:
            raise UnknownSampler(sampler, [names_of(one)[0] for one in card.samplers])
        ours, chosen = by_name[sampler.lower()], behind or chosen
    fields = {} if sampler is None else {"sampler": ours}
    own = _OWN_SCHEDULES.get(ours)
    if ours in _UNSCHEDULED:
        return fields
    if chosen is AUTOMATIC or chosen.name == own:
        return fields | ({"sigma_schedule": own} if own and own in card.sigma_schedules.get(ours, ()) else {})
    return fields | dict(chosen.fields)


def _scheduler(name: str | None) -> Scheduler:
    if not name:
        return AUTOMATIC
    found = _BY_NAME.get(name.lower())
    if found is None:
        known = listed([one.label for one in SCHEDULERS])
        raise UnsupportedField("scheduler", f"No scheduler '{name[:100]}'; known: {known}.")
    return found


def _split(sampler: str) -> tuple[str, Scheduler | None]:
    """A sampler's name and the scheduler behind it."""
    for name, scheduler in _BY_NAME.items():
        if sampler.lower().endswith(f" {name}"):
            return sampler[: -len(name) - 1], scheduler
    return sampler, None
