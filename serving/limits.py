"""What one image may cost, and what a service that decodes many may hold of them at once."""

from __future__ import annotations

from dataclasses import dataclass

# Memory that decoding may take for each pixel allowed, and what it may take however few are.
PIXEL_BYTES, LEAST_BYTES = 16, 64_000_000


@dataclass(frozen=True, slots=True)
class Limits:
    """The most pixels of one image, and the processor seconds that decoding it may take."""

    pixels: int
    seconds: float = 4.0

    @property
    def memory(self) -> int:
        """Bytes that decoding one image may take, its encoded form apart."""
        return LEAST_BYTES + PIXEL_BYTES * self.pixels
