"""Records of older files, which have neither `kind` nor `failure`: both are derived when a file is read."""

from __future__ import annotations

from typing import Any


def completed(item: dict[str, Any]) -> dict[str, Any]:
    """`item` with a `kind` and a `failure`, and with a `name` if it is a scenario."""
    kind, title = item.get("kind"), str(item.get("scenario") or "")
    if kind is None:
        if "phase" in item:
            kind = "replicas"
        elif not title:
            kind = "gpu_cell" if str(item.get("settings")).startswith("gpu") else "cell"
        elif "concurrency" not in item:
            kind = "scenario"
        else:
            kind = "search" if item.get("rungs") else "load"
    complete = {"kind": kind} | item
    if kind == "scenario" and "name" not in item:
        complete["name"] = title.removeprefix("MLPerf-style ").partition(",")[0]
    if "failure" not in item:
        complete["failure"] = failure_of(str(item.get("status")))
    return complete


def failure_of(status: str) -> str | None:
    """The kind of failure that the status of an older record names."""
    if status == "ok":
        return None
    beginnings = {
        "memory ended": "memory", "not tried": "skipped", "not measured": "cut_off", "no rate keeps": "bound",
        "the answers are not": "answers",
    }  # fmt: skip
    reason = status.removeprefix("failed: ")
    return next((kind for beginning, kind in beginnings.items() if reason.startswith(beginning)), "engine")
