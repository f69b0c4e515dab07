"""Small pictures, as pixels and as the bytes of a file."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def jpeg(colour: str = "orange") -> bytes:
    return encoded(Image.new("RGB", (50, 40), colour), "JPEG")


def photograph(width: int = 64, height: int = 48) -> Image.Image:
    """A picture that no rotation or mirroring maps onto itself."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + 2 * y) / 3], -1).astype(np.uint8))


def encoded(image: Image.Image, name: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()
