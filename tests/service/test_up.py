"""The supervisor of one machine: what it says, what it gives up on, and how soon it restarts what has ended."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from app.commands import children, up
from app.commands.children import Child
from cynosure.client import Client
from cynosure.contract import ModelCard
from cynosure.programs import program
from harness.processes import clean_environment, free_port


def ended(child: Child) -> int:
    child.restart_at = 0.0
    child.tend()
    assert child.process is not None
    return child.process.wait()


def test_a_process_that_ran_steadily_is_not_held_to_ends_long_past(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "this.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path)
    child = Child("this", environment=clean_environment())  # Python's own prints a poem and ends

    def end() -> float:
        assert ended(child) == 0, "a module of the current folder was run"
        child.tend()
        return child.backoff_s

    assert [end() for _ in range(3)] == [2.0, 4.0, 8.0]
    monkeypatch.setattr(children, "STEADY_S", 0.0)
    assert end() == 2.0


def test_a_process_that_refuses_to_run_is_not_restarted(tmp_path: Path) -> None:
    (tmp_path / "refusing.py").write_text(f"raise SystemExit({os.EX_CONFIG})")
    child = Child("refusing", environment=clean_environment(PYTHONPATH=str(tmp_path)))
    assert ended(child) == os.EX_CONFIG
    with pytest.raises(SystemExit) as end:
        child.tend()
    assert end.value.code == os.EX_CONFIG


REFUSED = {
    "no such folder": (["--models", "/nowhere"], {}, "worker: '/nowhere' is neither a bundled pack"),
    "a single file": (["--models", __file__], {}, "is a file.*cynosure import"),
    "two of one name": (
        ["--models", "fashion,./fashion"],
        {},
        "called 'fashion': .* and fashion; .*other-name=./fashion",
    ),
    "a worker's setting": ([], {"CYNOSURE_WORKER_CONCURRENCY": "abc"}, "worker: CYNOSURE_WORKER_CONCURRENCY='abc'"),
    "a format of the log": ([], {"CYNOSURE_LOG_FORMAT": "xml"}, "up: CYNOSURE_LOG_FORMAT='xml': .*'console' or 'json'"),
    "a gateway's setting": ([], {"CYNOSURE_GATEWAY_AUTH": "maybe"}, "up: CYNOSURE_GATEWAY_AUTH='maybe': .*'required'"),
    "another machine's address": (
        ["--host", "192.0.2.1"],
        {},
        r"up: can't listen on 192.0.2.1:\d+: .* --host or --port",
    ),
    "a file for a folder": (["--data", "file"], {}, "up: can't use the data folder .*/file: .*another with --data"),
    "a store that can't write": (["--data", "full"], {}, "up: the job store did not start; .*append"),
}


@pytest.mark.parametrize("fault", REFUSED)
def test_what_a_restart_would_not_change_ends_it_in_one_line(fault: str, small_pack: Path, tmp_path: Path) -> None:
    options, environment, says = REFUSED[fault]
    (tmp_path / "fashion").symlink_to(small_pack)
    (tmp_path / "file").touch()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/appendonlydir").touch()
    answer = subprocess.run(
        program("app.commands.up", "--port", str(free_port()), *options),
        env=clean_environment(**environment),
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert answer.returncode == os.EX_CONFIG, answer.stderr
    [line] = answer.stderr.splitlines()
    assert line.startswith("cynosure ")
    assert re.search(says, line), line


def test_the_command_that_it_shows_draws_a_picture(server_url: str, tmp_path: Path) -> None:
    [example] = up._examples(server_url)
    subprocess.run(["sh", "-c", example], cwd=tmp_path, check=True, timeout=120)
    with Image.open(tmp_path / "fashion.png") as picture:
        assert picture.size == (28, 28)


@pytest.mark.parametrize(("form", "shown"), [("console", "curl"), ("json", "")])
def test_the_command_is_shown_to_people_only(
    form: str, shown: str, server_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CYNOSURE_LOG_FORMAT", form)
    next(up._announced(server_url), None)
    assert capsys.readouterr().out.strip()[:4] == shown


def test_names_and_addresses_in_the_command_are_quoted(monkeypatch: pytest.MonkeyPatch, card: ModelCard) -> None:
    monkeypatch.setattr(up, "_cards", lambda url: [card.model_copy(update={"name": "my model"})])
    [example] = up._examples("http://[::1]:8000")
    assert "'http://[::1]:8000/generate'" in example, "some shells expand brackets"
    assert shlex.split(example)[-2:] == ["-o", "my model.png"]


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
def test_it_starts_at_ipv6_beside_an_app_and_a_proxy_and_speaks_with_one_voice(
    small_pack: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxies = {
        "HTTP_PROXY": "http://127.0.0.1:9",
        "http_proxy": "http://127.0.0.1:9",
        "ALL_PROXY": "socks5://127.0.0.1:9",
    }
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name)
    for name, proxy in proxies.items():
        monkeypatch.setenv(name, proxy)
    for name in ("app", "workers", "jobs", "models", "redis", "uvicorn", "celeryconfig"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a module of the current folder was run')")
    url = f"http://[::1]:{free_port()}"
    options = (
        "--host",
        "[::1]",
        "--port",
        url.rpartition(":")[2],
        "--models",
        str(small_pack),
        "--data",
        str(tmp_path),
        "--gateways",
        "2",
    )
    command = [str(Path(sys.executable).with_name("cynosure")), "up", *options]
    with subprocess.Popen(
        command, env=clean_environment(), cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as server:
        assert server.stdout is not None
        lines = []
        try:
            for line in server.stdout:
                lines.append(line)
                # The command follows the line that says it is ready; what comes next is about batch sizes.
                if "--noproxy" in line or "benchmarking batch sizes" in line:
                    break
            with Client(url) as client:
                assert [card.name for card in client.models()] == ["fashion"]
        finally:
            server.terminate()
            lines += server.stdout.readlines()
    assert server.returncode == 0
    text = "".join(lines)
    assert re.search(r"^\S+ \S+ up INFO SIGTERM: stopping$", text, re.MULTILINE), text
    assert re.search(r"^\S+ \S+ workers\.\S+ INFO SIGTERM: stopping", text, re.MULTILINE), text
    assert text.count(f"the gateway listens on {url.removeprefix('http://')}\n") == 2
    assert "--noproxy" in text, "the ready-made command draws a picture here, too"
    strange = [
        line for line in lines if not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3} \S+ [A-Z]+ |  curl ", line)
    ]
    assert strange == []
