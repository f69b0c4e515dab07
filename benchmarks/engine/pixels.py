"""From the bytes of a photograph to a network's pixels: Pillow's way and ours, in turns, on the same bytes."""

from __future__ import annotations

import io
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
from PIL import Image, ImageOps

from benchmarks import tables
from benchmarks.records import significant
from models.preprocess import Pixels, Preprocess, flatten, slow_pixels
from serving.images import check, decode, decode_here, image_format
from serving.limits import Limits
from serving.memory import bound_heap, give_back_memory

# What encoders write by default, but for a JPEG of the quality that telephones take and a PNG that is written fast.
OPTIONS = {"JPEG": {"quality": 88}, "PNG": {"compress_level": 1}, "WEBP": {"quality": 88}}
MEGAPIXELS_OF_A_KIND = 25.0  # so many are made of each size and format, and at least one photograph
LIMITS = Limits(100_000_000, 60.0)


@dataclass(frozen=True)
class Compared:
    """One size and format: processor milliseconds and peak megabytes an image, and the levels that differ."""

    megapixels: float
    format: str
    images: int
    pillow_ms: float
    ours_ms: float
    pillow_mb: float | None
    ours_mb: float | None
    largest_difference: int


def by_pillow(body: bytes, recipe: Preprocess) -> Pixels:
    """As a service does it that uses Pillow alone."""
    image = Image.open(io.BytesIO(body))
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    return slow_pixels(flatten(image, recipe.mode), recipe)


def ours(body: bytes, recipe: Preprocess) -> Pixels:
    """As the service does it; what it does in a process of its own is done here, to be seen."""
    checked = check(body, recipe, LIMITS)
    if checked.ordinary:
        return decode(body, recipe, LIMITS)
    return decode_here(body, checked.name, recipe, LIMITS.pixels)


def compare(photographs: Sequence[bytes], megapixels: Sequence[float], rounds: int) -> Iterator[Compared]:
    """Each of `megapixels`, 0 being the photographs as they are, in each format."""
    bound_heap()  # as the service does: what large images take goes back to the system
    recipe = Preprocess()
    for size in megapixels:
        for kind in OPTIONS if size else dict.fromkeys(map(image_format, photographs)):
            bodies = [body for body in photographs if size or image_format(body) == kind]
            if size:
                bodies = [enlarged(body, size, kind) for body in bodies[: max(1, int(MEGAPIXELS_OF_A_KIND / size))]]
            yield compared(bodies, kind, recipe, rounds)


def enlarged(body: bytes, megapixels: float, kind: str) -> bytes:
    """The photograph scaled to `megapixels`, with some grain so that it costs what a photograph of that size does."""
    image = Image.open(io.BytesIO(body)).convert("RGB")
    factor = (megapixels * 1e6 / (image.width * image.height)) ** 0.5
    image = image.resize((round(image.width * factor), round(image.height * factor)), Image.Resampling.BICUBIC)
    grain = Image.effect_noise(image.size, 8).convert("RGB")
    file = io.BytesIO()
    Image.blend(image, grain, 0.1).save(file, kind, **OPTIONS[kind])
    return file.getvalue()


def compared(bodies: Sequence[bytes], kind: str, recipe: Preprocess, rounds: int) -> Compared:
    ways = (by_pillow, ours)
    largest = max(int(np.abs(by_pillow(b, recipe).astype(int) - ours(b, recipe)).max()) for b in bodies)
    spent: dict[Callable[[bytes, Preprocess], Pixels], list[float]] = {way: [] for way in ways}
    for _ in range(rounds):
        for body in bodies:
            for way in ways:
                began = time.thread_time()
                way(body, recipe)
                spent[way].append(1e3 * (time.thread_time() - began))
    sizes = [Image.open(io.BytesIO(body)).size for body in bodies]
    return Compared(
        median(width * height / 1e6 for width, height in sizes), kind, len(bodies),
        median(spent[by_pillow]), median(spent[ours]),
        peak_mb(by_pillow, bodies[0], recipe), peak_mb(ours, bodies[0], recipe),
        largest,
    )  # fmt: skip


def peak_mb(way: Callable[[bytes, Preprocess], Pixels], body: bytes, recipe: Preprocess) -> float | None:
    """Megabytes that this process grows by while it decodes `body`; None if the system does not tell."""
    give_back_memory()
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", "ascii")
        before = peak_bytes()
        way(body, recipe)
        return (peak_bytes() - before) / 1e6
    return None


def peak_bytes() -> int:
    return int(Path("/proc/self/status").read_text("ascii").partition("VmHWM:")[2].split()[0]) * 1024


def table(rows: Sequence[Compared]) -> str:
    s = significant
    header = ("format", "megapixels", "images", "Pillow ms", "ours ms", "times", "Pillow MB", "ours MB", "pixels")
    return tables.markdown(
        header,
        [
            (
                row.format, f"{row.megapixels:.2g}", str(row.images), s(row.pillow_ms), s(row.ours_ms),
                f"{row.pillow_ms / row.ours_ms:.2f}", s(row.pillow_mb), s(row.ours_mb),
                f"differ by {row.largest_difference}" if row.largest_difference else "the same bits",
            )
            for row in rows
        ],
    )  # fmt: skip
