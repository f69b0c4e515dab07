"""The options of an export: each has an effect, and the command in the manifest repeats them all."""

from __future__ import annotations

import argparse
import itertools
import random
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from export.__main__ import NOT_OF_THE_FILE, command, export_parser
from serving.artifact import find
from tests.conftest import ROOT, export, tiny_onnx

DIGITS = ROOT / "examples" / "digits"

# Values for options with a value, by type; they include several words, signs and spaces.
SAMPLES: dict[Any, tuple[str, ...]] = {
    int: ("3", "17"),
    Path: ("photographs of mine/it's", "../up", "/at the/root"),
    None: ("a", "int8,fp32", "-odd", "two words", ""),
}


def every_option() -> list[argparse.Action]:
    ours = [action for action in export_parser()._actions if action.dest not in (*NOT_OF_THE_FILE, "help")]
    assert len(ours) > 20
    return ours


def words_of(action: argparse.Action, draw: random.Random) -> list[str]:
    if action.nargs == 0:
        return [draw.choice(action.option_strings)]
    if action.choices:
        value = str(draw.choice(list(action.choices)))
    elif callable(action.type) and action.type not in SAMPLES:
        value = draw.choice(["0.485,0.456,0.406", "-1,-0.1,2e-05", "0.00392156862745098"])
    else:
        value = draw.choice(SAMPLES[action.type])
    return [f"{action.option_strings[0]}={value}"]


def again(argv: list[str], architecture: str | None, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """The options of `argv`, and the options of the command that is recorded for them."""
    options = export_parser().parse_args(argv)
    made: Any = SimpleNamespace(
        row=SimpleNamespace(name=architecture) if architecture else None, weights=SimpleNamespace(kind=kind)
    )
    python, dash_m, export_, *recorded = shlex.split(command(options, made))
    assert (python, dash_m, export_) == ("python", "-m", "export")
    return vars(options), vars(export_parser().parse_args(recorded))


@pytest.mark.parametrize("seed", range(40))
def test_the_recorded_command_gives_the_same_options(seed: int) -> None:
    draw = random.Random(seed)
    chosen = draw.sample(every_option(), draw.randint(0, 8))
    own = any(action.dest in ("module", "onnx") for action in chosen)
    argv = [word for action in chosen for word in words_of(action, draw)]
    argv = argv if own else ["lenet5", *argv]
    asked, recorded = again(argv, None if own else "lenet5", "custom")
    assert recorded == asked, argv


def test_every_single_option_is_in_the_recorded_command() -> None:
    draw = random.Random(0)
    for action, _ in itertools.product(every_option(), range(6)):
        argv = ["lenet5", *words_of(action, draw)]
        asked, recorded = again(argv, None if action.dest in ("module", "onnx") else "lenet5", "custom")
        assert recorded | {"networks": []} == asked | {"networks": []}, argv


def test_the_recorded_command_names_one_network_and_the_weights_it_got() -> None:
    for kind in ("pretrained", "untrained"):
        asked, recorded = again(["--set", "five", "--force", "--debug", "--no-tune"], "vgg16", kind)
        changed = {"set": None, "networks": ["vgg16"], "weights": kind, "force": False, "debug": False}
        assert recorded == asked | changed


def test_the_manifest_holds_the_command_that_was_typed(tmp_path: Path) -> None:
    argv = ["lenet5", "--name", "typed", "--engine", "onnxruntime", "--precision", "int8"]
    argv += ["--calibration", str(DIGITS), "--images", str(DIGITS)]
    assert export(*argv, "--max-batch", "8") == 0
    artifact = find("typed")
    commands = {record["command"] for name, record in artifact.manifest["files"].items() if name != "labels.json"}
    [recorded] = commands
    expected = export_parser().parse_args([*argv, "--max-batch", "8", "--no-tune", "--weights", "pretrained"])
    assert export_parser().parse_args(shlex.split(recorded)[3:]) == expected
    assert export(*shlex.split(recorded)[3:]) == 0
    assert find("typed").version == artifact.version, "it makes the same files"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        *((["lenet5", *option], f"{option[0]} is for --onnx") for option in (
            ["--layout", "NHWC"], ["--mean", "0"], ["--std", "1"], ["--resize", "40"], ["--crop", "32"],
            ["--interpolation", "bicubic"],
        )),
        (["--module", "json:loads", "--crop", "32"], "--crop is for --onnx"),
        (["--module", "json:loads", "--weights", "untrained"], "--weights is for a network given by name"),
        (["--onnx", "a.onnx", "--weights", "a.pth"], "--weights is for a network given by name"),
        (["--onnx", "a.onnx", "--as-traced"], "--as-traced is for a network in PyTorch"),
        (["lenet5", "--engine", "onnxruntime", "--workspace-mb", "1"], "--workspace-mb is for TensorRT"),
        (["lenet5", "--engine", "openvino", "--optimization-level", "5"], "--optimization-level is for TensorRT"),
        (["lenet5", "--calibration", "a", "--images", "b"], "--calibration is for --precision int8"),
    ],
)  # fmt: skip
def test_an_option_without_effect_is_refused(
    argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(*argv) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1


def test_classes_and_labels_apply_to_your_own_network(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, names = tmp_path / "mine.py", tmp_path / "labels.txt"
    source.write_text(
        "import torch\n\ndef four():\n    torch.manual_seed(0)\n"
        "    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 4))\n"
    )
    names.write_text("\n".join("abcd"))
    assert export("--module", f"{source}:four", "--labels", names, "--engine", "onnxruntime") == 0
    assert [label.label for label in find("four").labels] == list("abcd")
    graph = tiny_onnx(tmp_path / "ten.onnx")
    assert export("--onnx", graph, "--num-classes", 9) == 2
    assert "--num-classes 9: ten gives 10 scores" in capsys.readouterr().err
    assert export("--onnx", graph, "--labels", names) == 2
    assert "4 labels for 10 classes" in capsys.readouterr().err
    assert export("--module", "examples/efficientnet_lite0.py:network", "--labels", names) == 2
    assert "4 labels for 1000 classes" in capsys.readouterr().err
