"""`python -m benchmarks.latents.encoding`: prompts encoded and latents decoded in batches, against one at a time."""

from __future__ import annotations

import argparse
from collections.abc import Iterator

from benchmarks.latents.ways import AFTER, BEFORE, JOBS, Compared
from benchmarks.packs import add_pack_options, benchmark_pack
from models.engine import Engine
from models.spec import Guidance, SampleSpec


def table(ms: dict[str, list[float]]) -> Iterator[str]:
    """Milliseconds a job, their share of a picture's time, and the ratio, line by line."""
    yield f"{'ms a job (share of a picture)':<30} {BEFORE:>18} {AFTER:>18} {'ratio':>6}"
    for name, parts in {"encode": [0], "decode": [1], "both": [0, 1], "evaluate": [2]}.items():
        taken = {way: sum(each[part] for part in parts) for way, each in ms.items()}
        cells = [f"{taken[way]:>9.2f} ({taken[way] / sum(each):>6.1%})" for way, each in ms.items()]
        yield f"{name:<30} {' '.join(cells)} {taken[BEFORE] / taken[AFTER]:>6.2f}"


def main() -> None:
    """Print what encoding and decoding take in batches and one at a time, for 8 jobs with prompts of their own."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latents.encoding", description=main.__doc__)
    add_pack_options(parser)
    parser.set_defaults(pack="sd-tiny")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--side", type=int, help="of the pictures in pixels; by default the pack's own")
    arguments = parser.parse_args()
    pack = benchmark_pack(arguments.pack)
    spec = SampleSpec(
        pack=pack.name,
        prompt="a",
        steps=arguments.steps,
        height=arguments.side,
        width=arguments.side,
        guidance=Guidance(free_scale=7.5),
    )
    with Engine([pack], device=str(arguments.device)) as engine:
        engine.wait_until_measured()
        compared = Compared(engine, spec)
        with compared.aside:
            ms = compared.medians()
        height, width = spec.size(compared.loaded.denoiser.picture_size)
        print(f"{pack.name} on {arguments.device}: {JOBS} jobs of {height}x{width} pixels and {spec.steps} steps")
        print("\n".join(table(ms)))


if __name__ == "__main__":
    main()
