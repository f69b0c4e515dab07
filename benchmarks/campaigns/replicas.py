"""Two replicas behind HAProxy, and events that strike them: real processes, real signals, the real configuration.

Requests are due at random times (an open loop, as in `load`), from before an event until the balancer has everything
back. The events: nothing; a replica is killed with all its processes and started again; both are restarted in turn, as
a rollout does it; one is stopped for some seconds. A request is lost if its answer is neither a classification nor 429,
which refuses it before anything is done. HAProxy may send a request to the other replica once, and how often it did is
counted.

`deploy/haproxy.cfg` is used unchanged, with the addresses that it takes from its environment.
"""

from __future__ import annotations

import asyncio
import csv
import io
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, cast

import numpy as np

from benchmarks import records
from benchmarks.load import drive as load
from benchmarks.load.bodies import Body
from benchmarks.load.loops import open_loop
from benchmarks.load.servers import START_WITHIN_S, Podium, Server
from benchmarks.load.wire import Pool, Reply, get, once, post
from benchmarks.process import ROOT, free_port
from benchmarks.rates import poisson
from benchmarks.tables import REPLICAS_HEADER, replicas_rows, replicas_title
from models.console import Failure, table

CONFIG = ROOT / "deploy" / "haproxy.cfg"
BACKEND, NAMES = "replicas", ("one", "two")  # as the configuration calls them

REFUSED = 429

POLL_S = 0.1
# Load goes on for so long before an event, and after everything is back.
AROUND_S = 1.5

# The steady phase comes first: the others are compared with it, and the simulation takes its times from it.
STEADY, KILLED, ROLLING, SLOW = "steady", "killed", "rolling", "slow"
WHAT = {
    STEADY: "nothing happens",
    KILLED: "one replica killed, and started again",
    ROLLING: "both restarted, one after the other",
    SLOW: "one replica stopped for {pause:g} s",
}


@dataclass(frozen=True)
class Setup:
    """Both replicas, and the balancer in front of them with the port of its figures."""

    replicas: Sequence[Podium]
    balancer: Server
    figures: int

    async def servers(self) -> dict[str, dict[str, str]]:
        """HAProxy's figures by server, and those of the whole backend as "BACKEND"; empty before HAProxy listens."""
        text = (await once(self.figures, get("/;csv"))).body.decode().removeprefix("# ")
        return {row["svname"]: row for row in csv.DictReader(io.StringIO(text)) if row["pxname"] == BACKEND}

    async def until_up(self) -> None:
        """Wait until HAProxy sends requests to both replicas; `Failure` if one of the three processes ends instead."""
        deadline = time.monotonic() + START_WITHIN_S
        while True:
            rows = await self.servers()
            # HAProxy takes a server for up before it has asked it once.
            if rows and all(rows[n]["status"] == "UP" and rows[n]["check_status"].endswith("L7OK") for n in NAMES):
                return
            for server in (*self.replicas, self.balancer):
                server.check(deadline)
            await asyncio.sleep(POLL_S)

    async def back(self, name: str) -> None:
        """Wait until HAProxy has noticed that the server `name` was away, and has it back."""
        deadline = time.monotonic() + START_WITHIN_S
        while (await self.servers())[name]["status"] == "UP":
            if time.monotonic() > deadline:
                raise Failure(f"HAProxy did not notice the end of replica {name}")
            await asyncio.sleep(POLL_S / 5)
        await self.until_up()

    def cpu_seconds(self) -> float:
        return sum(replica.cpu_seconds() for replica in self.replicas)


@contextmanager
def running(tag: str, variables: Mapping[str, str]) -> Iterator[Setup]:
    """Two replicas that serve `tag`, and HAProxy in front, all on this machine alone; ended after."""
    from serving.artifact import find

    if shutil.which("haproxy") is None:
        raise Failure("haproxy is not installed; `apt-get install haproxy` (2.6 or newer)")
    store = find(tag).folder.parents[1]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podium-replicas-")))
        replicas = []
        for name in NAMES:
            replica = Podium(f"replica {name}", folder / name, store, {"PODIUM_MODELS": tag, **variables})
            stack.callback(replica.close)
            replicas.append(replica)
        public, figures = free_port(), free_port()
        addresses = {f"PODIUM_REPLICA_{n}": f"127.0.0.1:{r.port}" for n, r in enumerate(replicas, 1)}
        addresses |= {"PODIUM_BIND": f"127.0.0.1:{public}", "PODIUM_FIGURES": f"127.0.0.1:{figures}"}
        balancer = Server("HAProxy", public, ["haproxy", "-db", "-f", str(CONFIG)], folder / "haproxy.log", addresses)
        stack.callback(balancer.close)
        yield Setup(replicas, balancer, figures)


Event = Callable[[Setup], Awaitable[object]]


def events(duration: float, pause: float) -> dict[str, Event]:
    """What happens in each phase; every one ends with both replicas back."""

    async def steady(_: Setup) -> None:
        await asyncio.sleep(duration)

    async def killed(setup: Setup) -> None:
        first = setup.replicas[0]
        first.signal(signal.SIGKILL)
        await asyncio.to_thread(first.process.wait)
        first.start_again()
        await setup.back(NAMES[0])

    async def rolling(setup: Setup) -> None:
        for name, replica in zip(NAMES, setup.replicas, strict=True):
            replica.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(replica.process.wait, START_WITHIN_S)
            replica.start_again()
            await setup.back(name)

    async def slow(setup: Setup) -> None:
        first = setup.replicas[0]
        first.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(pause)
        finally:
            first.signal(signal.SIGCONT)
        await setup.until_up()

    return {STEADY: steady, KILLED: killed, ROLLING: rolling, SLOW: slow}


def measure(
    tag: str,
    bodies: Sequence[Body],
    rate: float,
    duration: float,
    pause: float,
    variables: Mapping[str, str],
    progress: Callable[[Sequence[str]], Any] = iter,
) -> list[records.Replicas]:
    """The record of every phase; `Failure` if a replica or HAProxy does not start."""

    async def phases() -> list[records.Replicas]:
        requests = cycle([post(body.data, body.content_type) for body in bodies])
        pool = Pool(setup.balancer.port)

        async def ask() -> Reply:
            return await pool.ask(next(requests))

        happens, items = events(duration, pause), []
        await setup.until_up()
        for _ in range(load.WARMUP_REQUESTS):
            await ask()
        for name in progress(list(happens)):
            item = await phase(setup, name, happens[name], ask, rate, pause)
            items.append(item | {"body_bytes": float(np.mean([len(body.data) for body in bodies]))})
        pool.close()
        return items

    with running(tag, variables) as setup:
        return asyncio.run(phases())


async def phase(
    setup: Setup, name: str, event: Event, ask: Callable[[], Awaitable[Reply]], rate: float, pause: float
) -> records.Replicas:
    """Load before, during and after the event, as a record."""
    over = asyncio.Event()

    async def until_over(seconds: float) -> bool:
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), seconds)
        return over.is_set()

    before, cpu = await setup.servers(), setup.cpu_seconds()
    began = time.perf_counter()
    sending = asyncio.create_task(open_loop(ask, poisson(rate), sleep=until_over))
    try:
        await asyncio.sleep(AROUND_S)
        await event(setup)
        await asyncio.sleep(AROUND_S)
    finally:
        over.set()
        outcomes = list(map(load.Outcome.of, await sending))
    seconds = time.perf_counter() - began
    after = await setup.servers()
    answered = [outcome.latency for outcome in outcomes if outcome.status == 200]
    item: dict[str, Any] = {
        **load.record(load.Scenario(rate=rate), outcomes, seconds, None, None),
        "kind": "replicas",
        "scenario": f"two replicas, {rate:g} per second: {WHAT[name].format(pause=pause)}",
        "phase": name,
        "refused": sum(outcome.status == REFUSED for outcome in outcomes),
        "lost": sum(outcome.status not in (200, REFUSED) for outcome in outcomes),
        "retried": rise(before, after, "BACKEND", "wredis"),  # `wretr` counts some of them twice
        "slowest_ms": max(answered, default=None),
        "by_replica": [rise(before, after, server, "stot") for server in NAMES],
    }
    if name == STEADY:  # in the others, replicas start, and take processor time with them when they end
        item["cpu_seconds_per_image"] = (setup.cpu_seconds() - cpu) / max(1, len(outcomes))
        item["memory_mb"]["peak_rss"] = float(np.mean([replica.memory_mb() for replica in setup.replicas]))
        item |= service_times(outcomes)
    return cast(records.Replicas, item)


def rise(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]], server: str, field: str) -> int:
    return int(after[server][field]) - int(before[server][field])


def service_times(outcomes: Sequence[load.Outcome]) -> dict[str, Any]:
    """What a simulation needs, in milliseconds: the engine's calls by batch size, and what each request took beside
    waiting and the engine (transport, decoding).
    """
    engine: dict[str, list[float]] = {}
    around = []
    for outcome in outcomes:
        if outcome.status == 200 and "timing_ms" in outcome.answer:
            times, size = outcome.answer["timing_ms"], outcome.answer["batch_size"]
            engine.setdefault(str(size), []).append(times["inference"])
            around.append(round(outcome.latency - times["queue"] - times["inference"], 3))
    return {"engine_ms": dict(sorted(engine.items(), key=lambda item: int(item[0]))), "around_ms": around}


def summary(items: Sequence[records.Replicas]) -> str:
    """What happened, for the terminal."""
    errors = sum((Counter(item["errors"]) for item in items), Counter[str]())
    notes = [f"not answered: {count} x {status}" for status, count in errors.items()]
    late = max(item["client_lag_p99_ms"] or 0 for item in items)
    if late > load.CLIENT_LAG_MS:
        notes.append(f"this client sent up to {late:.0f} ms late at p99; lower --rate, or give it a processor")
    return "\n".join([replicas_title(items), table(replicas_rows(items), REPLICAS_HEADER, right=range(1, 8)), *notes])
