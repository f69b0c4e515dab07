"""The lecture's table for any network: output, activations, parameters, MACs and receptive field of each layer.

Nothing is computed. The network runs on torch's meta device, where tensors have shapes but no numbers, and every
operator is recorded. So operators that are not modules, such as a sum or a concatenation, have a row too.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from models import Published, Spec, build, spec
from models.branches import Mixed
from models.console import table
from models.layers import ConvNorm, LocalResponseNorm

FLOAT32_BYTES = 4


@dataclass
class Layer:
    """One row. Counts are for one image; `weights` are the parameters without biases and normalization."""

    name: str  # of the module, as in the state dict
    kind: str  # input, conv, pool, norm, fc, add or concat
    label: str  # in the lecture's notation: CONV3-64 has 64 filters of 3x3, "/2" is a stride of 2, POOL2 a pool of 2x2
    output: tuple[int, int, int]  # height, width, channels
    receptive_field: tuple[int, int]  # height and width in input pixels; padding may be a part of them
    params: int = 0
    weights: int = 0
    macs: int = 0

    @property
    def activations(self) -> int:
        height, width, channels = self.output
        return height * width * channels

    def data(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "kind": self.kind,
            "label": self.label,
            "output": list(self.output),
            "activations": self.activations,
            "bytes": self.activations * FLOAT32_BYTES,
            "params": self.params,
            "weights": self.weights,
            "macs": self.macs,
            "receptive_field": list(self.receptive_field),
        }


def describe(name: str, classes: int | None = None, size: int | None = None) -> dict[str, Any]:
    """What `python -m models describe` shows of the network called `name`, ready for JSON; `Layer` has the columns."""
    row = spec(name)
    with torch.device("meta"):
        network = build(name, classes, size)
    side = size or row.preprocess.crop
    layers = trace(network, (row.preprocess.channels, side, side))
    rows = [layer.data() for layer in layers]
    training = {
        child: sum(p.numel() for p in module.parameters())
        for child, module in network.named_children()
        if child.lower().startswith("aux")
    }
    return {
        "network": name,
        "input": [side, side, row.preprocess.channels],
        "layers": rows,
        "totals": {key: sum(row[key] for row in rows) for key in ("activations", "bytes", "params", "weights", "macs")},
        "training_only": {"params": sum(training.values()), "modules": training},
        "inception": inception(network, layers),
        "notes": notes(row, layers),
    }


def count_macs(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-accumulates of convolutions and linear layers, without biases, for one image of `shape` (c, h, w)."""
    return sum(layer.macs for layer in trace(network, shape))


# --- running a network without numbers --------------------------------------------------------------------------------


def trace(network: nn.Module, shape: tuple[int, int, int]) -> list[Layer]:
    """The rows of `network` for one image of `shape` (channels, height, width), in the order they run.

    Its parameters may be on any device, because tensors without numbers take their place.
    """
    recorder = Recorder(network)
    image = torch.empty(1, *shape, device="meta")
    recorder.input(image)
    state = {
        key: torch.empty_like(value, device="meta")
        for key, value in (*network.named_parameters(), *network.named_buffers())
    }
    training = [module for module in network.modules() if module.training]
    network.eval()
    try:
        with torch.no_grad(), recorder:
            torch.func.functional_call(network, state, (image,))
    finally:
        for module in training:
            module.training = True
        recorder.remove()
    return recorder.layers


@dataclass(frozen=True)
class View:
    """The receptive field of a tensor's elements in input pixels; `jump` is the step from one element to the next."""

    field: tuple[int, int] = (1, 1)
    jump: tuple[int, int] = (1, 1)
    side: tuple[int, int] = (1, 1)  # of the map, kept when the map is flattened
    folds_into: Layer | None = None  # the convolution that made this tensor, if nothing came after it

    def through(self, kernel: Sequence[int], stride: Sequence[int], side: Sequence[int]) -> View:
        field = [f + (k - 1) * j for f, k, j in zip(self.field, kernel, self.jump, strict=True)]
        jump = [j * s for j, s in zip(self.jump, stride, strict=True)]
        return View((field[0], field[1]), (jump[0], jump[1]), (side[0], side[1]))


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records a row for every operator below autograd that makes a new map.

    ReLU, scaling and dropout have no row, because they work in place. Normalization right after a convolution has none
    either, because it folds into the convolution.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layers: list[Layer] = []
        self.modules: list[str] = []  # those that run now, the outermost first
        self.inside = 0  # how many of them are one row, whatever they do inside
        self.views: dict[int, View] = {}
        self.alive: list[Tensor] = []  # so that no id in `views` is used twice
        self.hooks = []
        for name, module in network.named_modules():
            self.hooks.append(module.register_forward_pre_hook(self._enter(name)))
            self.hooks.append(module.register_forward_hook(self._leave))

    def remove(self) -> None:
        for hook in self.hooks:
            hook.remove()

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, _: Any) -> None:
            self.modules.append(name)
            self.inside += isinstance(module, LocalResponseNorm)

        return hook

    def _leave(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if isinstance(module, LocalResponseNorm):
            self.inside -= 1
            self._row("norm", "NORM", output, self._view(inputs[0]))
        self.modules.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if not self.inside:
            made = output[0] if isinstance(output, tuple | list) else output
            if isinstance(made, Tensor):
                self._record(func.overloadpacket, args, made)
        return output

    def input(self, image: Tensor) -> None:
        self._row("input", "INPUT", image, View(side=(image.shape[2], image.shape[3])))

    def _record(self, op: Any, args: Any, made: Tensor) -> None:
        aten = torch.ops.aten
        given = [a for a in _flat(args) if id(a) in self.views]
        if not given:
            return  # parameters being reshaped
        view = self._view(given[0])
        if op is aten.convolution:
            self._convolution(args, made, view)
        elif op in (aten.addmm, aten.mm):
            weight = args[2] if op is aten.addmm else args[1]
            layer = self._row("fc", "FC", made, view.through(view.side, (1, 1), (1, 1)))
            layer.weights = layer.macs = weight.numel()
            layer.params = weight.numel() + (args[0].numel() if op is aten.addmm else 0)
        elif op in (aten.max_pool2d_with_indices, aten.avg_pool2d):
            kernel, stride = args[1], args[2] or args[1]
            label = ("POOL" if op is aten.max_pool2d_with_indices else "AVGPOOL") + _size(kernel)
            label += "" if list(stride) == list(kernel) else f"/{stride[0]}"
            self._row("pool", label, made, view.through(kernel, stride, made.shape[2:]))
        elif op is aten.mean:  # what adaptive pooling to 1 x 1 becomes
            self._row("pool", f"AVGPOOL{_size(view.side)}", made, view.through(view.side, (1, 1), (1, 1)))
        elif op in (aten.native_batch_norm, aten._native_batch_norm_legit_no_training):
            params = sum(a.numel() for a in args[1:3] if a is not None)
            if view.folds_into is not None:
                view.folds_into.params += params
                self._see(made, View(view.field, view.jump, view.side))
            else:
                self._row("norm", "BN", made, view).params = params
        elif op in (aten.add, aten.cat) and len(given) > 1:
            views = [self._view(a) for a in given]
            field = (max(v.field[0] for v in views), max(v.field[1] for v in views))
            kind, label = ("concat", "CONCAT") if op is aten.cat else ("add", "ADD")
            self._row(kind, label, made, View(field, view.jump, view.side))
        else:
            self._see(made, View(view.field, view.jump, view.side))

    def _convolution(self, args: Any, made: Tensor, view: View) -> None:
        _, weight, bias, stride, *_, groups = args
        kernel = weight.shape[2:]
        label = f"CONV{_size(kernel)}" + ("" if set(stride) == {1} else f"/{stride[0]}") + f"-{weight.shape[0]}"
        label += f" ({groups} groups)" if groups > 1 else ""
        view = view.through(kernel, stride, made.shape[2:])
        layer = self._row("conv", label, made, view)
        layer.weights = weight.numel()
        layer.params = weight.numel() + (0 if bias is None else bias.numel())
        layer.macs = weight.numel() * made.shape[2] * made.shape[3]
        self._see(made, View(view.field, view.jump, view.side, layer))

    def _row(self, kind: str, label: str, made: Tensor, view: View) -> Layer:
        height, width = (made.shape[2], made.shape[3]) if made.dim() == 4 else (1, 1)
        name = self.modules[-1] if self.modules else ""
        layer = Layer(name, kind, label, (height, width, made.shape[1]), view.field)
        self.layers.append(layer)
        self._see(made, View(view.field, view.jump, view.side))
        return layer

    def _see(self, made: Tensor, view: View) -> None:
        self.alive.append(made)
        self.views[id(made)] = view

    def _view(self, tensor: Tensor) -> View:
        return self.views[id(tensor)]


def _flat(args: Any) -> list[Tensor]:
    tensors: list[Tensor] = []
    for a in args:
        if isinstance(a, Tensor):
            tensors.append(a)
        elif isinstance(a, list | tuple):
            tensors += _flat(a)
    return tensors


def _size(kernel: Sequence[int]) -> str:
    return str(kernel[0]) if kernel[0] == kernel[1] else f"{kernel[0]}x{kernel[1]}"


# --- Inception: what the bottlenecks save -----------------------------------------------------------------------------

# The lecture's example: 28 x 28 x 256 into 128 filters of 1x1, 192 of 3x3 and 96 of 5x5, with 64 bottleneck filters
# before them, and after the pool.
EXAMPLE_POSITIONS, EXAMPLE_INPUTS, EXAMPLE_BOTTLENECK = 28 * 28, 256, 64
EXAMPLE = {1: 128, 3: 192, 5: 96}


def lecture_example() -> dict[str, int]:
    """Multiplications of the lecture's module without and with bottlenecks, the latter also as it is stated."""
    naive = sum(EXAMPLE_INPUTS * k * k * filters for k, filters in EXAMPLE.items())
    bottlenecks = 3 * EXAMPLE_INPUTS * EXAMPLE_BOTTLENECK
    own = EXAMPLE_INPUTS * EXAMPLE[1] + sum(EXAMPLE_BOTTLENECK * k * k * EXAMPLE[k] for k in (3, 5))
    return {
        "naive": EXAMPLE_POSITIONS * naive,
        "bottlenecked": EXAMPLE_POSITIONS * (own + bottlenecks),
        "bottlenecked_as_stated": EXAMPLE_POSITIONS
        * (own + bottlenecks + EXAMPLE_BOTTLENECK * 3 * 3 * EXAMPLE[3]),  # 3x3 twice
    }


def inception(network: nn.Module, layers: Sequence[Layer]) -> dict[str, Any] | None:
    """Multiplications of every Inception module with and without its 1x1 bottlenecks; None if there is no module.

    Without a bottleneck, the filters after it read the module's whole input, and a branch with a pool passes it on.
    """
    macs = {layer.name: layer.macs for layer in layers if layer.kind == "conv"}
    names = {module: name for name, module in network.named_modules()}
    modules = []
    for name, module in network.named_modules():
        if not isinstance(module, Mixed):
            continue
        actual = sum(count for conv, count in macs.items() if conv.startswith(f"{name}."))
        naive = actual
        for bottleneck, readers in bottlenecks(module):
            naive -= macs[names[bottleneck]]
            for conv in readers:  # their count is proportional to the channels they read
                naive += macs[names[conv]] * (bottleneck.in_channels - conv.in_channels) // conv.in_channels
        if naive != actual:
            modules.append({"name": name, "naive": naive, "bottlenecked": actual})
    return {"lecture": lecture_example(), "modules": modules} if modules else None


def bottlenecks(module: Mixed) -> list[tuple[nn.Conv2d, list[nn.Conv2d]]]:
    """Each 1x1 convolution of `module` that is there to save multiplications, with the convolutions that read it."""
    pairs = []
    for path in module.paths:
        steps = [[module.get_submodule(name) for name in names] for names in path]
        convs = [[part.conv for part in step if isinstance(part, ConvNorm)] for step in steps]
        convs = [step for step in convs if step]
        pooled = len(convs) < len(path)
        if convs and set(convs[0][0].kernel_size) == {1} and (pooled or len(convs) > 1):
            pairs.append((convs[0][0], convs[1] if len(convs) > 1 else []))
    return pairs


# --- for people -------------------------------------------------------------------------------------------------------

LECTURE = {
    "vgg16": "{activations} activations, {megabytes} MB in float32. The lecture says 24 million and 96 MB, but its "
    "own rows sum to this.",
    "alexnet_2012": "The lecture lists each pool before its normalization. In the paper, as here, the pool is last.",
}


def notes(row: Spec, layers: Sequence[Layer]) -> list[str]:
    lines = [row.note] if row.note else []
    if row.name in LECTURE:
        total = sum(layer.activations for layer in layers)
        megabytes = f"{total * FLOAT32_BYTES / 1e6:.0f}"
        lines.append(LECTURE[row.name].format(activations=f"{total / 1e6:.1f} million", megabytes=megabytes))
    if any(layer.kind == "conv" and layer.params > layer.weights + layer.output[2] for layer in layers):
        lines.append("Normalization right after a convolution folds into it: its parameters are on that row.")
    if any(layer.receptive_field[0] > layers[0].output[0] for layer in layers):
        lines.append("A receptive field larger than the input covers all of it and the padding around it.")
    return lines


def as_text(data: dict[str, Any]) -> str:
    """The answer of `describe` as a table, with notes below it."""
    row = spec(data["network"])
    lines = [f"{row.name} ({row.year}). {row.paper}"]
    for what, published in (("one network", row.published), ("as entered in ILSVRC", row.entry)):
        if published:
            lines.append(f"Published, {what}: {errors(published)}.")
    lines += ["", table([_cells(layer) for layer in data["layers"]] + [_total(data)], HEADER, right=range(2, 9)), ""]
    if data["training_only"]["params"]:
        parts = ", ".join(f"{name} {count:,}" for name, count in data["training_only"]["modules"].items())
        lines.append(f"For training only (in the checkpoint, never run here): {parts} parameters.")
    if data["inception"]:
        lines += _inception_text(data["inception"])
    return "\n".join(lines + data["notes"])


HEADER = ("layer", "module", "output", "activations", "KiB", "parameters", "weights", "MACs", "field")


def _cells(layer: dict[str, Any]) -> tuple[str, ...]:
    counts = (f"{layer[key]:,}" for key in ("params", "weights", "macs"))
    field = "x".join(map(str, layer["receptive_field"]))
    output = "x".join(map(str, layer["output"]))
    kib = f"{layer['bytes'] / 1024:,.0f}"
    return (layer["label"], layer["name"], output, f"{layer['activations']:,}", kib, *counts, field)


def _total(data: dict[str, Any]) -> tuple[str, ...]:
    total = data["totals"]
    counts = (f"{total[key]:,}" for key in ("params", "weights", "macs"))
    return ("TOTAL", "", "", f"{total['activations']:,}", f"{total['bytes'] / 1024:,.0f}", *counts, "")


def errors(published: Published) -> str:
    rates = ((published.top1_error, "top-1"), (published.top5_error, "top-5"))
    given = " and ".join(f"{rate:g} % {what} error" for rate, what in rates if rate is not None)
    return f"{given} ({published.protocol}; {published.source})"


def _inception_text(counts: dict[str, Any]) -> list[str]:
    example = counts["lecture"]
    rows = [("lecture's example", example["naive"], example["bottlenecked"])]
    for (naive, actual), group in groupby(counts["modules"], key=lambda m: (m["naive"], m["bottlenecked"])):
        names = [module["name"] for module in group]
        rows.append((names[0] if len(names) == 1 else f"{names[0]} to {names[-1]}, each", naive, actual))
    millions = [(name, f"{naive / 1e6:,.0f} M", f"{actual / 1e6:,.0f} M") for name, naive, actual in rows]
    return [
        table(millions, ("multiplications of an Inception module", "without bottlenecks", "with"), right=(1, 2)),
        f"The example reads 28x28x256. The lecture says {example['naive'] / 1e6:,.0f} M and "
        f"{example['bottlenecked_as_stated'] / 1e6:,.0f} M; the second counts the 3x3 filters twice.",
        "",
    ]
