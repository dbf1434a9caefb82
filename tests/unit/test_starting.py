"""What is wrong with a setting is said in one line, by the name of its variable."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import AliasChoices
from pydantic_settings import BaseSettings

from app.gateway.outbound import OutboundSettings
from app.gateway.settings import GatewaySettings
from cynosure.addresses import host_and_port, is_loopback
from jobs.settings import MetricsSettings, SentinelAddress, StoreSettings
from jobs.starting import InvalidSettings, read_settings, unknown_variables
from workers.settings import ReviewSettings, WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS: tuple[type[BaseSettings], ...] = (
    GatewaySettings,
    MetricsSettings,
    OutboundSettings,
    StoreSettings,
    WorkerSettings,
)
FREE = {"CYNOSURE_GATEWAY_HOST", "CYNOSURE_GATEWAY_WEBHOOK_SECRET", "CYNOSURE_WORKER_DEVICE",
        "CYNOSURE_WORKER_DEVICE_NAME", "CYNOSURE_WORKER_MODELS", "CYNOSURE_KEY_PREFIX", "CYNOSURE_METRICS_HOST",
        "REDIS_PASSWORD"}  # fmt: skip
"""Settings that take any text; some are checked where they are used."""


def variable(kind: type[BaseSettings], field: str) -> str:
    alias = kind.model_fields[field].validation_alias
    return (
        str(alias.choices[0])
        if isinstance(alias, AliasChoices)
        else f"{kind.model_config['env_prefix']}{field}".upper()
    )


VARIABLES = {variable(kind, field): kind for kind in PROGRAMS for field in kind.model_fields}


@pytest.mark.parametrize("name", sorted(VARIABLES.keys() - FREE))
def test_a_wrong_value_is_refused_by_the_name_of_its_variable(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "non,sense")
    with pytest.raises(InvalidSettings, match=rf"^{name}\W") as refusal:
        read_settings(VARIABLES[name])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("kind", "variables", "given", "says"),
    [
        (
            WorkerSettings,
            {"CYNOSURE_WORKER_CONCURRENCY": "0"},
            {},
            r"CONCURRENCY='0': .* greater than or equal to 1 \(Jobs held at once",
        ),
        (WorkerSettings, {}, {"precision": "int4"}, r"^--precision='int4': .*'bfloat16'"),
        (WorkerSettings, {"CYNOSURE_WORKER_MODELS": " , "}, {}, r"it names no pack"),
        (
            OutboundSettings,
            {"CYNOSURE_OUTBOUND_PORTS": "443, 8443"},
            {},
            r'write a JSON list, such as \["443", "8443"\]',
        ),
        (GatewaySettings, {"CYNOSURE_GATEWAY_MODEL_ALIASES": "gpt=emoji"}, {}, r"write a JSON object \(Other names"),
        (StoreSettings, {"REDIS_URL": "redis://:s3cret@host:port"}, {}, r"^REDIS_URL: this is not the address"),
        (
            StoreSettings,
            {"REDIS_URL": "redis+sentinel://:s3cret@h:26379"},
            {},
            r"^REDIS_URL: name the Sentinels and their",
        ),
        (StoreSettings, {"REDIS_URL": "redis+sentinel://h,:1/main"}, {}, r"^REDIS_URL: name the Sentinels and their"),
        (StoreSettings, {"REDIS_URL": "redis+sentinel://h:x/main"}, {}, r"^REDIS_URL: name the Sentinels and their"),
        (StoreSettings, {"REDIS_URL": "redis+sentinel://h/main/x"}, {}, r"^REDIS_URL: name the Sentinels and their"),
        (
            StoreSettings,
            {"REDIS_URL": "redis://h", "REDIS_SENTINEL_PASSWORD": "s3cret"},
            {},
            r"^REDIS_SENTINEL_PASSWORD is set, but REDIS_URL is no redis\+sentinel://",
        ),
        (
            ReviewSettings,
            {"CYNOSURE_REVIEW": "folder"},
            {},
            r"^CYNOSURE_REVIEW is set: CYNOSURE_REVIEW_LABELS must say",
        ),
        (ReviewSettings, {"CYNOSURE_REVIEW_LABELS": "nsfw:0.5"}, {}, r"but CYNOSURE_REVIEW names no classifier$"),
        (
            ReviewSettings,
            {"CYNOSURE_REVIEW_LABELS": "a:0.5,nsfw"},
            {},
            r"LABELS='a:0.5,nsfw': 'nsfw' must be a label and",
        ),
        (ReviewSettings, {"CYNOSURE_REVIEW_LABELS": "nsfw:nan"}, {}, r"'nsfw:nan' must be a label and a score"),
        (ReviewSettings, {"CYNOSURE_REVIEW_ACTION": "blur"}, {}, r"^CYNOSURE_REVIEW_ACTION='blur': .*'refuse'"),
        (StoreSettings, {"REDIS_PASSWORD_FILE": "/nowhere"}, {}, r"^REDIS_PASSWORD_FILE='/nowhere': .*No such file"),
        (StoreSettings, {"REDIS_URL": "redis://:s3cret@h", "REDIS_PASSWORD": "s3cret"}, {}, r"only one of REDIS_URL"),
    ],
)
def test_a_refusal_says_what_would_be_right_and_no_secret(
    kind: type[BaseSettings],
    variables: dict[str, str],
    given: dict[str, str],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(InvalidSettings, match=says) as refusal:
        read_settings(kind, **given)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize("url", ["redis://[::1]:6379/0", "rediss://user@host", "unix:///run/valkey.sock", "redis://"])
def test_addresses_of_stores(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", url)
    assert read_settings(StoreSettings).redis_url == url


def test_an_address_of_sentinels_is_read_for_the_record_and_for_bells() -> None:
    url = "rediss+sentinel://me:p%40ss@one:1,[::2],three:3/main/4"
    settings = StoreSettings(redis_url=url)
    hosts = (("one", 1), ("::2", 26379), ("three", 3))
    assert settings.sentinels == SentinelAddress(hosts, "main", database=4, user="me", password="p@ss")
    assert settings.uses_tls
    login = "sentinel://me:p%40ss@"
    assert settings.broker_url == ";".join(f"{login}{host}/4" for host in ("one:1", "[::2]:26379", "three:3"))
    plain = StoreSettings(redis_url="redis+sentinel://one/main")
    assert plain.sentinels == SentinelAddress((("one", 26379),), "main", database=0, user=None, password=None)
    assert plain.broker_url == "sentinel://one:26379/0"


def test_a_mistyped_variable_is_noticed_with_the_one_that_was_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ("CYNOSURE_WORKER_DEVICES", "CYNOSURE_LEASES_S", "CYNOSURE_REDIS_URL", "CYNOSURE_BANANA",
             "CYNOSURE_REVIEWS", "OTHER")  # fmt: skip
    for name in (*names, "CYNOSURE_LEASE_S", "CYNOSURE_URL", "CYNOSURE_GATEWAY_BANANA"):
        monkeypatch.setenv(name, "1")
    assert unknown_variables(StoreSettings, WorkerSettings) == {
        "CYNOSURE_BANANA": None,
        "CYNOSURE_LEASES_S": "CYNOSURE_LEASE_S",
        "CYNOSURE_REDIS_URL": "REDIS_URL",
        "CYNOSURE_REVIEWS": "CYNOSURE_REVIEW",
        "CYNOSURE_WORKER_DEVICES": "CYNOSURE_WORKER_DEVICE",
    }, "a gateway's are left to the gateway"


def test_what_the_files_for_deployments_and_the_command_line_set_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = [file for file in (ROOT / "deploy").rglob("*") if file.is_file()]
    files = [*ROOT.glob("docker-compose*.yml"), *deployed, *(ROOT / "cynosure").rglob("*.py")]
    names = {name for file in files for name in re.findall(r"\bCYNOSURE_[A-Z_]+[A-Z]", file.read_text())}
    assert names >= {"CYNOSURE_BIND", "CYNOSURE_URL", "CYNOSURE_WORKER_MODELS"}
    for name in names:
        monkeypatch.setenv(name, "1")
    assert unknown_variables(*PROGRAMS) == {}


def test_hosts_and_ports() -> None:
    assert [host_and_port(host, 80) for host in ("::1", "127.0.0.1", "box")] == ["[::1]:80", "127.0.0.1:80", "box:80"]
    assert all(map(is_loopback, ("::1", "127.0.0.2", "localhost", "Localhost")))
    assert not any(map(is_loopback, ("::", "0.0.0.0", "10.0.0.1", "localhost.example.org", "", "[::1]")))
