"""The manifests in deploy/kubernetes, as `kubectl kustomize` makes them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PodMonitor

from app.gateway.routes import health
from cynosure import __version__
from jobs.settings import MetricsSettings, StoreSettings
from workers.settings import WorkerSettings

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "deploy/kubernetes"
OVERLAYS = ("cpu", "gpu", "autoscaled")
OLDEST = "1.30"  # docs/kubernetes.md
Manifest = dict[str, Any]


@cache
def rendered(overlay: str) -> tuple[Manifest, ...]:
    return built(FOLDER / "overlays" / overlay)


def built(folder: Path) -> tuple[Manifest, ...]:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed")
    made = subprocess.run(["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    return tuple(yaml.safe_load_all(made.stdout))


def of_kind(overlay: str, *kinds: str) -> list[Manifest]:
    return [one for one in rendered(overlay) if one["kind"] in kinds]


def pods(overlay: str) -> Iterator[tuple[str, Manifest, Manifest]]:
    """The name of each workload, its pods, and their one container."""
    for one in of_kind(overlay, "Deployment", "StatefulSet"):
        [container] = one["spec"]["template"]["spec"]["containers"]
        yield one["metadata"]["name"], one["spec"]["template"], container


def variables(container: Manifest) -> dict[str, str]:
    return {one["name"]: one.get("value", "") for one in container["env"]}


def dockerfile(target: str) -> str:
    """The Dockerfile's stage of that name, after the one that all begin with."""
    stages = re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE)
    return "".join(stage for stage in stages if re.match(rf"\S+ AS ({target}|base)\n", stage))


CUSTOM: dict[str, Any] = {"ScaledObject": ScaledObject, "PodMonitor": PodMonitor}


def check(manifest: Manifest) -> None:
    """Refuse a field that its kind does not have, and a value of another type."""
    if (kind := CUSTOM.get(manifest["kind"])) is None:
        kubernetes_validate.validate(manifest, OLDEST, strict=True)
    else:
        read = kind.model_validate(manifest)
        assert read.model_dump(by_alias=True, exclude_unset=True, mode="json") == manifest


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_manifests_have_the_fields_of_their_kinds(overlay: str) -> None:
    for manifest in rendered(overlay):
        check(manifest)


@pytest.mark.parametrize("kind", ["Deployment", "ScaledObject", "PodMonitor", "NetworkPolicy"])
def test_a_mistyped_field_would_be_noticed(kind: str) -> None:
    manifest = of_kind("autoscaled", kind)[0]
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        check({**manifest, "spec": {**manifest["spec"], "polingInterval": 1}})


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_keep_to_the_strictest_standard_and_write_nothing_but_their_volumes(overlay: str) -> None:
    [namespace] = of_kind(overlay, "Namespace")
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    for name, pod, container in pods(overlay):
        spec, own = pod["spec"], container["securityContext"]
        assert spec["securityContext"]["runAsNonRoot"], name
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        assert own["capabilities"] == {"drop": ["ALL"]}, name
        assert (own["allowPrivilegeEscalation"], own["readOnlyRootFilesystem"]) == (False, True), name
        assert (spec["automountServiceAccountToken"], spec["enableServiceLinks"]) == (False, False), name
        assert {"cpu", "memory"} <= container["resources"]["requests"].keys(), name
        assert "memory" in container["resources"]["limits"], name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_they_fit_the_images(overlay: str) -> None:
    for name, pod, container in pods(overlay):
        if name == "valkey":
            continue
        stage = dockerfile(container["name"])
        assert re.fullmatch(rf".*/cynosure-{container['name']}:{re.escape(__version__)}", container["image"])
        assert f"-t cynosure-{container['name']} " in (ROOT / "Dockerfile").read_text()
        assert f"USER {pod['spec']['securityContext']['runAsUser']}\n" in stage
        [exposed] = re.findall(r"^EXPOSE (.+)$", stage, re.MULTILINE)
        assert {str(port["containerPort"]) for port in container["ports"]} == set(exposed.split())
        assert "CYNOSURE_METRICS_PORT=9464" in stage
        if (probe := container.get("startupProbe")) is not None:
            assert container["readinessProbe"]["httpGet"] == probe["httpGet"]


WORKERS_PATHS = {"/healthz", "/readyz"}  # tests/service/test_metrics.py asks a running worker for them


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_probes_ask_for_what_there_is(overlay: str) -> None:
    gateways = {getattr(route, "path", "") for route in health.router.routes}
    for name, _, container in pods(overlay):
        ports = {port["name"] for port in container["ports"]}
        probes = [container[kind] for kind in ("startupProbe", "readinessProbe", "livenessProbe") if kind in container]
        assert len(probes) >= 2, name
        for asked in (probe["httpGet"] for probe in probes if "httpGet" in probe):
            path, _, query = asked["path"].partition("?")
            assert asked["port"] in ports
            assert path in (gateways if container["name"] == "gateway" else WORKERS_PATHS)
            assert query in {"", "exclude=workers"}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_pods_have_time_to_hand_back_what_they_do(overlay: str) -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
    for name, pod, container in pods(overlay):
        graceful = container.get("lifecycle", {}).get("preStop", {}).get("sleep", {}).get("seconds", 0)
        if container["name"] == "worker":
            graceful += float(variables(container).get("CYNOSURE_WORKER_DRAIN_S", 0)) or _default_drain_s()
        else:
            graceful += int(compose[name]["stop_grace_period"].removesuffix("s"))
        assert pod["spec"]["terminationGracePeriodSeconds"] >= graceful, name


def _default_drain_s() -> float:
    drain_s: float = WorkerSettings.model_fields["drain_s"].default
    return drain_s + 30  # what remains is to hand back


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_program_has_the_same_store(overlay: str) -> None:
    """The address names the Service, and the password is the file of the Secret that the store itself reads."""
    [service] = [one for one in of_kind(overlay, "Service") if one["metadata"]["name"] == "valkey"]
    [config] = of_kind(overlay, "ConfigMap")
    assert config["data"] == {"url": f"redis://valkey:{service['spec']['ports'][0]['port']}/0"}
    known = {f"CYNOSURE_{name}".upper() for name in StoreSettings.model_fields}
    given: list[dict[str, str]] = []
    for name, pod, container in pods(overlay):
        mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        secrets = {one["name"]: one["secret"]["secretName"] for one in pod["spec"]["volumes"] if "secret" in one}
        assert secrets == {"password": "cynosure-store"}, name
        if name == "valkey":
            assert f"requirepass $(cat {mounts['password']}/password)" in container["command"][-1]
        else:
            env = variables(container)
            assert env["REDIS_PASSWORD_FILE"] == f"{mounts['password']}/password"
            [url] = [one["valueFrom"]["configMapKeyRef"] for one in container["env"] if one["name"] == "REDIS_URL"]
            assert url == {"name": config["metadata"]["name"], "key": "url"}
            given.append({key: value for key, value in env.items() if key in known})
    assert all(one == given[0] for one in given)
    assert given[0] == ({"CYNOSURE_ACCEPT_WITHOUT_WORKER": "true"} if overlay == "autoscaled" else {})


def test_the_store_is_set_as_in_the_compose_file() -> None:
    compose = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]["valkey"]
    [store] = [container for name, _, container in pods("cpu") if name == "valkey"]

    def settings(command: str) -> set[str]:
        return {line.strip() for line in command.splitlines() if not re.match(r"\s*(requirepass|maxmemory) ", line)}

    assert settings(store["command"][-1]) == settings(compose["command"][-1])
    assert store["image"] == compose["image"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_the_pods_that_they_are_for(overlay: str) -> None:
    labels = {name: pod["metadata"]["labels"] for name, pod, _ in pods(overlay)}

    def found(selector: Manifest) -> set[str]:
        def fits(of_pod: dict[str, str]) -> bool:
            return selector.get("matchLabels", {}).items() <= of_pod.items() and all(
                of_pod.get(one["key"]) in one["values"] for one in selector.get("matchExpressions", [])
            )

        return {name for name, of_pod in labels.items() if fits(of_pod)}

    workers = {name for name in labels if name.startswith("worker")}
    for one in of_kind(overlay, "Deployment", "StatefulSet", "PodDisruptionBudget"):
        assert found(one["spec"]["selector"]) == {one["metadata"]["name"]}
    for one in of_kind(overlay, "Service"):
        assert found({"matchLabels": one["spec"]["selector"]}) == {one["metadata"]["name"]}
    policies = {one["metadata"]["name"]: one["spec"] for one in of_kind(overlay, "NetworkPolicy")}
    expected = {"store": {"valkey"}, "gateway": {"gateway"}, "worker": workers, "default-deny": set(labels)}
    assert {name: found(spec["podSelector"]) for name, spec in policies.items()} == expected
    [callers] = policies["store"]["ingress"]
    assert found(callers["from"][0]["podSelector"]) == {"gateway", *workers}
    for monitor in of_kind(overlay, "PodMonitor"):
        assert found(monitor["spec"]["selector"]) == {"gateway", *workers}


def test_each_autoscaled_model_has_its_workers() -> None:
    deployments = {one["metadata"]["name"]: one for one in of_kind("autoscaled", "Deployment")}
    scaled = {one["spec"]["scaleTargetRef"]["name"]: one["spec"] for one in of_kind("autoscaled", "ScaledObject")}
    assert scaled.keys() == {name for name in deployments if name.startswith("worker")}
    for name, spec in scaled.items():
        [container] = deployments[name]["spec"]["template"]["spec"]["containers"]
        model = variables(container)["CYNOSURE_WORKER_MODELS"]
        assert all(f'model="{model}"' in trigger["metadata"]["query"] for trigger in spec["triggers"])
        assert spec["minReplicaCount"] == 0
        assert "replicas" not in deployments[name]["spec"], "KEDA's number stays when this is applied again"


def test_a_gpu_is_a_limit_of_every_worker() -> None:
    workers = [container for _, _, container in pods("gpu") if container["name"] == "worker"]
    assert [one["resources"]["limits"]["nvidia.com/gpu"] for one in workers] == [1]
    assert variables(workers[0])["CYNOSURE_WORKER_DEVICE"] == "cuda"
    patch = yaml.safe_load((FOLDER / "components/gpu/kustomization.yaml").read_text())["patches"][0]["target"]
    assert all(re.fullmatch(patch["name"], name) for name, _, one in pods("autoscaled") if one["name"] == "worker")


def test_the_documents_example_is_an_overlay(tmp_path: Path) -> None:
    [example] = re.findall(r"```yaml\n(.+?)```", (ROOT / "docs/kubernetes.md").read_text(), re.DOTALL)
    overlays = os.path.relpath(FOLDER / "overlays", tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(example.replace("../", f"{overlays}/../").replace("/../cpu", "/cpu"))
    manifests = built(tmp_path)
    for manifest in manifests:
        check(manifest)
    [gateway] = [one for one in manifests if (one["kind"], one["metadata"]["name"]) == ("Deployment", "gateway")]
    [container] = gateway["spec"]["template"]["spec"]["containers"]
    assert variables(container)["CYNOSURE_GATEWAY_PUBLIC_URL"] == "https://img.example.org"
    assert "PodMonitor" in {one["kind"] for one in manifests}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_store_elsewhere_takes_the_place_of_ours(overlay: str, tmp_path: Path) -> None:
    def from_here(folder: str) -> str:
        return os.path.relpath(FOLDER / folder, tmp_path.resolve())

    mine = {
        "resources": [from_here(f"overlays/{overlay}")],
        "components": [from_here("components/external-store"), from_here("components/gpu")],
    }
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(mine))
    manifests = built(tmp_path)
    for manifest in manifests:
        check(manifest)
    assert not {"StatefulSet", "PersistentVolumeClaim"} & {one["kind"] for one in manifests}
    assert "valkey" not in {one["metadata"]["name"] for one in manifests}
    [config] = [one for one in manifests if one["kind"] == "ConfigMap"]
    assert config["data"]["url"].startswith("rediss://")
    to_store = [
        rule for one in manifests if one["kind"] == "NetworkPolicy" for rule in one["spec"].get("egress", [])
        if rule["ports"][0]["port"] == 6379
    ]  # fmt: skip
    assert to_store == [{"ports": [{"port": 6379}, {"port": 26379}]}] * 2, "of the gateways and the workers"


def test_metrics_are_where_the_images_have_them(monkeypatch: pytest.MonkeyPatch) -> None:
    base = dockerfile("gateway")
    for name, value in re.findall(r"^ +(CYNOSURE_METRICS_\w+)=(\S+)", base, re.MULTILINE):
        monkeypatch.setenv(name, value)
    port = MetricsSettings().port
    for overlay in OVERLAYS:
        for name, _, container in pods(overlay):
            metrics = [one["containerPort"] for one in container["ports"] if one["name"] == "metrics"]
            assert metrics == ([] if name == "valkey" else [port])
