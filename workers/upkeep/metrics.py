"""The engine's numbers as Prometheus's metrics, read at each scrape."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import accumulate

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from models.engine import Distribution, Engine, Tally
from models.memory.held import memory_of


class EngineMetrics(Collector):
    """Those of an engine, on a device called so. Its packs come and go, and so do their metrics."""

    def __init__(self, engine: Engine, device: str) -> None:
        self._engine = engine
        self._device = device
        self._tallies: set[Tally] = set()  # those of packs that have gone too: a counter must not fall

    def collect(self) -> Iterator[Metric]:
        packs = dict(self._engine.packs)  # as of one moment
        ticks = HistogramMetricFamily(
            "cynosure_tick_seconds", "Time in which a batch moves by one evaluation.", labels=["model"]
        )
        rows = HistogramMetricFamily(
            "cynosure_batch_rows", "Rows of the batches that networks evaluate.", labels=["model", "network"]
        )
        evaluations = CounterMetricFamily(
            "cynosure_evaluations_total", "Rows that networks have evaluated.", labels=["model", "network"]
        )
        for name, loaded in packs.items():
            ticks.add_metric([name], *_buckets(loaded.tally.ticks))
            for network, distribution in loaded.tally.rows.items():
                rows.add_metric([name, network], *_buckets(distribution))
                evaluations.add_metric([name, network], distribution.total)
        yield from (ticks, rows, evaluations)
        self._tallies.update(loaded.tally for loaded in packs.values())
        padding = sum(tally.padding for tally in self._tallies)
        yield CounterMetricFamily(
            "cynosure_batch_padding_rows_total", "Rows that only filled batches up to a usable size.", value=padding
        )
        yield from self._of_device()

    def _of_device(self) -> Iterator[Metric]:
        busy = GaugeMetricFamily(
            "cynosure_engine_busy_ratio", "Share of the device that drew, over half a minute.", labels=["device"]
        )
        busy.add_metric([self._device], self._engine.busy_ratio)
        yield busy
        memory = GaugeMetricFamily(
            "cynosure_device_memory_bytes", "The device's memory by kind.", labels=["device", "kind"]
        )
        for kind, size in memory_of(self._engine.device).items():
            memory.add_metric([self._device, kind], size)
        yield memory


def _buckets(distribution: Distribution) -> tuple[Sequence[tuple[str, float]], float]:
    """Cumulative counts by upper bound, as Prometheus wants them, and the sum."""
    bounds = [*(f"{bound:g}" for bound in distribution.bounds), "+Inf"]
    return list(zip(bounds, accumulate(distribution.counts), strict=True)), distribution.total
