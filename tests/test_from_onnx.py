"""Classifiers that others exported: their layout, range and opset are found or asked for; then our gate applies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from models.console import Failure
from serving.artifact import find
from serving.runtime import open
from tests.conftest import ROOT, export, tiny_onnx

IMAGENET = ("--mean", "0.485,0.456,0.406", "--std", "0.229,0.224,0.225")


def classifier(
    path: Path,
    layout: str = "NCHW",
    batch: str | int = "batch",
    size: str | int = 32,
    channels: str | int = 3,
    opset: int = 13,
    softmax: bool = False,
    kind: int = TensorProto.FLOAT,
    reshape_to: int | None = None,
) -> Path:
    """Convolution, global pooling, one matrix: as exporters write it today."""
    random = np.random.default_rng(0)
    wide = 3 if not isinstance(channels, int) else channels
    constants = {
        "kernel": random.normal(size=(8, wide, 3, 3)).astype(np.float32),
        "matrix": random.normal(size=(8, 6)).astype(np.float32),
    }
    dims: list[str | int] = [batch, channels, size, size] if layout == "NCHW" else [batch, size, size, channels]
    nodes = []
    first = "data"
    if kind == TensorProto.UINT8:
        nodes.append(helper.make_node("Cast", [first], ["float"], to=TensorProto.FLOAT))
        first = "float"
    if layout == "NHWC":
        nodes.append(helper.make_node("Transpose", [first], ["nchw"], perm=[0, 3, 1, 2]))
        first = "nchw"
    nodes += [
        helper.make_node("Conv", [first, "kernel"], ["features"], kernel_shape=[3, 3]),
        helper.make_node("Relu", ["features"], ["rectified"]),
        helper.make_node("GlobalAveragePool", ["rectified"], ["pooled"]),
    ]
    if reshape_to is None:
        nodes.append(helper.make_node("Flatten", ["pooled"], ["flat"]))
    else:
        constants["shape"] = np.array([reshape_to, 8])
        nodes.append(helper.make_node("Reshape", ["pooled", "shape"], ["flat"]))
    nodes.append(helper.make_node("MatMul", ["flat", "matrix"], ["scores" if not softmax else "logits"]))
    if softmax:
        nodes.append(helper.make_node("Softmax", ["logits"], ["scores"], axis=1))
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info("data", kind, dims)],
        [helper.make_tensor_value_info("scores", TensorProto.FLOAT, [batch, 6])],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    onnx.save(model, path)
    return path


@pytest.mark.parametrize(
    "form",
    [
        {},
        {"layout": "NHWC"},
        {"softmax": True},
        {"opset": 9},
        {"opset": 17, "batch": None},
    ],
    ids=["NCHW logits", "NHWC", "probabilities", "opset 9", "opset 17"],
)
def test_a_foreign_classifier_gives_the_answers_it_gave_before(form: dict[str, Any], tmp_path: Path) -> None:
    path = classifier(tmp_path / "foreign.onnx", **form)
    assert export("--onnx", path, *IMAGENET) == 0
    artifact = find("foreign")
    assert (artifact.classes, artifact.weights, artifact.preprocess.shape) == (6, "custom", (32, 32, 3))
    assert artifact.manifest["files"]["fp32.onnx"]["parity"]["verdict"] == "pass"

    import onnxruntime as ort

    image = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    normal = ((image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).astype(np.float32)
    data = normal if form.get("layout") == "NHWC" else normal.transpose(0, 3, 1, 2)
    scores = torch.from_numpy(ort.InferenceSession(str(path)).run(None, {"data": np.ascontiguousarray(data)})[0])
    expected = scores.numpy() if form.get("softmax") else scores.softmax(1).numpy()
    for engine in ("onnxruntime", "openvino"):
        runtime = open(artifact, engine)
        np.testing.assert_allclose(runtime.run(image), expected, atol=1e-5)
        runtime.close()


def test_uint8_graphs_normalise_by_themselves(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = classifier(tmp_path / "bytes.onnx", layout="NHWC", kind=TensorProto.UINT8)
    assert export("--onnx", path, *IMAGENET) == 2
    assert "leave out --mean and --std" in capsys.readouterr().err
    assert export("--onnx", path) == 0
    assert find("bytes").manifest["files"]["fp32.onnx"]["parity"]["verdict"] == "pass"


def test_our_own_export_is_accepted(tmp_path: Path) -> None:
    assert export("--onnx", tiny_onnx(tmp_path / "again.onnx"), "--resize", 36) == 0
    assert find("again").preprocess.resize == 36


def test_a_foreign_classifier_is_quantized_like_ours(tmp_path: Path) -> None:
    path = classifier(tmp_path / "small.onnx")
    photographs = ROOT / "examples" / "photographs"
    argv = ("--onnx", path, *IMAGENET, "--precision", "fp32,int8", "--calibration", photographs, "--engine", "openvino")
    assert export(*argv) == 0
    int8 = find("small").manifest["files"]["int8-cpu.onnx"]
    assert int8["parity"]["verdict"] == "pass"
    runtime = open(find("small"), "openvino", "int8")
    assert runtime.run(np.zeros((2, 32, 32, 3), np.uint8)).shape == (2, 6)
    runtime.close()


def test_labels_and_a_name_can_be_given(tmp_path: Path) -> None:
    path = classifier(tmp_path / "Some Net (v2).onnx")
    assert export("--onnx", path, *IMAGENET) == 0
    assert find("some_net_v2").network == "some_net_v2"
    (tmp_path / "labels.txt").write_text("\n".join("abcdef"))
    assert export("--onnx", path, *IMAGENET, "--name", "letters", "--labels", tmp_path / "labels.txt") == 0
    assert [label.label for label in find("letters").labels] == list("abcdef")


@pytest.mark.parametrize(
    ("form", "argv", "status", "complaint"),
    [
        ({}, (), 2, "pass how its pixels are scaled"),
        ({"size": None}, IMAGENET, 2, "pass --crop"),
        ({"size": 3}, IMAGENET, 2, "Pass --layout NCHW or NHWC"),
        ({"channels": 4}, IMAGENET, 2, "which of them are the channels?"),
        ({}, ("--mean", "0,0", "--std", "1"), 2, "must have 3 values"),
        ({}, ("--mean", "0", "--std", "0"), 2, "must be positive"),
        ({"kind": TensorProto.DOUBLE}, IMAGENET, 1, "takes DOUBLE"),
        ({"opset": 6}, IMAGENET, 1, "opset 6"),
        ({"batch": 4, "reshape_to": 4}, IMAGENET, 1, "foreign.onnx"),
        ({}, (*IMAGENET, "--precision", "fp16"), 1, "fp16 is exported only from PyTorch"),
    ],
)
def test_the_user_is_asked_for_what_the_file_does_not_say(
    form: dict[str, Any], argv: tuple[str, ...], status: int, complaint: str, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    assert export("--onnx", classifier(tmp_path / "foreign.onnx", **form), *argv) == status
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


def test_a_graph_of_one_image_is_taken_with_max_batch_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = classifier(tmp_path / "single.onnx", batch=1, reshape_to=1)
    assert export("--onnx", path, *IMAGENET) == 1
    assert "--max-batch 1" in capsys.readouterr().err
    assert export("--onnx", path, *IMAGENET, "--max-batch", 1) == 0
    assert find("single").manifest["max_batch"] == 1


@pytest.mark.parametrize("content", [b"", b"garbage", b"\x08\x08"], ids=["empty", "garbage", "no graph"])
def test_a_file_without_a_model_is_named(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.onnx").write_bytes(content)
    assert export("--onnx", tmp_path / "bad.onnx", *IMAGENET) == 1
    assert "bad.onnx" in capsys.readouterr().err
    assert export("--onnx", tmp_path / "nowhere.onnx", *IMAGENET) == 2


def test_a_damaged_foreign_export_is_not_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from export import from_onnx

    original = from_onnx.wrap

    def forgetful(network: Any, path: Path, max_batch: int) -> None:
        original(network, path, max_batch)
        model = onnx.load(path)
        shift = next(w for w in model.graph.initializer if w.name == "podium_shift")
        shift.CopyFrom(numpy_helper.from_array(np.zeros(3, np.float32), shift.name))
        onnx.save(model, path)

    monkeypatch.setattr(from_onnx, "wrap", forgetful)
    assert export("--onnx", classifier(tmp_path / "forgetful.onnx"), *IMAGENET) == 1
    with pytest.raises(Failure):
        find("forgetful")
