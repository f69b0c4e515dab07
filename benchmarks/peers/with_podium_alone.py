"""Podium without the work: no image is decoded and no engine runs; everything else is as in the service."""

from __future__ import annotations

import numpy as np

import service
from serving.batcher import Batcher, Prepare, Scored

SCORED = Scored(np.random.default_rng(0).dirichlet(np.ones(1000)).astype(np.float32), 0.0, 0.0, 0.0, 1)


async def scored_already(queue: Batcher, prepare: Prepare, deadline: float) -> Scored:  # noqa: ARG001
    return SCORED


Batcher.submit = scored_already  # type: ignore[method-assign, assignment]
Podium = service.Podium
