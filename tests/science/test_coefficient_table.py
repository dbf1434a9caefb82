"""Replaying a table equals the scheduler's own loop, for every sampler, prediction type and beta schedule."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from models.samplers import SAMPLERS, NotLinear, UnknownSampler, advance, compile_table, max_steps
from models.samplers.compile import build_scheduler
from models.samplers.table import NUM_COLUMNS

SHAPE = (1, 2, 3, 3)
FLOAT32_SIGMAS = {"sigmas", "sigmas_interpol"}
"""Where diffusers drops to float32: it rounds its sigmas so, and computes with them, whatever the latents' type."""


def output_at(x: Tensor, timestep: float) -> Tensor:
    """A stand-in network, smooth and nonlinear, of moderate size."""
    return torch.tanh(0.7 * x + 0.001 * timestep) - 0.2 * x.roll(1, dims=-1).clamp(-3, 3)


def own_loop(scheduler: Any, steps: int, noises: list[Tensor], first: Tensor, **arguments: float) -> Tensor:
    scheduler.set_timesteps(steps)
    for name in FLOAT32_SIGMAS & vars(scheduler).keys():
        setattr(scheduler, name, getattr(scheduler, name).double())
    x = first * scheduler.init_noise_sigma
    drawn = iter(noises)
    for timestep in scheduler.timesteps:
        seen = scheduler.scale_model_input(x, timestep)
        with _Fixed(next(drawn)):
            x = scheduler.step(output_at(seen, float(timestep)), timestep, x, **arguments).prev_sample
    return x


class _Fixed(torch.overrides.TorchFunctionMode):
    def __init__(self, noise: Tensor) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.noise.clone() if func in (torch.randn, torch.randn_like) else func(*args, **(kwargs or {}))


def replay(name: str, config: dict[str, Any], steps: int, noises: list[Tensor], first: Tensor, eta: float) -> Tensor:
    table = compile_table(name, config, steps=steps, eta=eta)
    state = torch.zeros(1, NUM_COLUMNS, *SHAPE[1:], dtype=torch.float64)
    state[:, 0] = first * table.initial_scale
    for i in range(len(table)):
        x = state[:, 0]
        output = output_at(table.input_scale[i] * x, float(table.timestep[i]))
        data = table.data_from_latent[i] * x + table.data_from_output[i] * output
        state = advance(state, data, noises[i], torch.from_numpy(table.weights[i])[None])
    return state[:, 0]


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("steps", [1, 4, 12, 50])
@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_the_table_replays_the_schedulers_own_loop(
    name: str, steps: int, prediction_type: str, beta_schedule: str
) -> None:
    config = {
        "num_train_timesteps": 1000,
        "beta_schedule": beta_schedule,
        "beta_start": 0.0001,
        "beta_end": 0.02,
        "prediction_type": prediction_type,
    }
    generator = torch.Generator().manual_seed(0)
    first = torch.randn(SHAPE, generator=generator, dtype=torch.float64)
    noises = [torch.randn(SHAPE, generator=generator, dtype=torch.float64) for _ in range(2 * steps)]
    eta = 0.6 if SAMPLERS[name].takes_eta else 0.0
    try:
        scheduler = build_scheduler(name, config, prediction_type=prediction_type)
        expected = own_loop(scheduler, steps, noises, first, **({"eta": eta} if eta else {}))
    except NotImplementedError:
        pytest.skip(f"diffusers' {SAMPLERS[name].scheduler} itself has no {prediction_type}")
    replayed = replay(name, config, steps, noises, first, eta)
    scale = max(1.0, float(expected.abs().max()))  # data live in [-1, 1]
    assert float((replayed - expected).abs().max()) <= 1e-6 * scale


def test_an_unknown_sampler_is_refused_by_name() -> None:
    with pytest.raises(UnknownSampler, match="no sampler 'dimm'; known: ddpm, ddim"):
        compile_table("dimm", {"num_train_timesteps": 1000}, steps=4)


@pytest.mark.parametrize("name", sorted(SAMPLERS))
def test_every_number_of_steps_up_to_the_samplers_limit_compiles(name: str) -> None:
    config = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    limit = max_steps(name, config)
    assert 990 <= limit <= 1000
    for steps in (1, 2, 3, 4, 5, 51, 300, limit):
        table = compile_table(name, config, steps=steps)
        assert len(table) >= steps
        assert all(0 <= timestep < 1000 for timestep in table.timestep)


def test_more_steps_than_timesteps_are_refused() -> None:
    config = {"num_train_timesteps": 1000, "beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"}
    with pytest.raises(NotLinear, match=r"'unipc'.*itself gives NaN"):
        compile_table("unipc", config, steps=1000)
