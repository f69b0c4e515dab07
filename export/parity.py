"""The gate between a file and the store: the same network as its PyTorch original, or nothing is saved."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from models.console import Failure, progress
from models.preprocess import Pixels, Preprocess, pixels
from serving.runtime import Scores

Run = Callable[[Pixels], Scores]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
EXAMPLES = Path(__file__).parents[1] / "examples"


@dataclass(frozen=True)
class Thresholds:
    """What a file must keep. Errors are over all inputs, the worst one deciding."""

    max_abs_error: float  # of a probability
    max_relative_error: float  # of the logits, relative to the largest of the image
    min_cosine: float  # of the probabilities
    lead: float  # an answer counts where the reference's first class leads the second by more than this
    agreement: float  # the share of those answers that must stay the same


# float32 differs by the order of additions alone, so every answer that is no tie must stay. Reordering was seen to give
# relative errors of 1e-6 on trained networks and up to 1e-4 on untrained residual ones; a wrong epsilon, padding or
# rounding mode gives 1e-2 and more.
THRESHOLDS = {
    "fp32": Thresholds(max_abs_error=1e-3, max_relative_error=1e-3, min_cosine=0.99999, lead=1e-3, agreement=1.0),
}

# Below this a probability says nothing, and its logarithm would magnify rounding.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What was compared and what came out, as the manifest records it."""

    max_abs_error: float
    max_relative_error: float
    cosine: float
    top1_agreement: float
    top5_agreement: float
    confident_agreement: float | None  # None: no image's first class leads by more than the threshold
    images: dict[str, int]
    worst_image: str
    thresholds: Thresholds
    failures: tuple[str, ...]

    @property
    def passed(self) -> bool:
        return not self.failures

    def record(self) -> dict[str, Any]:
        return {**asdict(self), "failures": list(self.failures), "verdict": "pass" if self.passed else "fail"}


@dataclass(frozen=True)
class Inputs:
    """The images a comparison is made on: uint8 [n, height, width, channels], each with its name and its group."""

    batch: Pixels
    names: tuple[str, ...]
    groups: tuple[str, ...]

    def counts(self) -> dict[str, int]:
        return {group: self.groups.count(group) for group in dict.fromkeys(self.groups)}


def photographs(folder: Path, limit: int | None = None) -> list[Path]:
    """The image files under `folder` in the order of their names; `Failure` when there are none."""
    found = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not found:
        raise Failure(f"{folder} holds no photographs ({', '.join(sorted(SUFFIXES))})")
    return found[:limit]


def inputs(recipe: Preprocess, folder: Path | None = None, limit: int = 64, seed: int = 0) -> Inputs:
    """Real photographs from `folder` (the examples' when None), and inputs at the edges of what can arrive."""
    folder = folder or EXAMPLES / ("photographs" if recipe.channels == 3 else "digits")
    images: list[tuple[str, str, Pixels]] = []
    for path in photographs(folder, limit):
        try:
            with Image.open(path) as image:
                images.append((path.name, "photographs", pixels(image, recipe)))
        except (UnidentifiedImageError, OSError) as error:
            raise Failure(f"{path} is not a readable image: {error}") from error
    random = np.random.default_rng(seed)
    for i in range(4):
        images.append((f"random {i}", "random", random.integers(0, 256, recipe.shape, dtype=np.uint8)))
    ramp = np.broadcast_to(np.linspace(0, 255, recipe.crop).astype(np.uint8)[:, None, None], recipe.shape)
    board = (np.indices(recipe.shape[:2]).sum(0) % 2 * 255).astype(np.uint8)[..., None]
    extremes: dict[str, Pixels] = {
        "all black": np.zeros(recipe.shape, np.uint8),
        "all white": np.full(recipe.shape, 255, np.uint8),
        "ramp": ramp,
        "checkerboard": np.broadcast_to(board, recipe.shape),
    }
    images += [(name, "extreme", value) for name, value in extremes.items()]
    names, groups, batch = zip(*images, strict=True)
    return Inputs(np.ascontiguousarray(np.stack(batch)), names, groups)


def scores(run: Run, batch: Pixels, sizes: Sequence[int], description: str) -> Scores:
    """`run` over `batch` in pieces of the `sizes` in turn, so that more than one batch size is exercised."""
    pieces, start = [], 0
    while start < len(batch):
        pieces.append(batch[start : start + sizes[len(pieces) % len(sizes)]])
        start += len(pieces[-1])
    return np.concatenate([run(piece) for piece in progress(pieces, description)])


def compare(reference: Scores, candidate: Scores, images: Inputs, limits: Thresholds) -> Verdict:
    """Hold `candidate` against `reference` (probabilities [n, classes]) under `limits`."""
    if reference.shape != candidate.shape:
        raise Failure(f"the file gives shape {candidate.shape}, its original {reference.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        who = "the file" if np.isfinite(reference).all() else "the PyTorch original"
        raise Failure(f"{who} gives values that are not finite numbers; are the weights damaged or out of range?")
    r, c = reference.astype(np.float64), candidate.astype(np.float64)
    absolute = np.abs(r - c).max(1)
    relative = _relative_error(r, c)
    cosine = (r * c).sum(1) / np.maximum(np.linalg.norm(r, axis=1) * np.linalg.norm(c, axis=1), 1e-30)
    ranked, ranked_c = np.argsort(-r, 1, kind="stable"), np.argsort(-c, 1, kind="stable")
    same = ranked[:, 0] == ranked_c[:, 0]
    top5 = [set(a) == set(b) for a, b in zip(ranked[:, :5].tolist(), ranked_c[:, :5].tolist(), strict=True)]
    lead = np.take_along_axis(r, ranked[:, :1], 1)[:, 0] - np.take_along_axis(r, ranked[:, 1:2], 1)[:, 0]
    confident = same[lead > limits.lead]
    agreement = float(confident.mean()) if len(confident) else None

    worst = int(np.argmax(np.where(~same & (lead > limits.lead), 1e9, 0) + relative))
    checks = (
        ("max abs error", absolute.max(), ">", limits.max_abs_error, absolute.max() > limits.max_abs_error),
        ("relative error", relative.max(), ">", limits.max_relative_error, relative.max() > limits.max_relative_error),
        ("cosine", cosine.min(), "<", limits.min_cosine, cosine.min() < limits.min_cosine),
        ("agreement", agreement, "<", limits.agreement, agreement is not None and agreement < limits.agreement),
    )
    failures = [f"{name} {value:.3g} {sign} {limit:.3g}" for name, value, sign, limit, broken in checks if broken]
    return Verdict(
        max_abs_error=float(absolute.max()),
        max_relative_error=float(relative.max()),
        cosine=float(cosine.min()),
        top1_agreement=float(same.mean()),
        top5_agreement=float(np.mean(top5)),
        confident_agreement=agreement,
        images=images.counts(),
        worst_image=images.names[worst],
        thresholds=limits,
        failures=tuple(failures),
    )


def _relative_error(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Per image, the largest difference of the logits over the largest logit, read back from the probabilities.

    Softmax loses only a constant, so centred logarithms are the logits. The divisor is at least 1: of a network that
    answers every image alike, small differences are small.
    """
    heard = (reference > NEGLIGIBLE) | (candidate > NEGLIGIBLE)
    r, c = (np.log(np.maximum(p, NEGLIGIBLE)) for p in (reference, candidate))
    r, c = (z - (z * heard).sum(1, keepdims=True) / heard.sum(1, keepdims=True) for z in (r, c))
    error: np.ndarray[Any, Any] = (np.abs(r - c) * heard).max(1) / np.maximum((np.abs(r) * heard).max(1), 1.0)
    return error


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of a file that several engines run: the first that failed, else the one with the largest error."""
    ranked = sorted(verdicts, key=lambda v: (v.passed, -v.max_relative_error))
    return ranked[0]
