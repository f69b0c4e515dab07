"""INT8 and float16: each file is what its engines need, and a graph that answers differently is not saved."""

from __future__ import annotations

import collections
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from export import parity, quantize, tune
from export.to_onnx import BandedNorm, Served, lower, to_onnx
from models.console import Failure
from models.layers import LocalResponseNorm
from models.preprocess import Preprocess
from models.weights import Network, Weights, load
from serving.artifact import Artifact, find
from serving.runtime import choose, cores, cpu_model, open
from tests.conftest import ROOT, SHARED, export

DIGITS = ROOT / "examples" / "digits"


def operators(path: Path) -> collections.Counter[str]:
    return collections.Counter(node.op_type for node in onnx.load(path).graph.node)


def residual(seed: int = 0) -> Network:
    """A network with what the recipes must handle: a narrow first layer, a residual sum, a Concat, global pooling."""

    class Block(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = torch.nn.Conv2d(3, 16, 3, padding=1)
            self.a = torch.nn.Conv2d(16, 16, 3, padding=1)
            self.b = torch.nn.Conv2d(16, 16, 3, padding=1)
            self.left = torch.nn.Conv2d(16, 16, 1)
            self.right = torch.nn.Conv2d(16, 16, 3, padding=1)
            self.head = torch.nn.Linear(32, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = torch.relu(self.first(x))
            x = torch.relu(x + self.b(torch.relu(self.a(x))))
            x = torch.cat([torch.relu(self.left(x)), torch.relu(self.right(x))], 1)
            x = torch.nn.functional.adaptive_avg_pool2d(x, 1).flatten(1)
            out: torch.Tensor = self.head(x)
            return out

    torch.manual_seed(seed)
    return Network("residual", Block(), Weights("untrained", "seed"), Preprocess(resize=36, crop=32), classes=10)


def noise() -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def calibrated(tmp_path_factory: pytest.TempPathFactory) -> quantize.Calibrated:
    folder = tmp_path_factory.mktemp("calibrated")
    to_onnx(residual(), folder / "fp32.onnx", 8)
    return quantize.Calibrated(folder / "fp32.onnx", noise(), folder)


def test_the_cpu_recipe_is_u8_activations_and_s8_weights_per_channel(
    calibrated: quantize.Calibrated, tmp_path: Path
) -> None:
    calibrated.quantize(tmp_path / "q.onnx", quantize.RECIPES["cpu"])
    model = onnx.load(tmp_path / "q.onnx")
    constants = {w.name: w for w in model.graph.initializer}
    activations = {constants[n.input[2]].data_type for n in model.graph.node if n.op_type == "QuantizeLinear"}
    assert activations == {onnx.TensorProto.UINT8}
    weights = [
        constants[n.input[0]] for n in model.graph.node if n.op_type == "DequantizeLinear" and n.input[0] in constants
    ]
    kernels = [w for w in weights if len(w.dims) == 4]
    assert len(kernels) == 5
    assert {w.data_type for w in kernels} == {onnx.TensorProto.INT8}
    scales = [
        n.input[1]
        for n in model.graph.node
        if n.op_type == "DequantizeLinear" and n.input[0] in {k.name for k in kernels}
    ]
    assert all(list(constants[s].dims) == [16] for s in scales), "one scale per output channel"


def test_the_tensorrt_recipe_is_symmetric_with_float_biases_fusable_sums_and_shared_scales(
    calibrated: quantize.Calibrated, tmp_path: Path
) -> None:
    calibrated.quantize(tmp_path / "q.onnx", quantize.RECIPES["tensorrt"])
    model = onnx.load(tmp_path / "q.onnx")
    constants = {w.name: numpy_helper.to_array(w) for w in model.graph.initializer}
    producers = {o: n for n in model.graph.node for o in n.output}
    for node in model.graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any(), "TensorRT refuses a zero point other than 0"
        if node.op_type == "Conv":
            assert constants[node.input[2]].dtype == np.float32
    assert not {"first"} & {
        n.input[1].split(".")[-2] for n in model.graph.node if n.op_type == "QuantizeLinear" and "." in n.input[0]
    }
    sums = [
        n
        for n in model.graph.node
        if n.op_type == "Add" and any(producers.get(i, n).op_type == "Conv" for i in n.input)
    ]
    assert len(sums) == 1, "the residual sum reads its convolution without a pair in between"
    (concat,) = (n for n in model.graph.node if n.op_type == "Concat")
    assert len({producers[i].input[1] for i in concat.input}) == 1, "one scale for all that is joined"


def test_layers_can_stay_in_float(calibrated: quantize.Calibrated, tmp_path: Path) -> None:
    layers = calibrated.layers()
    assert list(layers.values()) == ["first", "a", "b", "left", "right", "head"]
    counts = []
    for kept in ([], list(layers)[:3]):
        calibrated.quantize(tmp_path / "q.onnx", quantize.RECIPES["cpu"], kept)
        model = onnx.load(tmp_path / "q.onnx")
        counts.append(sum(w.data_type == onnx.TensorProto.INT8 and len(w.dims) == 4 for w in model.graph.initializer))
    assert counts == [5, 2]


def test_calibration_is_deterministic(tmp_path: Path) -> None:
    files = []
    for turn in range(2):
        folder = tmp_path / str(turn)
        folder.mkdir()
        to_onnx(residual(), folder / "fp32.onnx", 8)
        again = quantize.Calibrated(folder / "fp32.onnx", noise(), folder)
        again.quantize(folder / "q.onnx", quantize.RECIPES["cpu"])
        files.append((folder / "q.onnx").read_bytes())
    assert files[0] == files[1]


def test_without_images_there_is_no_int8(tmp_path: Path) -> None:
    to_onnx(residual(), tmp_path / "fp32.onnx", 8)
    with pytest.raises(Failure, match="--calibration DIR"):
        quantize.Calibrated(tmp_path / "fp32.onnx", np.zeros((0, 32, 32, 3), np.uint8), tmp_path)


def test_the_first_and_the_last_layer_are_groups_of_their_own() -> None:
    layers = [f"l{i}" for i in range(53)]
    groups = quantize.groups_of(layers)
    assert [layer for group in groups for layer in group] == layers
    assert (len(groups), groups[0], groups[-1]) == (quantize.GROUPS, ["l0"], ["l52"])
    assert quantize.groups_of(layers[:4]) == [["l0"], ["l1"], ["l2"], ["l3"]]


# --- the whole command ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet5() -> Artifact:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tune, "BUDGET_S", 60)  # so that every candidate is measured on a busy machine too
        assert export("lenet5", "--precision", "fp32,int8,fp16", "--calibration", DIGITS, "--tune") == 0
    return find("lenet5")


def test_every_precision_is_saved_with_its_verdict(lenet5: Artifact) -> None:
    files = lenet5.manifest["files"]
    assert set(files) == {"fp32.onnx", "fp16.onnx", "int8-cpu.onnx", "int8-tensorrt.onnx", "labels.json"}
    assert {name: files[name].get("engines") for name in files if name != "labels.json"} == {
        "fp32.onnx": ["onnxruntime", "openvino"],
        "fp16.onnx": [],
        "int8-cpu.onnx": ["onnxruntime", "openvino"],
        "int8-tensorrt.onnx": [],
    }
    int8 = files["int8-cpu.onnx"]
    assert int8["parent"] == {"file": "fp32.onnx", "sha256": files["fp32.onnx"]["sha256"]}
    assert int8["calibration"] == {"source": "digits", "images": 5, "method": "minmax"}
    assert int8["parity"]["verdict"] == "pass"
    assert int8["parity"]["thresholds"]["on"] == "photographs"
    assert 0 < int8["parity"]["max_abs_error"] < 0.2


def test_every_engine_runs_int8_and_reads_the_digits(lenet5: Artifact) -> None:
    images = parity.inputs(lenet5.preprocess)
    for engine in ("onnxruntime", "openvino"):
        runtime = open(lenet5, engine, "int8")
        assert (runtime.engine, runtime.precision) == (engine, "int8")
        assert runtime.run(images.batch[:10]).argmax(1).tolist() == list(range(10))
        runtime.close()


def test_tuning_is_recorded_and_serving_takes_the_fastest(lenet5: Artifact) -> None:
    tuning = lenet5.manifest["tuning"]
    assert (tuning["cpu"], tuning["cores"]) == (cpu_model(), cores())
    products: dict[tuple[str, str, int], float] = {}
    for row in tuning["rows"]:
        key = (row["engine"], row["precision"], row["threads"])
        products[key] = products.get(key, 1) * row["latency_ms"]
        assert row["latency_ms"] == pytest.approx(float(np.median(row["values"])))
    assert {key[:2] for key in products} == {(e, p) for e in ("onnxruntime", "openvino") for p in ("fp32", "int8")}
    fastest = min(products, key=products.__getitem__)
    assert choose(lenet5) == fastest == tuple(tuning["choice"].values())
    assert choose(lenet5, "onnxruntime", "fp32")[:2] == ("onnxruntime", "fp32"), "unless told otherwise"
    assert choose(lenet5, threads=7).threads == 7


def test_the_tuning_of_another_machine_is_ignored(lenet5: Artifact) -> None:
    elsewhere = Artifact(lenet5.folder, {**lenet5.manifest, "tuning": {**lenet5.manifest["tuning"], "cpu": "Z80"}})
    assert choose(elsewhere) == ("openvino", "int8", cores())


def test_trained_weights_are_never_calibrated_on_noise(capsys: pytest.CaptureFixture[str]) -> None:
    assert export("lenet5", "--precision", "int8") == 1
    assert "pass --calibration DIR" in capsys.readouterr().err


def test_untrained_weights_are_calibrated_on_noise_and_the_manifest_says_so() -> None:
    argv = (
        "lenet5",
        "--weights",
        "untrained",
        "--name",
        "drawn",
        "--precision",
        "fp32,int8",
        "--engine",
        "onnxruntime",
    )
    assert export(*argv) == 0
    record = find("drawn").manifest["files"]["int8-cpu.onnx"]
    assert record["calibration"]["source"] == "seeded pictures and the examples"
    assert record["engines"] == ["onnxruntime"]


def test_an_int8_only_export_holds_no_fp32_file() -> None:
    argv = ("lenet5", "--weights", "untrained", "--name", "drawn_int8", "--precision", "int8", "--engine", "openvino")
    assert export(*argv) == 0
    assert set(find("drawn_int8").manifest["files"]) == {"int8-cpu.onnx", "labels.json"}


def test_layers_that_break_the_gate_stay_in_float_and_the_manifest_names_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """The quantizer damages one layer; the export finds out which."""
    second = list(dict(load("lenet5", "pretrained").module.named_parameters()))[2].removesuffix(".weight")
    original = quantize.Calibrated.quantize

    def ruined(self: Any, path: Path, recipe: Any, keep_float: Any = ()) -> None:
        original(self, path, recipe, keep_float)
        names = self.layers()
        if second not in {names[layer] for layer in keep_float}:
            _shuffle(path, f"network.{second}.weight")

    monkeypatch.setattr(quantize.Calibrated, "quantize", ruined)
    assert export("lenet5", "--precision", "fp32,int8", "--calibration", DIGITS, "--force") == 0
    assert find("lenet5").manifest["files"]["int8-cpu.onnx"]["float_layers"] == [second]


def test_a_quantized_graph_beyond_repair_is_not_saved(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    original = quantize.Calibrated.quantize

    def ruined(self: Any, path: Path, recipe: Any, keep_float: Any = ()) -> None:
        original(self, path, recipe, keep_float)
        _shuffle(path, "")

    before = find("lenet5").version
    monkeypatch.setattr(quantize.Calibrated, "quantize", ruined)
    assert export("lenet5", "--precision", "fp32,int8", "--calibration", DIGITS, "--force") == 1
    err = capsys.readouterr().err
    assert "worst image" in err
    assert "most damaging layers" in err
    assert "Nothing was saved" in err
    assert find("lenet5").version == before


def _shuffle(path: Path, prefix: str) -> None:
    """Shuffle the weights whose names begin with `prefix`, as a defective quantizer might."""
    model = onnx.load(path)
    for w in model.graph.initializer:
        if w.name.startswith(prefix) and len(w.dims) in (2, 4):
            w.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(w), 3, axis=0), w.name))
    onnx.save(model, path)


# --- float16 and what engines run badly -------------------------------------------------------------------------------


def test_float16_keeps_normalisation_and_softmax_in_float32(tmp_path: Path) -> None:
    to_onnx(residual(), tmp_path / "h.onnx", 8, half=True)
    model = onnx.load(tmp_path / "h.onnx")
    kernels = [w for w in model.graph.initializer if len(w.dims) == 4 and w.dims[0] == 16]
    assert len(kernels) == 5
    assert {w.data_type for w in kernels} == {onnx.TensorProto.FLOAT16}
    assert model.graph.output[0].type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    casts = [n.attribute[0].i for n in model.graph.node if n.op_type == "Cast"]
    assert casts == [onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.FLOAT]


def test_global_pooling_keeps_its_name(tmp_path: Path) -> None:
    to_onnx(residual(), tmp_path / "f.onnx", 8)
    assert operators(tmp_path / "f.onnx")["GlobalAveragePool"] == 1
    assert not operators(tmp_path / "f.onnx")["ReduceMean"]


@pytest.mark.parametrize("beta", [0.75, 0.5])
@pytest.mark.parametrize("size", [4, 5])
def test_local_response_normalization_is_lowered_to_its_equal(size: int, beta: float) -> None:
    norm = LocalResponseNorm(size=size, alpha=0.02, beta=beta, k=2.0)
    x = torch.randn(2, 24, 5, 5, generator=torch.Generator().manual_seed(0)) * 20
    torch.testing.assert_close(BandedNorm(norm, 24)(x), norm(x), rtol=1e-5, atol=1e-5)


def test_lowering_does_not_change_the_original_and_keeps_the_band_in_float(tmp_path: Path) -> None:
    network = Network(
        "banded",
        torch.nn.Sequential(
            torch.nn.Conv2d(3, 32, 3), LocalResponseNorm(), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
            torch.nn.Linear(32, 10),
        ),
        Weights("untrained", "test"), Preprocess(resize=36, crop=32), classes=10,
    )  # fmt: skip
    example = torch.zeros(2, 32, 32, 3, dtype=torch.uint8)
    lowered = lower(network.module, Served(network.module, network.preprocess), example)
    assert isinstance(network.module.get_submodule("1"), LocalResponseNorm)
    assert isinstance(lowered.get_submodule("1"), BandedNorm)
    to_onnx(network, tmp_path / "fp32.onnx", 8)
    assert operators(tmp_path / "fp32.onnx")["Conv"] == 2
    images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    quantize.Calibrated(tmp_path / "fp32.onnx", images, tmp_path).quantize(tmp_path / "q.onnx", quantize.RECIPES["cpu"])
    kernels = [w for w in onnx.load(tmp_path / "q.onnx").graph.initializer if len(w.dims) == 4]
    assert sorted((tuple(w.dims), w.data_type == onnx.TensorProto.INT8) for w in kernels if w.dims[0] == 32) == [
        ((32, 3, 3, 3), True), ((32, 32, 1, 1), False),
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "images").is_dir(), reason="the labelled photographs of ../shared are not here")
def test_squeezenet_in_int8_is_within_a_point_of_float32(capsys: pytest.CaptureFixture[str]) -> None:
    weights = SHARED / "weights" / "squeezenet1_1.safetensors"
    assert (
        export("squeezenet1_1", "--weights", weights, "--precision", "fp32,int8", "--calibration", SHARED / "images")
        == 0
    )
    capsys.readouterr()
    assert export("evaluate", "squeezenet1_1", "--images", SHARED / "images", "--json") == 0
    results = {(r["engine"], r["precision"]): r for r in json.loads(capsys.readouterr().out)}
    for engine in ("onnxruntime", "openvino"):
        hits = [results[engine, "fp32"][which]["hits"] for which in ("top1", "top5")]
        assert hits == [69, 89], "torchvision's own, in reference/squeezenet1_1.json"
    assert all(abs(result["top1"]["hits"] - 69) <= 1 for result in results.values())
