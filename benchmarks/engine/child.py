"""The measured process: reads one job from stdin, does one pass, and answers with JSON on stdout.

It imports nothing before it measures but numpy and the runtime, so that what it weighs and times is the network.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.engine.passes import Pass, attempt, latency, memory, power


def main() -> int:
    # What engines print goes to stderr, so that stdout carries the answer alone.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # If memory ends, the kernel shall end this process and no other.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    job = json.loads(sys.stdin.read())
    result = attempt(job, PASSES)
    with answer:
        json.dump(result, answer)
    return 0


def scenario(job: dict[str, Any]) -> dict[str, Any]:
    from benchmarks.engine.scenarios import in_child

    return in_child(job)


PASSES: dict[str, Pass] = {"latency": latency, "memory": memory, "power": power, "scenario": scenario}


if __name__ == "__main__":
    sys.exit(main())
