"""Log lines that no client can forge, and log lines as JSON, one object per line, for programs that collect them."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime

from serving.text import printable

# Further fields of a line: `log.warning(..., extra={FIELDS: {...}})`. They are under one name because BentoML's filter
# writes a `request_id` of its own into every record.
FIELDS = "podium_fields"


class OneLine(logging.LogRecord):
    """A record whose message is one line of printable characters, whichever library logs it and whatever text of a
    client it holds.

    A traceback after it is indented. An exception's message may have several lines, and none may look like a line of
    the log.
    """

    def getMessage(self) -> str:  # noqa: N802  logging's name
        return printable(super().getMessage().rstrip("\n"))

    def __init__(self, *args: object, **named: object) -> None:
        super().__init__(*args, **named)  # type: ignore[arg-type]
        if self.exc_info:
            lines = "".join(traceback.format_exception(*self.exc_info)).splitlines()
            self.exc_text = "\n".join(f"  {printable(line)}" for line in lines)


def protect() -> None:
    """From now on every log line of this process is a `OneLine`, those of uvicorn and BentoML included."""
    logging.setLogRecordFactory(OneLine)


class JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, FIELDS, {}),
        }
        if record.exc_info:
            line["traceback"] = record.exc_text or self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def write_json() -> None:
    """From now on every handler of this process writes JSON, BentoML's own lines included."""
    for name in (None, *logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(JsonLines())
