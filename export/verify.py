"""Check an artifact in the store: every file's sha256, and that the engines here agree on its answers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from export import parity
from models.console import Failure
from serving.artifact import Artifact
from serving.runtime import PLAN_ENGINES, available, open, unusable


def verify(artifact: Artifact, folder: Path | None = None) -> Iterator[str]:
    """Check `artifact` on the photographs in `folder` (default: the examples); yields a line for each file.

    Raises `Failure` for a file that has changed, or one that gives different answers in two engines.
    """
    for name in artifact.manifest["files"]:
        artifact.file(name)
    if len(artifact.labels) != artifact.classes:
        raise Failure(f"{artifact.tag}: {len(artifact.labels)} labels for {artifact.classes} classes; export it again")
    images = parity.inputs(artifact.preprocess, parity.photographs(folder) if folder else ())
    answers: dict[str, Any] = {}
    for (engine, precision), name in artifact.graphs().items():
        verdict = artifact.manifest["files"][name].get("parity", {}).get("verdict")
        if verdict != "pass" and not (engine in PLAN_ENGINES and verdict == "not run"):
            raise Failure(f"{artifact.tag}: {name} has no passed parity on record ({verdict}); export it again")
        if engine not in available():
            yield f"{name}  {engine} {precision}  sha256 checked, recorded parity: {verdict}; {unusable(engine)}"
            continue
        runtime = open(artifact, engine, precision)
        answer = parity.scores(runtime.run, images.batch, (1, 5), f"{artifact.tag} in {engine}")
        runtime.close()
        if answer.shape != (len(images.batch), artifact.classes) or not np.allclose(answer.sum(1), 1, atol=1e-3):
            raise Failure(f"{artifact.tag}: {engine} gives {answer.shape}, not probabilities; export it again")
        # Engines that run the same file must agree on this machine too.
        first = answers.setdefault(name, answer)
        again = parity.compare(first, answer, images, parity.limits(precision, artifact.weights))
        if not again.passed:
            raise Failure(f"{artifact.tag}: {engine} disagrees on {name} on this machine: {'; '.join(again.failures)}")
        yield f"{name}  {engine} {precision}  sha256 and {len(images.batch)} images checked, parity passed"
    yield f"{artifact.tag} is whole ({artifact.weights.upper()} weights)"
