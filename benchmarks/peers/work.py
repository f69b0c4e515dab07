"""What the programs of the peers share, so that only the server differs: the network and the form of the answer.

Each program runs twice: with pixels and ONNX Runtime as a user of that server would write them (`Plain`), and with our
pixels and the engine that we would choose (`Ours`).
"""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from models.preprocess import Pixels, geometry, pixels
from serving import runtime
from serving.artifact import Artifact, load
from serving.engines import Scores

VARIABLE = "PODIUM_PEER"  # carries the job as JSON
TOP = 5

# The answer of servers that do no work.
NOTHING = [{"class_id": i, "label": "nothing", "probability": 0.2} for i in range(TOP)]


class Classifier(Protocol):
    def pixels(self, image: Image.Image) -> Pixels: ...

    def run(self, batch: Pixels) -> Scores: ...


class Plain:
    """Pillow's resize and crop, and ONNX Runtime with its own defaults; its sessions may be shared between threads."""

    def __init__(self, artifact: Artifact, precision: str) -> None:
        import onnxruntime as ort

        graph = artifact.file(artifact.graphs()["onnxruntime", precision])
        self.recipe = artifact.preprocess
        self.session = ort.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
        self.input = self.session.get_inputs()[0].name

    def pixels(self, image: Image.Image) -> Pixels:
        image = image.convert(self.recipe.mode)
        resized, (left, top) = geometry(image.size, self.recipe)
        image = image.resize(resized, Image.Resampling.BILINEAR)
        image = image.crop((left, top, left + self.recipe.crop, top + self.recipe.crop))
        # The graph normalises by itself: it takes bytes.
        return np.asarray(image, dtype=np.uint8).reshape(self.recipe.shape)

    def run(self, batch: Pixels) -> Scores:
        scores: Scores = self.session.run(None, {self.input: batch})[0]
        return scores


class Ours:
    """The same through `models.preprocess` and `serving.runtime`; one call at a time runs in an engine."""

    def __init__(self, artifact: Artifact, engine: str, precision: str, threads: int) -> None:
        self.recipe, self.turn = artifact.preprocess, threading.Lock()
        self.engine = runtime.open(artifact, engine, precision, threads)

    def pixels(self, image: Image.Image) -> Pixels:
        return pixels(image, self.recipe)

    def run(self, batch: Pixels) -> Scores:
        with self.turn:
            return self.engine.run(batch)


def job() -> dict[str, Any]:
    work: dict[str, Any] = json.loads(os.environ[VARIABLE])
    return work


def classifier() -> Classifier:
    work = job()
    artifact = load(Path(work["folder"]), work["version"])
    if work["ours"]:
        return Ours(artifact, work["engine"], work["precision"], work["threads"])
    return Plain(artifact, work["precision"])


def labels() -> list[str]:
    work = job()
    return [label.label for label in load(Path(work["folder"]), work["version"]).labels]


def answer(scores: Any, names: list[str]) -> dict[str, Any]:
    """The likeliest classes of one image, from its scores [classes]."""
    best = np.argsort(scores)[::-1][:TOP]
    return {"predictions": [{"class_id": int(i), "label": names[i], "probability": float(scores[i])} for i in best]}
