"""The process that measures one pass, weighed and timed.

It imports nothing before it measures but numpy and the runtime, so that what it weighs and times is the network.
"""

from __future__ import annotations

import sys

from benchmarks.engine.passes import ScenarioJob, latency, memory, power
from benchmarks.process import answer


def scenario(job: ScenarioJob) -> object:
    from benchmarks.engine.scenarios import measure

    return measure(job)


if __name__ == "__main__":
    sys.exit(answer({"latency": latency, "memory": memory, "power": power, "scenario": scenario}))
