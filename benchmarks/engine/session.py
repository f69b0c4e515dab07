"""What `benchmarks run` and `benchmarks/gpu.sh` share: a result file that a run adds to, and where memory ended."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import Path
from typing import Generic, TypeVar

from benchmarks import environment, records
from benchmarks.process import PassError
from benchmarks.records import Environment, Failed, Record
from models.console import Failure, Usage

R = TypeVar("R", bound=Record)


def earlier(path: Path, here: Environment) -> list[Record]:
    """The records that `path` holds already; `Usage` if they were measured under other conditions."""
    if not path.exists():
        return []
    file = records.read(path)
    other = environment.differences(file["environment"], here, (*environment.IDENTITY, "settings", "threads"))
    if other:
        raise Usage(f"{path} was measured under other conditions ({'; '.join(other)}); give another --out, or --fresh")
    return file["records"]


class Session(Generic[R]):
    """The result file of one run. The file on the disk is whole after every `write`."""

    def __init__(self, path: Path, here: Environment, items: Iterable[R] = ()) -> None:
        self.path, self.here = path, here
        self.items = {records.key(item): item for item in items}

    def write(self) -> None:
        records.write(self.path, records.document(self.here, list(self.items.values())))

    def add(self, item: R) -> None:
        """Put `item` at the end, in the place of an earlier record of the same cell, and write the file."""
        self.items.pop(records.key(item), None)
        self.items[records.key(item)] = item
        self.write()


def judge(items: Iterable[Record]) -> None:
    """`Failure` if there are `items` and none of them was measured."""
    failed = list(items)
    if failed and not any(map(records.measured, failed)):
        reason = failed[0]["status"].removeprefix("failed: ")
        raise Failure(f"nothing could be measured; the first reason: {reason}")


class MemoryEnded:
    """The smallest batch for which each graph had no memory: a larger one is not tried."""

    def __init__(self) -> None:
        self._at: dict[Hashable, int] = {}

    def check(self, graph: Hashable, batch: int | None) -> None:
        """`PassError` if memory ended at `batch` or a smaller one."""
        if batch is not None and graph in self._at and batch >= self._at[graph]:
            raise PassError("skipped", f"not tried, memory ended at batch {self._at[graph]}")

    def note(self, graph: Hashable, batch: int | None, failed: Failed) -> None:
        if failed.kind == "memory" and batch is not None:
            self._at[graph] = min(batch, self._at.get(graph, batch))
