"""Top-1 and top-5 accuracy of an artifact on labelled photographs, with its interval."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np

from export.parity import photographs, read
from models.console import Failure, progress
from models.preprocess import Label
from serving.artifact import Artifact
from serving.runtime import available, choose, open

BATCH = 8


@dataclass(frozen=True)
class Accuracy:
    """The share of `hits` in `images` in percent, with Wilson's 95 % interval (JASA 22, 1927)."""

    hits: int
    images: int

    @property
    def percent(self) -> float:
        return 100 * self.hits / self.images

    @property
    def interval(self) -> tuple[float, float]:
        z, n, p = 1.96, self.images, self.hits / self.images
        centre, half = p + z * z / (2 * n), z * sqrt(p * (1 - p) / n + z * z / (4 * n * n))
        return 100 * (centre - half) / (1 + z * z / n), 100 * (centre + half) / (1 + z * z / n)

    def record(self) -> dict[str, Any]:
        return {"percent": self.percent, "interval": list(self.interval), "hits": self.hits, "images": self.images}

    def __str__(self) -> str:
        low, high = self.interval
        return f"{self.percent:.1f} % ({low:.1f} to {high:.1f})"


@dataclass(frozen=True)
class Evaluation:
    """The result of `evaluate`; `predictions` holds the top five (class, probability) of every photograph."""

    tag: str
    engine: str
    precision: str
    weights: str
    top1: Accuracy
    top5: Accuracy
    predictions: dict[str, list[tuple[int, float]]]

    def record(self) -> dict[str, Any]:
        head = {"tag": self.tag, "engine": self.engine, "precision": self.precision, "weights": self.weights}
        return {**head, "top1": self.top1.record(), "top5": self.top5.record()}


def labelled(folder: Path, labels: Sequence[Label]) -> list[tuple[Path, int]]:
    """The photographs under `folder` and their classes. Raises `Failure` if a class is not known."""
    known, why = truth(folder, labels)
    if why:
        raise Failure(why)
    if not known:
        raise Failure(f"{folder} holds no labelled photographs")
    return list(known.items())


def truth(folder: Path, labels: Sequence[Label]) -> tuple[dict[Path, int], str]:
    """The classes of the photographs under `folder`, and why some are not known ("" if all are).

    They come from its labels.json (file to class index), else from the name of the subfolder of each photograph: a
    synset, a label or a class index. Raises `Failure` if labels.json does not fit the photographs or the network.
    """
    table = folder / "labels.json"
    if table.is_file():
        return _from_table(table, len(labels)), ""
    names = _classes_by_name(labels)
    known, why = {}, ""
    for path in photographs(folder):
        name = path.parent.name if path.parent != folder else ""
        classes = names.get(name, set())
        if len(classes) == 1:
            known[path] = min(classes)
        elif classes:
            several = ", ".join(map(str, sorted(classes)))
            why = why or f"{folder}: {name!r} names the classes {several}; use one folder per synset, or a labels.json"
        else:
            why = why or (
                f"{folder}: {name or path.name!r} names none of the {len(labels)} classes; use one folder per synset, "
                "label or class index, or a labels.json from file name to class index"
            )
    return known, why


def _from_table(table: Path, classes: int) -> dict[Path, int]:
    try:
        rows = json.loads(table.read_text("utf-8")).items()
        known = {table.parent / str(name): int(index) for name, index in rows}
    except (ValueError, AttributeError, TypeError) as error:
        raise Failure(f"{table}: expected a JSON object from file name to class index ({error})") from error
    absent = [path.name for path in known if not path.is_file()]
    if absent:
        raise Failure(f"{table} names {len(absent)} files that are not there, {absent[0]} the first")
    wrong = [index for index in known.values() if not 0 <= index < classes]
    if wrong:
        raise Failure(f"{table}: class {wrong[0]} is outside the {classes} classes of the network")
    return known


def _classes_by_name(labels: Sequence[Label]) -> dict[str, set[int]]:
    """The classes that each folder's name can mean: two may share a label, and a label may be another's index."""
    classes: dict[str, set[int]] = {}
    for index, label in enumerate(labels):
        for name in {str(index), label.label, label.synset} - {None, ""}:
            classes.setdefault(str(name), set()).add(index)
    return classes


def sides(artifact: Artifact, engine: str = "all", precision: str = "all") -> list[tuple[str, str]]:
    """The (engine, precision) pairs of `artifact` that are asked for and installed here; "all" asks for every one."""
    installed = available()
    fitting = [
        (e, p) for e, p in artifact.graphs() if e in installed and engine in ("all", e) and precision in ("all", p)
    ]
    return fitting or [choose(artifact, engine, precision)[:2]]  # whose error says what there is


def evaluate(artifact: Artifact, folder: Path, engine: str = "auto", precision: str = "auto") -> Evaluation:
    """Run `artifact` over the labelled photographs in `folder`, `BATCH` at a time."""
    known = labelled(folder, artifact.labels)
    runtime = open(artifact, engine, precision)
    top1 = top5 = 0
    predictions = {}
    chunks = [known[i : i + BATCH] for i in range(0, len(known), BATCH)]
    for chunk in progress(chunks, f"{artifact.tag} in {runtime.engine}"):
        scores = runtime.run(np.stack([read(path, artifact.preprocess) for path, _ in chunk]))
        ranked = np.argsort(-scores, 1, kind="stable")[:, :5]
        for (path, answer), row, best in zip(chunk, scores, ranked, strict=True):
            top1 += int(best[0] == answer)
            top5 += int(answer in best)
            predictions[str(path.relative_to(folder))] = [(int(i), float(row[i])) for i in best]
    runtime.close()
    n = len(known)
    head = (artifact.tag, runtime.engine, runtime.precision, artifact.weights)
    return Evaluation(*head, Accuracy(top1, n), Accuracy(top5, n), predictions)
