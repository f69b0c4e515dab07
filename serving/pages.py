"""The page at `/ui/`: the files of `serving/web`, and the newest result file for its figures.

The files are read once. A path is looked up among theirs, and is never joined to a folder, so it cannot lead out of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from starlette.types import Scope

from serving.exchange import Raw
from serving.text import read_json

WEB = Path(__file__).with_name("web")
ROOT = "/ui/"

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}

# The page asks only this server, runs only its own files, and cannot be put in a frame. blob: is the picture that the
# viewer chose, shown beside the answers.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"cache-control", b"no-cache"),  # a browser keeps it, and asks by its ETag whether it has changed
    (b"content-security-policy", POLICY.encode()),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"referrer-policy", b"no-referrer"),
    (b"x-content-type-options", b"nosniff"),
)


class File:
    """One file of the page, or 304 for a browser that has it."""

    def __init__(self, body: bytes, content_type: str) -> None:
        self._etag = b'"%s"' % hashlib.sha256(body).hexdigest()[:32].encode()
        headers = (*HEADERS, (b"etag", self._etag))
        self.whole = Raw(body, content_type.encode(), headers)
        self._unchanged = Raw(b"", b"", headers, status=304)

    async def __call__(self, scope: Scope, *_: object) -> Raw:
        known = any(name == b"if-none-match" and self._etag in value for name, value in scope["headers"])
        return self._unchanged if known else self.whole


class Redirect:
    """A redirect to `/ui/`. It is relative, so that a proxy may put the service in a folder.

    Browsers remember a permanent one (308) for every later server at the same address.
    """

    def __init__(self, status: Literal[307, 308]) -> None:
        self._there = Raw(b"", b"text/plain", ((b"location", b"ui/"),), status)

    async def __call__(self, *_: object) -> Raw:
        return self._there


def files() -> dict[str, File]:
    """The files of the page by path: `/ui/` itself, and all below it."""
    by_path = {
        ROOT + path.relative_to(WEB).as_posix(): File(path.read_bytes(), TYPES[path.suffix])
        for path in sorted(WEB.rglob("*"))
        if path.suffix in TYPES
    }
    by_path[ROOT] = by_path.pop(f"{ROOT}index.html")
    return by_path


# Where `make demo`, `make bench` and `python -m benchmarks run` leave result files, below the folder that the server
# was started in.
RESULTS = (".podium/*.json", ".podium/demo/*.json", ".podium/results/*.json", "benchmarks/results/*.json")

# Bytes. Every other request waits while Python reads JSON, which takes about 10 ms per MB.
LARGEST = 32_000_000

SCHEMA = 1

# What the page shows of a record. The single values, which are most of a file, are left out.
RECORD = (
    "network", "year", "classes", "engine", "precision", "batch", "weights", "status", "throughput_img_s", "macs",
    "params", "top1", "top5", "accuracy_source",
)  # fmt: skip
PARTS = {
    "latency_ms": ("p50", "p90", "p99", "count", "interval"),
    "memory_mb": ("weights", "peak_rss", "peak_gpu"),
    "power": ("source", "reason", "idle_w", "mean_w", "net_w", "joules_per_image", "net_joules_per_image"),
}
ENVIRONMENT = ("cpu", "cores", "gpus", "memory_mb", "os", "virtual", "date", "settings")


class Results:
    """The newest result file below `folder`. A file is read again only if it has changed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.known: dict[Path, tuple[tuple[int, int], dict[str, Any] | None]] = {}

    def latest(self) -> dict[str, Any] | None:
        """What the page shows of the file that was measured last; None if there is no whole result file."""
        self.known = dict(self.read())
        documents = [document for _, document in self.known.values() if document is not None]
        return max(documents, key=lambda document: str(document["environment"]["date"]), default=None)

    def read(self) -> Iterator[tuple[Path, tuple[tuple[int, int], dict[str, Any] | None]]]:
        for path in sorted({path for pattern in RESULTS for path in self.folder.glob(pattern)}):
            try:
                status = path.stat()
                version = (status.st_mtime_ns, status.st_size)
                known = self.known.get(path)
                if known is None or known[0] != version:
                    text = path.read_bytes() if status.st_size <= LARGEST else b""
                    known = version, shown(text, path.relative_to(self.folder).as_posix())
            except (OSError, ValueError):
                continue
            yield path, known


def shown(text: bytes, name: str) -> dict[str, Any] | None:
    """What the page shows of a result file; None for any other text, and for a file in which nothing was measured."""
    try:
        document = read_json(text)
        if document["schema"] != SCHEMA:
            return None
        environment = {key: document["environment"].get(key) for key in ENVIRONMENT}
        records = [row(record) for record in document["records"] if record.get("scenario") is None]
    except (ValueError, LookupError, TypeError, AttributeError):
        return None
    if not any(record["status"] == "ok" for record in records):
        return None
    return {"file": name, "environment": environment, "records": records}


def row(record: dict[str, Any]) -> dict[str, Any]:
    """`record` without its single values. Raises `ValueError` and others for what is not a record."""
    kept = {key: record.get(key) for key in RECORD}
    if not all(isinstance(kept[key], str) for key in ("network", "engine", "precision", "weights", "status")):
        raise ValueError("not a record")
    for part, names in PARTS.items():
        values = record[part]
        kept[part] = None if values is None else {name: values.get(name) for name in names}
    if kept["status"] == "ok" and kept["latency_ms"] is None:
        raise ValueError("measured without a latency")
    return kept
