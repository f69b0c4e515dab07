"""Result files: the types of their records, one reader and one writer.

A file of records is `{"schema": 1, "environment": {...}, "records": [...]}`; `docs/records.md` describes the fields.
What was not measured is null, never zero. Units are in the names: milliseconds, MB (10^6 bytes), watts, joules, images
per second. Annotations are not postponed here, because `validate` checks files against them.
"""

import json
import math
import os
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, TypedDict, TypeGuard, TypeVar, cast

from benchmarks import older
from models.console import Failure, Usage

SCHEMA = 1


# The parts of a record


class Latency(TypedDict):
    """Milliseconds of single calls; `starts` says how many of `values` each process measured."""

    p50: float
    p90: float
    p99: float
    mean: float
    std: float | None
    count: int
    values: list[float]
    starts: NotRequired[list[int]]
    interval: NotRequired[list[float]]  # of the median, 95 %
    warm: NotRequired[bool]  # whether the warm-up ended because its windows agreed


class Memory(TypedDict):
    """MB; `peak_rss` is what the process needs above what it had before it opened the engine."""

    weights: float | None
    peak_rss: float | None
    peak_gpu: float | None
    activations: float | None
    loaded: NotRequired[float | None]


class OtherProcesses(TypedDict):
    """Processes that used the GPU before ours."""

    count: int
    memory_mb: float


class Conditions(TypedDict, total=False):
    """What a sensor says beside its energy; null if the board or its driver does not know."""

    domains: list[str]
    board: str | None
    driver: str | None
    temperature_c: int | None
    sm_clock_mhz: int | None
    memory_clock_mhz: int | None
    most_sm_clock_mhz: int | None
    power_limit_w: float | None
    instant_w: float | None
    limited_by: list[str] | None
    mig: bool | None
    other_processes: OtherProcesses | None


class Power(Conditions):
    """Watts of the whole device; `net` is above idle. `reason` says why nothing was measured."""

    source: str
    reason: str | None
    idle_w: float | None
    mean_w: float | None
    net_w: float | None
    joules_per_image: float | None
    net_joules_per_image: float | None
    window_s: float | None
    trials: int | None
    std_w: NotRequired[float | None]
    trial_w: NotRequired[list[float]]


class IdlePower(Conditions):
    """What a device draws before a run puts anything on it; `reason` says why that is not known."""

    source: str
    reason: str | None
    idle_w: float | None


class Device(TypedDict):
    """Times on the GPU alone, without copies."""

    p50_ms: float
    throughput_img_s: float
    values: list[float]


class Parity(TypedDict, total=False):
    """How near the engine's answers came to those of float32 on the CPU."""

    max_abs_error: float
    max_relative_error: float
    cosine: float
    top1_agreement: float
    images: dict[str, int]
    failures: list[str]
    verdict: str


class Roofline(TypedDict):
    """What the device allows at this batch, and how near the network came."""

    operations: int
    weight_bytes: int
    image_bytes: int
    operations_per_byte: float
    copy_gb_s: float
    matrix_gop_s: float
    attainable_img_s: float
    bound_by: str
    img_s: float
    share: float
    timed: str


# Why a record has no figures: memory ended, a smaller batch had no memory, the engine raised, its process ended, its
# answers were another network's, the run ended before, no rate keeps the bound, no request was answered.
FailureKind = Literal["memory", "skipped", "engine", "process", "answers", "cut_off", "bound", "unanswered"]


@dataclass(frozen=True)
class Failed:
    """Why something was not measured: `kind` for programs, `reason` for readers."""

    kind: FailureKind
    reason: str

    @property
    def status(self) -> str:
        return f"failed: {self.reason}"


# Records


class Known(TypedDict):
    """What came of it, and what is known of the network beforehand."""

    status: str  # "ok" or "failed: REASON"
    failure: FailureKind | None
    memory_mb: Memory
    power: Power
    macs: int | None
    params: int | None
    top1: float | None
    top5: float | None
    accuracy_source: str | None


class Identity(Known):
    """What every record has, whether it was measured or not."""

    network: str
    version: NotRequired[str | None]
    engine: str
    precision: str
    weights: str
    scenario: NotRequired[str | None]  # in words; null in a cell


class Results(TypedDict):
    """The figures of a record; null if it failed."""

    latency_ms: Latency | None
    throughput_img_s: float | None
    cpu_seconds_per_image: float | None


class InProcess(Identity):
    """What is known of an engine that ran in a process of ours."""

    family: NotRequired[str | None]
    year: NotRequired[int | None]
    classes: NotRequired[int]
    input: NotRequired[int]
    threads: NotRequired[int]
    settings: NotRequired[str]


class CellFields(InProcess):
    """`run` measures cells; `gpu.sh` measures GPU cells, which have the last three fields too."""

    kind: Literal["cell", "gpu_cell"]
    batch: int
    device: NotRequired[Device]
    parity: NotRequired[Parity]
    roofline: NotRequired[Roofline | None]


class Cell(CellFields, Results):
    """One network in one engine at one precision and batch."""


class MeasuredCell(CellFields):
    """A cell whose status is "ok"."""

    latency_ms: Latency
    throughput_img_s: float
    cpu_seconds_per_image: float


ScenarioName = Literal["single-stream", "multi-stream", "server", "offline"]

Rungs = list[tuple[float, float, float | None]]  # rates that a search tried: rate, share within the bound, p99 in ms


class Scenario(InProcess, Results):
    """One MLPerf-style scenario in process; `scenario` is its title."""

    kind: Literal["scenario"]
    name: ScenarioName
    batch: None
    judged_by: NotRequired[Literal["p90", "p99"] | None]
    mean_batch: NotRequired[float]
    sent: NotRequired[int]
    errors: NotRequired[dict[str, int]]
    rate: NotRequired[float | None]  # of the server scenario, as the next three
    rungs: NotRequired[Rungs]
    slo_ms: NotRequired[float]
    within_slo: NotRequired[float]


class Stage(TypedDict):
    """Milliseconds of one stage of a request."""

    mean: float | None
    p50: float
    p99: float


class Loaded(Identity, Results):
    """Requests over HTTP, in a closed loop (`concurrency`) or an open one (`rate`)."""

    batch: None
    concurrency: int | None
    rate: float | None
    duration_s: float
    sent: int
    errors: dict[str, int]
    slo_ms: float | None
    within_slo: float | None
    client_lag_p99_ms: float | None
    split_ms: dict[str, Stage] | None
    mean_batch: float | None


class Load(Loaded):
    kind: Literal["load"]


class Search(Loaded):
    """The highest rate that keeps a bound over HTTP."""

    kind: Literal["search"]
    rungs: Rungs


class Replicas(Loaded):
    """One phase of two replicas behind a balancer."""

    kind: Literal["replicas"]
    phase: str
    refused: int
    lost: int
    retried: int
    slowest_ms: float | None
    by_replica: list[int]
    body_bytes: float
    engine_ms: NotRequired[dict[str, list[float]]]  # of the steady phase, as the next
    around_ms: NotRequired[list[float]]


Record = Cell | Scenario | Load | Search | Replicas
KINDS = ("cell", "gpu_cell", "scenario", "load", "search", "replicas")

I = TypeVar("I", bound=Identity)  # noqa: E741
C = TypeVar("C", Cell, MeasuredCell)


# Result files


class Environment(TypedDict, total=False):
    """The machine and the settings; `environment.describe` makes it. The last ones are of single commands."""

    cpu: str
    flags: list[str]
    cores: int
    threads: int
    memory_mb: int | None
    gpus: list[dict[str, str]]
    limits: dict[str, float | None]
    os: str
    virtual: bool
    python: str
    packages: dict[str, str]
    load_at_start: list[float] | None
    governor: str | None
    date: str
    command: str
    settings: str
    target: str
    client: str
    images: int
    photographs: int
    mode: str
    power: IdlePower
    device: dict[str, str | int | None]
    rates: dict[str, float | None]


class RecordsFile(TypedDict):
    schema: int
    environment: Environment
    records: list[Record]


class RowsFile(TypedDict):
    """What `peers`, `bulk` and `engines` write: a row for each thing compared."""

    environment: Environment
    rows: Sequence[Mapping[str, Any]]


class CheckRecord(TypedDict):
    what: str
    found: float | None
    sign: str
    bound: float
    unit: str
    holds: bool


class CampaignRecord(TypedDict):
    name: str
    passed: bool
    seconds: float
    checks: list[CheckRecord]
    figures: dict[str, Any]


class CampaignsFile(TypedDict):
    environment: Environment
    network: str
    version: str
    engine: str
    precision: str
    campaigns: list[CampaignRecord]


ResultFile = RecordsFile | RowsFile | CampaignsFile
Document = tuple[str, RecordsFile]  # a file's name without its ending, and its content


def plain(hint: Any) -> tuple[type, ...]:
    """What a field annotated with `hint` may hold in JSON."""
    if typing.get_origin(hint) in (typing.Union, UnionType):
        return tuple(kind for part in typing.get_args(hint) for kind in plain(part))
    return (str,) if typing.get_origin(hint) is Literal else (dict,) if typing.is_typeddict(hint) else (hint,)


class Checked(Identity, Results):
    """The fields that every record must have; `validate` checks files against them."""

    kind: str
    batch: int | None


FIELDS = {
    name: plain(hint) for name, hint in typing.get_type_hints(Checked).items() if name in Checked.__required_keys__
}
PARTS: dict[str, frozenset[str]] = {
    "latency_ms": Latency.__required_keys__, "memory_mb": Memory.__required_keys__, "power": Power.__required_keys__,
}  # fmt: skip


def read(path: Path) -> RecordsFile:
    """The file of records at `path`, checked; records of older files get their `kind` and `failure` here."""
    return validate(parsed(path, "python -m benchmarks run"), str(path))


def read_rows(path: Path) -> RowsFile:
    """The file at `path` that `peers`, `bulk` or `engines` wrote."""
    return cast(RowsFile, holding(("environment", "rows"), path, "python -m benchmarks peers --out FILE"))


def read_campaigns(path: Path) -> CampaignsFile:
    """The file at `path` that `stand` wrote."""
    return cast(CampaignsFile, holding(("environment", "campaigns"), path, "python -m benchmarks stand TAG --out FILE"))


def holding(names: Sequence[str], path: Path, writer: str) -> object:
    document = parsed(path, writer)
    if not isinstance(document, dict) or not set(names) <= document.keys():
        raise Usage(f"{path} holds no {names[-1]}; `{writer}` writes such files")
    return document


def parsed(path: Path, writer: str) -> object:
    """The JSON at `path`; the error names the command that writes such files."""
    try:
        return json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Usage(f"cannot read {path} ({error.strerror}); `{writer}` writes such files") from error
    except ValueError as error:
        raise Usage(f"{path} is not JSON ({error}); `{writer}` writes such files") from error


def documents(paths: Sequence[Path]) -> list[Document]:
    """What the files of records hold, each with the file's name."""
    return [(path.stem, read(path)) for path in paths]


def document(environment: Environment, records: Sequence[Record]) -> RecordsFile:
    return {"schema": SCHEMA, "environment": environment, "records": list(records)}


def write(path: Path, content: ResultFile) -> None:
    """Write the file in one step: a reader, or a run that resumes, finds the old file or the new one, never a half."""
    if "records" in content:
        checked = validate(content, str(path))
        head = json.dumps(checked["environment"], indent=1, ensure_ascii=False)
        # One record a line, so that two files can be compared by eye and by diff.
        lines = ",\n".join(json.dumps(item, ensure_ascii=False, allow_nan=False) for item in checked["records"])
        text = f'{{"schema": {SCHEMA},\n"environment": {head},\n"records": [\n{lines}\n]}}\n'
    else:
        text = json.dumps(content, indent=1, allow_nan=False) + "\n"
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(text, "utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise Failure(f"cannot write {path}: {error.strerror}; choose another --out") from error


RESULTS = Path(".podium") / "results"


def default_path(machine: str, suffix: str) -> Path:
    return RESULTS / f"{machine}-{datetime.now().astimezone():%Y-%m-%d}{suffix}.json"


def validate(content: object, name: str = "result file") -> RecordsFile:
    """`content` if it is a file of records as the schema has it, else `Failure` that names the wrong field."""
    if not isinstance(content, dict) or content.get("schema") != SCHEMA:
        schema = content.get("schema") if isinstance(content, dict) else type(content).__name__
        raise Failure(f"{name}: schema is {schema!r}, expected {SCHEMA}; was it written by `python -m benchmarks run`?")
    if not isinstance(content.get("environment"), dict) or not isinstance(content.get("records"), list):
        raise Failure(f"{name}: environment and records are missing or of the wrong kind; measure again")
    items = [older.completed(item) if isinstance(item, dict) else {"status": item} for item in content["records"]]
    for index, item in enumerate(items):
        for problem in problems(item):
            raise Failure(f"{name}: record {index}: {problem}; measure again")
    return cast(RecordsFile, content | {"records": items})


def problems(item: Mapping[str, Any]) -> Iterable[str]:
    """What in `item` breaks the schema, in words."""
    for field, kinds in FIELDS.items():
        if field not in item:
            yield f"{field} is missing"
        elif not isinstance(item[field], kinds) or isinstance(item[field], bool):
            names = ["null" if kind is NoneType else kind.__name__ for kind in kinds]
            yield f"{field} is {item[field]!r}, expected {' or '.join(names)}"
    if item.get("kind") not in KINDS:
        yield f"kind is {item.get('kind')!r}, expected one of {', '.join(KINDS)}"
    if item.get("kind") in ("cell", "gpu_cell") and item.get("batch") is None:
        yield "batch is None, expected the images of one call"
    if item.get("status") != "ok" and not str(item.get("status")).startswith("failed: "):
        yield f'status is {item.get("status")!r}, expected "ok" or "failed: reason"'
    for field, parts in PARTS.items():
        if isinstance(item.get(field), dict) and (lacking := parts - item[field].keys()):
            yield f"{field} lacks {', '.join(sorted(lacking))}"
    power = item.get("power")
    if isinstance(power, dict) and power.get("mean_w") is None and not power.get("reason"):
        yield "power is not measured and gives no reason"
    if item.get("status") == "ok" and not item.get("latency_ms"):
        yield 'status is "ok" without latency_ms'


# What is asked of records


def measured(item: Identity) -> bool:
    return item["status"] == "ok"


def is_cell(item: Record) -> TypeGuard[Cell]:
    return item["kind"] in ("cell", "gpu_cell")


def is_measured_cell(item: Record) -> TypeGuard[MeasuredCell]:
    return is_cell(item) and measured(item)


def searches(items: Iterable[Record], slo_ms: float) -> list[Search]:
    """The searches over HTTP for the highest rate that keeps `slo_ms`."""
    return [item for item in items if item["kind"] == "search" and item["slo_ms"] == slo_ms]


def measured_cells(items: Iterable[Record]) -> list[MeasuredCell]:
    return [item for item in items if is_measured_cell(item)]


def key(item: Record) -> tuple[object, ...]:
    """What tells one record of a file from another, and finds it again when a run resumes."""
    return (
        item["network"], item.get("version"), item["engine"], item["precision"], item["batch"], item.get("scenario"),
    )  # fmt: skip


def fail(item: Identity, failed: Failed) -> None:
    item["status"], item["failure"] = failed.status, failed.kind


# From how many calls on a 99th percentile is one: below, it is the slowest call or the one after it.
FEWEST_FOR_P99 = 100


def memory(item: Identity) -> float | None:
    """MB that the network needs while it runs: the GPU's if it runs there, else the process's."""
    on_gpu = item["memory_mb"]["peak_gpu"]
    return item["memory_mb"]["peak_rss"] if on_gpu is None else on_gpu


def by_network(items: Iterable[I]) -> dict[str, list[I]]:
    groups: dict[str, list[I]] = {}
    for item in items:
        groups.setdefault(item["network"], []).append(item)
    return groups


def smallest_batch(items: Iterable[C]) -> list[C]:
    """One record a network: that of the smallest batch measured."""
    return [min(group, key=lambda item: item["batch"]) for group in by_network(items).values()]


def imagenet(item: InProcess) -> bool:
    """Whether the record's accuracy may stand beside others: on ImageNet's thousand classes."""
    return item["top1"] is not None and item.get("classes", 1000) == 1000


def significant(value: float | None, digits: int = 3) -> str:
    """`value` for a reader: `digits` significant digits, no exponent, a dash if nothing was measured."""
    if value is None:
        return "–"  # noqa: RUF001
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


# Making records


class Unmeasured(Known, Results):
    """The fields of a record of which nothing is known yet."""


def unmeasured(failed: Failed) -> Unmeasured:
    return {
        "status": failed.status, "failure": failed.kind, "latency_ms": None, "throughput_img_s": None,
        "cpu_seconds_per_image": None, "power": no_power("not reached: an earlier pass failed"),
        "memory_mb": {"weights": None, "peak_rss": None, "peak_gpu": None, "activations": None},
        "macs": None, "params": None, "top1": None, "top5": None, "accuracy_source": None,
    }  # fmt: skip


def no_power(reason: str) -> Power:
    """The `power` of a record for which no sensor could be read."""
    return {
        "source": "none", "reason": reason, "idle_w": None, "mean_w": None, "net_w": None, "joules_per_image": None,
        "net_joules_per_image": None, "window_s": None, "trials": None,
    }  # fmt: skip
