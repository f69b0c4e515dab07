"""The files of `deploy/`: the overlays are valid for Kubernetes, and every name in them exists in the code.

The schemas are Kubernetes' own, as `kubernetes-validate` carries them. They know types and fields. They cannot
know whether a selector finds its pods, a path exists or a metric is ours; other tests here check that.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import tomllib
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from serving.artifact import Artifact
from serving.errors import RequestError
from serving.limits import most_memory
from serving.metrics import STAGES, Metrics
from serving.settings import SETTINGS, Settings
from tests.conftest import ROOT, save_tiny
from tests.fakes.pictures import jpeg
from tests.fakes.proxies import DEPLOY, behind_haproxy, behind_nginx, missing, needs_haproxy, needs_nginx
from tests.fakes.server import BENTOML, PATIENCE, Server, serve

OVERLAYS = sorted(path.name for path in (DEPLOY / "overlays").iterdir())
OLDEST, NEWEST = "1.30", ".".join(kubernetes_validate.latest_version().split(".")[:2])  # 1.30: preStop's sleep

Manifest = dict[str, Any]


def kustomize() -> str | None:
    """Why the overlays cannot be built here, None if they can. The kustomize in kubectl before 1.21 is too old."""
    if reason := missing("kubectl", "kubernetes-client"):
        return reason
    version = json.loads(subprocess.check_output(["kubectl", "version", "--client", "--output=json"]))
    minor = int(re.sub(r"\D.*", "", version["clientVersion"]["minor"]))
    return None if minor >= 21 else f"kubectl 1.{minor} is too old for these overlays; 1.21 or newer builds them"


needs_kubectl = pytest.mark.skipif(bool(reason := kustomize()), reason=reason or "")
needs_promtool = pytest.mark.skipif(bool(reason := missing("promtool", "prometheus")), reason=reason or "")


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    command = ["kubectl", "kustomize", str(DEPLOY / "overlays" / request.param)]
    built = subprocess.run(command, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    assert built.stderr == ""  # deprecations are printed there
    return list(yaml.safe_load_all(built.stdout))


def one(manifests: list[Manifest], kind: str) -> Manifest:
    [found] = [m for m in manifests if m["kind"] == kind]
    return found


def container(manifests: list[Manifest]) -> Manifest:
    containers: list[Manifest] = one(manifests, "Deployment")["spec"]["template"]["spec"]["containers"]
    [found] = containers
    return found


def variables(manifests: list[Manifest]) -> dict[str, Manifest]:
    return {variable["name"]: variable for variable in container(manifests)["env"]}


@needs_kubectl
@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_every_manifest_is_valid_by_the_schemas_of_kubernetes(overlay: list[Manifest], version: str) -> None:
    kinds = {m["kind"] for m in overlay}
    assert kinds == {
        "Namespace", "Deployment", "Service", "HorizontalPodAutoscaler", "PodDisruptionBudget", "NetworkPolicy",
    }  # fmt: skip
    for manifest in overlay:
        assert kubernetes_validate.validate(manifest, version, strict=True) == version


@needs_kubectl
def test_the_schemas_refuse_what_is_wrong(overlay: list[Manifest]) -> None:
    wrong = json.loads(json.dumps(one(overlay, "Deployment")))
    wrong["spec"]["template"]["spec"]["containers"][0]["readinessprobe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(wrong, NEWEST, strict=True)


@needs_kubectl
def test_selectors_ports_and_targets_refer_to_what_exists(overlay: list[Manifest]) -> None:
    deployment = one(overlay, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    selectors = [
        deployment["spec"]["selector"]["matchLabels"],
        one(overlay, "Service")["spec"]["selector"],
        one(overlay, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"],
        one(overlay, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"],
        deployment["spec"]["template"]["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchLabels"],
    ]
    for selector in selectors:
        assert selector and selector.items() <= labels.items()

    [port] = container(overlay)["ports"]
    assert [p["targetPort"] for p in one(overlay, "Service")["spec"]["ports"]] == [port["name"]]
    [rule] = one(overlay, "NetworkPolicy")["spec"]["ingress"]
    assert [p["port"] for p in rule["ports"]] == [port["name"]]
    arguments = container(overlay)["args"]
    assert arguments[arguments.index("--port") + 1] == str(port["containerPort"])

    scaler = one(overlay, "HorizontalPodAutoscaler")["spec"]
    target = {key: deployment[key] for key in ("apiVersion", "kind")} | {"name": deployment["metadata"]["name"]}
    assert scaler["scaleTargetRef"] == target and "replicas" not in deployment["spec"]
    assert [m["pods"]["metric"]["name"] for m in scaler["metrics"]] == ["podium_inflight"]
    namespaces = {m["metadata"].get("namespace") for m in overlay if m["kind"] != "Namespace"}
    assert namespaces == {one(overlay, "Namespace")["metadata"]["name"]}


@needs_kubectl
def test_a_pod_has_the_memory_that_its_networks_and_decoders_may_take(overlay: list[Manifest]) -> None:
    given = {name: variable["value"] for name, variable in variables(overlay).items() if "value" in variable}
    settings, resources = Settings.read(given), container(overlay)["resources"]
    cores = int(resources["limits"]["cpu"])
    request, limit = (int(resources[kind]["memory"].removesuffix("Gi")) * 2**30 for kind in ("requests", "limits"))
    assert 1.4e9 < most_memory(Settings.read({}).image, Settings.read({}).max_body, 2) < 1.5e9, (
        "as docs/serving.md says"
    )
    uploads = 8 * 2 * settings.max_body  # as chunks and as a whole
    assert request + most_memory(settings.image, settings.max_body, cores) + uploads < limit


@needs_kubectl
def test_probes_ask_paths_that_the_api_has(overlay: list[Manifest]) -> None:
    from serving.api import Api

    class Open:
        settings = Settings.read({})

    api = Api(lambda *_: None, Open())  # type: ignore[arg-type]
    open_to_all = {route.path for route in api.routes if route.access == "open"}
    probes = {name: container(overlay)[name]["httpGet"] for name in ("startupProbe", "readinessProbe", "livenessProbe")}
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/readyz", "readinessProbe": "/readyz", "livenessProbe": "/livez",
    }  # fmt: skip
    for probe in probes.values():
        assert probe["path"] in open_to_all and probe["port"] == "http"


@needs_kubectl
def test_settings_exist_and_fit_each_other(overlay: list[Manifest]) -> None:
    known = {f"PODIUM_{setting.name}": setting for setting in SETTINGS}
    ours = {name: variable for name, variable in variables(overlay).items() if name.startswith("PODIUM_")}
    assert ours and ours.keys() <= known.keys()
    values = {name: known[name].read(v["value"]) for name, v in ours.items() if "value" in v}
    limits = container(overlay)["resources"]["limits"]
    assert ours["PODIUM_THREADS"]["valueFrom"]["resourceFieldRef"]["resource"] == "limits.cpu"
    assert limits["cpu"].isdecimal()  # a share of a processor would be rounded up to a whole thread

    pod = one(overlay, "Deployment")["spec"]["template"]["spec"]
    pause = container(overlay)["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert pod["terminationGracePeriodSeconds"] >= pause + values["PODIUM_TIMEOUT_MS"] / 1e3 + 5
    # A draining pod must serve until every proxy has dropped it: two failed probes, and the time to spread the news.
    readiness = container(overlay)["readinessProbe"]
    assert pause >= readiness["periodSeconds"] * readiness["failureThreshold"]
    # The number of requests per replica that the autoscaler aims at must fit into the queue of a replica.
    queue = values.get("PODIUM_MAX_QUEUE", float(known["PODIUM_MAX_QUEUE"].default or 0))
    [metric] = one(overlay, "HorizontalPodAutoscaler")["spec"]["metrics"]
    assert int(metric["pods"]["target"]["averageValue"]) < queue


@needs_kubectl
def test_a_pod_has_no_right_that_it_does_not_need(overlay: list[Manifest]) -> None:
    """The restricted level of Kubernetes' Pod Security Standards, and a read-only root filesystem."""
    pod, own = one(overlay, "Deployment")["spec"]["template"]["spec"], container(overlay)
    assert one(overlay, "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert pod["securityContext"]["runAsNonRoot"] is True and pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod["automountServiceAccountToken"] is False
    assert own["securityContext"] == {
        "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
    }  # fmt: skip
    policy = one(overlay, "NetworkPolicy")["spec"]
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"} and policy["egress"] == []
    mounted = [Path(mount["mountPath"]) for mount in own["volumeMounts"]]
    assert Path(variables(overlay)["BENTOML_HOME"]["value"]).parent in mounted


@needs_kubectl
def test_the_overlays_differ_in_what_a_gpu_needs(request: pytest.FixtureRequest, overlay: list[Manifest]) -> None:
    gpu = "nvidia.com/gpu" in container(overlay)["resources"]["limits"]
    assert gpu == ("nvidia-gpu" in request.node.name)
    pod = one(overlay, "Deployment")["spec"]["template"]["spec"]
    assert gpu == any(t["key"] == "nvidia.com/gpu" for t in pod.get("tolerations", ()))
    assert variables(overlay).get("PODIUM_ENGINE", {}).get("value") == ("tensorrt" if gpu else None)


def test_the_pod_runs_as_the_user_of_bentomls_images() -> None:
    from bentoml._internal.container import generate

    deployment = yaml.safe_load((DEPLOY / "base" / "deployment.yaml").read_text("utf-8"))
    assert deployment["spec"]["template"]["spec"]["securityContext"]["runAsUser"] == generate.BENTO_UID_GID


def test_the_gpu_bento_installs_what_the_project_says_it_serves_with() -> None:
    made = yaml.safe_load((DEPLOY / "bentofile.gpu.yaml").read_text("utf-8"))
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    needed = [*project["dependencies"], *project["optional-dependencies"]["tensorrt"]]
    assert made["python"]["packages"] == needed
    on_cpu = yaml.safe_load((ROOT / "bentofile.yaml").read_text("utf-8"))
    assert {k: v for k, v in made.items() if k != "python"} == {k: v for k, v in on_cpu.items() if k != "python"}


# Metrics


def exposed() -> dict[str, set[str]]:
    """The names of our metrics in Prometheus, and the labels of each."""
    registry = CollectorRegistry()
    metrics = Metrics(["resnet50"], registry)
    metrics.observe("resnet50", [0.1] * len(STAGES))
    metrics.failed("resnet50", "internal")
    return {
        sample.name: set(sample.labels)
        for family in registry.collect()
        for sample in family.samples
        if sample.name.startswith("podium_") and not sample.name.endswith("_created")
    }


def expressions() -> dict[str, str]:
    """Every PromQL expression of the rules and the dashboard, by its place."""
    rules = yaml.safe_load((DEPLOY / "prometheus" / "rules.yml").read_text("utf-8"))
    found = {rule.get("alert") or rule["record"]: rule["expr"] for group in rules["groups"] for rule in group["rules"]}
    dashboard = json.loads((DEPLOY / "grafana" / "podium.json").read_text("utf-8"))
    for panel in dashboard["panels"]:
        found |= {f"panel {panel['title']} {t['refId']}": t["expr"] for t in panel["targets"]}
    return found


def test_every_metric_and_label_that_is_queried_exists() -> None:
    known = exposed()
    recorded = {name for name in expressions() if ":" in name}
    asked = set()
    for where, expression in expressions().items():
        for name, selector in re.findall(r"\b(podium[\w:]*)\b(?:\{([^}]*)\})?", expression):
            if ":" in name:
                assert name in recorded, where
                continue
            asked.add(name)
            assert name in known, where
            assert set(re.findall(r"(\w+)\s*[=!]~?", selector)) <= known[name] | {"pod"}, where
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    assert families == {re.sub(r"_(bucket|sum|count)$", "", name) for name in known}, "a figure nobody looks at"


def test_every_outcome_and_stage_that_is_queried_exists() -> None:
    def kinds(cls: type[RequestError]) -> set[str]:
        return {cls.code}.union(*map(kinds, cls.__subclasses__()))

    everything = "\n".join(expressions().values())
    outcomes = {o for group in re.findall(r'outcome=~?"([^"]*)"', everything) for o in group.split("|")}
    assert outcomes and outcomes <= kinds(RequestError) | {"ok"}
    assert set(re.findall(r'stage!?=~?"([^"]*)"', everything)) <= set(STAGES)


def test_the_adapter_gives_the_autoscaler_its_metric_and_the_scrape_its_labels() -> None:
    adapter = yaml.safe_load((DEPLOY / "prometheus" / "adapter.yaml").read_text("utf-8"))
    [rule] = adapter["rules"]["custom"]
    [(name, selector)] = re.findall(r"^(\w+)\{(.*)\}$", rule["seriesQuery"])
    assert name == "podium_inflight" and name in exposed()
    needed = set(re.findall(r"(\w+)!=", selector))
    scrape = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))["scrape_configs"][0]
    given = {config["target_label"] for config in scrape["relabel_configs"] if "target_label" in config}
    assert needed == set(rule["resources"]["overrides"]) == given
    labels = yaml.safe_load((DEPLOY / "base" / "kustomization.yaml").read_text("utf-8"))["labels"][0]["pairs"]
    kept = {c["source_labels"][0]: c["regex"] for c in scrape["relabel_configs"] if c.get("action") == "keep"}
    assert kept == {
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": labels["app.kubernetes.io/name"],
        "__meta_kubernetes_pod_container_port_name": "http",
    }
    assert scrape["kubernetes_sd_configs"] == [{"role": "pod", "namespaces": {"names": ["podium"]}}]


@needs_promtool
def test_prometheus_accepts_the_configuration(tmp_path: Path) -> None:
    """Debian's promtool lacks the service discovery of Kubernetes; another test here checks that part."""
    config = yaml.safe_load((DEPLOY / "prometheus" / "prometheus.yml").read_text("utf-8"))
    del config["scrape_configs"][0]["kubernetes_sd_configs"]
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    shutil.copy(DEPLOY / "prometheus" / "rules.yml", tmp_path)
    done = subprocess.run(
        ["promtool", "check", "config", "prometheus.yml"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0 and "SUCCESS" in done.stdout, done.stdout + done.stderr


@needs_promtool
def test_alerts_fire_exactly_when_they_should() -> None:
    command = ["promtool", "test", "rules", str(DEPLOY / "prometheus" / "rules.test.yml")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tested = (DEPLOY / "prometheus" / "rules.test.yml").read_text("utf-8")
    assert all(name in tested for name in expressions() if name.startswith("Podium"))


@needs_promtool
def test_prometheus_understands_every_panel(tmp_path: Path) -> None:
    panels = [e for where, e in expressions().items() if where.startswith("panel ")]
    rules = [
        {"record": f"panel:{i}", "expr": e.replace("$__rate_interval", "1m").replace("$model", ".*")}
        for i, e in enumerate(panels)
    ]
    (tmp_path / "panels.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), "utf-8")
    done = subprocess.run(["promtool", "check", "rules", "panels.yml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and f"{len(rules)} rules found" in done.stdout, done.stdout + done.stderr


@needs_haproxy
def test_haproxy_accepts_its_configuration_which_fits_the_settings_of_the_service() -> None:
    config = DEPLOY / "haproxy.cfg"
    done = subprocess.run(["haproxy", "-c", "-f", str(config)], capture_output=True, text=True)
    assert done.returncode == 0 and "warning" not in (done.stdout + done.stderr).lower(), done.stdout + done.stderr
    lines = [line.split("#")[0].split() for line in config.read_text("utf-8").splitlines()]
    timeouts = {words[1]: words[2] for words in lines if words[:1] == ["timeout"]}
    longest = next(float(s.default or 0) for s in SETTINGS if s.name == "TIMEOUT_MS") / 1e3
    # The balancer must not cut off or repeat a request before the service answers 504.
    assert float(timeouts["server"].removesuffix("s")) >= longest + 5
    assert ["retries", "1"] in lines and ["option", "httpchk", "GET", "/readyz"] in lines


REFUSED = (
    ("/metrics", b"", (403, "forbidden")),
    ("/models/tiny/unload", b"", (403, "forbidden")),
    ("/%6detrics", b"", (404, "not_found")),
    ("/models/tiny/%6coad", b"", (404, "not_found")),
    ("/models/%74iny/load", b"", (404, "not_found")),
    ("/v2/../metrics", b"", (404, "not_found")),
)


@needs_haproxy
def test_the_service_behind_haproxy(server: Server) -> None:
    with behind_haproxy(server) as front:
        status, answer = front.classify(jpeg())
        assert (status, answer["model"]) == (200, "tiny")
        assert front.ask("GET", "/ui/")[0] == 200
        for path, body, want in REFUSED:
            status, answer = front.classify(body, path)
            assert (status, answer["error"]["code"]) == want


@needs_nginx
def test_the_service_behind_nginx(tiny: Artifact, tmp_path: Path) -> None:
    with (
        serve(tmp_path / "log", PODIUM_MODELS=tiny.tag) as service,
        behind_nginx(service, tmp_path) as front,
    ):
        status, answer = front.classify(jpeg())
        assert (status, answer["model"]) == (200, "tiny")
        assert front.classify(b"no image")[0] == 415
        with closing(front.connect()) as connection:
            connection.request("GET", "/models")
            response = connection.getresponse()
            assert len(response.read()) > 0 and re.fullmatch("[0-9a-f]{32}", response.headers["X-Request-ID"])
        assert front.ask("GET", "/ui/")[0] == 200
        for path, body, want in (*REFUSED, ("/classify", bytes(21 << 20), (413, "too_large"))):
            status, answer = front.classify(body, path)
            assert (status, answer["error"]["code"]) == want
        service.process.terminate()
        service.process.wait(PATIENCE)
        status, answer = front.classify(jpeg())
        assert (status, answer["error"]["code"]) == (502, "replica_lost")
    site = (DEPLOY / "nginx.conf").read_text("utf-8")
    lines = dict(re.findall(r"^ *(client_max_body_size|proxy_read_timeout) (\d+)[ms];", site, re.MULTILINE))
    settings = Settings.read({})
    assert int(lines["client_max_body_size"]) * (1 << 20) >= settings.max_body
    assert int(lines["proxy_read_timeout"]) >= settings.timeout + 5


# The image


SANDBOX = """
set -e
mount --make-rprivate /
mount --bind "$1" /mnt
mount -o remount,ro,bind / /
mount -o remount,ro,bind /mnt
mount -t tmpfs -o mode=1777 tmpfs /tmp
cd /
exec env -i PATH="$PATH" HOME=/home/bentoml BENTOML_CONTAINERIZED=true BENTOML_DO_NOT_TRACK=True BENTOML_HOME="$2" \
  PODIUM_THREADS=1 bentoml serve --host 127.0.0.1 --port "$3" /mnt
"""


UNSHARE = ["unshare", "--mount"] if os.geteuid() == 0 else ["unshare", "--mount", "--map-root-user"]


def may_mount() -> bool:
    trial = [*UNSHARE, "sh", "-c", "mount --make-rprivate / && mount -o remount,ro,bind / /"]
    return shutil.which("unshare") is not None and subprocess.run(trial, capture_output=True).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(not may_mount(), reason="mounts in a namespace of one's own are not allowed here")
def test_the_image_serves_from_a_read_only_root(tmp_path: Path) -> None:
    """What `bentoml containerize` puts into an image, with the deployment's mounts; test_service.py runs the bento."""
    import bentoml
    from bentoml._internal.container import construct_containerfile

    save_tiny(tmp_path, "contained")
    version = f"image{os.getpid()}"
    environment = {**os.environ, "PODIUM_MODELS": "contained"}
    subprocess.run(
        [*BENTOML, "build", "--version", version], cwd=ROOT, env=environment, check=True, capture_output=True
    )
    image = tmp_path / "image"
    with construct_containerfile(bentoml.get(f"podium:{version}"), enable_buildkit=False) as (context, dockerfile):
        shutil.copytree(context, image)
        assert (image / Path(dockerfile).relative_to(context)).is_file()
    deployment = yaml.safe_load((DEPLOY / "base" / "deployment.yaml").read_text("utf-8"))
    [pod] = deployment["spec"]["template"]["spec"]["containers"]
    home = next(v["value"] for v in pod["env"] if v["name"] == "BENTOML_HOME")

    # The home folder that the image names cannot be created on such a root.
    with sandboxed(image, "/home/bentoml", tmp_path / "refused") as (process, _):
        assert process.wait(PATIENCE) != 0
        assert "Read-only file system" in (tmp_path / "refused").read_text()
    with sandboxed(image, home, tmp_path / "log") as (process, port):
        answer = asked(port, process, tmp_path / "log")
        assert answer["model"] == "contained"
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0


@contextmanager
def sandboxed(image: Path, home: str, log: Path) -> Iterator[tuple[subprocess.Popen[bytes], int]]:
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [*UNSHARE, "bash", "-c", SANDBOX, "sandbox", str(image), home, str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(command, env={**os.environ, "PATH": path}, stdout=output, stderr=subprocess.STDOUT)
    try:
        yield process, port
    finally:
        process.kill()
        process.wait(PATIENCE)


def asked(port: int, process: subprocess.Popen[bytes], log: Path) -> dict[str, Any]:
    """The answer of the service to a photograph, once the service is ready."""
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/classify", data=jpeg(), headers={"Content-Type": "image/jpeg"}
    )
    end = time.monotonic() + PATIENCE
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as response:
                return dict(json.load(response))
        except OSError:
            assert process.poll() is None and time.monotonic() < end, log.read_text()
            time.sleep(0.1)
