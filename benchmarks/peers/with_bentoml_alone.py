# mypy: disable-error-code="untyped-decorator, attr-defined"
"""BentoML with an image endpoint that does nothing with its image (docs.bentoml.com)."""

from __future__ import annotations

from typing import Any

import bentoml
from PIL.Image import Image as Picture

from benchmarks.peers import work


@bentoml.service(workers=1, logging={"access": {"enabled": False}})
class Image:
    @bentoml.api
    def classify(self, image: Picture) -> dict[str, Any]:
        return {"width": image.width, "predictions": work.NOTHING}
