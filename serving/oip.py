"""Open Inference Protocol v2 with the binary tensor extension: what a request says, and how an answer is written.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md. One input, `image`, UINT8
[n, height, width, channels]: pixels that are decoded and cropped already. One output, `probabilities`, FP32
[n, classes], or, where `classification` asks for the k likeliest, BYTES [n, k] of "probability:class:label".
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.preprocess import Label, Pixels
from serving.errors import BadRequest
from serving.runtime import Artifact, Scores

INPUT, OUTPUT = "image", "probabilities"
LENGTH = b"inference-header-content-length"

SERVER = {"name": "podium", "version": "2", "extensions": ["binary_tensor_data", "classification"]}


@dataclass(frozen=True)
class Request:
    """One inference request, checked."""

    images: Pixels
    id: str | None
    binary: bool
    classification: int


def metadata(artifact: Artifact, engine: str) -> dict[str, Any]:
    """What `GET /v2/models/NETWORK` answers."""
    return {
        "name": artifact.network,
        "versions": [artifact.version],
        "platform": f"podium_{engine}",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, *artifact.preprocess.shape]}],
        "outputs": [{"name": OUTPUT, "datatype": "FP32", "shape": [-1, artifact.classes]}],
    }


def parse(body: bytes, header_length: bytes, shape: tuple[int, int, int], classes: int, most: int) -> Request:
    """The request in `body`: JSON, of `header_length` bytes where binary tensors follow it.

    `shape` is one image's, `most` the images taken at once. Raises `BadRequest` that says what was expected.
    """
    if header_length and not header_length.isdigit():
        raise BadRequest("Inference-Header-Content-Length is not a number")
    length = int(header_length) if header_length else len(body)
    if length > len(body):
        raise BadRequest(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    try:
        said = json.loads(body[:length])
        (tensor,) = said["inputs"]
        name, kind, dims = tensor["name"], tensor["datatype"], [int(n) for n in tensor["shape"]]
        size = tensor.get("parameters", {}).get("binary_data_size")
        outputs = said.get("outputs") or [{"name": OUTPUT}]
        (output,) = outputs
        wishes = output.get("parameters", {})
        binary = bool(wishes.get("binary_data", said.get("parameters", {}).get("binary_data_output", False)))
        classification = int(wishes.get("classification", 0))
        id_ = said.get("id")
        names = (name, output["name"])
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise BadRequest(
            f"no inference request of the protocol: expected one input {INPUT} and one output {OUTPUT}"
        ) from None
    expected = f"{INPUT}, UINT8 [n, {', '.join(map(str, shape))}], n from 1 to {most}"
    if names != (INPUT, OUTPUT) or kind != "UINT8" or len(dims) != 4 or tuple(dims[1:]) != shape:
        raise BadRequest(
            f"the request has {name!r:.40}, {kind!r:.20} {dims}, for {names[1]!r:.40}; expected {expected}"
        )
    if not 1 <= dims[0] <= most:
        raise BadRequest(f"the request has {dims[0]} images; expected {expected}")
    if not 0 <= classification <= classes:
        raise BadRequest(f"classification is {classification}; there are {classes} classes")
    count = dims[0] * shape[0] * shape[1] * shape[2]
    return Request(_tensor(tensor, body[length:], size, count).reshape(dims), id_, binary, classification)


def _tensor(tensor: dict[str, Any], raw: bytes, size: Any, count: int) -> Pixels:
    if size is not None:
        if size != count or len(raw) != count:
            raise BadRequest(f"the binary tensor has {len(raw)} bytes and is said to have {size}; expected {count}")
        return np.frombuffer(raw, np.uint8)
    try:
        values = np.asarray(tensor["data"], dtype=np.int64).reshape(-1)
    except (KeyError, ValueError, TypeError, OverflowError):
        raise BadRequest("the input's data is missing, or is no list of whole numbers") from None
    if len(values) != count or values.min(initial=0) < 0 or values.max(initial=0) > 255:
        raise BadRequest(f"the input's data has {len(values)} values; expected {count}, each from 0 to 255")
    return values.astype(np.uint8)


def render(
    request: Request, scores: Scores, artifact: Artifact, labels: tuple[Label, ...]
) -> tuple[dict[str, Any], bytes]:
    """The answer's JSON, and the binary tensor behind it (empty where the data is in the JSON)."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": list(scores.shape)}
    raw = b""
    if request.classification:
        best = np.argsort(-scores, axis=1, kind="stable")[:, : request.classification]
        words = [f"{scores[i, c]:f}:{c}:{labels[c].label}" for i, row in enumerate(best) for c in row]
        output |= {"datatype": "BYTES", "shape": list(best.shape)}
        if request.binary:
            raw = b"".join(len(word := text.encode()).to_bytes(4, "little") + word for text in words)
        else:
            output["data"] = words
    elif request.binary:
        raw = np.ascontiguousarray(scores, "<f4").tobytes()
    else:
        output["data"] = scores.reshape(-1).tolist()
    if request.binary:
        output["parameters"] = {"binary_data_size": len(raw)}
    answer = {"model_name": artifact.network, "model_version": artifact.version, "outputs": [output]}
    return ({"id": request.id} if request.id else {}) | answer, raw
