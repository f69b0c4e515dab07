"""A network of the user's own, from --module or from --onnx."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from models import SPECS
from models.console import Failure, Usage

if TYPE_CHECKING:
    from models.preprocess import Label
    from models.weights import Network


def network(options: argparse.Namespace, labels: Sequence[Label]) -> Network:
    """The network that --onnx or --module names, with the labels given. Raises `Usage` if these do not fit it."""
    if options.onnx:
        from export.from_onnx import read

        given = (options.layout, options.mean, options.std, options.resize, options.crop, options.interpolation)
        own = read(options.onnx, *given, labels, options.name)
    else:
        own = _from_callable(options.module, options.name, options.num_classes or len(labels) or None)
    if options.num_classes not in (None, own.classes):
        raise Usage(f"--num-classes {options.num_classes}: {own.name} gives {own.classes} scores")
    if not labels or options.onnx:
        return own
    try:
        return dataclasses.replace(own, labels=labels)
    except ValueError as error:
        raise Usage(f"--labels: {error}") from error


def named(own: Network, name: str | None, as_traced: bool = False) -> Network:
    """`own` called `name`, or by its own name. Raises `Usage` as `check_name` does."""
    if name is None:
        name = f"{own.name}_traced" if as_traced else own.name
    check_name(name, own.row.name if own.row else None)
    return dataclasses.replace(own, name=name)


def check_name(name: str, architecture: str | None) -> None:
    """Raise `Usage` if `name` cannot be a name, or is that of a network other than `architecture` (None: your own)."""
    from models.weights import NAME, NAME_RULE

    if not NAME.fullmatch(name):
        raise Usage(f"--name {name!r}: {NAME_RULE}")
    if name in SPECS and name != architecture:
        what = architecture or "a network of your own"
        raise Usage(f"{name} is the name of a network, but this is {what}: give it another with --name")


def _from_callable(reference: str, called: str | None, classes: int | None) -> Network:
    """The `Network` that MODULE:CALLABLE returns; a bare nn.Module gets ImageNet's preprocessing."""
    from torch import nn

    from models.weights import Network, Weights

    where, _, name = reference.partition(":")
    if not where or not name:
        raise Usage(f"--module {reference}: expected package.module:callable or file.py:callable")
    try:
        if where.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(where).stem, where)
            if found is None or found.loader is None or not Path(where).is_file():
                raise Usage(f"--module {where}: no such file")
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except ImportError as error:
        raise Failure(f"--module {where}: {error}; is what it needs installed?") from error
    maker = getattr(module, name, None)
    if not callable(maker):
        raise Usage(f"--module {reference}: {where} has no callable {name!r}")
    own = maker()
    if isinstance(own, nn.Module):
        try:
            own = Network(
                name.lower() if called is None else called, own, Weights("custom", reference), classes=classes or 1000
            )
        except ValueError as error:
            raise Usage(f"--module {reference}: {error}; --name gives it another") from error
    if not isinstance(own, Network):
        raise Usage(
            f"--module {reference} gave {type(own).__name__}, expected a models.weights.Network or an nn.Module"
        )
    own.module.eval()
    return own
