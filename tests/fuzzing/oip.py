"""Inference requests: an accepted one means what a strict reader says, and its answer is JSON.

An input is the header Inference-Header-Content-Length, a line feed, and a body.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np

from models.preprocess import Label
from serving import oip
from serving.errors import RequestError
from serving.exchange import encode
from tests.fuzzing.target import Defect, Target

SHAPE, CLASSES, MOST = (2, 3, 3), 4, 5
LABELS = tuple(Label(label) for label in ('a "quoted" one', "b\u2028", "c", "d"))
MODEL: Any = SimpleNamespace(network="tiny", version="1")
FAULTS = (400, 413)


def run(data: bytes) -> None:
    length, _, body = data.partition(b"\n")
    try:
        request = oip.parse(body, length, SHAPE, CLASSES, MOST)
    except RequestError as error:
        if error.status not in FAULTS:
            raise Defect(f"{error.status} {error}") from error
        return
    if len(json.dumps(str(request.id))) > 10_000:
        raise Defect(f"an id of {len(str(request.id))} characters is given back")
    said = strict(body[: int(length) if length else len(body)])
    expected = tensor(said, body[int(length) :] if length else b"")
    if not np.array_equal(request.images, expected) or request.images.dtype != np.uint8:
        raise Defect(f"{request.images.reshape(-1)} of {expected.reshape(-1)}")
    scores = np.linspace(0, 1, len(request.images) * CLASSES, dtype=np.float32).reshape(-1, CLASSES)
    answer, raw = oip.render(request, scores, MODEL, LABELS)
    back = strict(encode(answer))
    if back.get("id") != (said.get("id") or None) or back["outputs"][0]["shape"][0] != len(request.images):
        raise Defect(f"{back} for {said.get('id')!r}")
    if back["outputs"][0].get("parameters", {}).get("binary_data_size", 0) != len(raw):
        raise Defect(f"{back['outputs'][0]} before {len(raw)} bytes")


def strict(text: bytes) -> Any:
    """The JSON (RFC 8259) in `text`, in which no name occurs twice."""

    def no(constant: str) -> NoReturn:
        raise Defect(f"{constant} is taken for JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return dict(pairs)

    try:
        return json.loads(text.decode(), parse_constant=no, object_pairs_hook=once)
    except ValueError as error:
        raise Defect(f"{error}: {text[:80]!r} is taken for JSON") from error


def tensor(said: dict[str, Any], raw: bytes) -> np.ndarray[Any, Any]:
    """The pixels, each of them a whole number from 0 to 255, or Defect."""
    (given,) = said["inputs"]
    if not all(type(n) is int for n in given["shape"]):
        raise Defect(f"the shape {given['shape']} is taken")
    if given.get("parameters", {}).get("binary_data_size") is not None:
        return np.frombuffer(raw, np.uint8).reshape(given["shape"])
    values = given["data"]
    while values and isinstance(values[0], list):
        values = [value for row in values for value in row]
    if not all(type(value) is int and 0 <= value <= 255 for value in values):
        raise Defect(f"the data {values!r:.200} are taken")
    return np.array(values, np.uint8).reshape(given["shape"])


TARGET = Target(run, seconds=1.0, memory=50_000_000)
