"""The photographs that are sent."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from models.console import Usage

SUFFIXES = {
    ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".png": "image/png", ".webp": "image/webp", ".bmp": "image/bmp",
    ".gif": "image/gif", ".tif": "image/tiff", ".tiff": "image/tiff",
}  # fmt: skip


@dataclass(frozen=True)
class Body:
    data: bytes
    content_type: str


def photographs(folder: Path) -> list[Body]:
    """The image files of `folder`, by name; `Usage` if there are none."""
    files = sorted(p for p in folder.glob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not files:
        raise Usage(f"{folder} holds no image files ({', '.join(SUFFIXES)}); give a folder of photographs to --images")
    return [Body(path.read_bytes(), SUFFIXES[path.suffix.lower()]) for path in files]


def synthetic_photograph(width: int = 500, height: int = 375) -> Body:
    """A JPEG of ImageNet's usual size, with detail that makes it as large and as slow to decode as a photograph."""
    from PIL import Image

    coarse = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return Body(file.getvalue(), "image/jpeg")


def chosen(folder: Path | None) -> list[Body]:
    """The photographs of `folder`; a synthetic one without a folder."""
    return photographs(folder) if folder else [synthetic_photograph()]
