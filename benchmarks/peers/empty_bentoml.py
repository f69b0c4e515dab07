# mypy: disable-error-code="untyped-decorator, attr-defined"
"""BentoML with an image endpoint that does nothing with its image (docs.bentoml.com), and Podium without what takes
the time: images are not decoded and no engine runs, everything else is as it is served.
"""

from __future__ import annotations

from typing import Any

import bentoml
import numpy as np
from PIL.Image import Image as Picture

import service
from benchmarks.peers import work
from serving.batcher import Batcher, Prepare, Scored


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Image:
    @bentoml.api
    def classify(self, image: Picture) -> dict[str, Any]:
        return {"bytes": image.width, "predictions": work.NOTHING}


SCORED = Scored(np.random.default_rng(0).dirichlet(np.ones(1000)).astype(np.float32), 0.0, 0.0, 0.0, 1)


async def scored_already(queue: Batcher, prepare: Prepare, deadline: float) -> Scored:  # noqa: ARG001
    return SCORED


Batcher.submit = scored_already  # type: ignore[method-assign, assignment]
Podium = service.Podium
