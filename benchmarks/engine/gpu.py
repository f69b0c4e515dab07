"""`benchmarks/gpu.sh`: measure the networks on one GPU within nine minutes.

What matters most is measured first, and every result is written at once. From the beginning the file lists what is
still to be measured. So a run may end at any time, by its budget, a signal or a power cut, and nothing is lost or
hidden. A second run with the same file continues where the first one ended. Without a GPU it measures the processor.
"""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, NoReturn, Protocol

from benchmarks import environment, intervals, records
from benchmarks.engine import cells as measure
from benchmarks.engine import power, roofline, torch_engine
from benchmarks.engine.gpu_plan import BATCHES, CPU_BATCHES, NETWORKS, Graph, Key, Task, plan
from benchmarks.engine.passes import Settings
from benchmarks.engine.session import MemoryEnded, Session, earlier, judge
from benchmarks.process import ROOT, Child, Late, PassError
from benchmarks.records import Cell, Environment, Failed, IdlePower, Parity, Power, memory
from export.store import manifest_of
from models import SPECS, console, spec
from models.console import Failure, Usage, natural, positive, positive_integer, positive_integers, words
from serving.artifact import Artifact
from serving.runtime import cores, installed

if TYPE_CHECKING:
    from benchmarks.engine.gpu_passes import CellAnswer, Job

# Nine minutes, less the time to start and to end.
BUDGET_S = 520.0

LOOK = Settings("gpu", 1, 0.5, 0.5, 2.0, 0, 5, 2000, idle_s=10.0, window_s=5.0, trials=3)
QUICK = Settings("gpu, quick", 1, 0.05, 0.05, 0.5, 0, 3, 200, idle_s=2.0, window_s=5.0, trials=1)

# Sides of the matrices and MB of the copy in a quick look; 0 is roofline's own choice.
QUICK_RATES = {"side": 512, "megabytes": 64}

CPU_MODE = "CPU mode of benchmarks/gpu.sh: no GPU was used, and every figure is the processor's"


class Stopped(Exception):
    """The run was told to end: by its budget or by a signal."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class Asked(Protocol):
    """What a run needs of `process.Child`."""

    def ask(self, name: str, question: Mapping[str, Any], within: float | None) -> Any: ...

    def end(self) -> None: ...


class Run(Session[Cell]):
    """One run: its file, its clock and its records, in the order of the plan."""

    def __init__(
        self,
        path: Path,
        here: Environment,
        settings: Settings,
        weights: str,
        tasks: Sequence[Task],
        budget_s: float,
        device: str = "cuda",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.settings, self.weights, self.tasks, self.device = settings, weights, tasks, device
        self._clock, self._began = clock, clock()
        self.deadline, self.budget = self._began + budget_s, budget_s
        self._verdicts: dict[Graph, Parity | PassError] = {}
        self._memory = MemoryEnded()
        self._took: dict[bool, list[float]] = {}  # seconds of the tasks done so far, by kind
        self._unmetered = {key for task in tasks if task.power for key in task.keys}
        keys = dict.fromkeys(key for task in tasks for key in task.keys)
        super().__init__(path, here, [planned(key, weights, here["threads"], settings) for key in keys])
        for key in keys:
            reason = POWER_PENDING if key in self._unmetered else POWER_UNPLANNED
            self.item(key)["power"] = records.no_power(reason)

    def item(self, key: Key) -> Cell:
        network, engine, precision, batch = key
        return self.items[network, "", engine, precision, batch, None]

    def resume(self, kept: Sequence[records.Record]) -> int:
        """Take over what an earlier run measured: the number of records. Power that it did not reach is still due."""
        measured = {records.key(item): item for item in kept if records.is_cell(item) and records.measured(item)}
        # Records that this run does not plan stay in the file too.
        self.items |= measured
        for item in measured.values():
            key = (item["network"], item["engine"], item["precision"], item["batch"])
            if item["power"]["mean_w"] is not None:
                self._unmetered.discard(key)
            elif key in self._unmetered:
                item["power"] = records.no_power(POWER_PENDING)
        return len(measured)

    def no_sensor(self, reason: str) -> None:
        """Say of every record without watts that there is no sensor."""
        self._unmetered.clear()
        for item in self.items.values():
            if item["power"]["mean_w"] is None:
                item["power"] = records.no_power(reason)

    def finish(self, reason: str) -> None:
        """Give every record that is left the reason why it was not measured, and write the file."""
        for key in self._unmetered:
            if self.item(key)["failure"] != "cut_off":
                self.item(key)["power"] = records.no_power(f"not reached: {reason}")
        for item in self.items.values():
            if item["failure"] == "cut_off":
                records.fail(item, Failed("cut_off", f"not measured, {reason}"))
        self.write()

    def go(self, child: Asked, idle_w: float | None) -> None:
        """Do every task that is not done yet; `Stopped` if the time ends."""
        for index, task in enumerate(self.tasks):
            began = self._clock()
            if task.power:
                self._power(child, task, idle_w)
            else:
                self._cells(child, task)
            if (took := self._clock() - began) > 0.01:
                self._took.setdefault(task.power, []).append(took)
            self._say(index + 1)
            if self.device == "cpu" and self._leaves(task.network, index):
                # On a CPU a network's memory is its process's, so the next network gets a fresh process.
                child.end()

    def _leaves(self, network: str, index: int) -> bool:
        return index + 1 < len(self.tasks) and self.tasks[index + 1].network != network

    def ask(self, child: Asked, name: str, question: Mapping[str, Any]) -> Any:
        """The child's answer; `PassError` if it fails, `Stopped` if the time ends before."""
        try:
            return child.ask(name, question, self.deadline - self._clock())
        except Late as error:
            raise Stopped("the time budget ended", 0) from error
        except PassError:
            if self.device != "cpu":
                child.end()  # after a CUDA error everything else fails too
            raise

    def _cells(self, child: Asked, task: Task) -> None:
        for key in task.keys:
            item = self.item(key)
            if records.measured(item):
                continue
            try:
                parity = self._check(child, task)
                self._memory.check(task.graph, item["batch"])
                answer: CellAnswer = self.ask(child, "cell", {**self._job(task), "batch": item["batch"]})
                self._fill(item, answer, parity)
            except PassError as error:
                records.fail(item, error.failed)
                self._memory.note(task.graph, item["batch"], error.failed)
            self.write()

    def _check(self, child: Asked, task: Task) -> Parity:
        """The verdict on the engine's answers. `PassError` if there is none, or if they are wrong, because the speed of
        wrong answers is not a result.
        """
        if task.graph not in self._verdicts:
            try:
                self._verdicts[task.graph] = self.ask(child, "check", self._job(task))
            except PassError as error:
                self._verdicts[task.graph] = error
        verdict = self._verdicts[task.graph]
        if isinstance(verdict, PassError):
            raise verdict
        if verdict["verdict"] != "pass":
            raise PassError("answers", f"the answers are not the network's: {'; '.join(verdict['failures'])}")
        return verdict

    def _fill(self, item: Cell, answer: CellAnswer, parity: Parity) -> None:
        batch, images = item["batch"], item["batch"] * len(answer["values"])
        item["latency_ms"] = {**intervals.latency([answer["values"]]), "warm": answer["warm"]}
        item["throughput_img_s"] = images / answer["wall_s"]
        item["cpu_seconds_per_image"] = answer["cpu_s"] / images
        item["memory_mb"] = answer["memory"]
        item["parity"] = parity
        if answer["device_values"]:
            middle = median(answer["device_values"])
            item["device"] = {
                "p50_ms": middle,
                "throughput_img_s": 1e3 * batch / middle,
                "values": [float(f"{value:.5g}") for value in answer["device_values"]],
            }
        item["status"], item["failure"] = "ok", None
        item["roofline"] = roofline.of_record(item, self.here.get("rates", {}))

    def _power(self, child: Asked, task: Task, idle_w: float | None) -> None:
        [key] = task.keys
        item = self.item(key)
        if not records.measured(item) or key not in self._unmetered or idle_w is None:
            return
        if self.deadline - self._clock() < self.settings.trials * self.settings.window_s:
            raise Stopped("the time budget ended", 0)
        try:
            power: Power = self.ask(child, "power", {**self._job(task), "batch": item["batch"], "idle_w": idle_w})
            # Processes that were there before ours: later, in a container, ours cannot be told from others.
            power["other_processes"] = self.here["power"].get("other_processes")
            item["power"] = power
        except PassError as error:
            item["power"] = records.no_power(f"the power pass failed: {error}")
        self._unmetered.discard(key)
        self.write()

    def _job(self, task: Task) -> Job:
        return {
            "network": task.network, "engine": task.engine, "precision": task.precision, "weights": self.weights,
            "settings": asdict(self.settings), "batches": sorted(task.batches),
        }  # fmt: skip

    def _say(self, done: int) -> None:
        """One line on stderr: the last figures, how far it is, and how long it will take."""
        task, left = self.tasks[done - 1], self.tasks[done:]
        mean = {kind: sum(took) / len(took) for kind, took in self._took.items()}
        known = [mean[later.power] for later in left if later.power in mean]
        eta = min(sum(known), max(0.0, self.deadline - self._clock()))
        when = f"[{self._clock() - self._began:4.0f} s of {self.budget:.0f}]"
        what = ", ".join(told(self.item(key), task.power) for key in task.keys)
        print(
            f"{when} {task.network} {task.engine} {task.precision}: {what}; "
            f"{done} of {len(self.tasks)} done, about {eta:.0f} s left",
            file=sys.stderr,
        )


def planned(key: Key, weights: str, threads: int, settings: Settings) -> Cell:
    """The record of a cell before the run reaches it."""
    network, engine, precision, batch = key
    row = spec(network)
    manifest = manifest_of(network, {"kind": weights}, row.preprocess, row.classes, batch, row)
    item = measure.describe(measure.Cell(Artifact(ROOT, manifest), engine, precision, batch), threads, settings)
    assert item["kind"] != "scenario"
    item["kind"] = "gpu_cell"
    records.fail(item, PENDING)
    return item


# What a record says until it is measured, so that the file is true at every moment.
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
    arguments = console.parser(
        "benchmarks/gpu.sh",
        "Measure the networks on this machine's NVIDIA GPU: correctness, latency, throughput, memory, power, roofline.",
        "benchmarks/gpu.sh --out gpu.json",
    )
    arguments.add_argument("--cpu", action="store_true", help="on the processor, as if there were no GPU")
    arguments.add_argument(
        "--network", type=words, default=NETWORKS, metavar="N,...", help="default: those of docs/gpu.md"
    )
    arguments.add_argument(
        "--batch", type=positive_integers, metavar="B,...", help=f"default: {BATCHES}; with --cpu {CPU_BATCHES}"
    )
    arguments.add_argument(
        "--engine", type=words, metavar="E,...", help="as ENGINE or ENGINE:PRECISION (default: all that are installed)"
    )
    arguments.add_argument(
        "--weights", default="untrained", choices=("untrained", "pretrained"), help="default: untrained"
    )
    arguments.add_argument("--budget", type=positive, default=BUDGET_S, metavar="S", help=f"default: {BUDGET_S:g}")
    arguments.add_argument(
        "--trials", type=positive_integer, metavar="N", help=f"power windows of a cell (default: {LOOK.trials})"
    )
    arguments.add_argument(
        "--threads", type=natural, default=0, metavar="N", help="of the processor (default: every core)"
    )
    arguments.add_argument(
        "--quick", action="store_true", help="shorter looks and one trial: a trial run, not a result"
    )
    arguments.add_argument("--fresh", action="store_true", help="measure again what --out already holds")
    arguments.add_argument(
        "--out", type=Path, metavar="FILE", help="default: .podium/results/<machine>-<date>-gpu.json (or -gpu-cpu-mode)"
    )
    arguments.set_defaults(call=run)
    return arguments


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
    eager, compiled = (torch_engine.ON_CUDA[name] for name in (torch_engine.TORCH, torch_engine.COMPILED))
    here = installed()
    others = [(engine, "fp16") for engine in ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda") if engine in here]
    return [(eager, "fp16"), *others, (compiled, "fp16"), (eager, "fp32")]


ENGINES = (
    torch_engine.TORCH, torch_engine.COMPILED, *torch_engine.ON_CUDA.values(),
    "onnxruntime", "openvino", "onnxruntime-cuda", "tensorrt", "tensorrt-rtx",
)  # fmt: skip


def default(engine: str) -> str:
    return "fp32" if engine in (torch_engine.TORCH, torch_engine.COMPILED, "onnxruntime", "openvino") else "fp16"


def run(options: argparse.Namespace) -> int:
    clock, began = time.monotonic, time.monotonic()
    networks = tuple(dict.fromkeys(spec(name).name for name in options.network))
    device = "cpu" if options.cpu or not torch_engine.cuda() else "cuda"
    settings = QUICK if options.quick else LOOK
    if options.trials is not None:
        settings = replace(settings, trials=options.trials)
    wanted = chosen(options.engine, device)
    batches = tuple(dict.fromkeys(options.batch or ())) or (BATCHES if device == "cuda" else CPU_BATCHES)
    threads = options.threads or cores()
    here: Environment = {
        **environment.describe(threads),
        "settings": settings.name + (", CPU mode" if device == "cpu" else ""),
        "command": shlex.join(["benchmarks/gpu.sh", *sys.argv[1:]]),
    }
    if device == "cpu":
        here["mode"] = CPU_MODE
        print(f"benchmarks/gpu.sh: {CPU_MODE}", file=sys.stderr)
    path = options.out or records.default_path(
        environment.machine(here), "-gpu" if device == "cuda" else "-gpu-cpu-mode"
    )
    kept = [] if options.fresh else earlier(path, here)

    watts = idle(wanted[0][0], settings)
    here["power"] = watts
    tasks = plan(networks, wanted, batches, watts["reason"] is None)
    session = Run(path, here, settings, options.weights, tasks, options.budget - (clock() - began), device)
    if resumed := session.resume(kept):
        print(f"{resumed} cells are in {path} already; --fresh measures them again", file=sys.stderr)
    if watts["reason"] is not None:
        session.no_sensor(watts["reason"])
    session.write()
    with tempfile.TemporaryDirectory(prefix="podium-gpu-") as files:
        child = Child("benchmarks.engine.gpu_passes", device, str(threads), files, told=True)
        return watched(session, child, watts["idle_w"], options.quick, [precision for _, precision in wanted])


def watched(session: Run, child: Child, idle_w: float | None, quick: bool, precisions: Sequence[str]) -> int:
    """Run to the end, whatever ends it, write the file, and print what was measured; the exit status."""
    status, reason = 0, "the run ended"

    def stop(number: int, _: object) -> NoReturn:
        raise Stopped(f"the run was stopped ({signal.Signals(number).name})", 128 + number)

    handlers = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        session.here["device"] = session.ask(child, "hello", {})
        asked = {"precisions": sorted({*precisions, "fp16", "bf16", "int8"}), **(QUICK_RATES if quick else {})}
        try:
            session.here["rates"] = session.ask(child, "rates", asked)
        except PassError as error:  # networks can be timed all the same
            print(f"benchmarks/gpu.sh: no roofline: {error}", file=sys.stderr)
        session.write()
        session.go(child, idle_w)
    except Stopped as stopped:
        reason, status = str(stopped), stopped.status
    except KeyboardInterrupt:
        reason, status = "the run was stopped (SIGINT)", 130
    except PassError as error:
        reason, status = str(error), 1
    finally:
        # A second signal must not keep the file from being written.
        for number in handlers:
            signal.signal(number, signal.SIG_IGN)
        child.end()
        session.finish(reason)
        for number, handler in handlers.items():
            signal.signal(number, handler)
    items = list(session.items.values())
    print(summary(items))
    print(session.path)
    left = sum(item["failure"] == "cut_off" for item in items)
    if left:
        print(f"{left} of {len(items)} cells were not measured: {reason}; the same command continues", file=sys.stderr)
    wrong = sorted({item["network"] for item in items if item["failure"] == "answers"})
    if wrong:
        raise Failure(f"wrong answers from {', '.join(wrong)}; the statuses in {session.path} say what was compared")
    if not status:
        judge(items)
    return status


def idle(engine: str, settings: Settings) -> IdlePower:
    """The sensor and what the device draws before our work is on it, or the reason why there is no sensor."""
    try:
        sensor = power.sensor_for(engine)
        idle_w = power.idle(sensor, settings.idle_s)
        return {"source": sensor.source, "reason": None, "idle_w": idle_w, **sensor.details()}
    except power.SensorError as error:
        return {"source": "none", "reason": str(error), "idle_w": None}


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
    no_power = {item["power"]["reason"] for item in items if records.measured(item) and item["power"]["reason"]}
    yield from sorted(f"Power: {reason}." for reason in no_power)


def main(argv: Sequence[str] | None = None) -> int:
    return console.run(parser(), argv)


assert set(NETWORKS) <= set(SPECS)

if __name__ == "__main__":
    sys.exit(main())
