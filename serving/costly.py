"""What a worker hands over: an image whose decoding is not for its own thread."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from models.preprocess import Pixels


@dataclass(frozen=True, slots=True)
class Costly:
    """The pixels of an image that is decoded elsewhere: `prepare` waits for them."""

    prepare: Callable[[], Pixels]
