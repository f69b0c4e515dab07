"""Versions swapped and unloaded at every point of a request: the answer always names the model that gave the scores.

The engine, the queue and the store are fakes, and every wait is one turn of the event loop. So a case is fixed by how
many turns after the request the swap begins, and every number of turns is tried.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from models.console import Failure
from models.preprocess import Label, Preprocess
from serving import classify
from serving.api import Api
from serving.batcher import Scored
from serving.classify import Model, Serving
from serving.errors import CLOSING, Closing
from serving.settings import Settings
from tests.fakes.interface import END, behind, part
from tests.fakes.pictures import jpeg

CLASSES = {"old": 1, "new": 2}  # the class that each version scores highest
SIDE = 4
TURNS = 40


def artifact(version: str) -> Any:
    return SimpleNamespace(
        network="net",
        version=version,
        tag=f"net:{version}",
        weights="untrained",
        classes=3,
        labels=tuple(Label(f"{version} {i}", None) for i in range(3)),
        preprocess=Preprocess(resize=SIDE, crop=SIDE),
        manifest={"max_batch": 8},
    )


class Engine:
    engine, precision, threads, closed = "fake", "fp32", 1, False

    def close(self) -> None:
        self.closed = True


class Queue:
    """A batcher that answers each image after two turns of the loop, with scores that identify its version."""

    def __init__(self, version: str, engine: Engine) -> None:
        self.engine, self.accepted, self.closing = engine, 0, False
        self.scores = np.full(3, 0.05, np.float32)
        self.scores[CLASSES[version]] = 0.9

    def check_room(self) -> None:
        if self.closing:
            raise Closing(CLOSING)

    @contextmanager
    def admit(self) -> Iterator[None]:
        self.check_room()
        self.accepted += 1
        try:
            yield
        finally:
            self.accepted -= 1

    async def submit(self, *_: object) -> Scored:
        for _turn in range(2):
            await asyncio.sleep(0)
            assert not self.engine.closed, "a model is closed under its images"
        return Scored(self.scores, 0.0, 0.0, 0.0, 1)

    async def close(self) -> None:
        self.closing = True
        while self.accepted:
            await asyncio.sleep(0)


def model(made_of: Any, engine: Any, _: int) -> Model:
    return Model(made_of, engine, Queue(made_of.version, engine))  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def one_turn_each(monkeypatch: pytest.MonkeyPatch) -> None:
    async def to_thread(call: Callable[..., Any], *arguments: Any) -> Any:
        await asyncio.sleep(0)
        return call(*arguments)

    def find(tag: str) -> Any:
        version = tag.partition(":")[2]
        if version not in CLASSES:
            raise Failure("no such model")
        return artifact(version)

    monkeypatch.setattr(asyncio, "to_thread", to_thread)
    monkeypatch.setattr(classify, "find", find)
    monkeypatch.setattr(classify, "give_back_memory", lambda: None)  # no model here holds any


def served() -> Serving:
    serving = Serving(Settings.read({}), [], CollectorRegistry())
    serving._model = model  # type: ignore[method-assign,assignment]
    serving._load = lambda _: (Engine(), 8)  # type: ignore[method-assign,assignment,return-value]
    serving.picture = lambda _: SimpleNamespace(pixels=len, prepare=len)  # type: ignore[method-assign,assignment,return-value]
    serving.metrics.add("net")
    serving.ready = True
    return serving


# Requests

PIXELS = [0] * (2 * SIDE * SIDE * 3)


def infer(binary: bool, classification: int, spaces: int = 0) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    tensor: dict[str, Any] = {"name": "image", "datatype": "UINT8", "shape": [2, SIDE, SIDE, 3]}
    tensor |= {"parameters": {"binary_data_size": len(PIXELS)}} if binary else {"data": PIXELS}
    output = {"name": "probabilities", "parameters": {"classification": classification}}
    head = json.dumps({"inputs": [tensor], "outputs": [output]}).encode()
    if not binary:
        return head.replace(b"[0, 0", b"[0," + b" " * spaces + b"0", 1), []
    return head + bytes(PIXELS), [(b"inference-header-content-length", b"%d" % len(head))]


FORM = [(b"content-type", b"multipart/form-data; boundary=B")]
REQUESTS: dict[str, tuple[str, bytes, list[tuple[bytes, bytes]]]] = {
    "classify": ("/classify", jpeg(), []),
    "classify by name": ("/classify?model=net", jpeg(), []),
    "form": ("/classify", part("image", jpeg()) + part("model", b"net") + END, FORM),
    "batch": ("/classify/batch", part("image", jpeg()) * 3 + END, FORM),
    "compare": ("/compare", jpeg(), []),
    "JSON": ("/v2/models/net/infer", *infer(False, 0)),
    "long JSON": ("/v2/models/net/infer", *infer(False, 1, spaces=100_000)),
    "binary": ("/v2/models/net/infer", *infer(True, 1)),
    "binary of the old": ("/v2/models/net/versions/old/infer", *infer(True, 1)),
    "JSON of the new": ("/v2/models/net/versions/new/infer", *infer(False, 0)),
}


async def ask(api: Api, name: str) -> tuple[int, Any]:
    """The status and the answer of one request, whose body arrives in three pieces, one turn apart."""
    path, body, headers = REQUESTS[name]
    path, _, query = path.partition("?")
    third = len(body) // 3 + 1
    pieces = [body[i : i + third] for i in range(0, len(body), third)]
    sent: list[Any] = []

    async def receive() -> Any:
        if not pieces:
            await asyncio.Event().wait()
        for _turn in range(2):
            await asyncio.sleep(0)
        return {"type": "http.request", "body": pieces.pop(0), "more_body": bool(pieces)}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "query_string": query.encode(), "headers": headers}
    await api({**scope, "raw_path": path.encode()}, receive, send)
    start, *bodies = sent
    return start["status"], json.loads(b"".join(message["body"] for message in bodies))


# What must always hold


def is_of_one_model(answer: dict[str, Any]) -> None:
    """The labels and the version of a classification are those of the model that gave the scores."""
    version, best = answer["version"], answer["predictions"][0]
    assert (best["class_id"], best["label"]) == (CLASSES[version], f"{version} {CLASSES[version]}")


def check(name: str, status: int, answer: Any, *, swaps_alone: bool) -> None:
    """`swaps_alone`: some version of the network was loaded all the time."""
    path = REQUESTS[name][0]
    if status != 200:
        assert status == 404, (name, status, answer)
        assert not swaps_alone or "/versions/" in path, (name, answer)
        return
    if path.startswith("/v2/"):
        version = answer["model_version"]
        assert "/versions/" not in path or f"/versions/{version}/" in path
        [output] = answer["outputs"]
        if output["datatype"] == "BYTES":
            assert output["data"] == [f"0.900000:{CLASSES[version]}:{version} {CLASSES[version]}"] * 2
        else:
            assert np.reshape(output["data"], output["shape"]).argmax(1).tolist() == [CLASSES[version]] * 2
        return
    results = answer.get("results", [answer])
    for result in results.values() if isinstance(results, dict) else results:
        if "error" in result:
            assert not swaps_alone and result["error"]["code"] == "unknown_model", result
        else:
            is_of_one_model(result)


Action = tuple[str, str]
SWAP, BACK, UNLOAD = ("load", "new"), ("load", "old"), ("unload", "")


async def act(serving: Serving, actions: list[tuple[int, Action]]) -> None:
    """Start each action the given number of turns after the previous one."""
    begun = []
    for turns, (kind, version) in actions:
        for _ in range(turns):
            await asyncio.sleep(0)
        work = serving.load("net", version) if kind == "load" else serving.unload("net")
        begun.append(asyncio.ensure_future(work))
    for result in await asyncio.gather(*begun, return_exceptions=True):
        assert not isinstance(result, AssertionError), result


async def play(api: Api, names: list[tuple[int, str]], actions: list[tuple[int, Action]]) -> list[tuple[int, Any]]:
    """The answers of the requests. Each starts after its turns; the old version is loaded at first."""
    serving = api.serving
    serving.models.clear()
    serving.models["net"] = model(artifact("old"), Engine(), 8)

    async def after(turns: int, name: str) -> tuple[int, Any]:
        for _ in range(turns):
            await asyncio.sleep(0)
        return await ask(api, name)

    tasks = [asyncio.ensure_future(after(turns, name)) for turns, name in names]
    changes = asyncio.ensure_future(act(serving, actions))
    for _ in range(1000):
        if changes.done() and all(task.done() for task in tasks):
            break
        await asyncio.sleep(0)
    assert changes.done() and all(task.done() for task in tasks), "a request or a swap waits forever"
    await changes
    assert all(not model.batcher.accepted for model in serving.models.values())
    return [task.result() for task in tasks]


@pytest.mark.parametrize("name", REQUESTS)
async def test_a_swap_at_any_turn_of_a_request(name: str) -> None:
    api, outcomes = Api(behind, served()), set()
    for turns in range(TURNS):
        for actions in ([(turns, SWAP)], [(turns, UNLOAD)], [(turns, UNLOAD), (0, SWAP)]):
            [(status, answer)] = await play(api, [(5, name)], actions)
            check(name, status, answer, swaps_alone=actions[0][1] == SWAP)
            outcomes.add("new" in json.dumps(answer) if status == 200 else status)
    assert len(outcomes) >= 2, "all swaps came before the look-up of the model, or all after it"


@pytest.mark.parametrize("name", REQUESTS)
async def test_two_swaps_at_any_turns_of_a_request(name: str) -> None:
    api = Api(behind, served())
    for first, second in itertools.product(range(16), range(8)):
        for actions in ([(first, SWAP), (second, BACK)], [(first, SWAP), (second, UNLOAD)]):
            [(status, answer)] = await play(api, [(0, name)], actions)
            check(name, status, answer, swaps_alone=actions[1][1] == BACK)


@pytest.mark.parametrize("seed", range(5))
async def test_many_requests_amid_many_swaps(seed: int) -> None:
    api, dice = Api(behind, served()), random.Random(seed)
    for _ in range(50):
        names = [(dice.randrange(30), dice.choice(list(REQUESTS))) for _ in range(8)]
        actions = [(dice.randrange(8), dice.choice([SWAP, BACK, UNLOAD])) for _ in range(6)]
        for (_turns, name), (status, answer) in zip(names, await play(api, names, actions), strict=True):
            check(name, status, answer, swaps_alone=UNLOAD not in [action for _, action in actions])
