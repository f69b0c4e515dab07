"""Where weights come from: a published checkpoint, a file, or a seed. Nothing is unpickled.

auto        the published checkpoint if there is one and it can be fetched, else untrained, with a warning
pretrained  the published checkpoint: fetched once, its sha256 checked, cached
untrained   seeded, and marked as untrained everywhere
PATH        a .safetensors, .pth or .pt file
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from models import Checkpoint, Spec, build, spec
from models.console import Bar, Failure, Usage, unwritable
from models.preprocess import Label, Preprocess, default_labels

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

SEED = 0

# What BentoML accepts as the name of a model.
NAME = re.compile(r"[a-z0-9]([a-z0-9_.-]{0,61}[a-z0-9])?")
NAME_RULE = "use at most 63 lower-case letters, digits, '_', '-' and '.', with a letter or digit first and last"

CHUNK = 1 << 20
TRIES = 4
TIMEOUT_S = 15


@dataclass(frozen=True)
class Weights:
    """The origin of a network's weights, as the manifest records it."""

    kind: Literal["pretrained", "custom", "untrained"]
    origin: str
    sha256: str | None = None
    license: str | None = None

    @classmethod
    def of_file(
        cls, path: Path, kind: Literal["pretrained", "custom"], origin: str = "", license: str | None = None
    ) -> Weights:
        """Weights from the file at `path`, whose sha256 is taken now; `origin` is its name unless given."""
        return cls(kind, origin or path.name, _sha256(path), license)

    def record(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Network:
    """A classifier ready to export: a module from normalised float NCHW to logits, and what belongs to it.

    `row` is its row in SPECS; a network of your own has none.
    """

    name: str
    module: nn.Module
    weights: Weights
    preprocess: Preprocess = field(default_factory=Preprocess)
    classes: int = 1000
    labels: Sequence[Label] = ()
    row: Spec | None = None

    def __post_init__(self) -> None:
        if not NAME.fullmatch(self.name):
            raise ValueError(f"network name {self.name!r}: {NAME_RULE}")
        if self.labels and len(self.labels) != self.classes:
            raise ValueError(f"{self.name}: {len(self.labels)} labels for {self.classes} classes")
        if not self.labels:
            object.__setattr__(self, "labels", default_labels(self.classes))


class WeightsError(Failure):
    """Weights that cannot be read or do not fit; the message says what was found, what was expected and the repair."""


class Unreachable(WeightsError):
    """The publisher could not be reached."""


def load(name: str, choice: str = "auto", classes: int | None = None, labels: Sequence[Label] = ()) -> Network:
    """The network called `name`, with the weights that `choice` names (see the module's docstring)."""
    row = spec(name)
    module = build(name, classes)
    weights, state = fetch_state(row, choice)
    if state is None:
        make_untrained(module, row.preprocess)
    else:
        fit(module, state, weights.origin)
    classes = classes or row.classes
    return Network(name, module, weights, row.preprocess, classes, labels, row)


def fetch_state(row: Spec, choice: str) -> tuple[Weights, Mapping[str, Tensor] | None]:
    """The origin and the tensors of the weights that `choice` names; the tensors are None for untrained weights."""
    untrained = Weights("untrained", f"seed {SEED}")
    if choice == "untrained":
        return untrained, None
    if choice in ("auto", "pretrained"):
        if row.checkpoint is None:
            if choice == "pretrained":
                raise WeightsError(
                    f"{row.name} has no published checkpoint under these key names; pass --weights PATH or untrained"
                )
            print(f"warning: {row.name} has no published checkpoint: its weights are UNTRAINED", file=sys.stderr)
            return untrained, None
        try:
            path = checkpoint(row.checkpoint)
        except Unreachable as error:
            if choice == "pretrained":
                raise
            print(f"warning: {error}; the weights of {row.name} are UNTRAINED", file=sys.stderr)
            return untrained, None
        origin = row.checkpoint.url if "://" in row.checkpoint.url else f"models/{row.checkpoint.url}"
        return Weights.of_file(path, "pretrained", origin, row.checkpoint.license), read(path)
    path = Path(choice)
    if not path.is_file():
        raise Usage(f"--weights {choice} is neither a file nor one of auto, pretrained, untrained")
    return Weights.of_file(path, "custom"), read(path)


# --- files ------------------------------------------------------------------------------------------------------------


def read(path: Path) -> dict[str, Tensor]:
    """The float32 tensors of a .safetensors, .pth or .pt file; a training checkpoint gives its `state_dict`."""
    import torch

    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            state: Any = load_file(path)
        elif path.suffix in (".pth", ".pt"):
            state = torch.load(path, map_location="cpu", weights_only=True)
        else:
            raise Usage(
                f"{path.name}: weights are .safetensors, .pth or .pt files, not {path.suffix or 'without suffix'}"
            )
    except Usage:
        raise
    except Exception as error:  # each reader raises its own types for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(
            f"{path.name} cannot be read as weights ({reason}); is it damaged or a pickle of code?"
        ) from error
    for wrapper in ("state_dict", "model", "model_state_dict"):
        if isinstance(state, dict) and isinstance(state.get(wrapper), dict):
            state = state[wrapper]
            break
    if not isinstance(state, dict) or not all(isinstance(v, torch.Tensor) for v in state.values()):
        raise WeightsError(f"{path.name} does not hold a state_dict: expected a mapping from names to tensors")
    return {str(k): v.float() if v.is_floating_point() else v for k, v in state.items()}


# Only training reads this count, and checkpoints older than PyTorch 0.4.1 do not have it.
COUNTER = "num_batches_tracked"


def fit(module: nn.Module, state: Mapping[str, Tensor], origin: str) -> None:
    """Load `state` into `module`; `WeightsError` names the keys and shapes that differ, if any does."""
    own = module.state_dict()
    # A family says how its published files spell keys differently. Only DenseNet's do.
    respell = getattr(module, "respell", str)
    state = {respell(key): value for key, value in state.items()}
    missing = [k for k in own if k not in state and not k.endswith(COUNTER)]
    unexpected = [k for k in state if k not in own]
    wrong = [k for k in own if k in state and own[k].shape != state[k].shape]
    if missing or unexpected or wrong:
        origin = origin.rsplit("/", 1)[-1]
        matching = sum(k in state and own[k].shape == state[k].shape for k in own)
        parts = [f"{origin}: {matching} of {len(own)} keys match"]
        parts += [_some("missing", [f"{k} {tuple(own[k].shape)}" for k in missing])] if missing else []
        parts += [_some("unexpected", unexpected)] if unexpected else []
        shapes = [f"{k} is {tuple(state[k].shape)}, expected {tuple(own[k].shape)}" for k in wrong]
        parts += [_some("wrong shape", shapes)] if wrong else []
        raise WeightsError("; ".join(parts) + f". {_repair(own, state, wrong)}")
    module.load_state_dict(dict(state), strict=False)


def _some(what: str, keys: Sequence[str], limit: int = 6) -> str:
    rest = f" and {len(keys) - limit} more" if len(keys) > limit else ""
    return f"{what} {', '.join(keys[:limit])}{rest}"


def _repair(own: Mapping[str, Tensor], state: Mapping[str, Tensor], wrong: Sequence[str]) -> str:
    last = list(own)[-1]
    if last in wrong and all(own[k].shape[1:] == state[k].shape[1:] for k in wrong):
        count = state[last].shape[0]
        return f"Trained for {count} classes? Pass --num-classes {count} --labels FILE."
    if state and all(k.startswith("module.") for k in state):
        return "Saved from DataParallel? Save model.module.state_dict() instead."
    return "Is it a checkpoint of another network? Names and shapes are those of torchvision and timm."


def read_labels(path: Path) -> tuple[Label, ...]:
    """Labels from a text file with one class on each line, or from a JSON list of names or of {"label", "synset"}."""
    try:
        text = path.read_text("utf-8")
        rows: list[Any] = json.loads(text) if path.suffix == ".json" else text.splitlines()
        labels = tuple(
            Label(str(row["label"]), row.get("synset")) if isinstance(row, dict) else Label(str(row).strip())
            for row in rows
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Usage(f"--labels {path}: {error}; give one class per line, or a JSON list of names") from error
    if not labels or not all(item.label for item in labels):
        raise Usage(f"--labels {path}: {'an empty file' if not labels else 'an empty name'}; give one class per line")
    return labels


# --- published checkpoints --------------------------------------------------------------------------------------------


def cache() -> Path:
    """The folder of fetched checkpoints: $PODIUM_CACHE, else `podium` in the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("PODIUM_CACHE") or Path(base) / "podium")


def checkpoint(published: Checkpoint) -> Path:
    """The published file on this machine, from the package, from the cache or fetched now; its sha256 is checked.

    $PODIUM_WEIGHTS_MIRROR replaces everything before the file's name, for machines that reach only a mirror. Raises
    `Unreachable` if no server answers, and `WeightsError` if the file is not the published one.
    """
    if "://" not in published.url:
        return Path(__file__).parent / published.url
    # The hub calls every network's file model.safetensors; the folder above has the network's name.
    parts = published.url.split("/")
    name = parts[-1] if parts[-1] != "model.safetensors" else f"{parts[4]}.safetensors"
    target = cache() / name
    if not target.exists():
        mirror = os.environ.get("PODIUM_WEIGHTS_MIRROR")
        url = f"{mirror.rstrip('/')}/{name}" if mirror else published.url
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(name + ".part")
        download(url, part)
        _check(part, published.sha256, url)
        part.replace(target)
    _check(target, published.sha256, str(target))
    return target


def _check(path: Path, expected: str | None, origin: str) -> None:
    actual = _sha256(path)
    if expected and not actual.startswith(expected):
        path.unlink()
        raise WeightsError(
            f"{origin}: sha256 begins with {actual[: len(expected)]}, expected {expected}: it is damaged or another "
            "file; it was deleted, run the command again or pass --weights PATH"
        )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(url: str, part: Path) -> None:
    """Fetch `url` into `part` with a progress bar, after what `part` already holds, in `TRIES` connections at most.

    `part` holds the beginning of the file until this returns. Raises `Unreachable` if no server answers, if the answer
    is an error, or if the last connection breaks.
    """
    if not url.startswith(("https://", "http://")):
        raise WeightsError(f"{url}: only https:// and http:// are fetched")
    reason = ""
    for _ in range(TRIES):
        have = part.stat().st_size if part.exists() else 0
        headers = {"User-Agent": "podium"} | ({"Range": f"bytes={have}-"} if have else {})
        try:
            with urllib.request.urlopen(  # noqa: S310 - the scheme is checked above
                urllib.request.Request(url, headers=headers),  # noqa: S310
                timeout=TIMEOUT_S,
            ) as answer:
                resumed = answer.status == 206
                length = answer.headers.get("Content-Length")
                expected = int(length) + (have if resumed else 0) if length else None
                with part.open("ab" if resumed else "wb") as file, Bar(part.stem, expected, bytes_=True) as bar:
                    bar.advance(file.tell())
                    while block := answer.read(CHUNK):
                        file.write(block)
                        bar.advance(len(block))
            got = part.stat().st_size
            if expected is None or got == expected:
                return
            reason = f"the connection closed after {got:,} of {expected:,} bytes"
        except urllib.error.HTTPError as error:
            if error.code == 416:  # the part is as long as the file or longer: begin again
                part.unlink()
                reason = "the partial file did not fit"
                continue
            reason = f"HTTP {error.code} {error.reason}"
            if error.code < 500 and error.code not in (408, 429):
                break  # asking again will not change this answer
        except (OSError, urllib.error.URLError) as error:
            if unwritable(error):  # another connection does not repair it, and other weights must not hide it
                raise WeightsError(
                    f"cannot keep {part.name} in {part.parent}: {error.strerror}; make room there for the rest of it, "
                    "or name another folder in PODIUM_CACHE"
                ) from error
            reason = str(getattr(error, "reason", error)) or type(error).__name__
            if not part.exists():
                break  # nothing arrived: another try at once would only keep the user waiting
    kept = "; what arrived is kept, and the next run continues from it" if part.exists() else ""
    raise Unreachable(f"{url} cannot be fetched ({reason}){kept}; PODIUM_WEIGHTS_MIRROR can name another server")


# --- untrained weights ------------------------------------------------------------------------------------------------

# The standard deviation of an untrained network's logits over the classes. It is large enough that answers differ
# between pictures, so that a comparison of two engines can fail, and small enough that softmax does not saturate.
LOGIT_STD = 2.0


def make_untrained(module: nn.Module, recipe: Preprocess, seed: int = SEED) -> None:
    """Give `module` seeded weights with which signals keep their size from input to logits, at any depth.

    The weights are He's initialisation (arXiv 1502.01852). The statistics of normalisation come from one pass over
    seeded pictures; without them 50 residual blocks overflow float16. The last layer is scaled to logits with a
    standard deviation of `LOGIT_STD`.
    """
    import torch
    from torch import nn

    generator = torch.Generator().manual_seed(seed)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, mode="fan_in", nonlinearity="relu", generator=generator)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    norms = [m for m in module.modules() if isinstance(m, nn.BatchNorm2d)]
    momenta = [m.momentum for m in norms]
    ran: list[nn.Conv2d | nn.Linear] = []
    hooks = [
        m.register_forward_hook(lambda layer, *_: ran.append(layer))
        for m in module.modules()
        if isinstance(m, nn.Conv2d | nn.Linear)
    ]
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (recipe.mean, recipe.std))
    module.eval()
    with torch.inference_mode():
        for m in norms:
            m.momentum = 1.0
            m.train()
        logits = module((pictures(recipe, generator) - mean) / std)
        for m, momentum in zip(norms, momenta, strict=True):
            m.momentum = momentum
            m.eval()
        for hook in hooks:
            hook.remove()
        spread = float(logits.std(1).mean())
        if not spread > 0:
            raise WeightsError("untrained weights give every class the same score; does the module ignore its input?")
        ran[-1].weight.mul_(LOGIT_STD / spread)


def pictures(recipe: Preprocess, generator: torch.Generator) -> Tensor:
    """Eight seeded pictures, [8, channels, crop, crop] in 0 to 1: random fields from one flat colour to white noise.

    Photographs have detail at every scale. White noise alone is not enough: layers average it away, and statistics of
    the rest would magnify everything smooth.
    """
    import torch
    from torch.nn import functional as F

    return torch.cat(
        [
            F.interpolate(
                torch.rand(1, recipe.channels, cells, cells, generator=generator), recipe.crop, mode="nearest"
            )
            for cells in (1, 2, 4, 8, 16, 32, recipe.crop // 2, recipe.crop)
        ]
    )
