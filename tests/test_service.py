"""The running service: `bentoml serve` in a process of its own, asked over a socket."""

from __future__ import annotations

import gc
import hashlib
import importlib
import io
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.client import HTTPResponse
from pathlib import Path

import bentoml
import psutil
import pytest
import yaml
from PIL import Image

from models.console import Failure
from models.preprocess import pixels
from serving import runtime
from serving.artifact import MANIFEST, Artifact
from serving.settings import check_address
from tests.conftest import ROOT, SHARED, save_tiny
from tests.fakes.pictures import jpeg
from tests.fakes.server import BENTOML, PATIENCE, Server, ended, serve

# BentoML 1.4.40 with pydantic 2.11 and later, when its SDK is first imported.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")


def test_a_photograph_gets_the_engines_answer(server: Server, tiny: Artifact) -> None:
    with Image.open(io.BytesIO(jpeg())) as image:
        want = runtime.open(tiny).run(pixels(image, tiny.preprocess)[None])[0]
    status, answer = server.classify(jpeg(), "/classify?model=tiny&top_k=10")
    assert (status, answer["version"], answer["weights"]) == (200, tiny.version, "untrained")
    got = {p["class_id"]: p["probability"] for p in answer["predictions"]}
    assert [got[i] for i in range(10)] == pytest.approx(want.tolist(), abs=1e-6)


def test_multipart(server: Server) -> None:
    body = b'--B\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n' + jpeg() + b"\r\n"
    body += b'--B\r\nContent-Disposition: form-data; name="top_k"\r\n\r\n2\r\n--B--\r\n'
    status, answer = server.classify(body, kind="multipart/form-data; boundary=B")
    assert status == 200 and len(answer["predictions"]) == 2


@pytest.fixture(scope="module")
def json_log(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """The log of a service that has started and ended, with a setting that is misspelt and others that are not ours."""
    folder = tmp_path_factory.mktemp("json")
    with serve(
        folder / "log", PODIUM_MODELS=tiny.tag, PODIUM_LOG="json", PODIUM_MAX_BATHC="4", PODIUM_CACHE=str(folder),
        PODIUM_SERVICE_HOST="10.0.0.1", PODIUM_PORT_3000_TCP_ADDR="10.0.0.1",
    ):  # fmt: skip
        pass
    return [json.loads(line) for line in (folder / "log").read_text("utf-8").splitlines()]


def test_the_log_as_json(tiny: Artifact, json_log: list[dict[str, str]]) -> None:
    assert {"time", "level", "logger", "message"} <= json_log[0].keys()
    assert [line["level"] for line in json_log if f"{tiny.tag} is loaded and warm" in line["message"]] == ["info"]


def test_a_misspelt_setting_is_named_at_the_start(json_log: list[dict[str, str]]) -> None:
    [warning] = [line["message"] for line in json_log if "changes nothing" in line["message"]]
    assert "'PODIUM_MAX_BATHC' is not a setting" in warning and "did you mean PODIUM_MAX_BATCH?" in warning


CLIENT = """
import json, pathlib, sys, bentoml
url, photograph = sys.argv[1], pathlib.Path(sys.argv[2])
with bentoml.SyncHTTPClient(url) as client:
    answers = [client.classify(image=photograph, model="tiny", top_k=3), client.classify(photograph, model=None)]
    try:
        client.classify(image=photograph, model="resnet50")
    except bentoml.exceptions.BentoMLException as error:
        answers.append(str(error))
print(json.dumps(answers))
"""


def test_bentomls_client_classifies(server: Server, tmp_path: Path) -> None:
    photograph = tmp_path / "photograph.jpg"
    photograph.write_bytes(jpeg())
    command = [sys.executable, "-c", CLIENT, server.url, str(photograph)]
    named, default, refused = json.loads(subprocess.check_output(command, timeout=PATIENCE))
    assert named["model"] == default["model"] == "tiny"
    assert (len(named["predictions"]), len(default["predictions"])) == (3, 5)
    assert "unknown_model" in refused


def test_an_address_is_not_fetched(server: Server) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait:
        bait.setblocking(False)
        address = f"http://127.0.0.1:{bait.getsockname()[1]}/cat.jpg".encode()
        form = b'--B\r\nContent-Disposition: form-data; name="image"\r\n\r\n' + address + b"\r\n--B--\r\n"
        assert server.classify(form, kind="multipart/form-data; boundary=B")[0] == 415
        for path in ("/classify", "/classify/", "//classify", "/%63lassify"):
            for body, kind in (
                (form, "multipart/form-data; boundary=B"),
                (b"image=" + address, "application/x-www-form-urlencoded"),
                (json.dumps({"image": address.decode()}).encode(), "application/json"),
            ):
                status, _ = server.ask("POST", path, body, {"Content-Type": kind})
                assert 300 <= status < 500, (path, kind, status)
        with pytest.raises(BlockingIOError):
            bait.accept()


@pytest.mark.parametrize(
    ("body", "path", "kind", "status"),
    [
        (b"garbage", "/classify", "image/jpeg", 415),
        (jpeg(), "/classify", "text/plain", 415),
        (jpeg()[:200], "/classify", "image/jpeg", 422),
        (b"", "/classify", "image/jpeg", 400),
        (jpeg(), "/classify?top_k=0", "image/jpeg", 400),
        (jpeg(), "/classify?colour=red", "image/jpeg", 400),
        (b"no form", "/classify", "multipart/form-data; boundary=B", 400),
        (jpeg(), "/classify?model=resnet50", "image/jpeg", 404),
        (bytes(1_000_000), "/classify", "image/jpeg", 413),
    ],
)
def test_bad_requests_get_an_error_in_the_documented_form(
    server: Server, body: bytes, path: str, kind: str, status: int
) -> None:
    got, answer = server.classify(body, path, kind)
    assert got == status and set(answer["error"]) == {"code", "message"}


def test_bad_images_fail_alone_among_concurrent_good_ones(server: Server) -> None:
    bodies = [jpeg(), jpeg()[:200], b"junk"] * 20
    with ThreadPoolExecutor(8) as pool:
        statuses = [status for status, _ in pool.map(server.classify, bodies)]
    assert statuses == [200, 422, 415] * 20


def test_bentomls_schema_and_our_metrics_are_served(server: Server) -> None:
    server.classify(jpeg())
    metrics = server.ask("GET", "/metrics")[1].decode()
    for name in (
        'podium_requests_total{model="tiny",outcome="ok"}',
        'podium_stage_seconds_bucket{le="0.001",model="tiny",stage="decode"}',
        'podium_batch_size_count{model="tiny"}',
        'podium_queue_depth{model="tiny"} 0.0',
        "podium_inflight 0.0",
    ):
        assert name in metrics
    assert "bentoml" not in metrics
    operation = json.loads(server.ask("GET", "/docs.json")[1])["paths"]["/classify"]["post"]
    fields = operation["requestBody"]["content"]["multipart/form-data"]["schema"]["properties"]
    assert set(fields) == {"image", "model", "top_k"}
    assert json.loads(server.ask("GET", "/schema.json")[1])["routes"][0]["route"] == "/classify"
    assert (server.ask("GET", "/livez")[0], server.ask("GET", "/")[0]) == (200, 307)
    assert json.loads(server.ask("GET", "/models")[1])["default"] == "tiny"


def test_a_client_that_hangs_up_leaves_nothing_behind(server: Server) -> None:
    def counted() -> Counter[str]:
        lines = server.ask("GET", "/metrics")[1].decode().splitlines()
        requests = (re.match(r'podium_requests_total\{model="\w+",outcome="(\w+)"} (\d+)', line) for line in lines)
        found = Counter({each[1]: int(each[2]) for each in requests if each})
        return found + Counter({"under way": "podium_inflight 0.0" not in lines})

    before = counted()
    for sent in (jpeg(), jpeg()[:50]):
        with closing(server.connect()) as connection:
            connection.putrequest("POST", "/classify")
            connection.putheader("Content-Length", str(len(jpeg())))
            connection.endheaders(sent)
    # The answer to the whole request may be ready before the service notices that its client has left.
    both = ({"client_gone": 2}, {"client_gone": 1, "ok": 1})
    end = time.monotonic() + PATIENCE
    while (found := counted() - before) not in both:
        assert time.monotonic() < end, found


def test_no_line_is_logged_per_request(server: Server) -> None:
    before = server.log.read_text()
    server.classify(jpeg())
    server.classify(b"junk")
    assert server.log.read_text() == before


def test_sigterm_turns_readyz_503_and_answers_what_is_under_way(tiny: Artifact, tmp_path: Path) -> None:
    with serve(tmp_path / "log", PODIUM_MODELS=tiny.tag) as server, closing(server.connect()) as under_way:
        body = jpeg()
        under_way.putrequest("POST", "/classify")
        under_way.putheader("Content-Length", str(len(body)))
        under_way.endheaders()
        under_way.send(body[:100])
        assert server.classify(body)[0] == 200  # so the half request before it has been read
        server.process.send_signal(signal.SIGTERM)
        server.until_ready(503)
        status, answer = server.classify(body)
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
        under_way.send(body[100:])
        response: HTTPResponse = under_way.getresponse()
        assert response.status == 200 and json.loads(response.read())["model"] == "tiny"
        assert response.getheader("connection") == "close"
        server.process.wait(PATIENCE)
        assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"PODIUM_MAX_BATCH": "many"}, "PODIUM_MAX_BATCH: 'many' must be a whole number"),
        ({"PODIUM_MODELS": "missing"}, "`python -m export missing` makes one"),
        ({"PODIUM_PRECISION": "int8"}, "no file for engine auto at precision int8; it has onnxruntime fp32"),
        ({"PODIUM_MODELS": "broken"}, "fp32.onnx has sha256"),
    ],
)
def test_an_impossible_start_fails_with_one_line(
    tiny: Artifact, tmp_path: Path, environment: dict[str, str], message: str
) -> None:
    if environment.get("PODIUM_MODELS") == "broken":
        graph = save_tiny(tmp_path, "broken").folder / "fp32.onnx"
        graph.chmod(0o644)
        graph.write_bytes(graph.read_bytes() + b"x")
    status, _, errors = ended(0, **{"PODIUM_MODELS": tiny.tag, **environment})
    [line] = errors.splitlines()
    assert status == 1 and message in line
    if environment.get("PODIUM_MODELS") == "broken":
        bentoml.models.delete("broken:latest")


def vouched(artifact: Artifact, graph: bytes, **manifest: object) -> Artifact:
    """`artifact` with other bytes as its graph, and a manifest that holds their checksum."""
    record = {**artifact.manifest["files"]["fp32.onnx"], "sha256": hashlib.sha256(graph).hexdigest()}
    files = {**artifact.manifest["files"], "fp32.onnx": record}
    for name, content in (
        ("fp32.onnx", graph),
        (MANIFEST, json.dumps({**artifact.manifest, **manifest, "files": files}).encode()),
    ):
        (artifact.folder / name).chmod(0o644)
        (artifact.folder / name).write_bytes(content)
    return artifact


def of_the_future(graph: Path) -> bytes:
    import onnx

    model = onnx.load(graph)
    model.opset_import[0].version = 9999
    return bytes(model.SerializeToString())


@pytest.mark.parametrize(
    ("engine", "graph"), [("onnxruntime", "garbage"), ("onnxruntime", "of the future"), ("openvino", "garbage")]
)
def test_a_graph_that_no_engine_can_load_ends_the_server(tmp_path: Path, engine: str, graph: str) -> None:
    artifact = save_tiny(tmp_path, "unloadable")
    vouched(artifact, b"garbage" if graph == "garbage" else of_the_future(artifact.folder / "fp32.onnx"))
    status, output, errors = ended(PODIUM_MODELS=artifact.tag, PODIUM_ENGINE=engine)
    [line] = (line for line in errors.splitlines() if "GraphDef" not in line and "absl" not in line)  # OpenVINO's own
    assert status == 1 and f"Error: {artifact.tag}: {engine} cannot load fp32.onnx; export it again" in line
    assert output.count("Running startup hook: start") == 1 and "Traceback" not in output
    bentoml.models.delete(artifact.tag)


def test_a_defect_at_the_start_ends_the_server_with_its_traceback(tmp_path: Path) -> None:
    artifact = save_tiny(tmp_path, "odd")
    vouched(artifact, (artifact.folder / "fp32.onnx").read_bytes(), max_batch="many")
    status, output, errors = ended(PODIUM_MODELS=artifact.tag)
    [line] = errors.splitlines()
    assert status == 1 and "ValueError: the log has the traceback" in line
    assert output.count("Traceback") == 1 and "invalid literal for int() with base 10: 'many'" in output
    bentoml.models.delete(artifact.tag)


# Every Python that is started with it on PYTHONPATH runs it. It does something to workers only.
IN_WORKERS = """
import os, shutil, signal, sys
if "_bentoml_impl.worker.service" in sys.orig_argv:
    with open(__file__ + ".starts", "a") as starts:
        starts.write("x")
    {happens}
"""


@pytest.mark.parametrize(
    ("happens", "message"),
    [
        ("os.kill(os.getpid(), signal.SIGKILL)", "SIGKILL ended the worker while it loaded the models; if memory"),
        ("shutil.rmtree({folder!r})", "`python -m export fleeting` makes one"),
        ("os._exit(7)", "the worker ended with status 7 before it was ready"),
    ],
)
def test_a_worker_that_ends_before_it_is_ready_ends_the_server(tmp_path: Path, happens: str, message: str) -> None:
    artifact = save_tiny(tmp_path, "fleeting")
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(IN_WORKERS.format(happens=happens.format(folder=str(artifact.folder))))
    status, _, errors = ended(PODIUM_MODELS=artifact.tag, PYTHONPATH=str(tmp_path))
    [line] = errors.splitlines()
    assert status == 1 and message in line
    assert Path(f"{hook}.starts").read_text() == "x"
    if artifact.folder.exists():
        bentoml.models.delete(artifact.tag)


# A supervisor that looks for ended workers once an hour, and a worker that ends by itself the first time.
SUPERVISOR = """
import sys
import click
from serving import supervisor
supervisor.watch(click.Context(click.Command("serve")))
from bentoml._internal.utils.circus import create_standalone_arbiter
from circus.watcher import Watcher
watcher = Watcher("w", sys.executable, args=["-c", sys.argv[1]], copy_env=True, use_sockets=True)
create_standalone_arbiter([watcher], check_delay=3600).start()
"""
WORKER = """
import os, pathlib, signal
from serving import supervisor
supervisor.ready()
first = pathlib.Path("{seen}")
if first.exists():
    os.kill(os.getppid(), signal.SIGTERM)
    signal.pause()
first.touch()
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_an_ended_worker_is_restarted_without_waiting_for_the_next_check(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SUPERVISOR, WORKER.format(seen=tmp_path / "seen")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert (done.returncode, (tmp_path / "seen").exists()) == (0, True), done.stderr


@pytest.mark.slow
def test_a_worker_that_ends_after_it_has_served_is_restarted(tmp_path: Path) -> None:
    artifact = save_tiny(tmp_path, "mortal")

    def kill(server: Server) -> None:
        [worker] = psutil.Process(server.process.pid).children()
        worker.kill()
        worker.wait(PATIENCE)

    with serve(tmp_path / "log", PODIUM_MODELS=artifact.tag, PODIUM_ENGINE="onnxruntime") as server:
        kill(server)
        server.until_ready(200)
        assert server.classify(jpeg())[0] == 200
        vouched(artifact, b"garbage")
        kill(server)
        assert server.process.wait(PATIENCE) == 1
        assert server.log.read_text().count(f"Error: {artifact.tag}: onnxruntime cannot load fp32.onnx") == 1
    bentoml.models.delete(artifact.tag)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "waitid"), reason="without waitid a worker has no pipe to its supervisor")
def test_a_worker_ends_when_its_supervisor_is_killed(tiny: Artifact, tmp_path: Path) -> None:
    with serve(tmp_path / "log", PODIUM_MODELS=tiny.tag) as server:
        [worker] = psutil.Process(server.process.pid).children()
        server.process.kill()
        server.process.wait(PATIENCE)
        worker.wait(PATIENCE)
        # The next start checks this first.
        check_address("127.0.0.1", server.port)
        assert "the supervisor is gone" in server.log.read_text()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "waitid"), reason="without waitid a worker has no pipe to its supervisor")
def test_a_worker_ends_when_its_supervisor_is_killed_during_the_start(tiny: Artifact, tmp_path: Path) -> None:
    hook = tmp_path / "sitecustomize.py"
    hook.write_text(IN_WORKERS.format(happens="os.kill(os.getppid(), signal.SIGKILL)"))
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    environment = {**os.environ, "PODIUM_MODELS": tiny.tag, "PYTHONPATH": str(tmp_path)}
    command = [*BENTOML, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with (tmp_path / "log").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT)
    assert process.wait(PATIENCE) == -signal.SIGKILL
    end = time.monotonic() + PATIENCE
    while not free(port):
        assert time.monotonic() < end, "the worker keeps the port"
        time.sleep(0.05)


def free(port: int) -> bool:
    try:
        check_address("127.0.0.1", port)
    except Failure:
        return False
    return True


def test_a_port_in_use_is_reported_in_one_line(tiny: Artifact) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        status, _, errors = ended(port, PODIUM_MODELS=tiny.tag)
    [line] = errors.splitlines()
    assert status == 1 and f"port {port}: something listens there already" in line


def test_a_bento_serves_its_own_models_from_an_empty_folder(tmp_path: Path) -> None:
    built_with = save_tiny(tmp_path, "carried")
    environment = {**os.environ, "PODIUM_MODELS": "carried"}
    version = f"test{os.getpid()}"
    built = subprocess.run(
        [*BENTOML, "build", "--version", version], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert built.returncode == 0, built.stderr
    bento = bentoml.get(f"podium:{version}")
    info = yaml.safe_load((Path(bento.path) / "bento.yaml").read_text("utf-8"))
    assert [model["tag"] for model in info["services"][0]["models"]] == [built_with.tag]
    assert not list(Path(bento.path).glob("src/tests")) and not list(Path(bento.path).rglob("*.safetensors"))
    assert save_tiny(tmp_path, "carried").version != built_with.version

    # Exported to one file, imported into an empty store, and served from an empty folder.
    file, home, empty = tmp_path / "podium.bento", tmp_path / "home", tmp_path / "empty"
    home.mkdir()
    empty.mkdir()
    elsewhere = {**os.environ, "BENTOML_HOME": str(home)}
    bento.export(str(file))
    subprocess.run([*BENTOML, "import", str(file)], env=elsewhere, check=True, capture_output=True)
    for store in (os.environ["BENTOML_HOME"], str(home)):
        with serve(tmp_path / "log", f"podium:{version}", cwd=empty, BENTOML_HOME=store) as server:
            status, answer = server.classify(jpeg())
            assert (status, answer["model"], answer["version"]) == (200, "carried", built_with.version)
            assert b"<title>Podium</title>" in server.ask("GET", "/ui/")[1]
            assert json.loads(server.ask("GET", "/ui/results.json")[1]) == {"results": None}


async def test_the_service_method_answers_in_process_too(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PODIUM_MODELS", tiny.tag)
    service = importlib.import_module("service")
    monkeypatch.setattr(service, "drain_before_exit", lambda serving: None)  # it installs signal handlers
    photograph = tmp_path / "photograph.jpg"
    photograph.write_bytes(jpeg())
    try:
        podium = service.Podium()
        await podium.start()
        assert gc.get_freeze_count() > 10_000  # a full collection skips what the imports created
        answer = await podium.classify(image=photograph, top_k=1)
        assert answer["model"] == "tiny" and len(answer["predictions"]) == 1
        await podium.stop()
    finally:
        gc.unfreeze()


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "images").is_dir(), reason="the labelled photographs of ../shared are not here")
def test_every_photograph_gets_pytorchs_answer_over_http(efficientnet_lite0: Artifact, tmp_path: Path) -> None:
    """From the file to the answer with trained weights: no step may change what the network answers."""
    import torch

    from examples.efficientnet_lite0 import network
    from export.to_onnx import Served

    own = network()
    original = Served(own.module.eval(), own.preprocess)
    truth = json.loads((SHARED / "images" / "labels.json").read_text())
    hits = 0
    with serve(tmp_path / "log", PODIUM_MODELS=efficientnet_lite0.tag) as running:
        for name, index in truth.items():
            body = (SHARED / "images" / name).read_bytes()
            status, answer = running.classify(body)
            assert status == 200
            with Image.open(io.BytesIO(body)) as image, torch.inference_mode():
                expected = original(torch.from_numpy(pixels(image, own.preprocess).copy())[None])[0]
            best = expected.topk(5)
            assert [p["class_id"] for p in answer["predictions"]] == best.indices.tolist(), name
            assert [p["probability"] for p in answer["predictions"]] == pytest.approx(best.values.tolist(), abs=1e-5)
            hits += answer["predictions"][0]["class_id"] == index
    assert hits >= 85, "the trained classifier gets nine of ten of these photographs right"


def test_every_log_line_of_a_serving_process_is_one_line(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODIUM_MODELS", tiny.tag)
    importlib.import_module("service")
    for name in ("uvicorn.error", "bentoml.worker.service", "asyncio", "bentoml.podium"):
        record = logging.getLogger(name).makeRecord(name, logging.ERROR, "file", 1, "a\n%s", ("\x1b[31mb\u2028",), None)
        assert record.getMessage() == "a\\n\\x1b[31mb\\u2028"
