"""How the predictions of one evaluation are combined."""

from __future__ import annotations

import torch

from models.guidance import Predictions, combine
from models.profiles import PROFILES
from models.spec import Guidance, SampleSpec


def test_combining_guides_each_row_by_itself_and_changes_nothing_that_it_is_given() -> None:
    generator = torch.Generator().manual_seed(1)
    rows = [
        Guidance(free_scale=3.0),
        Guidance(classifier_scale=2.0),
        Guidance(free_scale=4.0, rescale=0.7, classifier_scale=1.0),
        Guidance(free_scale=2.0, plus_plus=True),
        Guidance(),
    ]

    def predictions(numbers: list[int]) -> Predictions:
        chosen = [rows[number] for number in numbers]
        pairs = [place for place, one in enumerate(chosen) if len(one.rows(active=True)) == 2]
        steered = [place for place, one in enumerate(chosen) if one.classifier_scale]
        at = torch.tensor(numbers)
        return Predictions(
            specs=[SampleSpec(pack="", label=0, guidance=one) for one in chosen],
            profiles=[PROFILES["cynosure"]] * len(chosen),
            data=data[at],
            x=latents[at],
            data_from_latent=level[at] / 3,
            pairs=pairs,
            unconditional=second[at[pairs]],
            steered=steered,
            gradient=gradient[at[steered]],
            alpha=level[at],
            sigma=(1 - level[at] ** 2).sqrt(),
            signal_kept=level[at] / 2,
            variances={},
        )

    data, latents, second, gradient = torch.randn(4, len(rows), 1, 4, 4, generator=generator)
    level = torch.rand(len(rows), generator=generator) / 2 + 0.25
    given = [one.clone() for one in (data, latents, second, gradient)]
    together = combine(predictions(list(range(len(rows)))))
    assert together.shift is not None
    assert all(torch.equal(one, before) for one, before in zip((data, latents, second, gradient), given, strict=True))
    for number in range(len(rows)):
        alone = combine(predictions([number]))
        assert torch.equal(alone.data[0], together.data[number])
        own = torch.zeros_like(together.shift[0]) if alone.shift is None else alone.shift[0]
        assert torch.equal(own, together.shift[number])
    assert together.shift.flatten(1).any(1).tolist() == [False, False, False, True, False]
    assert torch.equal(together.data[4], data[4].clamp(-1, 1))
