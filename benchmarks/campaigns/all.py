"""The campaigns against `bentoml serve`, by name, and how to run them.

Each is a file beside this one. Its bounds stand before the campaign they judge. A campaign passes if every one of its
checks holds; what was not measured does not hold.
"""

from __future__ import annotations

import resource
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvloop

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.connections import connections
from benchmarks.campaigns.costly import costly
from benchmarks.campaigns.hangups import hangups
from benchmarks.campaigns.hostile import hostile
from benchmarks.campaigns.killed import killed
from benchmarks.campaigns.misfits import misfits
from benchmarks.campaigns.overload import overload
from benchmarks.campaigns.soak import soak
from benchmarks.campaigns.swaps import swaps
from benchmarks.campaigns.target import Target
from benchmarks.campaigns.terminated import terminated
from benchmarks.load.bodies import Body
from models.console import Failure

CAMPAIGNS: dict[str, Callable[[Target], Coroutine[Any, Any, Campaign]]] = {
    "hostile": hostile,
    "overload": overload,
    "terminated": terminated,
    "killed": killed,
    "soak": soak,
    "swaps": swaps,
    "hangups": hangups,
    "connections": connections,
    "costly": costly,
    "misfits": misfits,
}


def run(
    names: Sequence[str],
    tag: str,
    engine: str,
    precision: str,
    bodies: Sequence[Body],
    brief: bool,
    tell: Callable[[str], object] = lambda _: None,
) -> Iterator[Campaign]:
    """Run the campaigns called `names`, one after the other; one that cannot go on has failed, and says why."""
    open_files()
    with TemporaryDirectory(prefix="podium-standing-") as folder:
        target = Target(tag, engine, precision, bodies, brief, Path(folder), tell)
        for name in names:
            tell(name)
            began = time.perf_counter()
            try:
                campaign = uvloop.run(CAMPAIGNS[name](target))
            except (Failure, OSError) as error:
                campaign = Campaign(name, [Check("went to its end", False, "=", True)], {"reason": str(error)})
            yield replace(campaign, seconds=time.perf_counter() - began)


def open_files() -> None:
    """Allow this process and its servers as many files as the system grants: each connection is one in both."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
