# mypy: disable-error-code="untyped-decorator"
"""FastAPI: an uploaded file to a plain function, which FastAPI runs in its thread pool (fastapi.tiangolo.com)."""

from __future__ import annotations

from typing import Any

import uvicorn
from fastapi import FastAPI, UploadFile
from PIL import Image

from benchmarks.peers import work

app = FastAPI()
classifier, names = work.classifier(), work.labels()


@app.post("/classify")
def classify(image: UploadFile) -> dict[str, Any]:
    pixels = classifier.pixels(Image.open(image.file))
    return work.answer(classifier.run(pixels[None])[0], names)


if __name__ == "__main__":
    uvicorn.run(app, host="127.0.0.1", port=work.job()["port"], log_level="warning")
