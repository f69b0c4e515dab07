"""Text from outside, made safe for a log line, an error and an answer; and JSON, read strictly."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

# Characters of a client's text that an error repeats.
ECHO = 80


def printable(text: str) -> str:
    """`text` as one line, with every control character, line separator, lone surrogate and the like as its escape.

    It can neither begin a new log line nor change a terminal's colours.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode("ascii") for c in text)


def quoted(text: object, most: int = ECHO) -> str:
    """The beginning of what a client sent, in quotes and escaped, as an error repeats it."""
    if not isinstance(text, str):
        return "what is not a text"
    return repr(text[:most]) + ("..." if len(text) > most else "")


def refuse_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


def read_json(text: bytes, constant: Callable[[str], Any] = refuse_constant) -> Any:
    """The value of a JSON document, strictly by RFC 8259. It can always be written again.

    Python's own reader takes NaN and Infinity, numbers that no float can hold, halves of surrogate pairs, UTF-16, and
    the last of two equal keys. Here each of these raises `ValueError`, and so does what is nested too deeply.
    """
    try:
        value = json.loads(
            text.decode("utf-8"),
            parse_constant=constant,
            parse_float=_finite,
            object_pairs_hook=_object,
        )
        if b"\\u" in text:  # half of a surrogate pair can only be written as an escape
            json.dumps(value, ensure_ascii=False, default=str).encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError("a number is too large")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("an object has a key twice")
    return value
