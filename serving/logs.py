"""Log lines as JSON, one object a line, for machines that collect them."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime

# What a line says beside its message: `log.warning(..., extra={FIELDS: {...}})`. Not under names of its own: BentoML's
# filter writes `request_id` into every record.
FIELDS = "podium_fields"


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
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False, default=str)


def write_json() -> None:
    """From now on every handler of this process writes JSON, BentoML's own lines included."""
    for name in (None, *logging.root.manager.loggerDict):
        for handler in logging.getLogger(name).handlers:
            handler.setFormatter(JsonLines())
