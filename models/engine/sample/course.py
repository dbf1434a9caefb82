"""Everything that determines a picture, worked out before its first evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import NamedTuple

from torch import Tensor

from models.adapters import RowExtras
from models.calibration.probes import Shape, shape_of
from models.denoisers import Conditioning
from models.networks.tokens import Readings
from models.profiles import Profile
from models.samplers import CoefficientTable
from models.spec import Guidance, Row, SampleSpec


@dataclass(frozen=True, kw_only=True)
class Inputs:
    """The conditioning of a sample's networks, and the picture it starts from.

    Attributes:
        conditional, unconditional: conditioning of the denoiser's rows; the unconditional one is for the guide if there
            is one.
        condition: the classifier's target.
        init: latent (C,H,W) to start from.
        mask: (C or 1,H,W), 1 where `init` is redrawn.
        extras: what the conditional rows of its own denoiser have besides their conditioning.
        readings: how the denoiser's text encoders read the prompts.
        remarks: what of the prompts the networks do not read.
    """

    conditional: Conditioning
    unconditional: Conditioning
    condition: Conditioning | None = None
    init: Tensor | None = None
    mask: Tensor | None = None
    extras: RowExtras | None = None
    readings: Readings = field(default_factory=dict)
    remarks: tuple[str, ...] = ()


class ConditionedRow(NamedTuple):
    """What a sample asks of a denoiser in an evaluation, once for each of its rows.

    Attributes:
        kind: of the conditioning.
        conditioning: what the denoiser gets.
        shape: of that.
        guide: the guide pack whose denoiser evaluates it, or `None` for the sample's own pack.
    """

    kind: Row
    conditioning: Conditioning
    shape: Shape
    guide: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Course:
    """Everything that determines a picture from its first evaluation to its last, computed once.

    Attributes:
        spec: what to draw.
        profile: the conventions that `spec.profile` names.
        table: the sampler's coefficients, starting at the picture's first evaluation.
        guided: the evaluations at which guidance is on.
        inputs: the conditioning of its networks.
        shape: (C, H, W) of its latents.
        row_cost: cost of one of its rows, relative to a row of the pack's own size.
        start: (a, s) of the first latent a·init + s·noise; `None` if it is pure noise of the table's initial scale.
    """

    spec: SampleSpec
    profile: Profile
    table: CoefficientTable
    guided: range
    inputs: Inputs
    shape: tuple[int, int, int]
    row_cost: float = 1.0
    start: tuple[float, float] | None = None

    def __len__(self) -> int:
        """Total number of network evaluations."""
        return len(self.table)

    @property
    def fork_position(self) -> int:
        """Number of leading evaluations that are the same at every scale: those before the guidance interval.

        At least the last evaluation is always left to each sample.
        """
        return min(self.guided.start, len(self) - 1)

    def asked(self, position: int) -> tuple[ConditionedRow, ...]:
        """The denoiser rows of the evaluation at `position`, a conditional one first."""
        return self._guided_rows if position in self.guided else self._unguided_rows

    @cached_property
    def _guided_rows(self) -> tuple[ConditionedRow, ...]:
        return tuple(map(self._conditioned, self.spec.guidance.rows(active=True)))

    @cached_property
    def _unguided_rows(self) -> tuple[ConditionedRow, ...]:
        return tuple(map(self._conditioned, self.spec.guidance.rows(active=False)))

    def _conditioned(self, kind: Row) -> ConditionedRow:
        is_conditional = kind is Row.CONDITIONAL
        conditioning = self.inputs.conditional if is_conditional else self.inputs.unconditional
        guide = None if is_conditional else self.spec.guidance.guide_pack
        return ConditionedRow(kind, conditioning, shape_of(conditioning), guide)

    def steers(self, position: int) -> bool:
        """Whether the evaluation at `position` has a classifier row."""
        return self.spec.guidance.wants_classifier(active=position in self.guided)

    def reuses(self, position: int) -> bool:
        """Whether the evaluation at `position` reuses what deep blocks found before, for the rows that have it."""
        cache = self.spec.cache
        return cache is not None and position % cache.every != 0 and position < round(cache.until * len(self))

    @property
    def prefix(self) -> SampleSpec:
        """The spec without its scales, which determines the evaluations before the guidance interval."""
        full = self.spec.guidance
        unscaled = Guidance(conditional=full.conditional, interval=full.interval, interval_unit=full.interval_unit)
        return replace(self.spec, guidance=unscaled)
