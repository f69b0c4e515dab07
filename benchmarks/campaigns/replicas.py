"""Two replicas behind HAProxy, and what goes wrong with one of them: real processes, real signals, the real config.

Requests are due at random times (an open loop, as in `load`), from before an event until the balancer has everything
back: nothing happens; a replica with all its processes is killed and started again; both are restarted in turn as a
rollout does it; one is stopped in its tracks for some seconds. A request is lost where its answer is anything but a
classification, or 429, which refuses it before anything is done. HAProxy may send a request to the other replica once;
how often it did is counted beside.

`deploy/haproxy.cfg` is used as it stands, with the addresses it takes from its environment.
"""

from __future__ import annotations

import asyncio
import csv
import io
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from benchmarks import records
from benchmarks.load import drive as load
from benchmarks.load.bodies import Body
from benchmarks.load.servers import Replica
from benchmarks.process import ROOT, end, free_port
from benchmarks.tables import REPLICAS_HEADER, replicas_rows, replicas_title
from models.console import Failure, table

if TYPE_CHECKING:
    import aiohttp

CONFIG = ROOT / "deploy" / "haproxy.cfg"
BACKEND, NAMES = "replicas", ("one", "two")  # as the config calls them

REFUSED = 429

PATIENCE_S = 120.0
POLL_S = 0.1
# Load goes on for so long before an event, and after all is back.
AROUND_S = 1.5

# The steady phase comes first: the others are read against it, and the simulation is fed from it.
STEADY, KILLED, ROLLING, SLOW = "steady", "killed", "rolling", "slow"
WHAT = {
    STEADY: "nothing happens",
    KILLED: "one replica killed, and started again",
    ROLLING: "both restarted, one after the other",
    SLOW: "one replica stopped for {pause:g} s",
}


@dataclass
class Setup:
    """Both replicas and the balancer in front of them."""

    replicas: Sequence[Replica]
    balancer: subprocess.Popen[bytes]
    url: str
    figures: str

    async def servers(self, session: aiohttp.ClientSession) -> dict[str, dict[str, str]]:
        """HAProxy's figures by server, and of the whole backend as "BACKEND"."""
        async with session.get(self.figures) as response:
            rows = csv.DictReader(io.StringIO((await response.text()).removeprefix("# ")))
            return {row["svname"]: row for row in rows if row["pxname"] == BACKEND}

    async def until_up(self, session: aiohttp.ClientSession) -> None:
        """Until HAProxy sends requests to both replicas; `Failure` where one ended instead."""
        deadline = time.monotonic() + PATIENCE_S
        while True:
            with suppress(OSError, KeyError):  # before HAProxy listens
                rows = await self.servers(session)
                # HAProxy takes a server for up before it has asked it once.
                if all(rows[n]["status"] == "UP" and rows[n]["check_status"].endswith("L7OK") for n in NAMES):
                    return
            for replica in self.replicas:
                if replica.process.poll() is not None or time.monotonic() > deadline:
                    raise Failure(f"a replica is not ready: {replica.last_words()}")
            if self.balancer.poll() is not None:
                raise Failure(f"haproxy ended with {self.balancer.returncode}; `haproxy -c -f {CONFIG}` says why")
            await asyncio.sleep(POLL_S)


@contextmanager
def running(tag: str, environment: dict[str, str]) -> Iterator[Setup]:
    """Two replicas that serve `tag`, and HAProxy in front, all on this machine alone; ended by their process ids."""
    from serving.artifact import find

    if shutil.which("haproxy") is None:
        raise Failure("haproxy is not installed; `apt-get install haproxy` (2.6 or newer)")
    store = find(tag).folder.parents[1]
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="podium-replicas-")))
        replicas = []
        for name in NAMES:
            replica = Replica(free_port(), folder / name, store, {"PODIUM_MODELS": tag, **environment})
            stack.callback(replica.close)
            replicas.append(replica)
        public, figures = free_port(), free_port()
        addresses = {f"PODIUM_REPLICA_{n}": f"127.0.0.1:{r.port}" for n, r in enumerate(replicas, 1)}
        addresses |= {"PODIUM_BIND": f"127.0.0.1:{public}", "PODIUM_FIGURES": f"127.0.0.1:{figures}"}
        with (folder / "haproxy.log").open("w") as output:
            balancer = subprocess.Popen(
                ["haproxy", "-db", "-f", str(CONFIG)],
                env={**os.environ, **addresses},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        stack.callback(end, balancer)
        yield Setup(replicas, balancer, f"http://127.0.0.1:{public}", f"http://127.0.0.1:{figures}/;csv")


Event = Callable[[Setup, "aiohttp.ClientSession"], Awaitable[object]]


def events(duration: float, pause: float) -> dict[str, Event]:
    """What happens in each phase; every one ends with both replicas back."""

    async def steady(*_: object) -> None:
        await asyncio.sleep(duration)

    async def killed(setup: Setup, session: aiohttp.ClientSession) -> None:
        first = setup.replicas[0]
        first.signal(signal.SIGKILL)
        await asyncio.to_thread(first.process.wait)
        first.start()
        await back(setup, session, NAMES[0])

    async def rolling(setup: Setup, session: aiohttp.ClientSession) -> None:
        for name, replica in zip(NAMES, setup.replicas, strict=True):
            replica.process.send_signal(signal.SIGTERM)
            await asyncio.to_thread(replica.process.wait, PATIENCE_S)
            replica.start()
            await back(setup, session, name)

    async def slow(setup: Setup, session: aiohttp.ClientSession) -> None:
        first = setup.replicas[0]
        first.signal(signal.SIGSTOP)
        try:
            await asyncio.sleep(pause)
        finally:
            first.signal(signal.SIGCONT)
        await setup.until_up(session)

    return {STEADY: steady, KILLED: killed, ROLLING: rolling, SLOW: slow}


async def back(setup: Setup, session: aiohttp.ClientSession, name: str) -> None:
    """Until HAProxy has noticed that the server `name` was away, and has it back."""
    deadline = time.monotonic() + PATIENCE_S
    while (await setup.servers(session))[name]["status"] == "UP":
        if time.monotonic() > deadline:
            raise Failure(f"HAProxy did not notice the end of replica {name}")
        await asyncio.sleep(POLL_S / 5)
    await setup.until_up(session)


def measure(
    tag: str,
    bodies: Sequence[Body],
    rate: float,
    duration: float,
    pause: float,
    environment: dict[str, str],
    progress: Callable[[Sequence[str]], Any] = iter,
) -> list[records.Replicas]:
    """The record of every phase; `Failure` where a replica or HAProxy does not start."""

    async def phases() -> list[records.Replicas]:
        import aiohttp

        happens, made = events(duration, pause), []
        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=load.PATIENCE_S)
        ) as session:
            await setup.until_up(session)
            for _ in range(load.WARMUP_REQUESTS):
                await load.classify(session, setup.url, bodies[0], None, None)
            for name in progress(list(happens)):
                made.append(await phase(setup, session, name, happens[name], bodies, rate, pause))
        return made

    with running(tag, environment) as setup:
        return asyncio.run(phases())


async def phase(
    setup: Setup,
    session: aiohttp.ClientSession,
    name: str,
    event: Event,
    bodies: Sequence[Body],
    rate: float,
    pause: float,
) -> records.Replicas:
    before, cpu = await setup.servers(session), sum(map(Replica.cpu_seconds, setup.replicas))
    over = asyncio.Event()
    began = time.perf_counter()
    sender = asyncio.create_task(send_until(over, session, setup.url, bodies, rate))
    try:
        await asyncio.sleep(AROUND_S)
        await event(setup, session)
        await asyncio.sleep(AROUND_S)
    finally:
        over.set()
        outcomes = await sender
    seconds = time.perf_counter() - began
    after = await setup.servers(session)
    made: dict[str, Any] = {**load.record(load.Scenario(rate=rate), outcomes, seconds, None, None)}
    latency = [o.latency for o in outcomes if o.status == 200]
    made |= {
        "kind": "replicas",
        "scenario": f"two replicas, {rate:g} per second: {WHAT[name].format(pause=pause)}",
        "phase": name,
        "refused": sum(o.status == REFUSED for o in outcomes),
        "lost": sum(o.status not in (200, REFUSED) for o in outcomes),
        "retried": rise(before, after, "BACKEND", "wredis"),  # `wretr` counts some of them once more
        "slowest_ms": max(latency, default=None),
        "by_replica": [rise(before, after, server, "stot") for server in NAMES],
        "body_bytes": float(np.mean([len(body.data) for body in bodies])),
    }
    if name == STEADY:  # in the others, replicas start, and take processor time with them when they end
        made["cpu_seconds_per_image"] = (sum(map(Replica.cpu_seconds, setup.replicas)) - cpu) / max(1, len(outcomes))
        made["memory_mb"]["peak_rss"] = float(np.mean([replica.memory_mb() for replica in setup.replicas]))
        made |= service_times(outcomes)
    return cast(records.Replicas, made)


def rise(before: dict[str, dict[str, str]], after: dict[str, dict[str, str]], server: str, field: str) -> int:
    return int(after[server][field]) - int(before[server][field])


async def send_until(
    over: asyncio.Event, session: aiohttp.ClientSession, url: str, bodies: Sequence[Body], rate: float
) -> list[load.Outcome]:
    """Requests due at random times, `rate` a second, until `over`; all their outcomes, once the last is in."""
    generator, tasks = np.random.default_rng(0), list[asyncio.Task[load.Outcome]]()
    due = time.perf_counter()
    while True:
        due += float(generator.exponential(1 / rate))
        with suppress(TimeoutError):
            await asyncio.wait_for(over.wait(), max(0.0, due - time.perf_counter()))
        if over.is_set():
            return list(await asyncio.gather(*tasks))
        body = bodies[len(tasks) % len(bodies)]
        tasks.append(asyncio.create_task(load.classify(session, url, body, None, due)))


def service_times(outcomes: Sequence[load.Outcome]) -> dict[str, Any]:
    """What a simulation needs: milliseconds of the engine's calls by batch size, and of everything around waiting and
    engine (the way there and back, decoding) by request.
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
