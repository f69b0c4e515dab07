"""The photographs of one export: what INT8 is calibrated on, what judges it, and which classes they show."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.console import Failure

if TYPE_CHECKING:
    from export.parity import Inputs
    from models.weights import Network

JUDGES = 128  # photographs at most: enough to tell 99 % from 97 %, and seconds for the largest network


class Images:
    """The photographs of one export: those it calibrates on, and others that judge it."""

    def __init__(self, network: Network, precisions: tuple[str, ...], options: argparse.Namespace) -> None:
        from export.evaluate import truth
        from export.parity import examples, photographs
        from export.quantize import CALIBRATION_IMAGES

        self.network = network
        self.folder: Path | None = options.calibration
        trained = network.weights.kind != "untrained"
        if "int8" in precisions and trained and self.folder is None:
            raise Failure(
                f"INT8 of trained weights is calibrated on photographs: pass --calibration DIR, with "
                f"{CALIBRATION_IMAGES} of them or more of the kind the network will see"
            )
        found = photographs(self.folder) if self.folder else []
        judges = photographs(options.images) if options.images else found[1::2]
        self.calibration = _spread(found if options.images else found[::2], CALIBRATION_IMAGES)
        self.judges = _spread(judges, JUDGES) or examples(network.preprocess)
        source = options.images or self.folder
        self.truth, self._unknown = truth(source, network.labels) if source else ({}, "")
        self._top1_counts = "int8" in precisions and trained

    def known(self) -> int:
        """How many of the judges have a class that is known."""
        return sum(path in self.truth for path in self.judges)

    def unjudged(self) -> str:
        """What to say if INT8 is not held to its top-1 accuracy; "" if it is, or if nothing asks for that."""
        if not self._top1_counts or self.known():
            return ""
        return f"top-1 accuracy in int8 is not judged, no labels: {self._unknown or 'the photographs have none'}"

    def top1(self) -> str:
        """What the manifest says of the labels that an INT8 file was judged by."""
        if not self._top1_counts:
            return "not judged, untrained weights"
        return f"judged on {self.known()} labelled photographs" if self.known() else "not judged, no labels"

    def fingerprint(self) -> dict[str, list[Any]]:
        """What the photographs are, wherever they lie and whatever they are called."""
        from serving.artifact import sha256

        return {
            "calibration": sorted(sha256(path) for path in self.calibration),
            "judges": sorted([sha256(path), self.truth.get(path, -1)] for path in self.judges),
        }

    def inputs(self) -> Inputs:
        from export.parity import inputs

        return inputs(self.network.preprocess, self.judges, self.truth)

    def to_calibrate(self) -> Any:
        """uint8 [n, height, width, channels]: the photographs, or, for untrained weights without any, what we have."""
        import numpy as np
        import torch

        from export.parity import examples, read
        from models.weights import SEED, pictures

        recipe = self.network.preprocess
        if self.calibration:
            return np.stack([read(path, recipe) for path in self.calibration])
        seeded = (pictures(recipe, torch.Generator().manual_seed(SEED)) * 255).byte().permute(0, 2, 3, 1).numpy()
        return np.concatenate([np.stack([read(path, recipe) for path in examples(recipe)]), seeded])


def _spread(items: list[Path], count: int) -> list[Path]:
    """At most `count` of `items`, evenly spread, so that a folder sorted by class gives some of each."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else items
