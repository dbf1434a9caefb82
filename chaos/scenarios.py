"""The scenarios by name. Each ends by checking all accepted jobs (`chaos.books`)."""

from __future__ import annotations

import itertools
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from chaos.besieged import besieged
from chaos.blows import kill_storage, kill_store, kill_worker, lose_master, pause_storage, pause_worker, wait_for_held
from chaos.books import Result
from chaos.house import LEASE_S, PREFIX, House
from chaos.proxy import Proxy, Weather
from chaos.traffic import mixed_job
from chaos.trial import Scale, Trial, trial
from harness.processes import free_port, wait_until
from harness.s3 import S3Server

POISON_SEED = 666
LIBFAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketime.so.1")  # Debian's package libfaketime

Scenario = Callable[[Scale], Result]


def workers_killed(scale: Scale) -> Result:
    """1. A worker killed with SIGKILL at random moments; two workers, mixed jobs."""
    kills = scale.of(20)
    with trial("1 worker killed", House(workers=2, models=scale.models), scale, tended=True) as run:
        house, traffic = run.house, run.traffic
        with traffic.posting(traffic.mixed(scale.of(300, least=20), steps=(5, 60))):
            for _ in range(kills):
                worker, other = traffic.random.sample(house.workers, 2)
                if not (house.running or house.waiting):
                    traffic.post_all(traffic.mixed(10, steps=(20, 60)))
                house.wait_for_worker(other)
                time.sleep(traffic.random.uniform(0.0, 2.0))
                run.recovery.append(kill_worker(house, worker))
    run.result.note = f"{kills} kills; lease {LEASE_S:g} s"
    return run.result


def store_killed(scale: Scale) -> Result:
    """2. The store killed with SIGKILL under load, and restarted from its append-only file."""
    kills = scale.of(5)
    with trial("2 Redis killed", House(models=scale.models), scale) as run:
        traffic = run.traffic
        with traffic.posting(traffic.mixed(scale.of(150, least=20), steps=(5, 40))):
            for _ in range(kills):
                time.sleep(traffic.random.uniform(1.0, 3.0))
                run.recovery.append(kill_store(run.house))
    run.result.note = f"{kills} kills, each down for 1 s"
    return run.result


def gateway_killed(scale: Scale) -> Result:
    """3. The gateway killed between accepting a job and ringing the workers' doorbell, and after it."""
    with trial("3 gateway killed", House(models=scale.models), scale) as run:
        house, traffic = run.house, run.traffic
        [gateway] = house.gateways
        for _ in range(scale.of(5)):
            with traffic.posting(traffic.mixed(8, steps=(5, 20))):
                time.sleep(traffic.random.uniform(0.0, 0.3))
                gateway.kill()
                gateway.start()
            # Between accept and bell: the records exist, but no worker was notified.
            house.workers[0].signal(signal.SIGSTOP)
            traffic.post_all(traffic.mixed(4, steps=(5, 20)))
            gateway.kill()
            house.client.delete(*house.client.keys(f"{PREFIX}:bell:*cynosure.*"), "no such key")
            started = time.monotonic()
            house.workers[0].signal(signal.SIGCONT)
            gateway.start()
            traffic.wait_all()
            run.recovery.append(time.monotonic() - started)
    return run.result


def worker_paused(scale: Scale) -> Result:
    """4. A worker paused for longer than its lease, then resumed."""
    with trial("4 worker paused", House(workers=2, models=scale.models), scale) as run:
        house, traffic = run.house, run.traffic
        for number in range(scale.of(4)):
            worker = house.workers[number % 2]
            traffic.post_all(traffic.mixed(12, steps=(20, 60)))
            wait_for_held(house, worker)
            run.recovery.append(pause_worker(house, worker, traffic))
            traffic.wait_all()
    return run.result


def network_cut(scale: Scale) -> Result:
    """5. Between worker and store, bytes delayed, truncated and swallowed, and connections reset."""
    weathers = (
        Weather(cut=0.05),
        Weather(delay_s=0.2),
        Weather(silent=True),
        Weather(cut=0.02, delay_s=0.05),
        Weather(closed=True),
        Weather(),
    )
    port = free_port()
    with (
        Proxy(port, seed=scale.seed) as proxy,
        trial("5 network cut", House(models=scale.models, port=port, through=proxy.port), scale, tended=True) as run,
    ):
        traffic = run.traffic
        with traffic.posting(traffic.mixed(scale.of(120, least=20), steps=(5, 40))):
            for weather in itertools.islice(itertools.cycle(weathers), scale.of(6)):
                proxy.weather = weather
                proxy.reset_all()
                time.sleep(6.0)
                proxy.weather = Weather()
                started = time.monotonic()
                run.house.wait_for_finish()
                run.recovery.append(time.monotonic() - started)
        traffic.wait_all()
        run.result.note = f"{proxy.resets} connections reset"
    return run.result


def poison(scale: Scale) -> Result:
    """6. A job that kills its worker's process, among good ones."""
    good = scale.of(100, least=20)
    poisonous = House(models=scale.models, settings={"CHAOS_POISON_SEED": str(POISON_SEED)})
    with trial("6 poison job", poisonous, scale, tended=True) as run:
        traffic = run.traffic
        jobs = traffic.mixed(good, steps=(5, 20), images=1)
        bad = mixed_job(traffic.random, steps=(5, 20)) | {"seed": POISON_SEED}
        poisoned = traffic.post_all([*jobs[: good // 2], bad, *jobs[good // 2 :]])[good // 2]
        run.expected_to_fail.add(poisoned)
        started = time.monotonic()
        traffic.wait_all()
        run.recovery.append(time.monotonic() - started)
    job = traffic.finished.get(poisoned, {})
    code = (job.get("error") or {}).get("code")
    run.result.note = f"failed after {len(job.get('attempts', ()))} attempts as {code}"
    if code != "attempts_exhausted":
        run.result.lost += 1
    return run.result


def _post_while_full(run: Trial, relieve: Callable[[], object]) -> None:
    """Post to a store that refuses writes until 503s are answered, wait for two leases, then call `relieve`."""
    traffic = run.traffic
    with traffic.posting(traffic.mixed(10, steps=(5, 20))):
        wait_until(lambda: traffic.refusals[503] > 3, seconds=60, what="the full store is reported")
        time.sleep(2 * LEASE_S)
        relieve()
        started = time.monotonic()
    traffic.wait_all()
    run.recovery.append(time.monotonic() - started)
    run.result.note = f"{traffic.refusals[503]} 503s with Retry-After"


def memory_full(scale: Scale) -> Result:
    """7a. The store at its memory limit."""
    with trial("7a memory full", House(models=scale.models), scale, tended=True) as run:
        store, traffic = run.house.client, run.traffic
        traffic.post_all(traffic.mixed(scale.of(30, least=10), steps=(20, 60)))
        store.config_set("maxmemory", "1mb")
        _post_while_full(run, lambda: store.config_set("maxmemory", "0"))
    return run.result


def disk_full(scale: Scale) -> Result:
    """7b. No disk space for the append-only file."""
    name = "7b disk full"
    with tempfile.TemporaryDirectory(prefix="cynosure-disk-") as disk:
        mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=3m", "none", disk], capture_output=True, text=True)
        if mount.returncode:
            return Result(name=name, skipped=f"no small disk could be mounted ({mount.stderr.strip()})")
        try:
            house = House(models=scale.models, data=Path(disk), store_options={"auto-aof-rewrite-percentage": "0"})
            with trial(name, house, scale, tended=True) as run:
                run.traffic.post_all(run.traffic.mixed(scale.of(20, least=10), steps=(10, 30)))
                ballast = Path(disk) / "ballast"
                _fill(ballast)
                _post_while_full(run, ballast.unlink)
                house.store.kill()  # the append-only file must still be readable after the restart
                house.start_store()
        finally:
            subprocess.run(["umount", "-l", disk], check=False)
    return run.result


def _fill(ballast: Path) -> None:
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(bytes(4096))
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
        with trial(name, House(workers=2, models=scale.models, store_environment=fake), scale, tended=True) as run:
            house, traffic = run.house, run.traffic
            for step in itertools.islice(itertools.cycle(("+3600", "+0")), scale.of(4, least=2)):
                house.wait_for_worker(house.workers[0])  # again, from the second step on
                traffic.post_all(traffic.mixed(10, steps=(20, 60)))
                wait_for_held(house, house.workers[0])
                before = house.client.time()[0]
                clock.write_text(step)
                _wait_for_step(house, before)
                run.recovery.append(kill_worker(house, house.workers[0]))
                traffic.wait_all()
    run.result.note = "a worker killed after every step"
    return run.result


def _wait_for_step(house: House, before: int) -> None:
    wait_until(lambda: abs(house.client.time()[0] - before) > 1800, seconds=10, what="the store's clock steps")


def rolling_restart(scale: Scale) -> Result:
    """10. Gateways and workers restarted one after the other under load."""
    with trial("10 rolling restart", House(gateways=2, workers=2, models=scale.models), scale) as run:
        house, traffic = run.house, run.traffic
        with traffic.posting(traffic.mixed(scale.of(200, least=30), steps=(5, 40))):
            for _ in range(scale.of(2)):
                for process in (*house.gateways, *house.workers):
                    time.sleep(1.0)
                    code = process.stop()
                    if code not in (0, -signal.SIGTERM):
                        traffic.faults.append(f"{process.name} exited with {code}")
                    process.start()
                    if process in house.workers:
                        house.wait_for_worker(process)
    run.result.note = f"{traffic.broken_connections} broken connections were retried at the other gateway"
    return run.result


def failed_over(scale: Scale) -> Result:
    """11. The store's master killed or cut off under load, and its replica promoted by Sentinel; two gateways."""
    losses = scale.of(6)
    settings = {"CYNOSURE_DURABILITY": "replicated"}
    house = House(gateways=2, workers=2, models=scale.models, is_replicated=True, settings=settings)
    with trial("11 fail-over", house, scale, tended=True) as run:
        traffic = run.traffic
        with traffic.posting(traffic.mixed(scale.of(150, least=20), steps=(5, 40))):
            for number in range(losses):
                if not (house.running or house.waiting):
                    traffic.post_all(traffic.mixed(10, steps=(20, 60)))
                run.recovery.append(lose_master(house, for_good=number % 2 == 0))
    run.result.note = f"the master killed or cut off {losses} times; `replicated`, `min-replicas-to-write 1`"
    return run.result


def storage_away(scale: Scale) -> Result:
    """12. The storage of the pictures killed with SIGKILL, and paused for longer than a call waits, under load."""
    with tempfile.TemporaryDirectory(prefix="cynosure-s3-") as folder, S3Server(Path(folder)) as storage:
        house = House(workers=2, models=scale.models, settings=storage.settings)
        with trial("12 S3 away", house, scale, tended=True) as run:
            traffic = run.traffic
            with traffic.posting(traffic.mixed(scale.of(120, least=20), steps=(5, 40))):
                for number in range(scale.of(4, least=2)):
                    wait_for_held(house, house.workers[number % 2])
                    time.sleep(traffic.random.uniform(0.0, 2.0))
                    if number % 2:
                        run.recovery.append(pause_storage(house, storage, seconds=3 * LEASE_S))
                    else:
                        run.recovery.append(kill_storage(house, storage, down_s=LEASE_S))
                    if not (house.running or house.waiting):
                        traffic.post_all(traffic.mixed(10, steps=(20, 60)))
    run.result.note = "killed and paused in turn"
    return run.result


def everything_at_once(scale: Scale) -> Result:
    """The short form: one deployment, one load, most kinds of faults."""
    house = House(
        workers=2,
        models=scale.models,
        settings={"CHAOS_POISON_SEED": str(POISON_SEED), "CYNOSURE_MAX_ATTEMPTS": "3", "CYNOSURE_LEASE_S": "3"},
    )
    with trial("most at once", house, scale, tended=True) as run:
        traffic = run.traffic
        with traffic.posting(traffic.mixed(scale.of(40, least=10), steps=(5, 40))):
            wait_for_held(house, house.workers[0])
            run.recovery.append(kill_store(house, down_s=0.5))
            wait_for_held(house, house.workers[1])
            run.recovery.append(pause_worker(house, house.workers[1], traffic))
            house.gateways[0].kill()
        traffic.wait_all()
        bad = mixed_job(traffic.random, steps=(5, 10)) | {"seed": POISON_SEED}
        run.expected_to_fail.update(traffic.post_all([bad]))
    return run.result


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
    "8": lambda scale: besieged(scale.of(5_000), scale.seed, scale.models),
    "10": rolling_restart,
    "11": failed_over,
    "12": storage_away,
}
