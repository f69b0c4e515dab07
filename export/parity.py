"""The comparison that a file must pass before it is saved: it must answer as its PyTorch original does."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from models.console import Failure, progress
from models.preprocess import Pixels, Preprocess
from serving.engines import Scores
from serving.errors import RequestError
from serving.images import decode
from serving.limits import Limits

Run = Callable[[Pixels], Scores]

SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
EXAMPLES = Path(__file__).parents[1] / "examples"
LIMITS = Limits(pixels=89_478_485, seconds=60.0)  # for the user's own photographs; Pillow warns above that size


@dataclass(frozen=True)
class Thresholds:
    """What a file must keep; None is not asked for. Errors are those of the worst image, the cosine is the mean."""

    on: str  # "all" inputs, or the "photographs" among them
    max_abs_error: float | None  # of a probability
    max_relative_error: float | None  # of the logits, relative to the largest of the image
    min_cosine: float  # of the probabilities
    lead: float  # an answer counts if the reference's first class leads the second by more than this
    agreement: float | None  # the share of those answers that must stay the same
    top1_loss: float | None = None  # percentage points, if the photographs are labelled


# float32 differs only by the order of additions, so every answer that is not a tie must stay. Another order gave
# relative errors of 1e-6 on trained networks and up to 1e-4 on untrained residual ones. A wrong epsilon, padding or
# rounding mode gives 1e-2 and more.
#
# float16 keeps 11 bits. One step is 5e-4, and a deep network adds up a few of them.
#
# INT8 moves probabilities. What a user notices is a confident answer that changes. Noise and flat colours lie outside
# the ranges that any calibration sees, so only photographs judge it.
THRESHOLDS = {
    "fp32": Thresholds("all", 1e-3, 1e-3, 0.99999, lead=1e-3, agreement=1.0),
    "fp16": Thresholds("all", 5e-2, 5e-2, 0.999, lead=0.05, agreement=0.995),
    "int8": Thresholds("photographs", None, None, 0.99, lead=0.1, agreement=0.99, top1_loss=1.0),
}

# The cosine decides for untrained networks. Their first class hardly leads, and random layers magnify rounding more
# than trained ones do. Two unrelated outputs of ours have a cosine near 0.02, so these bounds still tell two networks
# apart.
UNTRAINED = {
    "fp32": THRESHOLDS["fp32"],
    "fp16": Thresholds("all", None, None, 0.99, lead=0.1, agreement=None),
    "int8": Thresholds("photographs", None, None, 0.85, lead=0.1, agreement=None),
}


def limits(precision: str, weights: str) -> Thresholds:
    """The thresholds for a file of `precision` whose weights are of this kind ("untrained" or trained)."""
    return (UNTRAINED if weights == "untrained" else THRESHOLDS)[precision]


# A smaller probability means nothing, and its logarithm would magnify rounding.
NEGLIGIBLE = 1e-9


@dataclass(frozen=True)
class Verdict:
    """What was compared and the result, as the manifest records it. Agreements are shares of the images."""

    max_abs_error: float
    max_relative_error: float
    cosine: float  # mean over the images judged
    min_cosine: float
    top1_agreement: float
    top5_agreement: float
    confident_agreement: float | None  # None: no image's first class leads by more than the threshold
    top1_loss: float | None  # percentage points; None: the photographs have no labels
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
    """The images of a comparison: uint8 [n, height, width, channels], each with its name and its group.

    `truth` holds the class of each image, and -1 if it is not known.
    """

    batch: Pixels
    names: tuple[str, ...]
    groups: tuple[str, ...]
    truth: tuple[int, ...] = ()

    def counts(self) -> dict[str, int]:
        return {group: self.groups.count(group) for group in dict.fromkeys(self.groups)}


def photographs(folder: Path, limit: int | None = None) -> list[Path]:
    """The image files under `folder` in the order of their names. Raises `Failure` if there are none."""
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES) if folder.is_dir() else []
    if not paths:
        raise Failure(f"{folder} holds no photographs ({', '.join(sorted(SUFFIXES))})")
    return paths[:limit]


def examples(recipe: Preprocess) -> list[Path]:
    """The photographs that come with the project, or its digits for a network that takes grey images."""
    return photographs(EXAMPLES / ("photographs" if recipe.channels == 3 else "digits"))


def read(path: Path, recipe: Preprocess) -> Pixels:
    """The pixels of one image file, decoded as the service does. Raises `Failure` if it is not readable."""
    try:
        return decode(path.read_bytes(), recipe, LIMITS)
    except (RequestError, OSError) as error:
        raise Failure(f"{path} is not a readable image: {error}") from error


def inputs(
    recipe: Preprocess, files: Sequence[Path] = (), truth: Mapping[Path, int] | None = None, seed: int = 0
) -> Inputs:
    """The photographs in `files` (the examples if it is empty), random images, and extreme ones."""
    files = files or examples(recipe)
    images = [(path.name, "photographs", read(path, recipe)) for path in files]
    random = np.random.default_rng(seed)
    images += [(f"random {i}", "random", random.integers(0, 256, recipe.shape, dtype=np.uint8)) for i in range(4)]
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
    classes = tuple((truth or {}).get(path, -1) for path in files) + (-1,) * (len(images) - len(files))
    return Inputs(np.ascontiguousarray(np.stack(batch)), names, groups, classes)


def scores(run: Run, batch: Pixels, sizes: Sequence[int], description: str) -> Scores:
    """The scores of `run` over `batch`, in pieces of the `sizes` in turn, so that it meets several batch sizes."""
    pieces: list[Pixels] = []
    start = 0
    while start < len(batch):
        pieces.append(batch[start : start + sizes[len(pieces) % len(sizes)]])
        start += len(pieces[-1])
    return np.concatenate([run(piece) for piece in progress(pieces, description)])


def compare(reference: Scores, candidate: Scores, images: Inputs, limits: Thresholds) -> Verdict:
    """Compare `candidate` with `reference` (probabilities [n, classes]) under `limits`."""
    if reference.shape != candidate.shape:
        raise Failure(f"the file gives shape {candidate.shape}, but its original {reference.shape}")
    if not (np.isfinite(reference).all() and np.isfinite(candidate).all()):
        who = "the file" if np.isfinite(reference).all() else "the PyTorch original"
        raise Failure(f"{who} gives values that are not finite; are the weights damaged or out of range?")
    judged = np.array([limits.on in ("all", group) for group in images.groups])
    names = [name for name, counts in zip(images.names, judged, strict=True) if counts]
    truth = np.array(images.truth or (-1,) * len(images.names))[judged]
    r, c = reference[judged].astype(np.float64), candidate[judged].astype(np.float64)

    absolute, relative = np.abs(r - c).max(1), _relative_error(r, c)
    cosine = (r * c).sum(1) / np.maximum(np.linalg.norm(r, axis=1) * np.linalg.norm(c, axis=1), 1e-30)
    ranked, ranked_c = np.argsort(-r, 1, kind="stable"), np.argsort(-c, 1, kind="stable")
    same = ranked[:, 0] == ranked_c[:, 0]
    top5 = [set(a) == set(b) for a, b in zip(ranked[:, :5].tolist(), ranked_c[:, :5].tolist(), strict=True)]
    lead = np.take_along_axis(r, ranked[:, :1], 1)[:, 0] - np.take_along_axis(r, ranked[:, 1:2], 1)[:, 0]
    confident = same[lead > limits.lead]
    flips = int((~confident).sum())
    agreement = float(confident.mean()) if len(confident) else None
    known = truth >= 0
    hits, hits_c = ((order[known, 0] == truth[known]) for order in (ranked, ranked_c))
    loss = 100 * float(hits.mean() - hits_c.mean()) if known.any() else None

    failures = []

    def hold(what: str, value: float | None, sign: str, bound: float | None, broken: bool) -> None:
        if value is not None and bound is not None and broken:
            failures.append(f"{what} {value:.3g} {sign} {bound:.3g}")

    top = float(absolute.max()), float(relative.max()), float(cosine.mean())
    hold("max abs error", top[0], ">", limits.max_abs_error, top[0] > (limits.max_abs_error or 0))
    hold("relative error", top[1], ">", limits.max_relative_error, top[1] > (limits.max_relative_error or 0))
    hold("cosine", top[2], "<", limits.min_cosine, top[2] < limits.min_cosine)
    # The share that may change is rounded up to whole answers, because one answer among a few says little about a
    # share.
    allowed = math.ceil((1 - (limits.agreement or 0)) * len(confident))
    hold("agreement", agreement, "<", limits.agreement, flips > allowed)
    one = 100 / max(int(known.sum()), 1)  # one photograph may be more than a percentage point
    hold("top-1 loss", loss, ">", limits.top1_loss, (loss or 0) > max(limits.top1_loss or 0, one) + 1e-9)

    worst = int(np.argmax(np.where(~same & (lead > limits.lead), 1e9, 0) + relative))
    return Verdict(
        max_abs_error=top[0],
        max_relative_error=top[1],
        cosine=top[2],
        min_cosine=float(cosine.min()),
        top1_agreement=float(same.mean()),
        top5_agreement=float(np.mean(top5)),
        confident_agreement=agreement,
        top1_loss=loss,
        images=images.counts(),
        worst_image=names[worst],
        thresholds=limits,
        failures=tuple(failures),
    )


def _relative_error(reference: np.ndarray[Any, Any], candidate: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """For each image, the largest difference of the logits over the largest logit, computed from the probabilities.

    Softmax loses only a constant, so centred logarithms are the logits. The divisor is at least 1, so that small
    differences stay small for a network that gives every image the same answer.
    """
    counted = (reference > NEGLIGIBLE) | (candidate > NEGLIGIBLE)
    r, c = (np.log(np.maximum(p, NEGLIGIBLE)) for p in (reference, candidate))
    r, c = (z - (z * counted).sum(1, keepdims=True) / counted.sum(1, keepdims=True) for z in (r, c))
    error: np.ndarray[Any, Any] = (np.abs(r - c) * counted).max(1) / np.maximum((np.abs(r) * counted).max(1), 1.0)
    return error


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Of the verdicts of several engines on one file, the first that failed, else the one with the largest error."""
    return min(verdicts, key=lambda v: (v.passed, -v.max_relative_error))
