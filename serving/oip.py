"""Open Inference Protocol v2 with the binary tensor extension: reading requests and writing answers.

https://github.com/kserve/open-inference-protocol and Triton's extension_binary_data.md. One input, `image`, UINT8
[n, height, width, channels]: pixels that are already decoded and cropped. One output, `probabilities`, FP32
[n, classes]; or BYTES [n, k] of "probability:class:label" if `classification` asks for the k likeliest.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from models.preprocess import Label, Pixels
from serving.artifact import Artifact
from serving.engines import Scores
from serving.errors import BadRequest
from serving.text import quoted, read_json

INPUT, OUTPUT = "image", "probabilities"
LENGTH = b"inference-header-content-length"

SERVER = {"name": "podium", "version": "2", "extensions": ["binary_tensor_data", "classification"]}


@dataclass(frozen=True)
class Request:
    """One inference request as it was written: well formed, but not yet compared with a model."""

    input: str
    datatype: str
    shape: tuple[int, ...]
    pixels: bytes | memoryview | bytearray
    output: str
    id: str | None
    binary: bool
    classification: int

    @property
    def images(self) -> Pixels:
        """The pixels of a checked request, in their shape."""
        return np.frombuffer(self.pixels, np.uint8).reshape(self.shape)


class Malformed(ValueError):
    """What is wrong with a request. The client gets the message."""


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
    """`read` and `check` together, for a caller that knows the model."""
    request = read(body, header_length)
    check(request, shape, classes, most)
    return request


def read(body: bytes, header_length: bytes) -> Request:
    """The request in `body`: JSON, of `header_length` bytes if binary tensors follow it.

    It needs no model, so that the model can be looked up once, afterwards. Raises `BadRequest` with what was expected.
    """
    try:
        return _request(body, json_bytes(body, header_length))
    except Malformed as error:
        raise BadRequest(str(error)) from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise BadRequest(
            f"not an inference request: expected strict JSON with one input {INPUT} and one output {OUTPUT}"
        ) from None


def json_bytes(body: bytes, header_length: bytes) -> int:
    """How many bytes of `body` are JSON. Raises `BadRequest` if the header cannot be right."""
    if header_length and not (header_length.isdigit() and len(header_length) <= 18):
        raise BadRequest("Inference-Header-Content-Length is not a number of bytes")
    length = int(header_length) if header_length else len(body)
    if length > len(body):
        raise BadRequest(f"Inference-Header-Content-Length is {length}, the body has {len(body)} bytes")
    return length


def check(request: Request, shape: tuple[int, int, int], classes: int, most: int) -> Pixels:
    """The images of `request`, uint8 [n, height, width, channels], for a model whose images have `shape`.

    `most` is the largest number of images. Raises `BadRequest` with what was expected.
    """
    expected = f"{INPUT}, UINT8 [n, {', '.join(map(str, shape))}], n from 1 to {most}, for {OUTPUT}"
    named = (request.input, request.output, request.datatype) == (INPUT, OUTPUT, "UINT8")
    if not named or len(request.shape) != 4 or request.shape[1:] != shape:
        raise BadRequest(
            f"the request has {quoted(request.input, 40)}, {quoted(request.datatype, 20)} "
            f"{list(request.shape)}, for {quoted(request.output, 40)}; expected {expected}"
        )
    if not 1 <= request.shape[0] <= most:
        raise BadRequest(f"the request has {request.shape[0]} images; expected {expected}")
    if not 0 <= request.classification <= classes:
        raise BadRequest(f"classification is {request.classification}; there are {classes} classes")
    return request.images


# How a request is read. Python takes seconds to read 20 MB of JSON numbers, or of `[],[],`, and nothing else in this
# process runs meanwhile. So the only long part of a request, the list after the key "data", is cut out and read in
# pieces. What is left is short.

LONGEST_JSON = 64 << 10  # bytes beside the data
LONGEST_ID = 256
MOST_DIMENSIONS = 8
LARGEST = (1 << 31) - 1  # of a dimension and a count of bytes

DATA_KEY = re.compile(rb'"data"[ \t\r\n]*:[ \t\r\n]*(?=\[)')
PIECE = 64 << 10  # bytes of the data that are read at once, which takes about a millisecond
DIGITS = b"0123456789 \t\r\n"
NUMBERS = DIGITS + b","
UNBRACKETED = bytes.maketrans(b"[]", b"  ")
# A number next to a bracket without the comma between them.
GLUED = re.compile(rb"[0-9][ \t\r\n]*\[|\][ \t\r\n]*[0-9]")


class _Data:
    """Takes the place of the data that was cut out of the JSON."""


def _request(body: bytes, length: int) -> Request:
    start, end = _data(body, length)
    if length - (end - start) > LONGEST_JSON:
        raise Malformed(f"the request has more than {LONGEST_JSON:,} bytes of JSON beside the data of its input")
    places: list[_Data] = []

    def stand_in(name: str) -> _Data:
        if places or start == end:
            raise ValueError(f"{name} is not JSON")
        places.append(_Data())
        return places[0]

    # NaN marks the place, because no client may write it.
    document = read_json(body[:start] + (b"NaN" if end > start else b"") + body[end:length], stand_in)
    (tensor,) = _list(document, "inputs")
    (output,) = _list(document, "outputs", [{"name": OUTPUT}]) or [{"name": OUTPUT}]
    wanted, id_ = _object(output, "parameters"), document.get("id")
    if id_ is not None and not (isinstance(id_, str) and len(id_) <= LONGEST_ID):
        raise Malformed(f"id must be a text of at most {LONGEST_ID} characters")
    if len(dimensions := _list(tensor, "shape")) > MOST_DIMENSIONS:
        raise Malformed(f"the shape has {len(dimensions)} dimensions; expected 4")
    shape = tuple(_whole(n, "a dimension of the shape") for n in dimensions)
    binary = wanted.get("binary_data", _object(document, "parameters").get("binary_data_output", False))
    if not isinstance(binary, bool):
        raise Malformed("binary_data and binary_data_output must be true or false")
    size = _object(tensor, "parameters").get("binary_data_size")
    raw, count = memoryview(body)[length:], math.prod(shape)
    pixels: memoryview | bytearray
    if size is None:
        if raw or not places or tensor.get("data") is not places[0]:
            raise Malformed(
                "the input's data is missing, or is not a list of whole numbers from 0 to 255"
                if not raw
                else "bytes follow the JSON, and the input has no binary_data_size"
            )
        pixels = _values(body[start:end], shape, count)
    else:
        if "data" in tensor:
            raise Malformed("the input has both data and binary_data_size")
        if not (_whole(size, "binary_data_size") == len(raw) == count):
            raise Malformed(f"the binary tensor has {len(raw)} bytes, its binary_data_size is {size}; expected {count}")
        pixels = raw
    return Request(
        _text(tensor, "name"),
        _text(tensor, "datatype"),
        shape,
        pixels,
        _text(output, "name"),
        id_,
        binary,
        _whole(wanted.get("classification", 0), "classification"),
    )


def _data(body: bytes, length: int) -> tuple[int, int]:
    """Where the list of numbers after the first key "data" begins and ends; (0, 0) if there is none."""
    found = DATA_KEY.search(body, 0, min(length, LONGEST_JSON))
    if found is None:
        return 0, 0
    start = found.end()
    # A list of numbers is followed by the object's end, or by the quotes of its next key.
    ends = (body.find(b"}", start, length), body.find(b'"', start, length))
    end = body.rfind(b"]", start, min((at for at in ends if at >= 0), default=length)) + 1
    return (start, end) if end else (0, 0)


def _values(text: bytes, shape: tuple[int, ...], count: int) -> bytearray:
    """The bytes in a list of numbers, flat or nested as `shape` says; `text` is from its [ to its ]."""
    wrong = Malformed(f"the input's data is not {count} whole numbers from 0 to 255, in a list or nested as its shape")
    if not 0 < 2 * count < len(text):  # a digit and a comma each
        raise wrong
    if nested := text.count(b"[") > 1:
        lists = sum(math.prod(shape[:depth]) for depth in range(len(shape)))
        if 2 * lists + count > len(text) or text.translate(None, DIGITS) != _brackets(shape):
            raise wrong
    values, at, last = bytearray(), 1, len(text) - 1
    while at <= last:
        cut = text.find(b",", at + PIECE, last)
        piece = text[at : cut if cut >= 0 else last]
        at = cut + 1 if cut >= 0 else last + 1
        if nested:
            if GLUED.search(piece):
                raise wrong
            piece = piece.translate(UNBRACKETED)
        if piece.translate(None, NUMBERS):
            raise wrong
        try:
            row = bytes(json.loads(b"[%b]" % piece))
        except ValueError:  # not JSON, or over 255
            raise wrong from None
        values += row
        if not row or len(values) > count:
            raise wrong
    if len(values) != count:
        raise wrong
    return values


def _brackets(shape: tuple[int, ...]) -> bytes:
    """The brackets and commas of nested lists of `shape`."""
    inner = b""
    for size in reversed(shape):
        inner = b"[" + b",".join([inner] * size) + b"]"
    return inner


def _list(where: dict[str, Any], name: str, default: Any = None) -> list[Any]:
    if not isinstance(value := where.get(name, default), list):
        raise Malformed(f"{name} must be a list")
    return value


def _object(where: dict[str, Any], name: str) -> dict[str, Any]:
    if not isinstance(value := where.get(name, {}), dict):
        raise Malformed(f"{name} must be an object")
    return value


def _text(where: dict[str, Any], name: str) -> str:
    if not isinstance(value := where[name], str):
        raise Malformed(f"{name} must be a text")
    return value


def _whole(value: Any, name: str) -> int:
    """`value`, if it is a whole number by type: not 1.0, not "1", not true."""
    if type(value) is not int or not 0 <= value <= LARGEST:
        raise Malformed(f"{name} must be a whole number from 0 to {LARGEST}")
    return value


def render(
    request: Request, scores: Scores, artifact: Artifact, labels: tuple[Label, ...]
) -> tuple[dict[str, Any], bytes]:
    """The answer's JSON, and the binary tensor that follows it (empty if the data is in the JSON)."""
    output: dict[str, Any] = {"name": OUTPUT, "datatype": "FP32", "shape": list(scores.shape)}
    raw = b""
    if request.classification:
        best = np.argsort(-scores, axis=1, kind="stable")[:, : request.classification]
        words = [f"{scores[i, c]:f}:{c}:{labels[c].label}" for i, row in enumerate(best) for c in row]
        output |= {"datatype": "BYTES", "shape": list(best.shape)}
        if request.binary:
            raw = b"".join(len(word := text.encode("utf-8", "replace")).to_bytes(4, "little") + word for text in words)
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
