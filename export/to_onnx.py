"""PyTorch -> ONNX: uint8 NHWC in, probabilities out, so that a served network is fed the bytes of a photograph."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from models.console import Failure
from models.preprocess import Preprocess
from models.weights import Network

if TYPE_CHECKING:
    import onnx

# The newest that ONNX Runtime, OpenVINO and TensorRT all read.
OPSET = 20

INPUT, OUTPUT = "image", "probabilities"


class Served(nn.Module):
    """`network` as it is served: uint8 [n, height, width, channels] -> float32 probabilities [n, classes]."""

    def __init__(self, network: nn.Module, recipe: Preprocess) -> None:
        super().__init__()
        self.network = network
        # (x / 255 - mean) / std, as one multiplication and one addition.
        mean, std = torch.tensor(recipe.mean, dtype=torch.float64), torch.tensor(recipe.std, dtype=torch.float64)
        self.register_buffer("scale", (1 / (255 * std)).float().view(1, -1, 1, 1))
        self.register_buffer("shift", (-mean / std).float().view(1, -1, 1, 1))

    def forward(self, image: Tensor) -> Tensor:
        # Cast first: TensorRT rejects a Transpose of uint8. contiguous(): without it, adaptive pooling over the
        # permuted layout exports as Range and Gather.
        x = image.to(torch.float32).permute(0, 3, 1, 2).contiguous()
        logits: Tensor = self.network(x * self.scale + self.shift)
        return logits.float().softmax(-1)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter from the user: what it has to say when it fails is in its exception."""
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


def to_onnx(network: Network, path: Path, max_batch: int) -> Served:
    """Write `network` to `path` as fp32 ONNX for batches of 1 to `max_batch`; give back the module it was traced from.

    Raises `Failure` when the network cannot be traced or does not give [n, classes].
    """
    import onnx

    served = Served(network.module, network.preprocess).eval()
    example = torch.zeros(2, *network.preprocess.shape, dtype=torch.uint8)
    with torch.inference_mode():
        shape = tuple(served(example).shape)
    if shape != (2, network.classes):
        raise Failure(f"{network.name} gives {shape} for two images, expected (2, {network.classes}): logits per class")
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
    strip(model)
    onnx.checker.check_model(model)
    onnx.save(model, path)
    return served


def strip(model: onnx.ModelProto) -> None:
    """Remove what the exporter notes of this machine: stack traces with local paths, module names, types of values."""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.graph.value_info[:]
    model.doc_string = model.graph.doc_string = ""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for initializer in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        del initializer.metadata_props[:]
        initializer.doc_string = ""
    for function in model.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
