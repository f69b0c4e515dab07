"""The photographs of one export: those that calibrate INT8, those that judge it, and their classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from export import parity
from export.evaluate import truth
from export.parity import Inputs, photographs
from export.quantize import CALIBRATION_IMAGES
from models.console import Failure
from models.preprocess import Pixels
from models.weights import SEED, Network, pictures
from serving.artifact import sha256

JUDGES = 128  # photographs at most: enough to tell 99 % from 97 %, and some seconds for the largest network


class Images:
    """The photographs of one export: some calibrate it, and others judge it.

    `folder` has those for calibration. If `judges` is None, every second one of them judges instead.
    """

    def __init__(self, network: Network, precisions: tuple[str, ...], folder: Path | None, judges: Path | None) -> None:
        self.network = network
        self.folder = folder
        trained = network.weights.kind != "untrained"
        if "int8" in precisions and trained and folder is None:
            raise Failure(
                f"INT8 of trained weights is calibrated on photographs: pass --calibration DIR, with "
                f"{CALIBRATION_IMAGES} of them or more of the kind the network will see"
            )
        paths = photographs(folder) if folder else []
        self.calibration = _spread(paths if judges else paths[::2], CALIBRATION_IMAGES)
        self.judges = _spread(photographs(judges) if judges else paths[1::2], JUDGES)
        self.judges = self.judges or parity.examples(network.preprocess)
        source = judges or folder
        self.truth, self._unknown = truth(source, network.labels) if source else ({}, "")
        self._top1_counts = "int8" in precisions and trained

    def known(self) -> int:
        """How many of the judging photographs have a known class."""
        return sum(path in self.truth for path in self.judges)

    def unjudged(self) -> str:
        """The warning if the top-1 accuracy of INT8 cannot be judged; "" if it can, or if there is no trained INT8."""
        if not self._top1_counts or self.known():
            return ""
        return f"top-1 accuracy in int8 is not judged, no labels: {self._unknown or 'the photographs have none'}"

    def top1(self) -> str:
        """What the manifest says about the top-1 accuracy of an INT8 file."""
        if not self._top1_counts:
            return "not judged, untrained weights"
        return f"judged on {self.known()} labelled photographs" if self.known() else "not judged, no labels"

    def fingerprint(self) -> dict[str, list[Any]]:
        """The contents and classes of the photographs, without their names and folders."""
        return {
            "calibration": sorted(sha256(path) for path in self.calibration),
            "judges": sorted([sha256(path), self.truth.get(path, -1)] for path in self.judges),
        }

    def inputs(self) -> Inputs:
        return parity.inputs(self.network.preprocess, self.judges, self.truth)

    def to_calibrate(self) -> Pixels:
        """uint8 [n, height, width, channels]: the photographs; for untrained weights without any, pictures of ours."""
        import torch

        recipe = self.network.preprocess
        if self.calibration:
            return np.stack([parity.read(path, recipe) for path in self.calibration])
        seeded = (pictures(recipe, torch.Generator().manual_seed(SEED)) * 255).byte().permute(0, 2, 3, 1).numpy()
        return np.concatenate([np.stack([parity.read(path, recipe) for path in parity.examples(recipe)]), seeded])


def _spread(items: list[Path], count: int) -> list[Path]:
    """At most `count` of `items`, evenly spread, so that a folder sorted by class gives some of each class."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else items
