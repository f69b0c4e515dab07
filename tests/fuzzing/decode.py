"""Images: pixels of the right kind, or an error that names the fault of the image, at a bounded cost."""

from __future__ import annotations

import numpy as np

from models.preprocess import Preprocess
from serving.errors import RequestError
from serving.images import decode
from serving.limits import Limits
from tests.fuzzing.target import Defect, Target

# Small, so that every image within the limits is cheap, and one that is not is a finding.
MOST_PIXELS, MOST_SECONDS = 2_000_000, 1.0
LIMITS = Limits(MOST_PIXELS, MOST_SECONDS)
RECIPES = (Preprocess(resize=36, crop=32), Preprocess(resize=28, crop=28, mode="L", mean=(0.13,), std=(0.31,)))
FAULTS = (413, 415, 422)


def run(body: bytes) -> None:
    recipe = RECIPES[len(body) % len(RECIPES)]
    try:
        pixels = decode(body, recipe, LIMITS)
    except RequestError as error:
        if error.status not in FAULTS:
            raise Defect(f"{error.status} {error}") from error
        return
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape != recipe.shape:
        raise Defect(f"{type(pixels)} {pixels.dtype} {pixels.shape} for {recipe.shape}")


TARGET = Target(run, seconds=2.0, memory=200_000_000)
