"""The answer to whatever is sent: strict JSON in, JSON out, short errors, one count and one id for every request."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serving import errors, oip
from serving.api import Api
from serving.artifact import Artifact
from serving.errors import BadRequest, RequestError
from serving.exchange import encode
from serving.logs import JsonLines, OneLine, protect
from serving.text import printable, quoted, read_json
from tests.conftest import SHAPE, save_tiny
from tests.fakes.interface import ADMIN, END, KEY, ask, behind, client_of, is_error, part, started
from tests.fakes.pictures import jpeg

COUNT = math.prod(SHAPE)
PIXELS = [i % 256 for i in range(COUNT)]
NESTED = np.array(PIXELS).reshape(1, *SHAPE).tolist()
INFER = "/v2/models/tiny/infer"


def said(tensor: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    whole = {"name": "image", "datatype": "UINT8", "shape": [1, *SHAPE], "data": PIXELS} | (tensor or {})
    return {"inputs": [{key: value for key, value in whole.items() if value is not None}]} | changes


def written(tensor: dict[str, Any] | None = None, **changes: Any) -> bytes:
    return json.dumps(said(tensor, **changes)).encode()


def with_data(text: bytes) -> bytes:
    return written({"data": 0}).replace(b'"data": 0', b'"data": ' + text)


# The Open Inference Protocol


def read(body: bytes, length: bytes = b"") -> oip.Request:
    return oip.parse(body, length, SHAPE, 10, 8)


@pytest.mark.parametrize(
    "data",
    [
        PIXELS,
        NESTED,
        "indented",
    ],
    ids=["flat", "nested", "indented"],
)
def test_pixels_may_be_flat_or_nested(data: Any) -> None:
    body = json.dumps(said({"data": NESTED}), indent=1).encode() if data == "indented" else written({"data": data})
    assert read(body).images.reshape(-1).tolist() == PIXELS


@settings(max_examples=200, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    nested=st.booleans(),
    indent=st.sampled_from([None, 0, 3]),
    more=st.fixed_dictionaries(
        {}, optional={"id": st.text(max_size=9), "parameters": st.just({"a": [1, {"data": 2}]})}
    ),
    seed=st.integers(0, 1000),
)
def test_the_pixels_are_those_that_the_json_says(
    shape: list[int], nested: bool, indent: int | None, more: dict[str, Any], seed: int
) -> None:
    pixels = np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)
    data = pixels.tolist() if nested else pixels.reshape(-1).tolist()
    body = json.dumps(said({"shape": shape, "data": data}, **more), indent=indent).encode()
    asked = oip.parse(body, b"", (shape[1], shape[2], shape[3]), 10, 8)
    np.testing.assert_array_equal(asked.images, pixels)
    assert asked.id == more.get("id")


ROW = b",".join([b"7"] * (COUNT - 1))
BAD_DATA = {
    "a fraction": b"[1.7," + ROW + b"]",
    "a whole fraction": b"[1.0," + ROW + b"]",
    "an exponent": b"[1e1," + ROW + b"]",
    "a text": b'["12",' + ROW + b"]",
    "true": b"[true," + ROW + b"]",
    "true at the end": b"[" + ROW + b",true]",
    "null": b"[null," + ROW + b"]",
    "NaN": b"[NaN," + ROW + b"]",
    "negative": b"[-1," + ROW + b"]",
    "256": b"[256," + ROW + b"]",
    "a zero before": b"[01," + ROW + b"]",
    "a huge number": b"[" + b"9" * 5000 + b"," + ROW + b"]",
    "one too few": b"[" + ROW + b"]",
    "one too many": b"[1,1," + ROW + b"]",
    "two commas": b"[1,," + ROW + b"]",
    "a comma at the end": b"[" + ROW + b",]",
    "no comma": b"[1 1," + ROW + b"]",
    "an empty list": b"[[]," + ROW + b"]",
    "a list": b"[[1]," + ROW + b"]",
    "a list that does not fit the shape": b"[[1," + ROW + b"]]",
    "a list twice": b"[1," + ROW + b"],[1," + ROW + b"]",
    "an open list": b"[1," + ROW,
    "a glued bracket": json.dumps(NESTED).encode().replace(b"[0, 1, 2]", b"0[, 1, 2]"),
    "a number behind a bracket": json.dumps(NESTED).encode().replace(b"[0, 1, 2]", b"[0, 1, ]2"),
    "another nesting": json.dumps(np.array(PIXELS).reshape(1, 3, 32, 32).tolist()).encode(),
    "an object": b'{"a":1}',
    "nothing": b"null",
    "a stand-in": b"NaN",
}


@pytest.mark.parametrize("data", BAD_DATA.values(), ids=BAD_DATA)
def test_a_pixel_must_have_the_type_of_a_whole_number(data: bytes) -> None:
    with pytest.raises(BadRequest):
        read(with_data(data))


def test_every_number_is_checked(tiny: Artifact) -> None:
    """Wherever in a long list it is, also where two pieces of the list meet."""
    shape = (100, 300, 3)
    good = b",".join([b"7"] * 90_000)
    body = with_data(b"[" + good + b"]").replace(b"[1, 32, 32, 3]", b"[1,100,300,3]")
    assert oip.parse(body, b"", shape, 10, 8).images.shape == (1, *shape)
    begin = body.index(b"[7") + 1
    for at in [*range(begin, begin + 20), *range(begin + (64 << 10) - 20, begin + (64 << 10) + 20), begin + 179_998]:
        for wrong in (b"x", b",", b" ", b"]", b".", b"-"):
            broken = body[:at] + wrong + body[at + 1 :]
            if broken == body:
                continue
            try:
                json.loads(broken)
                continue  # a space beside a digit may be valid
            except ValueError:
                pass
            with pytest.raises(BadRequest):
                oip.parse(broken, b"", shape, 10, 8)


BAD_REQUESTS = {
    "id NaN": written(id=math.nan),
    "id a number": written(id=7),
    "id a list": written(id=["a"]),
    "id half a pair": written(id="\ud800"),
    "id half a pair, raw": written(id="@").replace(b"@", "\ud800".encode("utf-8", "surrogatepass")),
    "id too long": written(id="a" * 1000),
    "id 1e999": written(id="@").replace(b'"@"', b"1e999"),
    "infinity elsewhere": written(other=math.inf),
    "1e999 elsewhere": written(other="@").replace(b'"@"', b"-1e999"),
    "half a pair in a key": written(None, **{"\udc00": 1}),
    "half a pair in a name": written({"name": "\ud800"}),
    "half a pair in the output": written(outputs=[{"name": "\ud800"}]),
    "a key twice": written().replace(b'{"inputs"', b'{"inputs":[],"inputs"'),
    "data twice": written().replace(b'"name"', b'"data":[1],"name"'),
    "the data elsewhere": b'{"a":{"data":[1]},' + written({"data": None})[1:],
    "depth": written(a="@").replace(b'"@"', b"[" * 9000 + b"]" * 9000),
    "a name that is a list": written({"name": ["image"]}),
    "a shape of fractions": written({"shape": [1.0, *SHAPE]}),
    "a shape of texts": written({"shape": ["1", *SHAPE]}),
    "a shape of booleans": written({"shape": [True, *SHAPE]}),
    "a shape that is huge": written({"shape": [10**4000, *SHAPE]}),
    "a shape of nothing": written({"shape": [0, *SHAPE], "data": []}),
    "a shape of many": written({"shape": [2147483647] * 3000}),
    "a shape that multiplies": written({"shape": [2147483647] * 4}),
    "a shape of lists of nothing": written({"shape": [2147483647, 0, 1, 1], "data": [[]]}),
    "parameters a list": written(parameters=[]),
    "outputs an object": written(outputs={}),
    "binary_data a number": written(outputs=[{"name": "probabilities", "parameters": {"binary_data": 1}}]),
    "binary_data_output a text": written(parameters={"binary_data_output": "no"}),
    "classification a fraction": written(outputs=[{"name": "probabilities", "parameters": {"classification": 2.0}}]),
    "classification true": written(outputs=[{"name": "probabilities", "parameters": {"classification": True}}]),
    "classification huge": written(outputs=[{"name": "probabilities", "parameters": {"classification": 10**4000}}]),
    "UTF-16": written().decode().encode("utf-16"),
    "two documents": written() + b"{}",
}


@pytest.mark.parametrize("body", BAD_REQUESTS.values(), ids=BAD_REQUESTS)
async def test_a_request_is_strict_json(tiny: Artifact, body: bytes) -> None:
    response = await ask(tiny, "POST", INFER, content=body)
    assert response.status_code == 400, response.text
    assert list(response.json()) == ["error"] and len(response.content) < 1200


@pytest.mark.parametrize("size", [1.0, "3072", True, None, [], -1, 10**4000, COUNT + 1, COUNT - 1])
def test_the_size_of_a_binary_tensor_must_be_a_whole_number(size: Any) -> None:
    head = json.dumps(said({"data": None, "parameters": {"binary_data_size": size}})).encode()
    with pytest.raises(BadRequest):
        read(head + bytes(COUNT), b"%d" % len(head))


def test_a_tensor_may_be_sent_in_one_way_only() -> None:
    both = written({"parameters": {"binary_data_size": COUNT}})
    for body in (both + bytes(COUNT), written() + bytes(COUNT)):
        with pytest.raises(BadRequest):
            read(body, b"%d" % (len(body) - COUNT))
    head = written({"data": None, "parameters": {"binary_data_size": COUNT}})
    assert read(head + bytes(PIXELS), b"%d" % len(head)).images.reshape(-1).tolist() == PIXELS
    for length in (b"9" * 5000, b"+1", b" 1", b"1_0", b"\xb2"):
        with pytest.raises(BadRequest, match="not a number"):
            read(head + bytes(PIXELS), length)


async def test_an_id_comes_back_as_it_was_sent(tiny: Artifact) -> None:
    for id_ in ("", "seven", 'a"b\\', "\n\u2028", "日本", "\x00", "😀"):
        response = await ask(tiny, "POST", INFER, content=written(id=id_))
        assert response.status_code == 200 and response.json().get("id", "") == id_


# Answers


def test_any_answer_can_be_written() -> None:
    odd = {
        "nan": math.nan, "inf": [-math.inf], "half": "\ud800", "\udfff": 1, "number": np.float32(1.5),
        "path": Path("a"),
        "tuple": (1, 2.5, None, True),
    }  # fmt: skip
    assert json.loads(encode(odd)) == {
        "nan": None, "inf": [None], "half": "\ud800", "\udfff": 1, "number": "1.5", "path": "a",
        "tuple": [1, 2.5, None, True],
    }  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters()), inner, max_size=3),
        max_leaves=10,
    )
)
def test_whatever_is_read_can_be_written(value: Any) -> None:
    text = json.dumps({"a": value}).encode()
    try:
        strict = read_json(text)
    except ValueError:
        assert "NaN" in text.decode() or "Infinity" in text.decode() or "\\ud" in text.decode()
    else:
        assert json.loads(encode(strict)) == {"a": value}


async def test_labels_and_manifests_that_json_cannot_hold_get_an_answer(tiny: Artifact) -> None:
    async with started(tiny) as serving, client_of(serving) as client:
        model = serving.models["tiny"]
        for one in model.classes:
            one["label"] = "half \ud800"
        model.artifact.manifest["tuning"] = {"seconds": math.nan}
        try:
            answer = await client.post("/classify", content=jpeg())
            assert answer.status_code == 200 and answer.json()["predictions"][0]["label"] == "half \ud800"
            assert (await client.get("/models/tiny")).json()["manifest"]["tuning"] == {"seconds": None}
        finally:
            del model.artifact.manifest["tuning"]


async def test_a_failure_after_the_handler_is_a_documented_error(
    tiny: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with started(tiny) as serving, client_of(serving) as client:

        async def broken(*_: object, **__: object) -> Any:
            return {"cycle": cycle}

        cycle: list[Any] = []
        cycle.append(cycle)
        monkeypatch.setattr(serving, "classify", broken)
        response = await client.post("/classify", content=jpeg(), headers={"X-Request-ID": "find-me"})
        assert is_error(response, 500, "internal") and response.headers["x-request-id"] == "find-me"
        counted = serving.registry.get_sample_value
        assert counted("podium_requests_total", {"model": "unknown", "outcome": "internal"}) == 1
    assert "request_id=find-me" in caplog.text


async def test_scores_that_are_not_finite_are_an_error_in_the_protocol(tiny: Artifact) -> None:
    async with started(tiny) as serving, client_of(serving) as client:
        serving.models["tiny"].batcher.run = lambda batch: np.full((len(batch), 10), np.inf, np.float32)
        for binary in (True, False):
            response = await client.post(INFER, content=written(parameters={"binary_data_output": binary}))
            assert response.status_code == 500 and list(response.json()) == ["error"]
        counted = serving.registry.get_sample_value
        assert counted("podium_requests_total", {"model": "tiny", "outcome": "internal"}) == 2


# Errors

ODD = {
    "long": "a" * 50_000,
    "control": "\r\nX: y\x00\x1b[31m\x07",
    "separators": "\u2028\u2029\x85\u202e",
    "wide": "日" * 20_000,
    "quotes": "'\"\\" * 1000,
}
FIELDS = ("model", "top_k", "version", "NAME")


def odd_requests(text: str) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Requests with `text` in every place that takes text."""
    in_path, raw = quote(text[:2000], safe=""), text.encode("utf-8", "replace")  # httpx allows addresses of 64 kB
    for path in ("/X", "/models/X", "/v2/models/X", "/v2/models/X/infer", "/v2/models/tiny/versions/X/infer",
                 "/v2/models/tiny/X", "/models/tiny/X", "/models/X/load", "/models/X/unload", "/ui/X"):  # fmt: skip
        for method in ("GET", "POST", "DELETE"):
            yield method, path.replace("X", in_path), {}
    for path in ("/classify", "/classify/batch", "/compare", "/models/tiny/load", "/models/tiny/unload"):
        for name in FIELDS:
            yield "POST", f"{path}?{in_path if name == 'NAME' else name}={in_path}", {"content": jpeg()}
        for name in FIELDS:
            body = part(text[:900] if name == "NAME" else name, raw[:1000]) + part("image", jpeg()) + END
            yield "POST", path, {"content": body, "headers": {"content-type": "multipart/form-data; boundary=B"}}
            yield (
                "POST",
                path,
                {
                    "content": part(name, json.dumps(text).encode()[:1000]) + part("image", jpeg(), text[:900]) + END,
                    "headers": {"content-type": "multipart/form-data; boundary=B"},
                },
            )
    values: tuple[Any, ...] = (text, [text] * 3, {text: text}, 10**4000)
    for value in values:
        for key in ("name", "datatype", "shape", "data", "parameters"):
            yield "POST", INFER, {"content": written({key: value})}
        for key in ("id", "outputs", "inputs", "parameters"):
            yield "POST", INFER, {"content": written(**{key: value})}
        yield "POST", INFER, {"content": written({"parameters": {"binary_data_size": value}, "data": None})}
        yield "POST", INFER, {"content": written(outputs=[{"name": value}])}
        for key in ("classification", "binary_data"):
            output = {"name": "probabilities", "parameters": {key: value}}
            yield "POST", INFER, {"content": written(outputs=[output])}
    for header in (
        "content-type",
        "content-encoding",
        "authorization",
        "x-request-id",
        "inference-header-content-length",
    ):
        value = "".join(c for c in text if c.isprintable() and c.isascii()) or "x"
        for target in ("/classify", INFER):
            yield "POST", target, {"content": jpeg(), "headers": {header: value[:9000]}}


@pytest.mark.parametrize("name", ODD)
async def test_an_error_repeats_little_of_what_was_sent(tiny: Artifact, name: str) -> None:
    async with started(tiny, PODIUM_ADMIN_TOKEN="turn the key") as serving:
        client = client_of(serving)
        for method, target, named in odd_requests(ODD[name]):
            named["headers"] = {**KEY, **named.get("headers", {})}
            response = await client.request(method, target, **named)
            what = f"{method} {target[:60]}: {response.text[:300]}"
            assert response.status_code < 500, what
            assert response.headers.get("x-request-id"), what
            if response.status_code >= 400:
                message = response.json()["error"]
                text = message if isinstance(message, str) else message["message"]
                assert text and len(response.content) <= 1200, what
                assert printable(text) == text, what
        labels = set(serving.metrics.outcomes)
        assert {model for model, _ in labels} <= {"tiny", "unknown"}
        codes = {
            kind.code for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RequestError)
        }
        assert {outcome for _, outcome in labels} <= codes | {"ok", "client_gone"}


@pytest.mark.parametrize("text", ["a" * 5000, "\n" * 5000, "\ud800", "\x1b[0m" * 900])
def test_every_message_is_one_short_line(text: str) -> None:
    message = str(BadRequest(text))
    assert len(message) <= errors.LONGEST and message.isprintable()
    assert len(quoted(text)) < 1000 and quoted(text).isprintable()


async def test_every_refusal_is_counted(tiny: Artifact) -> None:
    async with started(tiny, **ADMIN) as serving, client_of(serving) as client:
        look = {"Authorization": "Bearer look"}

        async def total(method: str, path: str, status: int, **named: Any) -> None:
            before = sum(serving.metrics.outcomes.values())
            response = await client.request(method, path, **named)
            assert response.status_code == status, response.text
            assert sum(serving.metrics.outcomes.values()) == before + 1, path

        await total("DELETE", "/classify", 405)
        await total("POST", "/classify", 401, content=jpeg())
        await total("POST", "/classify", 200, content=jpeg(), headers=look)
        await total("POST", "/classify", 415, content=b"no", headers=look)
        await total(
            "POST", "/classify/batch", 400, content=b"no", headers={**look, "content-type": "multipart/form-data"}
        )
        await total("POST", "/compare", 200, content=jpeg(), headers=look)
        await total("POST", INFER, 200, content=written(), headers=look)
        await total("POST", INFER, 400, content=b"[", headers=look)
        await total("GET", "/models/none", 404, headers=look)
        await total("POST", "/models/none/load", 404, headers=KEY)
        await total("POST", "/models/none/unload", 404, headers=KEY)
        serving.closing = True
        await total("POST", "/classify", 503, content=jpeg(), headers=look)
        assert serving.metrics.outcomes["unknown", "shutting_down"] == 1
        serving.closing = False


# Tokens


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        ([b"Bearer look"], 200),
        ([b"bearer look"], 200),
        ([b"BEARER look"], 200),
        ([b"Bearer look", b"Bearer look"], 401),
        ([b"Bearer x", b"Bearer look"], 401),
        ([b"Bearer look", b"Basic eDp5"], 401),
        ([b"Bearer  look"], 401),
        ([b"Bearer look "], 401),
        ([b"Bearer\tlook"], 401),
        ([b"Bearer look, Bearer look"], 401),
        ([b"Bearer"], 401),
        ([b""], 401),
        ([b"look"], 401),
        ([b"Bearer l\xf6\xf6k"], 401),
        ([b"Bearer \xff" * 1000], 401),
        ([b"Bearer lool"], 401),
        ([b"Basic look"], 401),
    ],
)
async def test_only_one_bearer_token_is_accepted(tiny: Artifact, sent: list[bytes], status: int) -> None:
    statuses: list[int] = []

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    async def receive() -> Any:
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"authorization", value) for value in sent]
    scope = {"type": "http", "method": "GET", "path": "/models", "query_string": b"", "headers": headers}
    async with started(tiny, PODIUM_TOKEN="look") as serving:
        await Api(behind, serving)({**scope, "raw_path": b"/models"}, receive, send)
    assert statuses[0] == status


# Loading


async def test_a_version_must_be_named_in_full_and_once(tiny: Artifact, tmp_path: Path) -> None:
    other = save_tiny(tmp_path, classes=6)
    async with started(tiny, **ADMIN) as serving, client_of(serving) as client:

        async def refused(action: str, status: int, code: str) -> None:
            response = await client.post(f"/models/{action}", headers=KEY)
            assert is_error(response, status, code), action
            assert serving.models["tiny"].artifact.version == tiny.version, action

        version = other.version
        for wrong in (version[:-1], version[:4], version[:1], version.upper(), f"{version}0", "..", f"{version}:a",
                      "", "%20", f"{version}%0a", "a/b", "*"):  # fmt: skip
            if wrong != version:
                await refused(f"tiny/load?version={wrong}", 404, "unknown_model")
        for network in ("tin", "tiny2", version):
            await refused(f"{network}/load", 404, "unknown_model")
        # Paths that are not ours, and names that no model has.
        for network in ("TINY", f"tiny:{version[:4]}", f"tiny:{version}", "tiny.", "..", ""):
            await refused(f"{quote(network)}/load", 404, "not_found")
            with pytest.raises(errors.UnknownModel):
                await serving.load(network, "latest")
        for parameters in (
            f"version={version}&version={version}",
            f"version={version}&version=x",
            "Version=x",
            "a",
        ):
            await refused(f"tiny/load?{parameters}", 400, "bad_request")
        for parameters in ("version=x", f"version={tiny.version}", "a"):
            await refused(f"tiny/unload?{parameters}", 400, "bad_request")
        assert (await client.post("/models/tiny/load?version=latest", headers=KEY)).json()["version"] == version
        assert (await client.post(f"/models/tiny/load?version={tiny.version}", headers=KEY)).status_code == 200
        assert (await client.post("/models/tiny/load", headers=KEY)).json()["version"] == version
    import bentoml

    bentoml.models.delete(other.tag)


# Logs

FORGED = "2026-11-24T00:00:00+0000 [ERROR] FAKE"


@settings(max_examples=300, deadline=None)
@given(
    st.text(st.characters()) | st.sampled_from([f"{end}{FORGED}" for end in "\n\r\v\f\x1c\x1d\x1e\x85\u2028\u2029"]),
    st.booleans(),
    st.booleans(),
)
def test_a_log_line_is_one_line(text: str, as_json: bool, fails: bool) -> None:
    formatter = JsonLines() if as_json else logging.Formatter("LINE %(message)s")
    failure: Any = None
    if fails:
        try:
            raise ValueError(text)
        except ValueError as error:
            failure = (ValueError, error, error.__traceback__)
    record = OneLine("uvicorn.error", logging.ERROR, "file", 1, "asked for %s", (text,), failure)
    line = formatter.format(record)
    line.encode("utf-8")
    first, *rest = line.splitlines()
    assert printable(first) == first
    if as_json:
        assert not rest and json.loads(first)["message"].startswith("asked for ")
    else:
        assert bool(rest) == fails and all(one.startswith("  ") and printable(one) == one for one in rest)


@pytest.fixture
def protected() -> Iterator[None]:
    factory = logging.getLogRecordFactory()
    protect()
    yield
    logging.setLogRecordFactory(factory)


@pytest.mark.usefixtures("protected")
async def test_no_request_can_forge_a_line(tiny: Artifact, caplog: pytest.LogCaptureFixture) -> None:
    def broken(*_: object) -> Any:
        raise RuntimeError(f"a defect\n{FORGED}")

    paths = [f"/models/x{quote(end + FORGED)}" for end in ("\n", "\r\n", "\u2028", "\x85", "\x1b[2K\r", "\x00")]
    async with started(tiny) as serving, client_of(serving) as client:
        serving.closing = True
        for path in paths:
            for target in (path, path.replace("/models", "/v2/models"), f"{path}/load"):
                assert (await client.get(target)).status_code in (404, 405, 503)
        serving.closing = False
        serving.model = broken  # type: ignore[method-assign,assignment]
        assert (await client.get("/models/tiny")).status_code == 500
    assert [record.name for record in caplog.records if record.exc_info] == ["bentoml.podium"]
    for record in caplog.records:
        first, *rest = logging.Formatter("%(message)s").format(record).splitlines()
        assert first.isprintable() and not first.startswith(FORGED)
        assert all(line.startswith("  ") and line.isprintable() for line in rest)
        assert "\n" not in JsonLines().format(record)


def test_it_is_not_httpx_that_cleans_the_paths() -> None:
    assert httpx.URL(f"http://test/models/x{quote(chr(10) + FORGED)}").path == f"/models/x\n{FORGED}"
