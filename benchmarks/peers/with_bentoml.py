# mypy: disable-error-code="untyped-decorator, attr-defined"
"""BentoML as its documentation shows it: `PIL.Image.Image` in, once plain and once batchable (docs.bentoml.com)."""

from typing import Any

import bentoml
import numpy as np
from PIL.Image import Image

from benchmarks.peers import work


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Plain:
    def __init__(self) -> None:
        self.classifier, self.names = work.classifier(), work.labels()

    @bentoml.api
    def classify(self, image: Image) -> dict[str, Any]:
        return work.answer(self.classifier.run(self.classifier.pixels(image)[None])[0], self.names)


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Batched:
    def __init__(self) -> None:
        self.classifier, self.names = work.classifier(), work.labels()

    @bentoml.api(batchable=True, max_batch_size=8, max_latency_ms=60_000)
    def classify(self, image: list[Image]) -> list[dict[str, Any]]:
        scores = self.classifier.run(np.stack([self.classifier.pixels(one) for one in image]))
        return [work.answer(row, self.names) for row in scores]
