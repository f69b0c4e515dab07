"""Log lines that nobody can forge, and log lines as JSON, one object a line, for machines that collect them."""

from __future__ import annotations

import json
import logging
import traceback
from datetime import UTC, datetime

from serving.text import printable

# What a line says beside its message: `log.warning(..., extra={FIELDS: {...}})`. Not under names of its own: BentoML's
# filter writes `request_id` into every record.
FIELDS = "podium_fields"


class OneLine(logging.LogRecord):
    """A record whose message is one line of printable characters, whichever library logs it and whatever a client's
    text in it is. What follows it, a traceback, is indented: an exception's message may hold lines of its own, and none
    of them may look like a line of the log.
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
