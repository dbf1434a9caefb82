"""The scenarios, by name. Each ends with its books closed."""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from chaos.besieged import besieged
from chaos.blows import kill_store, kill_worker, pause_worker, wait_for_held
from chaos.books import Result, close_books
from chaos.house import LEASE_S, PREFIX, START_S, House, Process, wait_until
from chaos.proxy import Proxy, Weather
from chaos.traffic import Traffic, mixed_job

PATIENCE_S = 600.0
POISON_SEED = 666
LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")  # Debian's package libfaketime


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much of it: `make chaos` at 1, shorter below."""

    factor: float = 1.0
    seed: int = 0

    def of(self, count: int, *, least: int = 1) -> int:
        return max(least, round(count * self.factor))


Scenario = Callable[[Scale], Result]


@contextmanager
def _under_load(house: House, traffic: Traffic, jobs: int, steps: tuple[int, int]) -> Iterator[None]:
    """Post jobs in the background, for as long as the body takes, and wait until the last is accepted."""
    requests = [mixed_job(traffic.random, steps=steps) for _ in range(jobs)]
    errors: list[BaseException] = []

    def post() -> None:
        try:
            traffic.post_all(requests, threads=4, patience_s=PATIENCE_S)
        except BaseException as error:
            errors.append(error)

    poster = threading.Thread(target=post)
    poster.start()
    try:
        yield
    finally:
        poster.join()
    if errors:
        raise errors[0]


def workers_killed(scale: Scale) -> Result:
    """1. SIGKILL of a worker at random moments, two workers, mixed jobs."""
    kills = scale.of(20)
    recovery = []
    with House(workers=2) as house:
        house.tend()
        traffic = Traffic(house.urls, seed=scale.seed)
        with _under_load(house, traffic, scale.of(300, least=20), (5, 60)):
            for _ in range(kills):
                worker, other = traffic.random.sample(house.workers, 2)
                if not (house.running or house.waiting):
                    traffic.post_all([mixed_job(traffic.random, steps=(20, 60)) for _ in range(10)])
                _wait_for_worker(house, other)
                time.sleep(traffic.random.uniform(0.0, 2.0))
                recovery.append(kill_worker(house, worker))
        traffic.wait_all(patience_s=PATIENCE_S)
        result = close_books("1 worker killed", house, traffic)
        traffic.close()
    result.recovery_s = max(recovery)
    result.note = f"{kills} kills; lease {LEASE_S:g} s"
    return result


def store_killed(scale: Scale) -> Result:
    """2. SIGKILL of the store in mid-load, and its restart from the append-only file."""
    kills = scale.of(5)
    recovery = []
    with House(workers=1) as house:
        traffic = Traffic(house.urls, seed=scale.seed)
        with _under_load(house, traffic, scale.of(150, least=20), (5, 40)):
            for _ in range(kills):
                time.sleep(traffic.random.uniform(1.0, 3.0))
                recovery.append(kill_store(house))
        traffic.wait_all(patience_s=PATIENCE_S)
        result = close_books("2 Redis killed", house, traffic)
        traffic.close()
    result.recovery_s = max(recovery)
    result.note = f"{kills} kills, each down for 1 s"
    return result


def gateway_killed(scale: Scale) -> Result:
    """3. The gateway killed between accept and bell, and after the bell."""
    recovery = []
    with House(workers=1) as house:
        traffic = Traffic(house.urls, seed=scale.seed)
        [gateway] = house.gateways
        for _ in range(scale.of(5)):
            with _under_load(house, traffic, 8, (5, 20)):
                time.sleep(traffic.random.uniform(0.0, 0.3))
                gateway.kill()
                gateway.start()
            # Between accept and bell: the records are there, and nobody was told.
            house.workers[0].signal(signal.SIGSTOP)
            traffic.post_all([mixed_job(traffic.random, steps=(5, 20)) for _ in range(4)])
            gateway.kill()
            house.client.delete(*house.client.keys(f"{PREFIX}:bell:*cynosure.*"), "no such key")
            started = time.monotonic()
            house.workers[0].signal(signal.SIGCONT)
            gateway.start()
            traffic.wait_all(patience_s=PATIENCE_S)
            recovery.append(time.monotonic() - started)
        result = close_books("3 gateway killed", house, traffic)
        traffic.close()
    result.recovery_s = max(recovery)
    return result


def worker_paused(scale: Scale) -> Result:
    """4. A worker stopped for longer than its lease, then resumed."""
    recovery = []
    with House(workers=2) as house:
        traffic = Traffic(house.urls, seed=scale.seed)
        for number in range(scale.of(4)):
            worker = house.workers[number % 2]
            traffic.post_all([mixed_job(traffic.random, steps=(20, 60)) for _ in range(12)])
            wait_for_held(house, worker)
            recovery.append(pause_worker(house, worker, traffic))
            traffic.wait_all(patience_s=PATIENCE_S)
        result = close_books("4 worker paused", house, traffic)
        traffic.close()
    result.recovery_s = max(recovery)
    return result


def network_cut(scale: Scale) -> Result:
    """5. Between worker and store: bytes delayed, halved, connections reset, everything silent."""
    proxies: list[Proxy] = []

    def through(port: int) -> int:
        proxies.append(Proxy(port, seed=scale.seed))
        return proxies[0].port

    recovery = []
    with House(workers=1, through=through) as house:
        house.tend()
        [proxy] = proxies
        traffic = Traffic(house.urls, seed=scale.seed)
        with _under_load(house, traffic, scale.of(120, least=20), (5, 40)):
            for number in range(scale.of(6)):
                proxy.weather = [
                    Weather(cut=0.05),
                    Weather(delay_s=0.2),
                    Weather(silent=True),
                    Weather(cut=0.02, delay_s=0.05),
                    Weather(closed=True),
                    Weather(),
                ][number % 6]
                proxy.reset_all()
                time.sleep(6.0)
                proxy.weather = Weather()
                started = time.monotonic()
                _wait_for_finish(house)
                recovery.append(time.monotonic() - started)
        traffic.wait_all(patience_s=PATIENCE_S)
        result = close_books("5 network cut", house, traffic)
        result.note = f"{proxy.resets} connections reset"
        traffic.close()
    proxy.close()
    result.recovery_s = max(recovery)
    return result


def poison(scale: Scale) -> Result:
    """6. A job that kills its worker's process, among good ones."""
    good = scale.of(100, least=20)
    with House(workers=1, settings={"CHAOS_POISON_SEED": str(POISON_SEED)}) as house:
        house.tend()
        traffic = Traffic(house.urls, seed=scale.seed)
        jobs = [mixed_job(traffic.random, steps=(5, 20), images=1) for _ in range(good)]
        bad = mixed_job(traffic.random, steps=(5, 20)) | {"seed": POISON_SEED}
        ids = traffic.post_all([*jobs[: good // 2], bad, *jobs[good // 2 :]])
        started = time.monotonic()
        traffic.wait_all(patience_s=PATIENCE_S)
        poisoned = ids[good // 2]
        job = traffic.finished.get(poisoned, {})
        result = close_books("6 poison job", house, traffic, expected_to_fail=frozenset({poisoned}))
        traffic.close()
    result.recovery_s = time.monotonic() - started
    code = (job.get("error") or {}).get("code")
    result.note = f"failed after {len(job.get('attempts', ()))} attempts as {code}"
    if code != "attempts_exhausted":
        result.lost += 1
    return result


def memory_full(scale: Scale) -> Result:
    """7a. The store at its memory limit."""
    with House(workers=1) as house:
        house.tend()
        traffic = Traffic(house.urls, seed=scale.seed)
        traffic.post_all([mixed_job(traffic.random, steps=(20, 60)) for _ in range(scale.of(30, least=10))])
        house.client.config_set("maxmemory", "1mb")
        with _under_load(house, traffic, 10, (5, 20)):
            wait_until(lambda: traffic.refusals[503] > 3, seconds=60, what="the full store is said")
            time.sleep(2 * LEASE_S)
            house.client.config_set("maxmemory", "0")
            started = time.monotonic()
        traffic.wait_all(patience_s=PATIENCE_S)
        result = close_books("7a memory full", house, traffic)
        traffic.close()
    result.recovery_s = time.monotonic() - started
    result.note = f"{traffic.refusals[503]} honest 503s"
    return result


def disk_full(scale: Scale) -> Result:
    """7b. No room for the append-only file."""
    name = "7b disk full"
    folder = Path(tempfile.mkdtemp(prefix="cynosure-disk-"))
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", folder], capture_output=True, text=True)
    if mount.returncode:
        return Result(name=name, skipped=f"no small disk could be mounted ({mount.stderr.strip()})")
    try:
        with House(workers=1, data=folder, store_options={"auto-aof-rewrite-percentage": "0"}) as house:
            house.tend()
            traffic = Traffic(house.urls, seed=scale.seed)
            traffic.post_all([mixed_job(traffic.random, steps=(10, 30)) for _ in range(scale.of(20, least=10))])
            ballast = folder / "ballast"
            with ballast.open("wb") as file:
                _fill(file.fileno())
            with _under_load(house, traffic, 10, (5, 20)):
                wait_until(lambda: traffic.refusals[503] > 3, seconds=60, what="the full disk is said")
                time.sleep(2 * LEASE_S)
                ballast.unlink()
                started = time.monotonic()
            traffic.wait_all(patience_s=PATIENCE_S)
            house.store.kill()  # and what is read from the disk again is whole
            house.store.start()
            wait_until(house.store_answers, seconds=START_S, what="the store answers again")
            result = close_books(name, house, traffic)
            traffic.close()
    finally:
        subprocess.run(["umount", "-l", folder], check=False)
        shutil.rmtree(folder, ignore_errors=True)
    result.recovery_s = time.monotonic() - started
    result.note = f"{traffic.refusals[503]} honest 503s"
    return result


def _fill(descriptor: int) -> None:
    try:
        while True:
            os.write(descriptor, bytes(4096))
    except OSError:
        return


def clock_stepped(scale: Scale) -> Result:
    """7c. The store's clock stepped by an hour, forth and back."""
    name = "7c clock stepped"
    if not LIBFAKETIME.exists():
        return Result(name=name, skipped="libfaketime is not installed (Debian: faketime)")
    with tempfile.TemporaryDirectory(prefix="cynosure-clock-") as folder:
        clock = Path(folder) / "clock"
        clock.write_text("+0")
        fake = {
            "LD_PRELOAD": str(LIBFAKETIME),
            "FAKETIME_TIMESTAMP_FILE": str(clock),
            "FAKETIME_NO_CACHE": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        }
        recovery = []
        with House(workers=2, store_environment=fake) as house:
            house.tend()
            traffic = Traffic(house.urls, seed=scale.seed)
            for step in itertools.islice(itertools.cycle(("+3600", "+0")), scale.of(4, least=2)):
                traffic.post_all([mixed_job(traffic.random, steps=(20, 60)) for _ in range(10)])
                wait_for_held(house, house.workers[0])
                before = house.client.time()[0]
                clock.write_text(step)
                _wait_for_step(house, before)
                recovery.append(kill_worker(house, house.workers[0]))
                traffic.wait_all(patience_s=PATIENCE_S)
            result = close_books(name, house, traffic)
            traffic.close()
    result.recovery_s = max(recovery)
    result.note = "a worker killed after every step"
    return result


def _wait_for_step(house: House, before: int) -> None:
    wait_until(lambda: abs(house.client.time()[0] - before) > 1800, seconds=10, what="the store's clock steps")


def rolling_restart(scale: Scale) -> Result:
    """10. Gateways and workers restarted one after the other, under load."""
    with House(gateways=2, workers=2) as house:
        traffic = Traffic(house.urls, seed=scale.seed)
        with _under_load(house, traffic, scale.of(200, least=30), (5, 40)):
            for _ in range(scale.of(2)):
                for process in (*house.gateways, *house.workers):
                    time.sleep(1.0)
                    code = process.stop()
                    if code not in (0, -signal.SIGTERM):
                        traffic.faults.append(f"{process.name} ended with {code}")
                    process.start()
                    if process in house.workers:
                        _wait_for_worker(house, process)
        traffic.wait_all(patience_s=PATIENCE_S)
        result = close_books("10 rolling restart", house, traffic)
        traffic.close()
    result.note = f"{traffic.broken_connections} broken connections went to the other gateway"
    return result


def _wait_for_worker(house: House, worker: Process) -> None:
    wait_until(lambda: house.is_up(worker), seconds=START_S, what=f"{worker.name} is up")


def _wait_for_finish(house: House) -> None:
    """Wait until another job finishes, unless nothing is left to do."""
    with house.client.pubsub(ignore_subscribe_messages=True) as finished:  # type: ignore[no-untyped-call]
        finished.subscribe(f"{PREFIX}:finished")
        wait_until(
            lambda: finished.get_message(timeout=0.2) is not None or not (house.running or house.waiting),
            seconds=START_S,
            what="a job finishes",
        )


def everything_at_once(scale: Scale) -> Result:
    """The short form: one house, one load, a blow of most kinds."""
    recovery = []
    with House(
        workers=2,
        settings={"CHAOS_POISON_SEED": str(POISON_SEED), "CYNOSURE_MAX_ATTEMPTS": "3", "CYNOSURE_LEASE_S": "3"},
    ) as house:
        house.tend()
        traffic = Traffic(house.urls, seed=scale.seed)
        with _under_load(house, traffic, scale.of(40, least=10), (5, 40)):
            wait_for_held(house, house.workers[0])
            recovery.append(kill_store(house, down_s=0.5))
            wait_for_held(house, house.workers[1])
            recovery.append(pause_worker(house, house.workers[1], traffic))
            house.gateways[0].kill()
        traffic.wait_all(patience_s=PATIENCE_S)
        bad = mixed_job(traffic.random, steps=(5, 10)) | {"seed": POISON_SEED}
        [poisoned] = traffic.post_all([bad])
        traffic.wait_all(patience_s=PATIENCE_S)
        result = close_books("most at once", house, traffic, expected_to_fail=frozenset({poisoned}))
        traffic.close()
    result.recovery_s = max(recovery)
    return result


SCENARIOS: dict[str, Scenario] = {
    "1": workers_killed,
    "2": store_killed,
    "3": gateway_killed,
    "4": worker_paused,
    "5": network_cut,
    "6": poison,
    "7a": memory_full,
    "7b": disk_full,
    "7c": clock_stepped,
    "8": lambda scale: besieged(scale.of(5_000), scale.seed),
    "10": rolling_restart,
}
