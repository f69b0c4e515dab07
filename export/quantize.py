"""ONNX to INT8, with one recipe for each family of engines, because no quantized file suits them all.

int8-cpu.onnx       activations U8 asymmetric, weights S8 per channel: all INT8 in ONNX Runtime and in OpenVINO
int8-tensorrt.onnx  both S8 symmetric, biases in float, residual sums in a form that TensorRT fuses
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from models.console import Failure, progress
from models.preprocess import Pixels

if TYPE_CHECKING:
    import onnx

# Ranges settle early: after some dozens of photographs, more of them change accuracy by less than its interval.
CALIBRATION_IMAGES = 64

# The layers with weights; the others take the precision of their input.
WEIGHTED = ("Conv", "Gemm", "MatMul")


POOLS = ("MaxPool", "AveragePool", "GlobalAveragePool")


@dataclass(frozen=True)
class Recipe:
    """The quantized graph that one family of engines needs, in terms of ONNX Runtime's quantizer."""

    file: str
    engines: tuple[str, ...]
    symmetric: bool
    options: dict[str, Any] = field(default_factory=dict)
    fewest_channels: int = 0  # convolutions with fewer input channels stay in float


RECIPES = {
    "cpu": Recipe("int8-cpu.onnx", ("onnxruntime", "openvino"), symmetric=False),
    "tensorrt": Recipe(
        "int8-tensorrt.onnx",
        ("tensorrt",),
        symmetric=True,
        options={
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "QuantizeBias": False,
            "AddQDQPairToWeight": True,
            # TensorRT fuses these with what follows; a quantize-dequantize pair in between would prevent that.
            "OpTypesToExcludeOutputQuantization": ["Conv", "Gemm", "Add", *POOLS],
        },
        # Tensor cores need multiples of 16, so the first layer is faster, and more accurate, in float.
        fewest_channels=16,
    ),
}  # fmt: skip


class Calibrated:
    """A float graph and the ranges of its tensors over a set of images; quantized graphs are made from it."""

    def __init__(self, graph: Path, images: Pixels, folder: Path, description: str = "") -> None:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        if not len(images):
            raise Failure("INT8 needs photographs to calibrate on; pass --calibration DIR")
        self._graph, self._ranges, self._images = folder / "float.onnx", folder / "ranges.json", images
        self._description = description
        with quiet():
            quant_pre_process(str(graph), str(self._graph))
        self._nodes = list(onnx.load(self._graph, load_external_data=False).graph.node)
        self._channels = self._input_channels()

    def layers(self) -> dict[str, str]:
        """The layers with weights in graph order, from the node's name to the name of its weights."""
        return {
            node.name: node.input[1].removeprefix("network.").removesuffix(".weight")
            for node in self._nodes
            if node.op_type in WEIGHTED and len(node.input) > 1
        }

    def quantize(self, path: Path, recipe: Recipe, keep_float: Sequence[str] = ()) -> None:
        """Write the graph quantized by `recipe` to `path`; the layers (node names) in `keep_float` stay in float."""
        import onnx
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

        narrow = [name for name, count in self._channels.items() if count < recipe.fewest_channels]
        with quiet():
            quantize_static(
                str(self._graph),
                str(path),
                None if self._ranges.exists() else _Reader(self._images, self._description),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QInt8 if recipe.symmetric else QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
                nodes_to_exclude=[*self._untouched(), *narrow, *keep_float],
                calibration_cache_path=self._ranges,
                extra_options=dict(recipe.options),
            )
        model = onnx.load(path)
        if recipe.symmetric:
            leave_sums_fusable(model)
            share_concat_scales(model)
        del model.metadata_props[:]
        onnx.checker.check_model(model)
        onnx.save(model, path)

    def _untouched(self) -> list[str]:
        """The nodes that need the range of floats: normalisation before the first layer, LRN, and softmax."""
        first = next((i for i, node in enumerate(self._nodes) if node.op_type in WEIGHTED), 0)
        band = [n.name for n in self._nodes if n.op_type == "Conv" and n.input[1].endswith("lrn_band")]
        delicate = {"Softmax", "Sqrt", "Div", "Pow", "Reciprocal", "Mul"}
        return [n.name for n in self._nodes[:first]] + band + [n.name for n in self._nodes if n.op_type in delicate]

    def _input_channels(self) -> dict[str, int]:
        import onnx

        model = onnx.load(self._graph)
        shapes = {w.name: list(w.dims) for w in model.graph.initializer}
        groups = {
            n.name: next((a.i for a in n.attribute if a.name == "group"), 1)
            for n in model.graph.node
            if n.op_type == "Conv"
        }
        return {
            n.name: shapes[n.input[1]][1] * groups[n.name]
            for n in model.graph.node
            if n.op_type == "Conv" and n.input[1] in shapes
        }


def _Reader(images: Pixels, description: str) -> Any:  # noqa: N802 - its class derives from ONNX Runtime's
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        """One image at a time and in order, so that two runs see the same."""

        def __init__(self) -> None:
            self._images: Iterator[Any] = iter(progress(images, description, total=len(images)))

        def get_next(self) -> dict[str, Pixels] | None:
            from export.to_onnx import INPUT

            image = next(self._images, None)
            return None if image is None else {INPUT: image[None]}

    return Reader()


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hide the quantizer's advice about its own options from the user."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


# --- what TensorRT fuses ----------------------------------------------------------------------------------------------


def leave_sums_fusable(model: onnx.ModelProto) -> None:
    """Connect every residual Add with the convolution's own output instead of its quantized copy.

    TensorRT fuses Conv + Add + ReLU only if nothing is between the convolution and the sum. The other input stays
    quantized, so that the sum reads INT8.
    """
    producers = {output: node for node in model.graph.node for output in node.output}
    for add in (n for n in model.graph.node if n.op_type == "Add"):
        for i, name in enumerate(add.input):
            dequantize = producers.get(name)
            quantize = producers.get(dequantize.input[0]) if dequantize is not None else None
            if quantize is None or dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            source = producers.get(quantize.input[0])
            if source is not None and source.op_type == "Conv":
                add.input[i] = quantize.input[0]
                break
    _drop_unused(model)


def share_concat_scales(model: onnx.ModelProto) -> None:
    """Give all inputs of one Concat the largest of their scales, so that they are joined by a copy."""
    from onnx import numpy_helper

    constants = {w.name: w for w in model.graph.initializer}
    producers = {output: node for node in model.graph.node for output in node.output}
    for concat in (n for n in model.graph.node if n.op_type == "Concat"):
        pairs = [producers[name] for name in concat.input if name in producers]
        if len(pairs) < len(concat.input) or any(p.op_type != "DequantizeLinear" for p in pairs):
            continue
        scales = [numpy_helper.to_array(constants[p.input[1]]) for p in pairs]
        shared = numpy_helper.from_array(np.max(scales, axis=0), f"{concat.name}_shared_scale")
        model.graph.initializer.append(shared)
        for pair in pairs:
            quantize = producers[pair.input[0]]
            quantize.input[1] = pair.input[1] = shared.name
    _drop_unused(model)


def _drop_unused(model: onnx.ModelProto) -> None:
    """Remove nodes and constants that nothing reads any more."""
    while True:
        read = {name for node in model.graph.node for name in node.input} | {o.name for o in model.graph.output}
        idle = [node for node in model.graph.node if not read.intersection(node.output)]
        if not idle:
            break
        for node in idle:
            model.graph.node.remove(node)
    for constant in [w for w in model.graph.initializer if w.name not in read]:
        model.graph.initializer.remove(constant)


# --- which layers must stay in float ----------------------------------------------------------------------------------

GROUPS = 12


def groups_of(layers: Sequence[str]) -> list[list[str]]:
    """`layers` in graph order, in at most `GROUPS` groups; the first and the last layer, often the worst, are alone."""
    if len(layers) <= GROUPS:
        return [[layer] for layer in layers]
    inner = np.array_split(np.array(layers[1:-1]), GROUPS - 2)
    return [[layers[0]], *(part.tolist() for part in inner), [layers[-1]]]


def calibration_record(folder: Path | None, images: int) -> dict[str, Any]:
    """What the manifest says about the images that gave the ranges; without a `folder` they are seeded pictures."""
    return {
        "source": folder.name if folder else "seeded pictures and the examples",
        "images": images,
        "method": "minmax",
    }
