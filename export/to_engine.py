"""ONNX to a TensorRT plan: one optimisation profile for each batch size, and proof of the precision.

tensorrt      times kernels on the GPU that will run the plan; the plan runs on no other GPU
tensorrt-rtx  compiles on any machine for every GPU it supports; kernels are made when the plan is loaded
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from models.console import Bar, Failure
from serving.artifact import sha256
from serving.trt import gpu, load_module, logger

Engine = Literal["tensorrt", "tensorrt-rtx"]

# TensorRT tunes a profile for one batch size. Batches in between are padded to the next.
BUCKETS = (1, 2, 4, 8, 16, 32, 64)

# 0 builds fastest, 5 searches longest; 3 is TensorRT's own default.
OPTIMIZATION_LEVEL = 3

# These layers do nearly all of a classifier's arithmetic, so their types are its precision.
ARITHMETIC = ("CONVOLUTION", "DECONVOLUTION", "MATRIX_MULTIPLY")

# These layers only move values: a quantized value is still quantized after one of them.
MOVES = ("SHUFFLE", "IDENTITY", "SQUEEZE", "UNSQUEEZE")

PRECISIONS = {"FLOAT": "fp32", "HALF": "fp16", "INT8": "int8"}


@dataclass(frozen=True)
class PlanRecord:
    """The manifest's record of a plan. `serving.trt.check_record` compares it with the machine that would run it."""

    engine: str
    engine_version: str
    precision: str
    layers: dict[str, int]  # convolutions and matrix products by precision, in the network as TensorRT read it
    engine_layers: dict[str, int] | None  # layers by output precision in the plan; None: no GPU here to open it
    buckets: list[int]
    any_batch: int | None  # the profile for every size up to the largest, for servers that do not pad
    input: str
    output: str
    gpu: str | None  # None: compiled for every GPU that TensorRT-RTX supports
    compute_capability: str | None
    cuda_driver: int | None
    onnx_sha256: str
    workspace_mb: int | None
    optimization_level: int
    build_seconds: float

    def record(self) -> dict[str, Any]:
        return asdict(self)


def buckets_up_to(max_batch: int) -> tuple[int, ...]:
    """The batch sizes a plan is built for: powers of two below `max_batch`, and `max_batch`."""
    below = [size for size in (1 << i for i in range(max_batch.bit_length())) if size < max_batch]
    return (*below, max_batch)


def plan_name(record: PlanRecord) -> str:
    """<engine>-<precision>-<gpu>.plan; "any" if the plan does not belong to one GPU."""
    words = "".join(c if c.isalnum() else " " for c in (record.gpu or "any").lower()).split()
    return f"{record.engine}-{record.precision}-{'-'.join(words)}.plan"


def build_plan(
    onnx: Path,
    plan: Path,
    engine: Engine,
    precision: str,
    shape: tuple[int, int, int],
    buckets: Sequence[int] = BUCKETS,
    *,
    workspace_mb: int | None = None,
    optimization_level: int = OPTIMIZATION_LEVEL,
    timing_cache: Path | None = None,
) -> PlanRecord:
    """Compile `onnx` (uint8 [n, *shape] in) to `plan`, with one profile for every batch size in `buckets`.

    `workspace_mb` limits the scratch memory of kernels (None: all there is). `timing_cache` is a file in which tensorrt
    keeps its timings for the next build; tensorrt-rtx times nothing and ignores it. Raises `Failure` if the engine is
    not installed, if the graph cannot be read, or if its precision is not `precision`.
    """
    module, here = load_module(engine), None
    if engine == "tensorrt":
        here = gpu()
        if here is None:
            raise Failure(
                "tensorrt builds a plan on the GPU that will run it, but this machine has none; "
                "build there, or use engine tensorrt-rtx, which builds without a GPU"
            )
    started = time.monotonic()
    logger(module).take()  # drop messages about other plans
    builder = module.Builder(logger(module))
    network = builder.create_network(0)
    parser = module.OnnxParser(network, logger(module))
    _parse(parser, onnx, engine)
    source, target = _ends(module, network, onnx, shape)
    layers = layers_by_precision(network)
    check_precision(precision, layers, onnx.name)

    config = builder.create_builder_config()
    config.builder_optimization_level = optimization_level
    config.profiling_verbosity = module.ProfilingVerbosity.DETAILED
    # float32 has to be float32: TF32 would drop 13 bits of every factor.
    config.clear_flag(module.BuilderFlag.TF32)
    if hasattr(module.BuilderFlag, "REQUIRE_USER_ALLOCATION"):
        # A CUDA graph cannot capture layers that allocate while they run.
        config.set_flag(module.BuilderFlag.REQUIRE_USER_ALLOCATION)
    if workspace_mb is not None:
        config.set_memory_pool_limit(module.MemoryPoolType.WORKSPACE, workspace_mb << 20)
    sizes = sorted(set(buckets))
    # Triton forms batches of every size and does not pad them. It has no backend for TensorRT-RTX.
    any_batch = len(sizes) if engine == "tensorrt" and len(sizes) > 1 else None
    _add_profiles(builder, config, source, shape, [(size, size) for size in sizes])
    if any_batch is not None:
        _add_profiles(builder, config, source, shape, [(1, sizes[-1])])

    with _timings(config, timing_cache if engine == "tensorrt" else None), _monitor(module, onnx.name) as monitor:
        config.progress_monitor = monitor
        built = builder.build_serialized_network(network, config)
        if monitor.stopped:
            raise monitor.stopped
    if built is None:
        raise Failure(f"{engine} cannot compile {onnx.name}: {logger(module).take()}")
    code = bytes(memoryview(built))
    inspected = inspect(module, code) if here else None
    if inspected:
        check_engine(precision, inspected, plan.name)
    partial = plan.with_name(f"{plan.name}.partial")
    partial.write_bytes(code)
    partial.replace(plan)
    return PlanRecord(
        engine=engine,
        engine_version=module.__version__,
        precision=precision,
        layers=dict(layers),
        engine_layers=dict(inspected) if inspected else None,
        buckets=sizes,
        any_batch=any_batch,
        input=source,
        output=target,
        gpu=here.name if here else None,
        compute_capability=here.compute_capability if here else None,
        cuda_driver=here.cuda_driver if here else None,
        onnx_sha256=sha256(onnx),
        workspace_mb=workspace_mb,
        optimization_level=optimization_level,
        build_seconds=round(time.monotonic() - started, 3),
    )


# --- reading the graph ------------------------------------------------------------------------------------------------


def _parse(parser: Any, onnx: Path, engine: str) -> None:
    """Read `onnx` into the parser's network. Raises `Failure` with everything that TensorRT cannot take."""
    if not onnx.is_file():
        raise Failure(f"{onnx} is not a file; export the network first")
    if parser.parse_from_file(str(onnx)):
        return
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    told = [f"{e.node_operator() or 'the file'} {e.node_name()}".strip() + f": {e.desc()}" for e in errors]
    raise Failure(f"{engine} cannot read {onnx.name}: {'; '.join(told) or 'it gives no reason'}")


def _ends(module: Any, network: Any, onnx: Path, shape: tuple[int, int, int]) -> tuple[str, str]:
    """The names of the input and the output. Raises `Failure` unless the graph is a classifier of uint8 [n, *shape]."""
    inputs = [network.get_input(i) for i in range(network.num_inputs)]
    dims = [tuple(tensor.shape) for tensor in inputs]
    fits = len(inputs) == network.num_outputs == 1 and inputs[0].dtype == module.DataType.UINT8
    if not fits or len(dims[0]) != 4 or any(d not in (-1, s) for d, s in zip(dims[0][1:], shape, strict=True)):
        has = ", ".join(f"{t.name} {t.dtype.name} {list(d)}" for t, d in zip(inputs, dims, strict=True))
        raise Failure(f"{onnx.name} must take one uint8 tensor [n, {', '.join(map(str, shape))}]; it takes {has}")
    if dims[0][0] != -1:
        raise Failure(f"{onnx.name} takes only batches of {dims[0][0]}; export it with a dynamic batch")
    return inputs[0].name, network.get_output(0).name


def _add_profiles(
    builder: Any, config: Any, source: str, shape: tuple[int, int, int], ranges: Sequence[tuple[int, int]]
) -> None:
    """Add a profile for every (smallest, largest) batch, tuned for the largest."""
    for least, most in ranges:
        profile = builder.create_optimization_profile()
        profile.set_shape(source, (least, *shape), (most, *shape), (most, *shape))
        if config.add_optimization_profile(profile) < 0:
            raise Failure(f"no profile could be made for batches of {least} to {most}")


# --- precision --------------------------------------------------------------------------------------------------------


def layers_by_precision(network: Any) -> Counter[str]:
    """How many convolutions and matrix products of a parsed network compute in each precision.

    The network is strongly typed, so these are the types that will run. A layer counts as int8 if its input was
    quantized, because TensorRT fuses the dequantization into it.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    maker = {layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)}
    counted: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name not in ARITHMETIC:
            continue
        before = maker.get(layer.get_input(0).name)
        while before is not None and before.type.name in MOVES:
            before = maker.get(before.get_input(0).name)
        quantized = before is not None and before.type.name == "DEQUANTIZE"
        dtype = "INT8" if quantized else layer.get_output(0).dtype.name
        counted[PRECISIONS.get(dtype, dtype.lower())] += 1
    return counted


def check_precision(asked: str, layers: Counter[str], name: str) -> None:
    """Raise `Failure` unless a network of these `layers` computes in `asked`.

    fp32 allows nothing lower. For fp16 and int8 more than half of them is enough: sensitive layers may stay higher on
    purpose, and the record says how many do.
    """
    total = layers.total()
    proven = layers[asked] == total if asked == "fp32" else layers[asked] * 2 > total
    if not total or not proven:
        has = ", ".join(f"{count} {precision}" for precision, count in layers.most_common()) or "none"
        raise Failure(
            f"{name} was to be compiled as {asked}, but its {total} convolutions and matrix products are {has}. "
            f"The ONNX file decides the precision: build from one that was exported as {asked}"
        )


def inspect(module: Any, code: bytes) -> Counter[str]:
    """The layers of a plan by the precision of their outputs, from its inspector, which needs a GPU."""
    runtime = module.Runtime(logger(module))
    opened = runtime.deserialize_cuda_engine(code)
    if opened is None:
        raise Failure(f"the plan that was just built cannot be opened: {logger(module).take()}")
    told = opened.create_engine_inspector().get_engine_information(module.LayerInformationFormat.JSON)
    return inspected_layers(told)


def inspected_layers(told: str) -> Counter[str]:
    """The layers by precision in the inspector's JSON, whose names of types differ between versions."""
    words = {"fp32": ("fp32", "float"), "fp16": ("fp16", "half"), "int8": ("int8",)}
    counted: Counter[str] = Counter()
    for layer in json.loads(told).get("Layers", ()):
        outputs = layer.get("Outputs", ()) if isinstance(layer, dict) else ()
        keys = ("Format/Datatype", "Datatype", "DataType", "Format")
        types = " ".join(str(output.get(key, "")) for output in outputs for key in keys).lower()
        counted.update(p for p, names in words.items() if any(name in types for name in names))
    return counted


def check_engine(asked: str, layers: Counter[str], name: str) -> None:
    """Raise `Failure` if the layers of the plan contradict the precision that was asked for."""
    lower = layers["fp16"] + layers["int8"]
    if (asked == "fp32" and lower) or (asked != "fp32" and not layers[asked]):
        has = ", ".join(f"{count} {precision}" for precision, count in layers.most_common())
        raise Failure(f"{name} was to be {asked}, but its inspector shows layers of: {has}; please report this")


# --- while it builds --------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _timings(config: Any, path: Path | None) -> Iterator[None]:
    """Build with the timings kept in `path`, and keep the new ones; those of another GPU or version are not used."""
    if path is None:
        yield
        return
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known) if known else None
    if cache is None or not config.set_timing_cache(cache, False):
        config.set_timing_cache(config.create_timing_cache(b""), False)
    yield
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial")
    partial.write_bytes(bytes(memoryview(config.get_timing_cache().serialize())))
    partial.replace(path)


@contextlib.contextmanager
def _monitor(module: Any, name: str) -> Iterator[Any]:
    """A progress monitor for the builder, shown as a bar in percent."""

    class Monitor(module.IProgressMonitor):  # type: ignore[misc]
        """Phases nest: each is a share of one step of the phase around it. TensorRT calls it from its own threads.

        An exception must not reach C++, so it is kept in `stopped`, and the build is asked to end.
        """

        def __init__(self, bar: Bar) -> None:
            module.IProgressMonitor.__init__(self)
            self.stopped: BaseException | None = None
            self._bar, self._lock, self._percent = bar, threading.Lock(), 0
            self._phases: dict[str, list[int]] = {}  # name: [steps, steps done], the outermost first

        def phase_start(self, phase_name: str, _parent: str | None, num_steps: int) -> None:
            self._phases[phase_name] = [max(1, num_steps), 0]
            self._show(f"{name}: {phase_name.lower()}")

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.get(phase_name, [1, 0])[1] = step + 1
            self._show()
            return self.stopped is None

        def phase_finish(self, phase_name: str) -> None:
            self._phases.pop(phase_name, None)

        def _show(self, description: str = "") -> None:
            try:
                with self._lock:
                    done, width = 0.0, 100.0
                    for steps, finished in list(self._phases.values()):
                        done, width = done + width * finished / steps, width / steps
                    self._bar.advance(max(0, int(done) - self._percent))
                    self._percent = max(self._percent, int(done))
                    if description:
                        self._bar.describe(description)
            except BaseException as error:
                self.stopped = error

    with Bar(f"{name}: compiling", 100) as bar:
        yield Monitor(bar)
