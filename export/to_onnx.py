"""PyTorch to ONNX: the file takes the pixels of a photograph (uint8, NHWC) and gives probabilities."""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.console import Failure
from models.layers import LocalResponseNorm
from models.preprocess import Preprocess
from models.weights import Network

if TYPE_CHECKING:
    import onnx

# The newest opset that ONNX Runtime, OpenVINO and TensorRT all read.
OPSET = 20

INPUT, OUTPUT = "image", "probabilities"


class Served(nn.Module):
    """`network` as it is served: from uint8 [n, height, width, channels] to float32 probabilities [n, classes].

    With `half` the network runs in float16. Normalisation and softmax need float32 and keep it.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, network: nn.Module, recipe: Preprocess, half: bool = False) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).half() if half else network
        self.dtype = torch.float16 if half else torch.float32
        # (x / 255 - mean) / std, as one multiplication and one addition.
        mean, std = torch.tensor(recipe.mean, dtype=torch.float64), torch.tensor(recipe.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, -1, 1, 1))
        self.register_buffer("shift", (-mean / std).float().view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        # Cast first: TensorRT rejects a Transpose of uint8. contiguous(): without it, adaptive pooling over the
        # permuted layout exports as Range and Gather.
        x = image.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        logits: Tensor = self.network((x * self.scale + self.shift).to(self.dtype))
        return logits.float().softmax(-1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's messages from the user. If it fails, its exception has the reason."""
    level = logging.getLogger("torch.onnx").level
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            yield
        finally:
            logging.getLogger("torch.onnx").setLevel(level)


def to_onnx(network: Network, path: Path, max_batch: int, half: bool = False, as_traced: bool = False) -> None:
    """Write `network` to `path` as ONNX for batches of 1 to `max_batch`; `as_traced` leaves out `lower`.

    Raises `Failure` if the network cannot be traced or does not give [n, classes].
    """
    import onnx

    # Two images, so that the exporter does not take the batch for a constant; one if it is the constant 1.
    example = torch.zeros(min(2, max_batch), *network.preprocess.shape, dtype=torch.uint8)
    module = network.module
    if not as_traced:
        module = lower(module, Served(module, network.preprocess).eval(), example)
    served = Served(module, network.preprocess, half).eval()
    with torch.inference_mode():
        shape = tuple(served(example).shape)
    if shape != (len(example), network.classes):
        raise Failure(
            f"{network.name} gives {shape} for {len(example)} images, expected ({len(example)}, {network.classes}): "
            "logits per class"
        )
    batch = torch.export.Dim("batch", min=1, max=max_batch)
    try:
        with _quiet():
            program = torch.onnx.export(
                served,
                (example,),
                dynamo=True,
                dynamic_shapes=({0: batch},) if max_batch > 1 else None,
                input_names=[INPUT],
                output_names=[OUTPUT],
                opset_version=OPSET,
                verbose=False,
            )
    except Exception as error:
        reason = next((line for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        raise Failure(f"{network.name} cannot be exported to ONNX: {reason.strip()} (--debug shows all)") from error
    assert program is not None
    model = program.model_proto
    name_global_pools(model)
    strip(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)


class BandedNorm(nn.Module):
    """`LocalResponseNorm` in a form that engines run fast: a banded 1x1 convolution sums over neighbouring channels.

    It always runs in float32, because squares of activations above 256 overflow float16. `export alexnet_2012
    --as-traced` leaves it out, so that its gain can be measured.
    """

    lrn_band: Tensor

    def __init__(self, norm: LocalResponseNorm, channels: int) -> None:
        super().__init__()
        self.beta, self.k = norm.beta, norm.k
        apart = torch.arange(channels).view(-1, 1) - torch.arange(channels)
        before, after = norm.size // 2, (norm.size - 1) // 2
        band = ((apart <= before) & (apart >= -after)).float() * norm.alpha
        self.register_buffer("lrn_band", band.view(channels, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        q = self.k + nn.functional.conv2d(wide * wide, self.lrn_band.float())
        root = q.sqrt()
        scale = root * root.sqrt() if self.beta == 0.75 else q.pow(self.beta)
        return (wide / scale).to(x.dtype)


def lower(network: nn.Module, run: nn.Module, example: Tensor) -> nn.Module:
    """A copy of `network` in which layers that engines run slowly are replaced; `network` itself if it has none."""
    norms = {name: layer for name, layer in network.named_modules() if isinstance(layer, LocalResponseNorm)}
    if not norms:
        return network
    channels: dict[nn.Module, int] = {}
    hooks = [
        layer.register_forward_pre_hook(lambda layer, args: channels.update({layer: args[0].shape[1]}))
        for layer in norms.values()
    ]
    with torch.inference_mode():
        run(example)
    for hook in hooks:
        hook.remove()
    lowered = copy.deepcopy(network)
    for name, layer in norms.items():
        if layer in channels:  # those of parts for training never ran
            lowered.set_submodule(name, BandedNorm(layer, channels[layer]))
    return lowered


def name_global_pools(model: onnx.ModelProto) -> None:
    """Turn each mean over height and width back into the GlobalAveragePool that it was, for the quantizers."""
    from onnx import helper, numpy_helper

    constants = {initializer.name: initializer for initializer in model.graph.initializer}
    for i, node in enumerate(model.graph.node):
        if node.op_type != "ReduceMean" or len(node.input) < 2 or node.input[1] not in constants:
            continue
        axes = sorted(axis % 4 for axis in numpy_helper.to_array(constants[node.input[1]]).tolist())
        keep = next((a.i for a in node.attribute if a.name == "keepdims"), 1)
        if axes == [2, 3] and keep:
            pool = helper.make_node("GlobalAveragePool", node.input[:1], node.output, name=node.name)
            model.graph.node[i].CopyFrom(pool)


def strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter records about this machine: stack traces with local paths, module names, types of
    values.
    """
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    read = {name for node in model.graph.node for name in node.input}
    for unused in [w for w in model.graph.initializer if w.name not in read]:
        model.graph.initializer.remove(unused)
    for initializer in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        del initializer.metadata_props[:]
        initializer.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
