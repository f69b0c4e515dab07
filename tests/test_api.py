"""The HTTP interface as ASGI, without BentoML and without a socket: its documented answers and errors."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from prometheus_client import CollectorRegistry

from models.console import Failure
from models.preprocess import Pixels
from serving import errors
from serving.api import Api
from serving.artifact import Artifact
from serving.classify import Serving
from serving.engines import Scores
from serving.errors import BadRequest, RequestError
from serving.forms import Form, declared, multipart
from serving.logs import JsonLines
from serving.settings import SETTINGS, Settings
from tests.conftest import ROOT, save_tiny
from tests.fakes.interface import (
    ADMIN,
    END,
    KEY,
    ask,
    behind,
    classify,
    client_of,
    held_engine,
    is_error,
    part,
    post,
    started,
    until,
)
from tests.fakes.pictures import jpeg

# What is answered


@pytest.mark.parametrize("content_type", ["image/jpeg", "image/png", "application/octet-stream", None])
async def test_a_raw_body(tiny: Artifact, content_type: str | None) -> None:
    headers = {"content-type": content_type} if content_type else {}
    response = await classify(tiny, "/classify?model=tiny&top_k=3", content=jpeg(), headers=headers)
    answer = response.json()
    assert response.status_code == 200 and response.headers["content-type"] == "application/json"
    assert list(answer) == [
        "model", "version", "engine", "precision", "weights", "predictions", "timing_ms", "batch_size",
    ]  # fmt: skip
    identity = {key: answer[key] for key in ("model", "version", "precision", "weights", "batch_size")}
    assert identity == {
        "model": "tiny", "version": tiny.version, "precision": "fp32", "weights": "untrained", "batch_size": 1,
    }  # fmt: skip
    assert set(answer["timing_ms"]) == {"decode", "queue", "inference", "total"}
    assert answer["timing_ms"]["total"] >= answer["timing_ms"]["decode"] + answer["timing_ms"]["inference"]
    probabilities = [p["probability"] for p in answer["predictions"]]
    assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
    assert set(answer["predictions"][0]) == {"class_id", "synset", "label", "probability"}


async def test_the_probabilities_are_those_of_the_engine(tiny: Artifact) -> None:
    from models.preprocess import pixels
    from serving import runtime

    with Image.open(io.BytesIO(jpeg())) as image:
        want = runtime.open(tiny).run(pixels(image, tiny.preprocess)[None])[0]
    answer = (await classify(tiny, "/classify?top_k=10", content=jpeg())).json()
    got = {p["class_id"]: p["probability"] for p in answer["predictions"]}
    assert [got[i] for i in range(10)] == pytest.approx(want.tolist(), abs=1e-6)


async def test_multipart_with_fields_and_as_bentoml_clients_write_it(tiny: Artifact) -> None:
    for fields in ({"model": "tiny", "top_k": "2"}, {"model": '"tiny"', "top_k": "2"}, {"model": "null", "top_k": "2"}):
        response = await classify(tiny, files={"image": ("a.jpg", jpeg(), "image/jpeg")}, data=fields)
        assert response.status_code == 200 and len(response.json()["predictions"]) == 2


async def test_models_by_name_and_the_first_as_default(tiny: Artifact, tmp_path: Path) -> None:
    other = save_tiny(tmp_path, "another", classes=4)
    async with started(other, tiny) as serving, client_of(serving) as client:
        listed = (await client.get("/models")).json()
        assert listed["default"] == "another"
        assert [m["model"] for m in listed["models"]] == ["another", "tiny"]
        assert listed["models"][0]["classes"] == 4 and listed["models"][0]["weights"] == "untrained"
        details = (await client.get("/models/tiny")).json()
        assert details["manifest"]["files"]["fp32.onnx"]["sha256"] == tiny.manifest["files"]["fp32.onnx"]["sha256"]
        assert "environment" not in details["manifest"]
        assert is_error(await client.get("/models/resnet50"), 404, "unknown_model", "another, tiny")
        assert (await client.post("/classify", content=jpeg())).json()["model"] == "another"
        few = (await client.post("/classify", content=jpeg())).json()["predictions"]
        assert len(few) == 4
        compared = (await client.post("/compare?top_k=1", content=jpeg())).json()["results"]
        assert {name: len(answer["predictions"]) for name, answer in compared.items()} == {"another": 1, "tiny": 1}


async def test_a_batch_answers_in_order_and_a_bad_image_fails_alone(tiny: Artifact) -> None:
    sent = [jpeg("red"), b"no image", jpeg("blue"), jpeg()[:300], b""]
    response = await classify(tiny, "/classify/batch?top_k=1", files=[("image", ("x.jpg", body)) for body in sent])
    results = response.json()["results"]
    assert response.status_code == 200
    codes = [result["error"]["code"] if "error" in result else "ok" for result in results]
    assert codes == ["ok", "unsupported_image", "ok", "damaged_image", "unsupported_image"]
    assert results[0]["predictions"] != results[2]["predictions"]


async def test_health_follows_start_and_shutdown(tiny: Artifact) -> None:
    serving = Serving(Settings.read({}), [tiny], CollectorRegistry())
    async with client_of(serving) as client:
        assert is_error(await client.get("/readyz"), 503, "not_ready", "loading")
        assert (await client.get("/livez")).status_code == 200
        await serving.start()
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.head("/readyz")).status_code == 200
        await serving.drain()
        assert is_error(await client.get("/readyz"), 503, "not_ready", "shutting down")
        refused = await client.post("/classify", content=jpeg())
        assert is_error(refused, 503, "shutting_down") and int(refused.headers["retry-after"]) > 0
        assert (await client.get("/livez")).status_code == 200
        await serving.stop()


# Errors


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("/classify?top_k=0", "1 to 10"),
        ("/classify?top_k=11", "1 to 10"),
        ("/classify?top_k=five", "whole number"),
        ("/classify?top_k=-1", "whole number"),
        ("/classify?top_k=", "whole number"),
        ("/classify?top_k=٣", "whole number"),
        ("/classify?top_k=1&top_k=2", "more than once"),
        ("/classify?model=tiny&model=tiny", "more than once"),
        ("/classify?topk=3", "'topk' is not a parameter"),
        ("/classify?model=%ff", "cannot be read"),
        ("/classify?" + "&".join(f"a{i}=1" for i in range(50)), "cannot be read"),
        ("/compare?model=tiny", "leave model out"),
    ],
)
async def test_bad_parameters_are_400(tiny: Artifact, path: str, message: str) -> None:
    assert is_error(await classify(tiny, path, content=jpeg()), 400, "bad_request", message)


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 400, "bad_request"),
        (b"nothing of a form", 400, "bad_request"),
        (END, 400, "bad_request"),
        (part("image", jpeg()), 400, "bad_request"),
        (part("image", jpeg()) + part("image", jpeg()) + END, 400, "bad_request"),
        (part("file", jpeg()) + END, 400, "bad_request"),
        (part("top_k", b"3") + END, 400, "bad_request"),
        (part("image", b"") + END, 400, "bad_request"),
        (part("image", jpeg()) + part("top_k", b"3") + part("top_k", b"3") + END, 400, "bad_request"),
        (part("image", jpeg()) + part("model", b"x" * 5000) + END, 400, "bad_request"),
        (part("image", jpeg()) + part("model", b'"\\ud800"') + END, 404, "unknown_model"),
        (b"--B\r\nX: y\r\n\r\nvalue\r\n" + END, 400, "bad_request"),
        (b'--B\r\nContent-Disposition: attachment; name="image"\r\n\r\nvalue\r\n' + END, 400, "bad_request"),
        (part("image", b"http://127.0.0.1:3000/cat.jpg") + END, 415, "unsupported_image"),
        (part("image", jpeg(), "text/html") + END, 415, "unsupported_image"),
        (part("image", jpeg()[:200]) + END, 422, "damaged_image"),
    ],
)
async def test_bad_forms(tiny: Artifact, body: bytes, status: int, code: str) -> None:
    headers = {"content-type": "multipart/form-data; boundary=B"}
    assert is_error(await classify(tiny, content=body, headers=headers), status, code)


async def test_a_form_without_a_boundary_is_400(tiny: Artifact) -> None:
    response = await classify(tiny, content=b"x", headers={"content-type": "multipart/form-data"})
    assert is_error(response, 400, "bad_request", "boundary")


async def test_bad_bodies(tiny: Artifact) -> None:
    assert is_error(await classify(tiny, content=b""), 400, "bad_request", "empty")
    assert is_error(await classify(tiny, content=b"garbage"), 415, "unsupported_image")
    assert is_error(await classify(tiny, content=jpeg()[:200]), 422, "damaged_image")
    for headers in ({"content-type": "text/plain"}, {"content-encoding": "gzip"}):
        assert is_error(await classify(tiny, content=jpeg(), headers=headers), 415, "unsupported_image")
    assert is_error(
        await classify(tiny, "/classify?model=vgg99", content=jpeg()), 404, "unknown_model", "there are tiny"
    )
    assert is_error(await ask(tiny, "GET", "/classify"), 405, "method_not_allowed", "POST")


async def test_limits_on_body_and_pixels(tiny: Artifact) -> None:
    async def chunked() -> AsyncIterator[bytes]:
        for _ in range(100):
            yield bytes(1000)

    limit = {"PODIUM_MAX_BODY_MB": "0.01", "PODIUM_MAX_PIXELS": "1999"}
    assert is_error(await classify(tiny, content=bytes(10_001), environment=limit), 413, "too_large", "10,000")
    assert is_error(await classify(tiny, content=chunked(), environment=limit), 413, "too_large", "10,000")
    assert is_error(await classify(tiny, content=jpeg(), environment=limit), 413, "too_large", "50 x 40")
    many = [("image", ("x.jpg", jpeg()))] * 3
    few = {"PODIUM_MAX_QUEUE": "2"}
    assert is_error(
        await classify(tiny, "/classify/batch", files=many, environment=few), 413, "too_large", "more than 2"
    )


async def test_a_body_that_does_not_arrive_is_408(tiny: Artifact) -> None:
    async def endless() -> AsyncIterator[bytes]:
        yield jpeg()[:100]
        await asyncio.sleep(30)

    response = await classify(tiny, content=endless(), environment={"PODIUM_TIMEOUT_MS": "50"})
    assert is_error(response, 408, "request_timeout", "0.05 s")


@pytest.mark.parametrize("path", ["/classify", "/classify/batch", "/compare", "/models", "/models/tiny"])
async def test_a_token_is_required(tiny: Artifact, path: str) -> None:
    method = "GET" if "models" in path else "POST"
    async with started(tiny, PODIUM_TOKEN="s3cret") as serving, client_of(serving) as client:
        for wrong in (
            {},
            {"authorization": "Bearer s3cre"},
            {"authorization": "s3cret"},
            {"authorization": "Bearer "},
        ):
            refused = await client.request(method, path, content=jpeg(), headers=wrong)
            assert is_error(refused, 401, "unauthorized", "Bearer")
            assert refused.headers["www-authenticate"] == "Bearer"
        right = {"authorization": "Bearer s3cret"}
        assert (await client.request(method, path, content=jpeg(), headers=right)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


# Under load, and when things break


async def test_concurrent_requests_share_a_batch_and_a_bad_one_fails_alone(tiny: Artifact) -> None:
    async with held_engine(tiny) as (serving, client, held):
        first = post(client, jpeg())
        await held.busy()
        bodies = [jpeg("red"), jpeg()[:300], jpeg("green"), b"junk", jpeg("blue")]
        rest = [post(client, body) for body in bodies]
        await until(lambda: len(serving.models["tiny"].batcher.ready) == 3)
        held.passage.set()
        answers = [await task for task in (first, *rest)]
        assert [answer.status_code for answer in answers] == [200, 200, 422, 200, 415, 200]
        assert held.sizes == [1, 3]
        assert [answers[i].json()["batch_size"] for i in (0, 1, 3, 5)] == [1, 3, 3, 3]


async def test_overload_is_429_at_once(tiny: Artifact) -> None:
    async with held_engine(tiny, PODIUM_MAX_QUEUE="2") as (serving, client, held):
        tasks = [post(client, jpeg()) for _ in range(2)]
        await until(lambda: serving.models["tiny"].batcher.accepted == 2)
        refused = await client.post("/classify", content=jpeg())
        assert is_error(refused, 429, "overloaded") and int(refused.headers["retry-after"]) >= 1
        held.passage.set()
        assert [(await task).status_code for task in tasks] == [200, 200]


async def test_a_late_answer_is_504(tiny: Artifact) -> None:
    async with held_engine(tiny, PODIUM_TIMEOUT_MS="200") as (_, client, _held):
        assert is_error(await client.post("/classify", content=jpeg()), 504, "deadline_passed")


async def test_a_broken_engine_is_500_and_tells_no_secrets(tiny: Artifact) -> None:
    async with held_engine(tiny) as (serving, client, held):

        def broken(_: Pixels) -> Scores:
            raise RuntimeError("/home/someone/model.onnx is broken")

        held.passage.set()
        serving.models["tiny"].batcher.run = broken
        refused = await client.post("/classify", content=jpeg())
        assert is_error(refused, 500, "internal") and "someone" not in refused.text
        serving.models["tiny"].batcher.run = lambda batch: np.full((len(batch), 10), np.nan, np.float32)
        assert is_error(await client.post("/classify", content=jpeg()), 500, "internal")
        serving.models["tiny"].batcher.run = held
        assert (await client.post("/classify", content=jpeg())).status_code == 200


async def test_a_client_that_hangs_up_leaves_the_queue(tiny: Artifact) -> None:
    async with held_engine(tiny) as (serving, client, held):
        first = post(client, jpeg())
        await held.busy()
        batcher = serving.models["tiny"].batcher
        answered: list[int | None] = []
        hang_up, sent = asyncio.Event(), [{"type": "http.request", "body": jpeg(), "more_body": False}]

        async def receive() -> Any:
            if sent:
                return sent.pop()
            await hang_up.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answered.append(message.get("status"))

        scope = {"type": "http", "method": "POST", "path": "/classify", "query_string": b"", "headers": []}
        gone = asyncio.create_task(Api(behind, serving)(scope, receive, send))
        await until(lambda: len(batcher.ready) == 1)
        hang_up.set()
        await gone
        await until(lambda: not batcher.ready and batcher.accepted == 1)
        assert answered == [499, None]  # what is between us and the server waits for it
        held.passage.set()
        assert (await first).status_code == 200
        assert held.sizes == [1]


async def test_a_shutdown_waits_for_requests_under_way(tiny: Artifact) -> None:
    async with held_engine(tiny) as (serving, client, held):
        under_way = post(client, jpeg())
        await held.busy()
        draining = asyncio.create_task(serving.drain())
        await until(lambda: serving.closing)
        assert is_error(await client.post("/classify", content=jpeg()), 503, "shutting_down")
        assert not draining.done()
        held.passage.set()
        assert (await under_way).status_code == 200
        await draining


async def test_metrics_count_every_outcome(tiny: Artifact) -> None:
    async with started(tiny) as serving, client_of(serving) as client:
        for path, body in (("/classify", jpeg()), ("/classify", b"junk"), ("/classify?model=x", jpeg())):
            await client.post(path, content=body)
        await client.post("/classify/batch", files=[("image", ("a", jpeg())), ("image", ("b", b"junk"))])
        value = serving.registry.get_sample_value
        outcomes = [("tiny", "ok"), ("tiny", "unsupported_image"), ("unknown", "unknown_model")]
        counts = [value("podium_requests_total", {"model": m, "outcome": o}) for m, o in outcomes]
        assert counts == [2, 2, 1]
        for stage in ("decode", "queue", "inference", "total"):
            assert value("podium_stage_seconds_count", {"model": "tiny", "stage": stage}) == 2
        assert value("podium_batch_size_sum", {"model": "tiny"}) == 2
        assert value("podium_queue_depth", {"model": "tiny"}) == 0
        assert value("podium_inflight", {}) == 0


@settings(max_examples=300, deadline=None)
@given(
    pieces=st.lists(
        st.one_of(
            st.binary(max_size=40),
            st.sampled_from(
                [b"--B\r\n", END, b"\r\n", b"--B", b"--", b'Content-Disposition: form-data; name="image"\r\n\r\n',
                 part("image", b"x"), part("top_k", b"1"), b"Content-Type: image/png\r\n", b": \r\n", b'name="']
            ),
        ),
        max_size=12,
    )
)  # fmt: skip
def test_any_form_is_read_or_refused(pieces: list[bytes]) -> None:
    form = Form()
    try:
        multipart(b"".join(pieces), b"B", form, most_images=4)
    except RequestError as error:
        assert 400 <= error.status < 500
    else:
        assert len(form.images) <= 4 and set(form.fields) <= {"model", "top_k"}


@settings(max_examples=50, deadline=None)
@given(images=st.lists(st.binary(max_size=200).filter(lambda b: b"--B" not in b), min_size=1, max_size=4))
def test_a_form_returns_the_bytes_that_it_was_made_of(images: list[bytes]) -> None:
    form = Form()
    multipart(b"".join(part("image", body) for body in images) + END, b"B", form, most_images=4)
    assert form.images == images


@pytest.mark.parametrize(
    "head",
    [
        b'Content-Disposition: form-data; name="image"; name="top_k"',
        b'Content-Disposition: form-data; name="image"\r\nContent-Disposition: form-data; name="model"',
        b'Content-Disposition: form-data; name="image"; filena: form-data; name="imag b',
        b'Content-Disposition: form-data; name="image"' + 16 * b"\r\nX-%d: a",
        b'Content-Disposition: form-data; name="image"\r\nContent-Type: image/png\r\ncontent-type: text/html',
    ],
)
def test_a_part_that_can_be_read_in_two_ways_is_refused(head: bytes) -> None:
    body = b"--B\r\n" + head + b"\r\n\r\nx\r\n--B--\r\n"
    with pytest.raises(BadRequest, match="twice"):
        multipart(body, b"B", Form(), most_images=4)


def test_parameters_of_other_content_types_are_not_read() -> None:
    assert declared(b"Image/JPEG; whatever") == ("image/jpeg", b"")
    assert declared(b'multipart/form-data; charset=utf-8; boundary="B"') == ("multipart/form-data", b"B")
    with pytest.raises(BadRequest, match="twice"):
        declared(b"multipart/form-data; boundary=A; boundary=B")


# Settings and their page


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("MAX_BATCH", "0"), ("MAX_BATCH", "two"), ("MAX_BATCH", ""), ("ENGINE", "cuda"), ("PRECISION", "int4"),
        ("MAX_BODY_MB", "-1"), ("MAX_BODY_MB", "nan"), ("TIMEOUT_MS", "inf"), ("MAX_PIXELS", "1e9"), ("THREADS", "1.5"),
        ("MODELS", "tiny,tiny:latest"), ("TOKEN", ""), ("TOKEN", "käse"),
    ],
)  # fmt: skip
def test_a_bad_setting_is_one_line_that_names_it(name: str, value: str) -> None:
    with pytest.raises(Failure, match=f"^PODIUM_{name}: .+$") as failure:
        Settings.read({f"PODIUM_{name}": value})
    assert name != "TOKEN" or not value or value not in str(failure.value)


def test_settings_are_converted_to_seconds_and_bytes() -> None:
    read = Settings.read({"PODIUM_MAX_BODY_MB": "2.5", "PODIUM_TIMEOUT_MS": "1500", "PODIUM_MODELS": " a, b:1 ,"})
    assert (read.max_body, read.timeout, read.models) == (2_500_000, 1.5, ("a", "b:1"))


def test_the_page_lists_every_setting_and_every_error() -> None:
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default else "empty" if setting.default == "" else "unset"
        assert f"| `PODIUM_{setting.name}` | {default} | {setting.meaning} |" in page
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RequestError)]
    assert BadRequest in kinds
    for kind in kinds:
        assert f"| {kind.status} | `{kind.code}` |" in page, kind


async def test_the_documentation_shows_an_answer_in_the_real_form(tiny: Artifact) -> None:
    page = (ROOT / "docs" / "serving.md").read_text("utf-8")
    shown = (
        page[page.index('    {"model"') : page.index("`weights` is")].replace("...}, ...]", "}]").replace(", ...]", "]")
    )
    assert list(json.loads(shown)) == list((await classify(tiny, content=jpeg())).json())


# Loading and unloading


async def test_loading_is_off_without_an_admin_token(tiny: Artifact) -> None:
    for environment in ({}, {"PODIUM_TOKEN": "turn the key"}, {"PODIUM_ADMIN_TOKEN": "another"}):
        for action in ("load", "unload"):
            response = await ask(tiny, "POST", f"/models/tiny/{action}", environment, headers=KEY)
            assert is_error(response, 401, "unauthorized")
    assert (await ask(tiny, "POST", "/models/tiny/destroy")).status_code == 404
    assert (await ask(tiny, "GET", "/models/tiny/load")).status_code == 405


async def test_versions_are_swapped_while_serving_and_nothing_is_lost(tiny: Artifact, tmp_path: Path) -> None:
    other = save_tiny(tmp_path, classes=7)
    assert other.version != tiny.version
    async with started(tiny, **ADMIN) as serving, client_of(serving) as client:
        over, answers = False, list[httpx.Response]()

        async def keep_asking() -> None:
            while not over:
                response = await client.post("/classify", content=jpeg(), headers={"Authorization": "Bearer look"})
                answers.append(response)

        asking = [asyncio.create_task(keep_asking()) for _ in range(4)]
        for version in (other.version, tiny.version) * 3:
            swapped = await client.post(f"/models/tiny/load?version={version}", headers=KEY)
            assert swapped.status_code == 200 and swapped.json()["version"] == version
        again = await client.post(f"/models/tiny/load?version={tiny.version}", headers=KEY)
        assert again.json()["version"] == tiny.version
        over = True
        await asyncio.gather(*asking)
        assert {answer.status_code for answer in answers} == {200}
        assert {answer.json()["version"] for answer in answers} == {tiny.version, other.version}
        assert len(serving.workers.batchers) == 1


async def test_a_failed_load_keeps_the_loaded_version(tiny: Artifact, tmp_path: Path) -> None:
    broken = save_tiny(tmp_path, "tiny", classes=5)
    (broken.folder / "fp32.onnx").chmod(0o644)
    (broken.folder / "fp32.onnx").write_bytes(b"not a graph")
    async with started(tiny, **ADMIN) as serving, client_of(serving) as client:
        refused = await client.post(f"/models/tiny/load?version={broken.version}", headers=KEY)
        assert is_error(refused, 409, "unloadable_model", "sha256")
        assert is_error(await client.post("/models/nothing/load", headers=KEY), 404, "unknown_model", "export")
        assert is_error(await client.post("/models/tiny/load?v=1", headers=KEY), 400, "bad_request", "'v' is no")
        look = {"Authorization": "Bearer look"}
        assert (await client.get("/models/tiny", headers=look)).json()["version"] == tiny.version
    import bentoml

    bentoml.models.delete(broken.tag)


async def test_a_network_is_unloaded_and_loaded_again(tiny: Artifact) -> None:
    async with started(tiny, PODIUM_ADMIN_TOKEN="turn the key") as serving, client_of(serving) as client:
        assert (await client.post("/models/tiny/unload", headers=KEY)).json() == {"unloaded": tiny.tag}
        assert is_error(await client.post("/classify", content=jpeg()), 404, "unknown_model", "none")
        assert is_error(await client.get("/readyz"), 503, "not_ready", "no model")
        assert is_error(await client.post("/models/tiny/unload", headers=KEY), 404, "unknown_model")
        assert (await client.get("/models")).json() == {"default": None, "models": []}
        assert (await client.post(f"/models/tiny/load?version={tiny.version}", headers=KEY)).status_code == 200
        assert (await client.post("/classify", content=jpeg())).status_code == 200


# Request ids


async def test_every_response_carries_the_id_of_its_request(tiny: Artifact) -> None:
    async with started(tiny) as serving, client_of(serving) as client:
        for path in ("/classify", "/livez", "/ui/", "/nowhere", "/models/none"):
            mine = await client.get(path, headers={"X-Request-ID": "trace/7:a"})
            assert mine.headers["x-request-id"] == "trace/7:a"
        made = [(await client.get("/livez", headers=h)).headers["x-request-id"] for h in ({}, {"X-Request-ID": 'a"b'})]
        assert len(set(made)) == 2 and 'a"b' not in made


async def test_the_log_names_the_request_that_failed(tiny: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    async with started(tiny) as serving, client_of(serving) as client:
        serving.models["tiny"].batcher.run = lambda batch: np.full((len(batch), 10), np.nan, np.float32)
        response = await client.post("/classify", content=jpeg(), headers={"X-Request-ID": "find-me"})
        assert is_error(response, 500, "internal")
    assert "request_id=find-me" in caplog.text
    [line] = [json.loads(JsonLines().format(record)) for record in caplog.records if "find-me" in record.getMessage()]
    assert (line["level"], line["status"], line["code"], line["request_id"]) == ("warning", 500, "internal", "find-me")
