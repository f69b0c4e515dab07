"""The OpenAPI document at `/docs.json`: what every route takes, and every status that it can answer.

A route has its path, its method and who may use it. The table `OPERATIONS` adds the rest.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from serving.errors import (
    BadRequest,
    Closing,
    DamagedImage,
    DeadlinePassed,
    InferenceFailed,
    LargeHead,
    NotReady,
    Overloaded,
    RequestError,
    SlowRequest,
    TooLarge,
    TooManyConnections,
    Unauthorized,
    UnknownModel,
    Unloadable,
    UnsupportedImage,
)
from serving.images import CONTENT_TYPES
from serving.routes import NAME, PARAMETER, Route

Json = dict[str, Any]
Errors = tuple[type[RequestError], ...]


def ref(name: str) -> Json:
    return {"$ref": f"#/components/schemas/{name}"}


def record(required: Json, **optional: Json) -> Json:
    """The schema of an object with these fields."""
    return {"type": "object", "properties": {**required, **optional}, "required": list(required)}


def array(items: Json) -> Json:
    return {"type": "array", "items": items}


TEXT: Json = {"type": "string"}
NUMBER: Json = {"type": "number"}
WHOLE: Json = {"type": "integer"}
OBJECT: Json = {"type": "object"}
BYTES: Json = {"type": "string", "format": "binary"}
TOP_K: Json = {"type": "integer", "minimum": 1}

IDENTITY: Json = {
    "model": TEXT,
    "version": TEXT,
    "engine": TEXT,
    "precision": TEXT,
    "weights": {
        "type": "string",
        "description": "`untrained`: the weights are random, and the answers are noise",
    },
}
OUTCOME: Json = {"oneOf": [ref("Classification"), ref("Error")]}

SCHEMAS: dict[str, Json] = {
    "Error": record({"error": record({"code": TEXT, "message": TEXT})}),
    "ProtocolError": record({"error": TEXT}),
    "Prediction": record({
        "class_id": WHOLE,
        "synset": {"type": ["string", "null"]},
        "label": TEXT,
        "probability": {"type": "number", "minimum": 0, "maximum": 1},
    }),
    "Classification": record({
        **IDENTITY,
        "predictions": array(ref("Prediction")),
        "timing_ms": record(dict.fromkeys(("decode", "queue", "inference", "total"), NUMBER)),
        "batch_size": WHOLE,
    }),
    "Batch": record({"results": array(OUTCOME)}),
    "Comparison": record({"results": {"type": "object", "additionalProperties": OUTCOME}}),
    "Model": record(IDENTITY),
    "Models": record({"default": {"type": ["string", "null"]}, "models": array(ref("Model"))}),
    "Details": record({**IDENTITY, "manifest": OBJECT}),
    "Unloaded": record({"unloaded": TEXT}),
    "Live": record({"live": {"const": True}}),
    "Ready": record({"ready": {"const": True}}),
    "Results": record({"results": {"type": ["object", "null"]}}),
    "Document": OBJECT,
    "Server": record({"name": TEXT, "version": TEXT, "extensions": array(TEXT)}),
    "Tensor": record({"name": TEXT, "datatype": TEXT, "shape": array(WHOLE)}),
    "Metadata": record({
        "name": TEXT,
        "versions": array(TEXT),
        "platform": TEXT,
        "inputs": array(ref("Tensor")),
        "outputs": array(ref("Tensor")),
    }),
    "Inference": record(
        {"inputs": array(ref("Tensor"))},
        id=TEXT,
        outputs=array(record({"name": TEXT})),
        parameters=OBJECT,
    ),
    "Inferred": record({"model_name": TEXT, "model_version": TEXT, "outputs": array(ref("Tensor"))}, id=TEXT),
}  # fmt: skip

RAW_IMAGE: Json = {kind: {"schema": {**BYTES, "minLength": 1}} for kind in sorted(CONTENT_TYPES)}
FORM: Json = {"multipart/form-data": {"schema": record({"image": BYTES}, model=TEXT, top_k=TOP_K)}}
IMAGES: Json = {"multipart/form-data": {"schema": record({"image": array(BYTES)}, model=TEXT, top_k=TOP_K)}}
COMPARED: Json = {"multipart/form-data": {"schema": record({"image": BYTES}, top_k=TOP_K)}}
TENSORS: Json = {"application/json": {"schema": ref("Inference")}, "application/octet-stream": {"schema": BYTES}}

# The errors that any request can get: it is malformed, it is slow, its head is too large, there are too many
# connections, or Podium has a defect.
ALWAYS: Errors = (BadRequest, SlowRequest, LargeHead, TooManyConnections, InferenceFailed)
GUARDED: Errors = (Unauthorized, Closing)
IMAGE: Errors = (TooLarge, UnsupportedImage)
RUN: Errors = (UnknownModel, Overloaded, DeadlinePassed)
# Errors with Retry-After.
LATER: Errors = (Overloaded, Closing, TooManyConnections)


@dataclass(frozen=True)
class Operation:
    """The description of a route. `answers` names a schema, or is the content type of an answer that is not JSON."""

    summary: str
    answers: str
    errors: Errors = ()
    body: Json = field(default_factory=dict)
    query: dict[str, Json] = field(default_factory=dict)
    status: int = 200


MODEL_AND_TOP_K: dict[str, Json] = {"model": TEXT, "top_k": TOP_K}

# fmt: off
OPERATIONS: dict[tuple[str, str], Operation] = {
    ("POST", "/classify"): Operation("The likeliest classes of one image", "Classification", (*IMAGE, *RUN, DamagedImage), {**RAW_IMAGE, **FORM}, MODEL_AND_TOP_K),  # noqa: E501
    ("POST", "/classify/batch"): Operation("Many images: an answer or an error for each, in order", "Batch", (*IMAGE, UnknownModel), IMAGES, MODEL_AND_TOP_K),  # noqa: E501
    ("POST", "/compare"): Operation("One image through every model: an answer or an error by model", "Comparison", IMAGE, {**RAW_IMAGE, **COMPARED}, {"top_k": TOP_K}),  # noqa: E501
    ("GET", "/models"): Operation("What is loaded", "Models"),
    ("GET", "/models/NETWORK"): Operation("One loaded model with its manifest", "Details", (UnknownModel,)),
    ("POST", "/models/NETWORK/load"): Operation("Serve a version, by default the newest, in place of the loaded one", "Model", (UnknownModel, Unloadable), query={"version": TEXT}),  # noqa: E501
    ("POST", "/models/NETWORK/unload"): Operation("Stop serving a model after it has answered what it accepted", "Unloaded", (UnknownModel,)),  # noqa: E501
    ("GET", "/v2"): Operation("The server's name, version and extensions", "Server"),
    ("GET", "/v2/health/live"): Operation("The process answers", "Live"),
    ("GET", "/v2/health/ready"): Operation("Every model is loaded and warm", "Ready", (NotReady,)),
    ("GET", "/livez"): Operation("The process answers", "Live"),
    ("GET", "/readyz"): Operation("Every model is loaded and warm", "Ready", (NotReady,)),
    ("GET", "/metrics"): Operation("Figures for Prometheus", "text/plain"),
    ("GET", "/"): Operation("Redirect to the page", "text/plain", status=307),
    ("GET", "/ui"): Operation("Redirect to the page", "text/plain", status=308),
    ("GET", "/ui/"): Operation("The page", "text/html"),
    ("GET", "/ui/results.json"): Operation("The newest result file without its single values, or null", "Results"),
    ("GET", "/docs.json"): Operation("This document", "Document"),
    ("GET", "/schema.json"): Operation("What BentoML's clients read", "Document"),
    **{
        (method, f"/v2/models/NETWORK{version}{action}"): operation
        for version in ("", "/versions/VERSION")
        for method, action, operation in (
            ("GET", "", Operation("A model's inputs and outputs", "Metadata", (UnknownModel,))),
            ("GET", "/ready", Operation("The model is loaded", "Ready", (UnknownModel,))),
            ("POST", "/infer", Operation("Probabilities for pixels: uint8 [n, height, width, channels]; as application/octet-stream, JSON followed by the tensor", "Inferred", (TooLarge, *RUN), TENSORS)),  # noqa: E501
        )
    },
}
# fmt: on

HEADERS: Json = {"X-Request-ID": {"description": "The request's own id, or a new one", "schema": TEXT}}
RETRY_AFTER: Json = {"Retry-After": {"description": "Seconds after which to ask again", "schema": WHOLE}}
LOCATION: Json = {"Location": {"schema": TEXT}}


def document(routes: Iterable[Route], guarded: bool) -> Json:
    """The document for these routes. A `guarded` server asks for PODIUM_TOKEN.

    Raises `KeyError` if `OPERATIONS` does not describe a route.
    """
    paths: dict[str, Json] = defaultdict(dict)
    for route in routes:
        paths[PARAMETER.sub(r"{\1}", route.path)][route.method.lower()] = described(route, guarded)
    schemes = {
        "user": {"type": "http", "scheme": "bearer", "description": "PODIUM_TOKEN"},
        "admin": {"type": "http", "scheme": "bearer", "description": "PODIUM_ADMIN_TOKEN; off if it is not set"},
    }
    about = "HEAD is answered wherever GET is. Any other method is 405 with Allow, any other path is 404."
    return {
        "openapi": "3.1.0",
        "info": {"title": "Podium", "version": "1", "description": about},
        "paths": paths,
        "components": {"schemas": SCHEMAS, "securitySchemes": schemes},
    }


def described(route: Route, guarded: bool) -> Json:
    operation = OPERATIONS[route.method, route.path]
    errors = (*ALWAYS, *operation.errors, *(GUARDED if route.access != "open" else ()))
    found: Json = {
        "operationId": re.sub(r"\W+", "_", f"{route.method}{route.path}").strip("_"),
        "summary": operation.summary,
        "parameters": parameters(route, operation),
        "responses": {str(operation.status): answer(operation), **refusals(route, errors)},
    }
    if operation.answers == "text/html":
        found["responses"]["304"] = {"description": "The browser's copy is still right", "headers": HEADERS}
    if operation.body:
        found["requestBody"] = {"required": True, "content": operation.body}
    if route.access == "admin" or (route.access == "user" and guarded):
        found["security"] = [{route.access: []}]
    return found


def parameters(route: Route, operation: Operation) -> list[Json]:
    name = {"type": "string", "pattern": f"^{NAME}$"}
    return [
        *({"name": n, "in": "path", "required": True, "schema": name} for n in PARAMETER.findall(route.path)),
        *({"name": n, "in": "query", "schema": schema} for n, schema in operation.query.items()),
    ]


def answer(operation: Operation) -> Json:
    headers = {**HEADERS, **(LOCATION if operation.status >= 300 else {})}
    if "/" in operation.answers:
        return {"description": operation.summary, "headers": headers, "content": {operation.answers: {"schema": TEXT}}}
    content: Json = {"application/json": {"schema": ref(operation.answers)}}
    if operation.answers == "Inferred":
        content["application/octet-stream"] = {"schema": BYTES}
    return {"description": operation.summary, "headers": headers, "content": content}


def refusals(route: Route, errors: Sequence[type[RequestError]]) -> Json:
    """The responses that are errors, by status. Several errors may share a status."""
    by_status: dict[int, list[type[RequestError]]] = defaultdict(list)
    for error in errors:
        by_status[error.status].append(error)
    # A request that is refused before its path is known gets the form of all other errors.
    schema = {"oneOf": [ref("ProtocolError"), ref("Error")]} if route.path.startswith("/v2/") else ref("Error")
    return {
        str(status): {
            "description": ", ".join(f"`{error.code}`" for error in kinds),
            "headers": {**HEADERS, **(RETRY_AFTER if any(kind in kinds for kind in LATER) else {})},
            "content": {"application/json": {"schema": schema}},
        }
        for status, kinds in sorted(by_status.items())
    }
