"""`benchmarks/gpu.sh`: everything there is to know about the networks on one GPU, within nine minutes.

What matters most comes first, every result is written as soon as it is there, and the file lists from its first
moment what is still to come: a run may end at any time, by its budget, a signal or a power cut, and nothing is lost or
hidden. A second run with the same file goes on where the first one ended. Without a GPU it does the same on the
processor.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any, NoReturn, cast

from benchmarks import environment, records
from benchmarks.engine import cells as measure
from benchmarks.engine import power, roofline, torch_engine
from benchmarks.engine.cells import Settings
from benchmarks.engine.gpu_plan import BATCHES, CPU_BATCHES, NETWORKS, Task, plan
from benchmarks.process import ROOT, Child, PassError, Stopped
from benchmarks.records import Cell, Environment, Failed, Parity, Power, memory
from export.store import manifest_of
from models import SPECS, console, spec
from models.console import Failure, Usage
from serving.artifact import Artifact
from serving.runtime import cores, installed

# Nine minutes, less what is needed to start, to write and to say goodbye.
BUDGET_S = 520.0

LOOK = Settings("gpu", 1, 0.5, 0.5, 2.0, 0, 5, 2000, idle_s=10.0, window_s=5.0, trials=3)
QUICK = Settings("gpu, quick", 1, 0.05, 0.05, 0.5, 0, 3, 200, idle_s=2.0, window_s=5.0, trials=1)

# Sides of the matrices and MB of the copy in a quick look; 0 is roofline's own choice.
QUICK_RATES = {"side": 512, "megabytes": 64}

CPU_MODE = "CPU mode of benchmarks/gpu.sh: no GPU was used, and every figure is the processor's"


class Run:
    """One run: its file, its clock and its records, in the order of the plan."""

    def __init__(
        self,
        path: Path,
        here: Environment,
        settings: Settings,
        weights: str,
        tasks: Sequence[Task],
        budget_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self.here, self.settings, self.weights, self.tasks = path, here, settings, weights, tasks
        self._clock, self._began = clock, clock()
        self.deadline, self.budget = self._began + budget_s, budget_s
        self.records: dict[tuple[str, str, str, int], Cell] = {}
        self._checked: dict[tuple[str, str, str], Parity] = {}
        self._exhausted: dict[tuple[str, str, str], int] = {}
        self._took: dict[bool, list[float]] = {}  # seconds of the tasks done so far, by kind
        self._metered = {key for task in tasks if task.power for key in task.keys}
        for key in (key for task in tasks for key in task.keys):
            self.records.setdefault(key, self._planned(*key))

    def resume(self, kept: Sequence[records.Record]) -> int:
        """Take over what an earlier run measured; how many records that is. Power it did not reach is still due."""
        found = {
            (item["network"], item["engine"], item["precision"], item["batch"]): item
            for item in kept
            if records.is_cell(item) and records.measured(item)
        }
        for key, item in found.items():
            if item["power"]["mean_w"] is None and key in self._metered:
                item["power"] = records.no_power(POWER_PENDING)
        # What this run does not ask for stays in the file too.
        self.records |= found
        return len(found)

    def write(self) -> None:
        records.write(self.path, records.document(self.here, list(self.records.values())))

    def finish(self, reason: str) -> None:
        """Say of everything that is left why it was not measured, and write the last of the file."""
        for item in self.records.values():
            if item["failure"] == "cut_off":
                records.fail(item, Failed("cut_off", f"not measured, {reason}"))
            elif item["power"]["reason"] == POWER_PENDING:
                item["power"] = records.no_power(f"not reached: {reason}")
        self.write()

    def go(self, child: Any, idle_w: float | None) -> None:
        """Every task that is not done yet; `Stopped` when the time is over."""
        for index, task in enumerate(self.tasks):
            began = self._clock()
            if task.power:
                self._power(child, task, idle_w)
            else:
                self._cells(child, task)
            if (took := self._clock() - began) > 0.01:
                self._took.setdefault(task.power, []).append(took)
            self._say(index + 1)
            if child.device == "cpu" and self._leaves(task.network, index):
                # On a CPU a network's memory is the process's: the next one begins in a fresh one.
                child.end()

    def _leaves(self, network: str, index: int) -> bool:
        return index + 1 < len(self.tasks) and self.tasks[index + 1].network != network

    def _cells(self, child: Any, task: Task) -> None:
        side = (task.network, task.engine, task.precision)
        for key in task.keys:
            item = self.records[key]
            if records.measured(item):
                continue
            try:
                parity = self._check(child, side, task)
                if key[3] >= self._exhausted.get(side, sys.maxsize):
                    raise PassError("skipped", f"not tried, memory ended at batch {self._exhausted[side]}")
                self._fill(item, self._ask(child, "cell", side, task, batch=key[3]), parity)
            except PassError as error:
                records.fail(item, error.failed)
                if error.failed.kind == "memory":
                    self._exhausted[side] = min(key[3], self._exhausted.get(side, sys.maxsize))
            self.write()

    def _check(self, child: Any, side: tuple[str, str, str], task: Task) -> Parity:
        """The verdict on the engine's answers; `PassError` where they are another network's: its speed is no result."""
        if side not in self._checked:
            try:
                self._checked[side] = cast(Parity, self._ask(child, "check", side, task))
            except PassError as error:
                self._checked[side] = {"verdict": "fail", "failures": [str(error)]}
        found = self._checked[side]
        if found["verdict"] != "pass":
            raise PassError("answers", f"the answers are not the network's: {'; '.join(found['failures'])}")
        return found

    def _fill(self, item: Cell, found: dict[str, Any], parity: Parity) -> None:
        batch, images = item["batch"], item["batch"] * len(found["values"])
        item["latency_ms"] = {**records.latency([found["values"]]), "warm": found["warm"]}
        item["throughput_img_s"] = images / found["wall_s"]
        item["cpu_seconds_per_image"] = found["cpu_s"] / images
        item["memory_mb"] = found["memory"]
        item["parity"] = parity
        if found["device_values"]:
            middle = median(found["device_values"])
            item["device"] = {
                "p50_ms": middle,
                "throughput_img_s": 1e3 * batch / middle,
                "values": [float(f"{value:.5g}") for value in found["device_values"]],
            }
        item["status"], item["failure"] = "ok", None
        item["roofline"] = roofline.of_record(item, self.here.get("rates") or {})

    def _power(self, child: Any, task: Task, idle_w: float | None) -> None:
        item = self.records[task.keys[0]]
        if not records.measured(item) or item["power"]["reason"] != POWER_PENDING or idle_w is None:
            return
        if self.deadline - self._clock() < self.settings.trials * self.settings.window_s:
            raise Stopped("the time budget ended", 0)
        side = (task.network, task.engine, task.precision)
        try:
            found = self._ask(child, "power", side, task, batch=task.batches[0], idle_w=idle_w)
            # Those that were there before ours; later, and in a container, the two cannot be told apart.
            item["power"] = cast(Power, found | {"other_processes": self.here["power"].get("other_processes")})
        except PassError as error:
            item["power"] = records.no_power(f"the power pass failed: {error}")
        self.write()

    def _ask(self, child: Any, what: str, side: tuple[str, str, str], task: Task, **more: Any) -> dict[str, Any]:
        network, engine, precision = side
        job = {
            "pass": what, "network": network, "engine": engine, "precision": precision, "weights": self.weights,
            "settings": asdict(self.settings), "batches": sorted(task.batches),
        }  # fmt: skip
        found: dict[str, Any] = child.ask(job | more, self.deadline)
        return found

    def _planned(self, network: str, engine: str, precision: str, batch: int) -> Cell:
        row = spec(network)
        manifest = manifest_of(network, {"kind": self.weights}, row.preprocess, row.classes, batch, row)
        cell = measure.Cell(Artifact(ROOT, manifest), engine, precision, batch)
        item = cast(Cell, measure.describe(cell, self.here["threads"], self.settings))
        reason = POWER_PENDING if (network, engine, precision, batch) in self._metered else POWER_UNPLANNED
        records.fail(item, PENDING)
        item["kind"], item["power"] = "gpu_cell", records.no_power(reason)
        return item

    def _say(self, done: int) -> None:
        """One line on stderr: the last figures, how far it is, and how long it will take."""
        task, left = self.tasks[done - 1], self.tasks[done:]
        mean = {kind: sum(took) / len(took) for kind, took in self._took.items()}
        known = [mean[one.power] for one in left if one.power in mean]
        eta = min(sum(known), max(0.0, self.deadline - self._clock()))
        when = f"[{self._clock() - self._began:4.0f} s of {self.budget:.0f}]"
        what = ", ".join(told(self.records[key], task.power) for key in task.keys)
        print(
            f"{when} {task.network} {task.engine} {task.precision}: {what}; "
            f"{done} of {len(self.tasks)} done, about {eta:.0f} s left",
            file=sys.stderr,
        )


# What stands in a record until it is measured: the file is true at every moment.
PENDING = Failed("cut_off", "not measured, the run was cut off before it")
POWER_PENDING = "not reached before the run was cut off"
POWER_UNPLANNED = "not among the cells whose power benchmarks/gpu.sh reads"


def told(item: Cell, watts: bool) -> str:
    if not records.measured(item):
        return f"batch {item['batch']} {item['status'].split(': ', 1)[0]}"
    if watts:
        net = item["power"]["net_w"]
        return f"batch {item['batch']} " + (f"{net:.0f} W net" if net is not None else str(item["power"]["reason"]))
    return f"batch {item['batch']} {records.significant(item['throughput_img_s'])} img/s"


def parser() -> argparse.ArgumentParser:
    made = console.parser(
        "benchmarks/gpu.sh",
        "Measure the networks on this machine's NVIDIA GPU: correctness, latency, throughput, memory, power, roofline.",
        "benchmarks/gpu.sh --out gpu.json",
    )
    made.add_argument("--cpu", action="store_true", help="on the processor, as where there is no GPU")
    made.add_argument("--network", type=words, default=NETWORKS, metavar="N,...", help="default: those of docs/gpu.md")
    made.add_argument("--batch", type=sizes, metavar="B,...", help=f"default: {BATCHES}; with --cpu {CPU_BATCHES}")
    made.add_argument(
        "--engine", type=words, metavar="E,...", help="as ENGINE or ENGINE:PRECISION (default: all that are here)"
    )
    made.add_argument("--weights", default="untrained", choices=("untrained", "pretrained"), help="default: untrained")
    made.add_argument("--budget", type=seconds, default=BUDGET_S, metavar="S", help=f"default: {BUDGET_S:g}")
    made.add_argument("--trials", type=int, metavar="N", help=f"power windows of a cell (default: {LOOK.trials})")
    made.add_argument("--threads", type=int, default=0, metavar="N", help="of the processor (default: every core)")
    made.add_argument("--quick", action="store_true", help="shorter looks and one trial: a trial run, not a result")
    made.add_argument("--fresh", action="store_true", help="measure again what --out already holds")
    made.add_argument(
        "--out", type=Path, metavar="FILE", help="default: .podium/results/<machine>-<date>-gpu.json (or -gpu-cpu-mode)"
    )
    made.set_defaults(call=run)
    return made


def words(text: str) -> tuple[str, ...]:
    found = tuple(dict.fromkeys(word for word in text.split(",") if word))
    if not found:
        raise argparse.ArgumentTypeError("expected a comma-separated list")
    return found


def sizes(text: str) -> tuple[int, ...]:
    found = tuple(int(word) if word.isascii() and word.isdigit() else 0 for word in words(text))
    if 0 in found:
        raise argparse.ArgumentTypeError("expected integers from 1")
    return found


def seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return value


def chosen(asked: Sequence[str] | None, device: str) -> list[tuple[str, str]]:
    """(engine, precision) to run, the main one first: those asked for, or all that are installed."""
    if asked:
        pairs = [tuple(word.split(":", 1)) if ":" in word else (word, default(word)) for word in asked]
        for engine, precision in pairs:
            if engine not in ENGINES:
                raise Usage(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
            if precision not in ("fp32", "fp16"):
                raise Usage(f"{engine}:{precision}: precisions here are fp32 and fp16; INT8 needs an export")
        return [(engine, precision) for engine, precision in pairs]
    if device == "cpu":
        return [(torch_engine.TORCH, "fp32")]
    torch_sides = [
        (torch_engine.ON_CUDA[torch_engine.TORCH], "fp16"),
        (torch_engine.ON_CUDA[torch_engine.TORCH], "fp32"),
    ]
    here = installed()
    found = [(engine, "fp16") for engine in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda") if engine in here]
    return [torch_sides[0], *found, (torch_engine.ON_CUDA[torch_engine.COMPILED], "fp16"), torch_sides[1]]


ENGINES = (
    torch_engine.TORCH, torch_engine.COMPILED, *torch_engine.ON_CUDA.values(),
    "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx",
)  # fmt: skip


def default(engine: str) -> str:
    return "fp32" if engine in (torch_engine.TORCH, torch_engine.COMPILED, "onnxruntime", "openvino") else "fp16"


def run(options: argparse.Namespace) -> int:
    clock, began = time.monotonic, time.monotonic()
    networks = tuple(spec(name).name for name in options.network)
    device = "cpu" if options.cpu or not torch_engine.cuda() else "cuda"
    settings = QUICK if options.quick else LOOK
    if options.trials is not None:
        settings = replace(settings, trials=max(1, options.trials))
    wanted = chosen(options.engine, device)
    batches = options.batch or (BATCHES if device == "cuda" else CPU_BATCHES)
    threads = options.threads or cores()
    here: Environment = {
        **environment.describe(threads),
        "settings": settings.name + (", CPU mode" if device == "cpu" else ""),
        "command": shlex.join(["benchmarks/gpu.sh", *sys.argv[1:]]),
    }
    if device == "cpu":
        here["mode"] = CPU_MODE
        print(f"benchmarks/gpu.sh: {CPU_MODE}", file=sys.stderr)
    path = options.out or default_path(environment.machine(here), device)
    kept = [] if options.fresh else earlier(path, here)

    watts = idle(wanted[0][0], settings)
    here["power"] = watts
    tasks = plan(networks, wanted, batches, watts["reason"] is None)
    made = Run(path, here, settings, options.weights, tasks, options.budget - (clock() - began))
    if resumed := made.resume(kept):
        print(f"{resumed} cells are in {path} already; --fresh measures them again", file=sys.stderr)
    if watts["reason"] is not None:
        for item in made.records.values():
            if item["power"]["mean_w"] is None:
                item["power"] = records.no_power(watts["reason"])
    made.write()
    with tempfile.TemporaryDirectory(prefix="podium-gpu-") as files:
        child = Child(device, threads, Path(files))
        return watched(made, child, watts["idle_w"], options.quick, [precision for _, precision in wanted])


def watched(made: Run, child: Child, idle_w: float | None, quick: bool, precisions: Sequence[str]) -> int:
    """The run, its end by whatever cause, the last of the file, and what is said about it; the exit status."""
    status, reason = 0, "the run ended"

    def stop(number: int, _: object) -> NoReturn:
        raise Stopped(f"the run was stopped ({signal.Signals(number).name})", 128 + number)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        made.here["device"] = child.ask({"pass": "hello"}, made.deadline)
        asked = {"pass": "rates", "precisions": sorted({*precisions, "fp16", "bf16", "int8"})}
        try:
            made.here["rates"] = child.ask(asked | (QUICK_RATES if quick else {}), made.deadline)
        except PassError as error:  # networks can be timed all the same
            print(f"benchmarks/gpu.sh: no roofline: {error}", file=sys.stderr)
        made.write()
        made.go(child, idle_w)
    except Stopped as stopped:
        reason, status = str(stopped), stopped.status
    except KeyboardInterrupt:
        reason, status = "the run was stopped (SIGINT)", 130
    except PassError as error:
        reason, status = str(error), 1
    finally:
        # From here on a second signal must not cost what the first one left.
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        child.end()
        made.finish(reason)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    items = list(made.records.values())
    print(summary(items))
    print(made.path)
    left = sum(item["failure"] == "cut_off" for item in items)
    if left:
        print(f"{left} of {len(items)} cells were not measured: {reason}; the same command goes on", file=sys.stderr)
    wrong = sorted({item["network"] for item in items if item["failure"] == "answers"})
    if wrong:
        raise Failure(f"wrong answers from {', '.join(wrong)}; the statuses in {made.path} say what was compared")
    if not status and not any(records.measured(item) for item in items):
        raise Failure(f"nothing could be measured; the first reason: {items[0]['status'].removeprefix('failed: ')}")
    return status


def idle(engine: str, settings: Settings) -> dict[str, Any]:
    """The sensor, and what the device draws before anything of ours is on it; the reason where there is no sensor."""
    try:
        sensor = power.sensor_for(engine)
        found = power.idle(sensor, settings.idle_s)
        return {"source": sensor.source, "reason": None, "idle_w": found, **sensor.details()}
    except power.SensorError as error:
        return {"source": "none", "reason": str(error), "idle_w": None}


def earlier(path: Path, here: Environment) -> list[records.Record]:
    """What `path` already holds, to go on from; `Usage` when it was measured under other conditions."""
    if not path.exists():
        return []
    document = records.read(path)
    there = document["environment"]
    other = environment.differences(there, here, (*environment.IDENTITY, "settings", "threads"))
    if other:
        raise Usage(f"{path} was measured under other conditions ({'; '.join(other)}); give another --out, or --fresh")
    return document["records"]


def default_path(machine: str, device: str) -> Path:
    from datetime import datetime

    mode = "gpu" if device == "cuda" else "gpu-cpu-mode"
    return Path(".podium") / "results" / f"{machine}-{datetime.now().astimezone():%Y-%m-%d}-{mode}.json"


def summary(items: Sequence[Cell]) -> str:
    """What was measured, for the terminal."""
    header = ("network", "engine", "precision", "batch", "p50 ms", "img/s", "on device", "MB", "W net", "of roofline")
    s = records.significant
    rows = [
        (
            item["network"], item["engine"], item["precision"], item["batch"], s(item["latency_ms"]["p50"]),
            s(item["throughput_img_s"]), s(item["device"]["throughput_img_s"] if "device" in item else None),
            s(memory(item)), s(item["power"]["net_w"]),
            f"{100 * roof['share']:.0f} %, {roof['bound_by']}" if (roof := item.get("roofline")) else "",
        )
        for item in items
        if records.is_measured_cell(item)
    ]  # fmt: skip
    return "\n".join([console.table(rows, header, right=range(3, 9)), *reasons(items)])


def reasons(items: Sequence[Cell]) -> Iterator[str]:
    """Why something was not measured, each reason once."""
    yield from sorted({f"{item['network']}: {item['status']}" for item in items if not records.measured(item)})
    found = {item["power"]["reason"] for item in items if records.measured(item) and item["power"]["reason"]}
    yield from sorted(f"Power: {reason}." for reason in found)


def main(argv: Sequence[str] | None = None) -> int:
    return console.run(parser(), argv)


assert set(NETWORKS) <= set(SPECS)

if __name__ == "__main__":
    sys.exit(main())
