"""What the turns of a load say together: a table to read, and JSON."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bound import OfflineBound
from benchmarks.load import Measured


@dataclass(frozen=True)
class Turn:
    """One contender's turn under a load.

    Attributes:
        measured: what its window shows.
        bound_s: seconds that the networks alone would have taken for what counts.
        share_of_peak: its products, relative to the device's peak in the window.
    """

    measured: Measured
    bound_s: float
    share_of_peak: float

    @classmethod
    def of(cls, measured: Measured, bound: OfflineBound) -> Turn:
        """By the bound's latest measurements, which lie before and after the turn."""
        share = bound.share_of_peak(measured.parts, measured.seconds)
        return cls(measured, bound.seconds(measured.parts), share)


@dataclass
class Table:
    """The results, printed as a table and stored as JSON.

    Attributes:
        out: the folder of `serving.json`.
        png_s: seconds to encode a picture.
    """

    out: Path
    png_s: float
    rows: list[dict[str, Any]] = field(default_factory=list)

    def head(self) -> None:
        print(
            f"{'load':<16} {'contender':<27} {'pics/s':>7} {'of bound':>8} {'of peak':>8} {'p50 s':>7} {'p95 s':>7} "
            f"{'p99 s':>7} {'gateway':>8} {'PNG':>6} {'MiB':>6}"
        )

    def add(self, turns: Sequence[Turn]) -> None:
        """A row of a contender's turns under one load: all windows together, and all their latencies."""
        windows = [turn.measured for turn in turns]
        seconds = sum(window.seconds for window in windows)
        pictures = sum(window.pictures for window in windows)
        latencies = [latency for window in windows for latency in window.latencies]
        spent = Counter[str]()
        for window in windows:
            spent.update(window.cpu_seconds)
        cpu = sum(spent.values())
        row: dict[str, Any] = {
            "contender": windows[0].contender,
            "load": windows[0].load,
            "requests": len(latencies),
            "windows_s": [window.seconds for window in windows],
            "pictures_per_s": pictures / seconds,
            "share_of_bound": sum(turn.bound_s for turn in turns) / seconds,
            "share_of_peak": sum(turn.share_of_peak * turn.measured.seconds for turn in turns) / seconds,
            **{f"p{round(share * 100)}_s": float(np.quantile(latencies, share)) for share in (0.5, 0.95, 0.99)},
            "gateway_share_of_cpu": spent["app"] / cpu,
            "png_share_of_cpu": self.png_s * pictures / cpu,
            "cpu_seconds": spent,
            "peak_mib": max(window.peak_mib for window in windows),
        }
        gateway = f"{row['gateway_share_of_cpu']:.1%}" if spent["app"] else "-"
        print(
            f"{row['load']:<16} {row['contender']:<27} {row['pictures_per_s']:>7.2f} {row['share_of_bound']:>8.2f} "
            f"{row['share_of_peak']:>8.2f} {row['p50_s']:>7.2f} {row['p95_s']:>7.2f} {row['p99_s']:>7.2f} {gateway:>8} "
            f"{row['png_share_of_cpu']:>6.1%} {row['peak_mib']:>6.0f}",
            flush=True,
        )
        self.keep(row)

    def keep(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        self.out.mkdir(parents=True, exist_ok=True)
        (self.out / "serving.json").write_text(json.dumps(self.rows, indent=1))

    def ratios(self) -> None:
        """Print Cynosure's pictures per second, p50 and p95 relative to each peer's, load by load."""
        loads = dict.fromkeys(row["load"] for row in self.rows)
        for load in loads:
            by_contender = {row["contender"]: row for row in self.rows if row["load"] == load and "p95_s" in row}
            if "cynosure" not in by_contender:
                continue
            ours = by_contender.pop("cynosure")
            for name, row in by_contender.items():
                more, p50, p95 = (ours[key] / row[key] for key in ("pictures_per_s", "p50_s", "p95_s"))
                print(f"  {load:<16} against {name:<27} {more:>5.2f}x pictures/s, {p50:>5.2f}x p50, {p95:>5.2f}x p95")

    def growth(self) -> None:
        """Print each contender's change from the fewest to the most clients, whose mixes of requests differ."""
        for name in dict.fromkeys(row["contender"] for row in self.rows):
            rows = [row for row in self.rows if row["contender"] == name and row["load"].endswith(" clients")]
            fewest, most = rows[0], rows[-1]
            more = most["pictures_per_s"] / fewest["pictures_per_s"]
            p95 = most["p95_s"] / fewest["p95_s"]
            of_bound = f"{fewest['share_of_bound']:.2f} to {most['share_of_bound']:.2f}"
            print(f"  {name:<27} {more:>5.2f}x pictures/s, {of_bound} of the bound, {p95:>6.1f}x p95")
