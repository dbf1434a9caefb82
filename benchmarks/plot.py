"""`python -m benchmarks.plot`: plot out/bench/serving.json to out/bench/serving.png."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.pyplot as plt

FOLDER = Path("out/bench")


def main() -> None:
    results = [result for result in json.loads((FOLDER / "serving.json").read_text()) if "clients" in result["load"]]
    figure, (rates, latencies) = plt.subplots(1, 2, figsize=(11, 4))
    for contender in dict.fromkeys(result["contender"] for result in results):
        rows = [result for result in results if result["contender"] == contender]
        clients = [int(row["load"].split()[0]) for row in rows]
        rates.plot(clients, [row["pictures_per_s"] for row in rows], marker="o", label=contender)
        latencies.plot(clients, [row["p95_s"] for row in rows], marker="o", label=contender)
    # The bound for the mix of requests that Cynosure finished in its window.
    bounds = {
        int(result["load"].split()[0]): result["pictures_per_s"] / result["share_of_bound"]
        for result in results
        if result["contender"] == "cynosure"
    }
    rates.plot(list(bounds), list(bounds.values()), linestyle="--", color="black", label="offline bound")
    for axes, title in ((rates, "pictures a second"), (latencies, "p95 to the last byte, s")):
        axes.set(title=title, xlabel="clients", xscale="log", ylim=(0, None), xticks=list(bounds))
        axes.set_xticklabels(list(bounds))
        axes.grid(alpha=0.3)
    rates.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(FOLDER / "serving.png", dpi=110)


if __name__ == "__main__":
    main()
