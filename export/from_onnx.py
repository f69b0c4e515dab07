"""A classifier in an ONNX file of others: checked, and given the inputs and outputs that ours have."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from export.to_onnx import INPUT, OPSET, OUTPUT, strip
from models.console import Failure, Usage
from models.preprocess import Label, Preprocess
from models.weights import Network, Weights

OLDEST_OPSET = 7
PREFIX = "network."
SCALING = (
    "--mean 0.485,0.456,0.406 --std 0.229,0.224,0.225 for torchvision's, --mean 0 --std 1 for pixels from 0 to 1, "
    "--mean 0 --std 0.00392157 for 0 to 255, --mean 0.5 --std 0.5 for -1 to 1"
)


@dataclass(frozen=True)
class Form:
    """The input and the output of someone else's graph."""

    input: str
    layout: Literal["NCHW", "NHWC"]
    size: int
    channels: int
    integer: bool  # uint8 input: the graph normalises by itself
    output: str
    classes: int
    probabilities: bool  # its output already sums to one


class Foreign(nn.Module):
    """The original graph in ONNX Runtime, from normalised float NCHW to logits; parity compares with it."""

    def __init__(self, path: Path, form: Form) -> None:
        import onnxruntime as ort

        super().__init__()
        self.path, self.form = path, form
        self._session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.form.layout == "NCHW" else x.permute(0, 2, 3, 1)
        array = x.round().to(torch.uint8).numpy() if self.form.integer else x.contiguous().numpy()
        # One image at a time, because a graph with a fixed batch of one takes no more.
        rows = [self._session.run([self.form.output], {self.form.input: row[None]})[0] for row in array]
        out = torch.from_numpy(np.concatenate(rows).reshape(len(rows), -1))
        return out.clamp_min(1e-30).log() if self.form.probabilities else out


def read(
    path: Path,
    layout: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    resize: int | None = None,
    crop: int | None = None,
    interpolation: Literal["bilinear", "bicubic", "lanczos"] = "bilinear",
    labels: Sequence[Label] = (),
    name: str | None = None,
) -> Network:
    """The classifier in `path` as a `Network`. What the file does not say comes from the options of the same name.

    Raises `Failure` if the file is not an ONNX classifier of images, and `Usage` if an option is missing or wrong.
    """
    if not path.is_file():
        raise Usage(f"--onnx {path}: no such file")
    try:
        model = onnx.load(path)
        onnx.checker.check_model(model)
    except Exception as error:  # protobuf, the checker and the file system raise types of their own
        reason = str(error).strip().splitlines()
        raise Failure(
            f"{path.name} is not a valid ONNX model: {reason[0] if reason else type(error).__name__}"
        ) from error
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise Failure(f"{path.name} is of opset {opset}; export it again with {OLDEST_OPSET} or newer")
    form = _form(model, path, layout, crop)
    if form.integer and (mean or std):
        raise Usage(f"{path.name} takes uint8 and normalises by itself: leave out --mean and --std")
    if not form.integer and not (mean and std):
        raise Usage(f"{path.name} takes floats; pass how its pixels are scaled: {SCALING}")
    try:
        recipe = Preprocess(
            resize=resize or round(form.size * 256 / 224),
            crop=form.size,
            interpolation=interpolation,
            # uint8 arrives as it is: (x / 255 - 0) / (1 / 255)
            mean=(0.0,) * form.channels if form.integer else _each(mean, form.channels),
            std=(1 / 255,) * form.channels if form.integer else _each(std, form.channels),
            mode="RGB" if form.channels == 3 else "L",
        )
    except ValueError as error:
        raise Usage(f"{path.name}: {error}") from error
    form = _with_range(Foreign(path, form), form)
    if name is None:
        name = re.sub(r"[^a-z0-9_.-]+", "_", path.stem.lower()).strip("_.-")
    weights = Weights.of_file(path, "custom")
    try:
        return Network(name, Foreign(path, form), weights, recipe, form.classes, labels)
    except ValueError as error:
        raise Usage(f"{path.name}: {error}") from error


def _each(values: Sequence[float] | None, channels: int) -> tuple[float, ...]:
    values = tuple(values or ())
    return values * channels if len(values) == 1 else values


def _form(model: onnx.ModelProto, path: Path, layout: str | None, crop: int | None) -> Form:
    constants = {w.name for w in model.graph.initializer}
    inputs = [i for i in model.graph.input if i.name not in constants]
    if len(inputs) != 1 or len(model.graph.output) != 1:
        raise Failure(
            f"{path.name} has {len(inputs)} inputs and {len(model.graph.output)} outputs; a classifier takes one "
            "image and gives one score for each class"
        )
    tensor = inputs[0].type.tensor_type
    dims = [d.dim_value or None for d in tensor.shape.dim]
    if len(dims) != 4 or tensor.elem_type not in (TensorProto.FLOAT, TensorProto.UINT8):
        kind = TensorProto.DataType.Name(tensor.elem_type)
        raise Failure(f"{path.name} takes {kind} {dims}; expected FLOAT or UINT8 images of four dimensions")
    fits = {"NCHW": dims[1] in (1, 3), "NHWC": dims[3] in (1, 3)}
    if layout is None:
        possible = [name for name, fit in fits.items() if fit]
        if len(possible) != 1:
            raise Usage(f"{path.name} takes {dims}: which of them are the channels? Pass --layout NCHW or NHWC")
        layout = possible[0]
    height, width, channels = (dims[2], dims[3], dims[1]) if layout == "NCHW" else (dims[1], dims[2], dims[3])
    size = height or crop
    if size is None:
        raise Usage(f"{path.name} takes pictures of any size: pass --crop with the size it was trained on")
    if (width or size) != size or (crop and crop != size) or (channels or 3) not in (1, 3):
        raise Failure(
            f"{path.name} takes {dims} as {layout}; expected square pictures of 1 or 3 channels, of the size of --crop"
        )
    out = model.graph.output[0].type.tensor_type
    wide = [d.dim_value for d in out.shape.dim][1:]
    return Form(
        inputs[0].name,
        "NCHW" if layout == "NCHW" else "NHWC",
        size,
        channels or 3,
        tensor.elem_type == TensorProto.UINT8,
        model.graph.output[0].name,
        int(np.prod(wide)) if wide else 0,
        False,
    )


def _with_range(foreign: Foreign, form: Form) -> Form:
    """`form` with what only running the graph tells: how many classes, and whether the scores are probabilities."""
    shape = (2, form.channels, form.size, form.size)
    noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)) * (255 if form.integer else 1)
    try:
        scores = foreign(noise)
    except Exception as error:  # ONNX Runtime raises types of its own
        reason = str(error).strip().splitlines()
        raise Failure(f"{foreign.path.name} does not run: {reason[0] if reason else type(error).__name__}") from error
    if scores.shape[1] < 2:
        raise Failure(
            f"{foreign.path.name} gives {scores.shape[1]} value for a picture; a classifier gives one for each class"
        )
    sums = bool((scores >= 0).all()) and torch.allclose(scores.sum(1), torch.ones(2), atol=1e-3)
    return dataclasses.replace(form, classes=scores.shape[1], probabilities=sums)


def wrap(network: Network, path: Path, max_batch: int) -> None:
    """Write someone else's graph in our form: uint8 NHWC in, probabilities out, any batch up to `max_batch`.

    Raises `Failure` if the graph was built for one batch size and cannot take another.
    """
    foreign = network.module
    assert isinstance(foreign, Foreign)
    form, recipe = foreign.form, network.preprocess
    # The prefix keeps its names apart from ours.
    model = onnx.compose.add_prefix(_at_opset(onnx.load(foreign.path), foreign.path.name), PREFIX)
    form = dataclasses.replace(form, input=PREFIX + form.input, output=PREFIX + form.output)
    graph = model.graph
    constants = {w.name for w in graph.initializer}
    for value in [i for i in graph.input if i.name not in constants]:
        graph.input.remove(value)
    graph.input.insert(0, helper.make_tensor_value_info(INPUT, TensorProto.UINT8, ["batch", *recipe.shape]))
    mean, std = np.array(recipe.mean), np.array(recipe.std)
    before, current = [], INPUT
    if not form.integer:
        graph.initializer.append(numpy_helper.from_array((1 / (255 * std)).astype(np.float32), "podium_scale"))
        graph.initializer.append(numpy_helper.from_array((-mean / std).astype(np.float32), "podium_shift"))
        before = [
            helper.make_node("Cast", [INPUT], ["podium_float"], "podium_cast", to=TensorProto.FLOAT),
            helper.make_node("Mul", ["podium_float", "podium_scale"], ["podium_scaled"], "podium_mul"),
            helper.make_node("Add", ["podium_scaled", "podium_shift"], ["podium_normal"], "podium_add"),
        ]
        current = "podium_normal"
    last = (
        helper.make_node("Transpose", [current], [form.input], "podium_transpose", perm=[0, 3, 1, 2])
        if form.layout == "NCHW"
        else helper.make_node("Identity", [current], [form.input], "podium_identity")
    )
    nodes = [*before, last, *graph.node]
    graph.initializer.append(numpy_helper.from_array(np.array([0, form.classes], np.int64), "podium_shape"))
    finish = (
        helper.make_node("Identity", ["podium_rows"], [OUTPUT], "podium_scores")
        if form.probabilities
        else helper.make_node("Softmax", ["podium_rows"], [OUTPUT], "podium_scores", axis=-1)
    )
    nodes += [
        helper.make_node("Reshape", [form.output, "podium_shape"], ["podium_rows"], "podium_reshape"),
        finish,
    ]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info(OUTPUT, TensorProto.FLOAT, ["batch", form.classes]))
    for i, node in enumerate(graph.node):  # quantizers tell nodes apart by their names
        node.name = node.name or f"{node.op_type}_{i}"
    strip(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    _try_batches(path, recipe, max_batch, foreign.path.name)


def _at_opset(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    """`model` at our opset, if it can be converted; else unchanged, if its opset is new enough."""
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    if opset == OPSET:
        return model
    try:
        return onnx.version_converter.convert_version(model, OPSET)
    except Exception as error:  # the converter raises RuntimeError and its own types
        if opset >= 13:
            return model
        raise Failure(f"{name} is of opset {opset} and cannot be converted: export it again with {OPSET}") from error


def _try_batches(path: Path, recipe: Preprocess, max_batch: int, name: str) -> None:
    import onnxruntime as ort

    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    for count in sorted({1, min(2, max_batch)}):
        try:
            session.run(None, {INPUT: np.zeros((count, *recipe.shape), np.uint8)})
        except Exception as error:
            raise Failure(
                f"{name} was built for one batch size and fails at {count}; export it with a dynamic batch, or pass "
                "--max-batch 1"
            ) from error
