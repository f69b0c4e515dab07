# mypy: disable-error-code="untyped-decorator, misc, attr-defined, no-untyped-call"
"""Ray Serve: a deployment behind FastAPI that gathers batches with `serve.batch` (docs.ray.io/en/latest/serve)."""

from __future__ import annotations

import signal
import threading
from io import BytesIO
from typing import Any

import numpy as np
import ray
from PIL import Image
from ray import serve
from starlette.requests import Request

from benchmarks.peers import work


@serve.deployment(max_ongoing_requests=64)
class Classifier:
    def __init__(self) -> None:
        self.classifier, self.names = work.classifier(), work.labels()

    @serve.batch(max_batch_size=8, batch_wait_timeout_s=0.0)
    async def predict(self, pixels: list[Any]) -> list[Any]:
        return list(self.classifier.run(np.stack(pixels)))

    async def __call__(self, request: Request) -> dict[str, Any]:
        body = await (await request.form())["image"].read()  # type: ignore[union-attr]
        return work.answer(await self.predict(self.classifier.pixels(Image.open(BytesIO(body)))), self.names)


if __name__ == "__main__":
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    # All its ports are on this machine alone.
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": work.job()["port"]})
    serve.run(Classifier.bind(), route_prefix="/classify")
    stop.wait()
    serve.shutdown()
