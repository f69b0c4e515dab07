"""What decoding one image may cost, and what a service that decodes many of them holds at once.

An image is decoded in a worker's thread if its head declares little (`HERE_BYTES`, `HERE_SECONDS`), else in a process
of its own (`serving.sandbox`), of which there are few, each held to `Limits`.
"""

from __future__ import annotations

from dataclasses import dataclass

# 128 MB are a JPEG of 32 megapixels, or of 16 if it is to be turned.
HERE_BYTES, HERE_SECONDS = 128_000_000, 1.0
# What a decode holds however small its image is: strips, tables, and what the allocator keeps.
ASIDE_BYTES = 40_000_000
# Memory that decoding may take for each pixel allowed, and what it may take however few are.
PIXEL_BYTES, LEAST_BYTES = 16, 64_000_000
# Of the encoded image: as it came, as a file, and as a decoder copies it.
BODY_COPIES = 3
# A process that decodes, between two images.
CHILD_BYTES = 40_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The most pixels of one image, and the processor seconds that decoding it may take."""

    pixels: int
    seconds: float = 4.0

    @property
    def memory(self) -> int:
        """Bytes that decoding one image may take, its encoded form apart."""
        return LEAST_BYTES + PIXEL_BYTES * self.pixels


def costly_decoders(cores: int) -> int:
    """How many images may be decoded in processes of their own at a time: half of the cores stay with the others."""
    return max(1, cores // 2)


def most_memory(image: Limits, body: int, cores: int) -> int:
    """Bytes that a service on `cores` processors holds at most to decode, with bodies of `body` bytes."""
    threads = (cores + 1) * (HERE_BYTES + ASIDE_BYTES)
    processes = costly_decoders(cores) * (CHILD_BYTES + image.memory + BODY_COPIES * body)
    return threads + processes
