"""Plans built by the real TensorRT-RTX, which needs no GPU to build; what only `tensorrt` does runs on its builder."""

from __future__ import annotations

import json
import sys
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from export import to_engine
from export.to_engine import (
    buckets_up_to,
    build_plan,
    check_engine,
    check_precision,
    inspected_layers,
    layers_by_precision,
    plan_name,
)
from models import SPECS, expand
from models.console import Failure
from serving import trt
from serving.artifact import sha256
from serving.trt import Gpu
from tests.conftest import tiny_onnx

rtx = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")

SHAPE = (16, 16, 3)


def conv_onnx(path: Path, precision: str = "fp32", layers: int = 3, quantized: int = 0, zero_point: int = 0) -> Path:
    """A classifier of convolutions in `precision`, the first `quantized` of them between QDQ pairs."""
    real, name = (np.float16, TensorProto.FLOAT16) if precision == "fp16" else (np.float32, TensorProto.FLOAT)
    random = np.random.default_rng(0)
    nodes = [
        helper.make_node("Cast", ["image"], ["cast"], to=name),
        helper.make_node("Transpose", ["cast"], ["x0"], perm=[0, 3, 1, 2]),
    ]
    weights = [
        numpy_helper.from_array(np.array(0.5, real), "scale"),
        numpy_helper.from_array(np.array(zero_point, np.uint8 if zero_point else np.int8), "zero"),
        numpy_helper.from_array(np.array(0, np.int8), "weight_zero"),
    ]
    for i in range(layers):
        channels = 3 if i == 0 else 16
        kernel = random.normal(size=(16, channels, 3, 3)) * 20
        source, weight = f"x{i}", f"w{i}"
        if i < quantized:
            weights.append(numpy_helper.from_array(kernel.astype(np.int8), f"q{i}"))
            nodes += [
                helper.make_node("QuantizeLinear", [source, "scale", "zero"], [f"{source}q"]),
                helper.make_node("DequantizeLinear", [f"{source}q", "scale", "zero"], [f"{source}d"]),
                helper.make_node("DequantizeLinear", [f"q{i}", "scale", "weight_zero"], [weight]),
            ]
            source += "d"
        else:
            weights.append(numpy_helper.from_array(kernel.astype(real), weight))
        nodes.append(helper.make_node("Conv", [source, weight], [f"x{i + 1}"], f"conv{i}", pads=[1, 1, 1, 1]))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"x{layers}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Cast", ["flat"], ["logits"], to=TensorProto.FLOAT),
        helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
    ]
    return write(path, nodes, weights)


def write(
    path: Path, nodes: list[Any], weights: list[Any], batch: Any = "batch", dtype: int = TensorProto.UINT8
) -> Path:
    graph = helper.make_graph(
        nodes,
        "convolutions",
        [helper.make_tensor_value_info("image", dtype, [batch, *SHAPE])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, [batch, 16])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


# --- building ---------------------------------------------------------------------------------------------------------


def test_a_plan_is_built_without_a_gpu_and_its_record_says_how(tmp_path: Path) -> None:
    graph = tiny_onnx(tmp_path / "tiny.onnx")
    made = build_plan(graph, tmp_path / "tiny.plan", "tensorrt-rtx", "fp32", (32, 32, 3), workspace_mb=256)
    assert (tmp_path / "tiny.plan").stat().st_size > 1000
    record = json.loads(json.dumps(made.record()))
    assert record == {
        "engine": "tensorrt-rtx",
        "engine_version": rtx.__version__,
        "precision": "fp32",
        "layers": {"fp32": 1},
        "engine_layers": None,
        "buckets": [1, 2, 4, 8, 16, 32, 64],
        "any_batch": None,
        "input": "image",
        "output": "probabilities",
        "gpu": None,
        "compute_capability": None,
        "cuda_driver": None,
        "onnx_sha256": sha256(graph),
        "workspace_mb": 256,
        "optimization_level": 3,
        "build_seconds": made.build_seconds,
    }
    assert made.build_seconds > 0
    assert plan_name(made) == "tensorrt-rtx-fp32-any.plan"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny.onnx", "tiny.plan"]


@pytest.mark.parametrize(
    ("precision", "quantized", "layers"),
    [("fp32", 0, {"fp32": 3}), ("fp16", 0, {"fp16": 3}), ("int8", 3, {"int8": 3}), ("int8", 2, {"int8": 2, "fp32": 1})],
)
def test_the_precision_of_the_graph_is_proven(
    precision: str, quantized: int, layers: dict[str, int], tmp_path: Path
) -> None:
    graph = conv_onnx(tmp_path / "a.onnx", precision, quantized=quantized)
    made = build_plan(graph, tmp_path / "a.plan", "tensorrt-rtx", precision, SHAPE, (1, 4))
    assert made.layers == layers


@pytest.mark.parametrize(
    ("graph", "quantized", "asked", "has"),
    [
        ("fp32", 0, "fp16", "3 fp32"),
        ("fp32", 0, "int8", "3 fp32"),
        ("fp16", 0, "fp32", "3 fp16"),
        ("fp32", 1, "int8", "2 fp32, 1 int8"),
        ("fp32", 1, "fp32", "2 fp32, 1 int8"),
        ("int8", 3, "fp16", "3 int8"),
    ],
)
def test_a_precision_that_the_graph_does_not_have_is_refused_and_nothing_is_written(
    graph: str, quantized: int, asked: str, has: str, tmp_path: Path
) -> None:
    path = conv_onnx(tmp_path / "a.onnx", graph, quantized=quantized)
    with pytest.raises(Failure, match=f"compiled as {asked}, but its 3 convolutions and matrix products are {has}"):
        build_plan(path, tmp_path / "a.plan", "tensorrt-rtx", asked, SHAPE, (1,))
    assert not (tmp_path / "a.plan").exists()


def test_a_network_without_arithmetic_has_no_precision() -> None:
    with pytest.raises(Failure, match="its 0 convolutions and matrix products are none"):
        check_precision("fp32", Counter(), "a.onnx")


def test_a_quantized_value_that_was_only_moved_is_still_quantized() -> None:
    def tensor(name: str, dtype: str = "FLOAT") -> Any:
        return types.SimpleNamespace(name=name, dtype=types.SimpleNamespace(name=dtype))

    def layer(kind: str, source: Any, target: Any) -> Any:
        return types.SimpleNamespace(
            type=types.SimpleNamespace(name=kind),
            num_outputs=1,
            get_input=lambda _: source,
            get_output=lambda _: target,
        )

    a, b, c, d = (tensor(name) for name in "abcd")
    layers = [
        layer("DEQUANTIZE", tensor("q", "INT8"), a),
        layer("SHUFFLE", a, b),
        layer("MATRIX_MULTIPLY", b, c),
        layer("CONVOLUTION", c, tensor("e", "BF16")),
        layer("CONVOLUTION", d, tensor("f", "HALF")),
    ]
    network = types.SimpleNamespace(num_layers=len(layers), get_layer=lambda i: layers[i])
    assert layers_by_precision(network) == {"int8": 1, "bf16": 1, "fp16": 1}


def test_a_plan_holds_a_profile_for_every_bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    added: list[tuple[int, ...]] = []
    real = to_engine._add_profiles

    def spy(builder: Any, config: Any, source: str, shape: Any, ranges: Any) -> None:
        real(builder, config, source, shape, ranges)
        added.extend(ranges)
        assert config.num_optimization_profiles == len(added)

    monkeypatch.setattr(to_engine, "_add_profiles", spy)
    graph = tiny_onnx(tmp_path / "tiny.onnx")
    made = build_plan(graph, tmp_path / "a.plan", "tensorrt-rtx", "fp32", (32, 32, 3), (8, 2, 2, 1))
    assert added == [(1, 1), (2, 2), (8, 8)]
    assert made.buckets == [1, 2, 8]


@pytest.mark.parametrize(
    ("max_batch", "buckets"),
    [(1, (1,)), (2, (1, 2)), (3, (1, 2, 3)), (48, (1, 2, 4, 8, 16, 32, 48)), (64, to_engine.BUCKETS)],
)
def test_buckets_are_powers_of_two_up_to_the_largest_batch(max_batch: int, buckets: tuple[int, ...]) -> None:
    assert buckets_up_to(max_batch) == buckets


# --- what cannot be built ---------------------------------------------------------------------------------------------


def test_everything_that_the_parser_refuses_is_reported_at_once(tmp_path: Path) -> None:
    path = conv_onnx(tmp_path / "a.onnx")
    model = onnx.load(path)
    model.opset_import.append(helper.make_opsetid("elsewhere", 1))
    for i, kind in ((2, "Invented"), (3, "Imagined")):
        model.graph.node[i].op_type, model.graph.node[i].domain = kind, "elsewhere"
    onnx.save(model, path)
    with pytest.raises(Failure, match=r"tensorrt-rtx cannot read a\.onnx") as caught:
        build_plan(path, tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE, (1,))
    assert "Invented conv0" in str(caught.value)
    assert "Imagined conv1" in str(caught.value)


def test_asymmetric_activations_are_refused_with_the_parsers_reason(tmp_path: Path) -> None:
    path = conv_onnx(tmp_path / "a.onnx", quantized=3, zero_point=128)
    with pytest.raises(Failure, match=r"cannot read a\.onnx: .*QuantizeLinear"):
        build_plan(path, tmp_path / "a.plan", "tensorrt-rtx", "int8", SHAPE, (1,))


def test_a_file_that_is_not_onnx_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(Failure, match=r"cannot read a\.onnx: the file: .*parse"):
        build_plan(tmp_path / "a.onnx", tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE)
    with pytest.raises(Failure, match=r"b\.onnx is not a file"):
        build_plan(tmp_path / "b.onnx", tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE)


def test_a_graph_of_another_form_is_refused(tmp_path: Path) -> None:
    tail = [helper.make_node("Softmax", ["flat"], ["probabilities"])]
    flat = [helper.make_node("Flatten", ["image"], ["wide"]), helper.make_node("MatMul", ["wide", "w"], ["flat"])]
    weights = [numpy_helper.from_array(np.ones((768, 16), np.float32), "w")]
    path = write(tmp_path / "a.onnx", flat + tail, weights, dtype=TensorProto.FLOAT)
    with pytest.raises(Failure, match=r"must take one uint8 tensor \[n, 16, 16, 3\]; it takes image FLOAT"):
        build_plan(path, tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE)
    with pytest.raises(Failure, match=r"\[n, 20, 20, 3\]; it takes image UINT8 \[-1, 16, 16, 3\]"):
        build_plan(conv_onnx(path), tmp_path / "a.plan", "tensorrt-rtx", "fp32", (20, 20, 3))
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2
    onnx.save(model, path)
    with pytest.raises(Failure, match="takes only batches of 2"):
        build_plan(path, tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE)


def test_a_build_that_fails_gives_the_builders_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Builder:
        def __init__(self, logger: Any) -> None:
            self._real, self._logger = rtx.Builder(logger), logger

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def build_serialized_network(self, network: Any, config: Any) -> None:
            self._logger.log(rtx.ILogger.ERROR, "no kernel fits")

    stand_in(monkeypatch, "tensorrt_rtx", Builder=Builder)
    with pytest.raises(Failure, match=r"tensorrt-rtx cannot compile a\.onnx: no kernel fits"):
        build_plan(conv_onnx(tmp_path / "a.onnx"), tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE, (1,))
    assert not (tmp_path / "a.plan").exists()


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_a_missing_engine_is_reported_in_two_lines(
    engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, trt.MODULES[engine], None)
    with pytest.raises(
        Failure, match=rf"{engine} is not installed here[^\n]*\n[^\n]*podium\[{engine}\][^\n]*\n[^\n]*$"
    ):
        build_plan(conv_onnx(tmp_path / "a.onnx"), tmp_path / "a.plan", engine, "fp32", SHAPE)


# --- while it builds --------------------------------------------------------------------------------------------------


class Shown:
    """Records what a progress bar is told."""

    def __init__(self, description: str, total: float | None = None) -> None:
        self.total, self.amounts, self.descriptions = total, [], [description]
        Shown.last = self

    last: Shown
    amounts: list[float]

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, *_: object) -> None:
        self.descriptions.append("done")

    def advance(self, amount: float = 1) -> None:
        self.amounts.append(amount)

    def describe(self, description: str) -> None:
        self.descriptions.append(description)


def test_progress_is_shown_in_per_cent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(to_engine, "Bar", Shown)
    build_plan(conv_onnx(tmp_path / "a.onnx"), tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE, (1, 2))
    shown = Shown.last
    assert shown.total == 100
    assert min(shown.amounts) >= 0
    assert 50 < sum(shown.amounts) <= 100
    assert shown.descriptions[0] == "a.onnx: compiling"
    assert any("profile" in text for text in shown.descriptions)
    assert shown.descriptions[-1] == "done"


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
def test_an_interrupted_build_stops_and_leaves_nothing(
    error: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(Shown):
        def advance(self, amount: float = 1) -> None:
            super().advance(amount)
            if len(self.amounts) == 5:
                raise error

    monkeypatch.setattr(to_engine, "Bar", Interrupted)
    graph = conv_onnx(tmp_path / "a.onnx")
    with pytest.raises(error):
        build_plan(graph, tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE, (1, 2, 4))
    assert [p.name for p in tmp_path.iterdir()] == ["a.onnx"]
    monkeypatch.setattr(to_engine, "Bar", Shown)
    assert build_plan(graph, tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE, (1,)).layers == {"fp32": 3}


# --- what only tensorrt does, on TensorRT-RTX's builder and with a fake GPU -------------------------------------------

INSPECTED = json.dumps(
    {"Layers": [{"Name": "conv", "Outputs": [{"Name": "x", "Format": "Row major linear", "DataType": "Half"}]}]}
)


def stand_in(monkeypatch: pytest.MonkeyPatch, name: str, **changes: Any) -> types.ModuleType:
    """The module tensorrt_rtx under `name`, with some attributes replaced."""
    module = types.ModuleType(name)
    vars(module).update({key: value for key, value in vars(rtx).items() if key[:2] != "__"})
    vars(module).update({"__version__": rtx.__version__} | changes)
    monkeypatch.setitem(sys.modules, name, module)
    return module


class Config:
    """A builder config whose timing cache is plain bytes."""

    def __init__(self, real: Any, log: dict[str, Any]) -> None:
        object.__setattr__(self, "real", real)
        object.__setattr__(self, "log", log)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.real, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.real, name, value)

    def create_timing_cache(self, known: bytes) -> bytes | None:
        return None if known == b"damaged" else known

    def set_timing_cache(self, cache: bytes, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch, "timings of another GPU are worthless"
        self.log["caches"].append(cache)
        return cache != b"another GPU"

    def get_timing_cache(self) -> Any:
        return types.SimpleNamespace(serialize=lambda: self.log["caches"][-1] + b"+timed")


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A fake machine with `tensorrt` and a GPU, which records the calls to them."""
    log: dict[str, Any] = {"caches": [], "inspected": INSPECTED, "opened": True}

    class Builder:
        def __init__(self, logger: Any) -> None:
            self._real = rtx.Builder(logger)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        def create_builder_config(self) -> Config:
            return Config(self._real.create_builder_config(), log)

        def build_serialized_network(self, network: Any, config: Config) -> Any:
            log["profiles"] = config.num_optimization_profiles
            log["level"] = config.builder_optimization_level
            log["workspace"] = config.get_memory_pool_limit(rtx.MemoryPoolType.WORKSPACE)
            log["tf32"] = config.get_flag(rtx.BuilderFlag.TF32)
            log["verbosity"] = config.profiling_verbosity
            return self._real.build_serialized_network(network, config.real)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            pass

        def deserialize_cuda_engine(self, code: bytes) -> Any:
            inspector = types.SimpleNamespace(get_engine_information=lambda _: log["inspected"])
            return types.SimpleNamespace(create_engine_inspector=lambda: inspector) if log["opened"] else None

    stand_in(monkeypatch, "tensorrt", __version__="11.2.0", Builder=Builder, Runtime=Runtime)
    monkeypatch.setattr(to_engine, "gpu", lambda: Gpu("NVIDIA RTX A2000 Laptop GPU", "8.6", 13))
    return log


def test_a_tensorrt_plan_is_tied_to_its_gpu_and_covers_every_batch(tensorrt: dict[str, Any], tmp_path: Path) -> None:
    graph = conv_onnx(tmp_path / "a.onnx", "fp16")
    made = build_plan(
        graph, tmp_path / "a.plan", "tensorrt", "fp16", SHAPE, (1, 2, 4), workspace_mb=64, optimization_level=5
    )
    assert (made.gpu, made.compute_capability, made.cuda_driver) == ("NVIDIA RTX A2000 Laptop GPU", "8.6", 13)
    assert made.engine_version == "11.2.0"
    assert made.engine_layers == {"fp16": 1}
    assert (made.buckets, made.any_batch) == ([1, 2, 4], 3)
    assert plan_name(made) == "tensorrt-fp16-nvidia-rtx-a2000-laptop-gpu.plan"
    assert tensorrt["profiles"] == 4
    assert (tensorrt["level"], tensorrt["workspace"], tensorrt["tf32"]) == (5, 64 << 20, False)
    assert tensorrt["verbosity"] == rtx.ProfilingVerbosity.DETAILED
    assert tensorrt["caches"] == [], "no timing cache was asked for"
    alone = build_plan(graph, tmp_path / "a.plan", "tensorrt", "fp16", SHAPE, (1,))
    assert (alone.any_batch, tensorrt["profiles"]) == (None, 1)


def test_timings_are_kept_for_the_next_build(tensorrt: dict[str, Any], tmp_path: Path) -> None:
    graph, cache = conv_onnx(tmp_path / "a.onnx", "fp16"), tmp_path / "cache" / "timings"
    for before, offered in (
        (None, [b""]),
        (b"known", [b"known"]),
        (b"damaged", [b""]),
        (b"another GPU", [b"another GPU", b""]),
    ):
        tensorrt["caches"].clear()
        if before is not None:
            cache.write_bytes(before)
        build_plan(graph, tmp_path / "a.plan", "tensorrt", "fp16", SHAPE, (1,), timing_cache=cache)
        assert tensorrt["caches"] == offered
        assert cache.read_bytes() == offered[-1] + b"+timed"
    assert [p.name for p in cache.parent.iterdir()] == ["timings"]


def test_tensorrt_rtx_has_no_timing_cache(tmp_path: Path) -> None:
    cache = tmp_path / "timings"
    build_plan(
        conv_onnx(tmp_path / "a.onnx"), tmp_path / "a.plan", "tensorrt-rtx", "fp32", SHAPE, (1,), timing_cache=cache
    )
    assert not cache.exists()


def test_a_plan_whose_inspector_contradicts_it_is_not_written(tensorrt: dict[str, Any], tmp_path: Path) -> None:
    graph = conv_onnx(tmp_path / "a.onnx", "fp16")
    tensorrt["inspected"] = INSPECTED.replace("Half", "Float")
    with pytest.raises(Failure, match=r"a\.plan was to be fp16, but its inspector shows layers of: 1 fp32"):
        build_plan(graph, tmp_path / "a.plan", "tensorrt", "fp16", SHAPE, (1,))
    tensorrt["opened"] = False
    with pytest.raises(Failure, match="cannot be opened"):
        build_plan(graph, tmp_path / "a.plan", "tensorrt", "fp16", SHAPE, (1,))
    assert not (tmp_path / "a.plan").exists()
    tensorrt.update(opened=True, inspected='{"Layers": ["conv"]}')
    made = build_plan(graph, tmp_path / "a.plan", "tensorrt", "fp16", SHAPE, (1,))
    assert made.engine_layers is None, "if the inspector names no types, nothing is proven"


def test_tensorrt_needs_the_gpu_to_build_on(
    tensorrt: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_engine, "gpu", lambda: None)
    with pytest.raises(Failure, match="or use engine tensorrt-rtx"):
        build_plan(conv_onnx(tmp_path / "a.onnx"), tmp_path / "a.plan", "tensorrt", "fp32", SHAPE)


def test_the_inspectors_names_of_types_are_understood() -> None:
    layers = [
        {"Outputs": [{"Format/Datatype": "Channel major FP16 format where C % 8 == 0"}]},
        {"Outputs": [{"Datatype": "Half", "Format": "Row major linear"}]},
        {"Outputs": [{"Format/Datatype": "Thirty-two wide channel vectorized row major Int8 format"}]},
        {"Outputs": [{"DataType": "Float"}, {"DataType": "Float"}]},
        {"Outputs": [{"DataType": "Int64"}]},
        "a name alone",
    ]
    assert inspected_layers(json.dumps({"Layers": layers})) == {"fp16": 2, "int8": 1, "fp32": 1}


@pytest.mark.parametrize(
    ("asked", "layers", "refused"),
    [
        ("fp32", {"fp32": 3}, False),
        ("fp32", {"fp32": 3, "fp16": 1}, True),
        ("fp16", {"fp16": 1, "fp32": 3}, False),
        ("fp16", {"fp32": 3}, True),
        ("int8", {"int8": 1, "fp16": 2}, False),
        ("int8", {"fp16": 2}, True),
    ],
)
def test_what_contradicts_a_precision(asked: str, layers: dict[str, int], refused: bool) -> None:
    try:
        check_engine(asked, Counter(layers), "a.plan")
    except Failure:
        assert refused
    else:
        assert not refused


# --- the networks -----------------------------------------------------------------------------------------------------


def representatives() -> list[str]:
    """The five, the winners, and the first network of every other family."""
    named = list(dict.fromkeys([*expand([], "five"), *expand([], "winners")]))
    for name, row in SPECS.items():
        if row.family not in {SPECS[other].family for other in named}:
            named.append(name)
    return named


@pytest.mark.slow
@pytest.mark.parametrize("name", representatives())
def test_every_family_becomes_an_fp16_plan(name: str, tmp_path: Path) -> None:
    from export.to_onnx import to_onnx
    from models.weights import load

    network = load(name, "untrained")
    graph, plan = tmp_path / "fp16.onnx", tmp_path / "fp16.plan"
    to_onnx(network, graph, 8, half=True)
    made = build_plan(graph, plan, "tensorrt-rtx", "fp16", network.preprocess.shape, (1, 8))
    # Local response normalization sums its squares in float32, as a convolution: twice in the networks that have it.
    assert set(made.layers) <= {"fp16", "fp32"}
    assert made.layers.get("fp32", 0) <= 2
    # Both hold the weights; the plan adds its kernels.
    assert plan.stat().st_size > 0.9 * graph.stat().st_size
