"""The lecture's table: its rows for VGG-16, and the same arithmetic for every other network."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import pytest
import torch
from torch import nn

from models import SPECS
from models.__main__ import main
from models.describe import as_text, count_macs, describe, lecture_example

# The lecture's slide for VGG-16: layer, output side and channels, activations, weights without biases.
VGG16 = (
    ("INPUT", 224, 3, 150_528, 0),
    ("CONV3-64", 224, 64, 3_211_264, 1_728),
    ("CONV3-64", 224, 64, 3_211_264, 36_864),
    ("POOL2", 112, 64, 802_816, 0),
    ("CONV3-128", 112, 128, 1_605_632, 73_728),
    ("CONV3-128", 112, 128, 1_605_632, 147_456),
    ("POOL2", 56, 128, 401_408, 0),
    ("CONV3-256", 56, 256, 802_816, 294_912),
    ("CONV3-256", 56, 256, 802_816, 589_824),
    ("CONV3-256", 56, 256, 802_816, 589_824),
    ("POOL2", 28, 256, 200_704, 0),
    ("CONV3-512", 28, 512, 401_408, 1_179_648),
    ("CONV3-512", 28, 512, 401_408, 2_359_296),
    ("CONV3-512", 28, 512, 401_408, 2_359_296),
    ("POOL2", 14, 512, 100_352, 0),
    ("CONV3-512", 14, 512, 100_352, 2_359_296),
    ("CONV3-512", 14, 512, 100_352, 2_359_296),
    ("CONV3-512", 14, 512, 100_352, 2_359_296),
    ("POOL2", 7, 512, 25_088, 0),
    ("FC", 1, 4096, 4_096, 102_760_448),
    ("FC", 1, 4096, 4_096, 16_777_216),
    ("FC", 1, 1000, 1_000, 4_096_000),
)


@cache
def described(name: str) -> dict[str, Any]:
    return describe(name)


def shapes(name: str, *kinds: str) -> list[list[int]]:
    return [layer["output"] for layer in described(name)["layers"] if layer["kind"] in kinds]


def row_of(name: str, module: str) -> dict[str, Any]:
    [found] = [layer for layer in described(name)["layers"] if layer["name"] == module]
    return dict(found)


def test_the_description_of_vgg16_is_the_lectures_table() -> None:
    own = [(r["label"], *r["output"], r["activations"], r["weights"]) for r in described("vgg16")["layers"]]
    assert own == [
        (label, side, side, channels, activations, weights) for label, side, channels, activations, weights in VGG16
    ]


def test_vgg16s_activations_are_fifteen_million_and_it_says_so() -> None:
    data = described("vgg16")
    assert data["totals"] == {
        "activations": 15_237_608,
        "bytes": 4 * 15_237_608,
        "params": 138_357_544,
        "weights": 138_344_128,
        "macs": 15_470_264_320,
    }
    assert data["notes"][0].startswith("15.2 million activations, 61 MB in float32. The lecture says 24 million")


@pytest.mark.parametrize("name", SPECS)
def test_the_rows_sum_to_what_the_table_of_networks_says(name: str) -> None:
    data, row = described(name), SPECS[name]
    assert data["totals"]["macs"] == row.macs
    assert data["training_only"]["params"] == row.training_only
    assert data["totals"]["params"] + row.training_only == row.params
    assert data["input"] == list(row.preprocess.shape) == data["layers"][0]["output"]
    assert data["layers"][-1]["output"] == [1, 1, row.classes]
    assert json.loads(json.dumps(data)) == data, "nothing that JSON would change"


def test_alexnet_2012_has_the_lectures_shapes() -> None:
    assert shapes("alexnet_2012", "conv", "pool") == [
        [55, 55, 96], [27, 27, 96],
        [27, 27, 256], [13, 13, 256],
        [13, 13, 384], [13, 13, 384], [13, 13, 256], [6, 6, 256],
    ]  # fmt: skip
    assert shapes("alexnet_2012", "fc") == [[1, 1, 4096], [1, 1, 4096], [1, 1, 1000]]
    assert row_of("alexnet_2012", "features.0")["weights"] == 34_848
    labels = [layer["label"] for layer in described("alexnet_2012")["layers"][1:8]]
    assert labels == ["CONV11/4-96", "NORM", "POOL3/2", "CONV5-256 (2 groups)", "NORM", "POOL3/2", "CONV3-384"]


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("zfnet", [110, 55, 26, 13, 13, 13, 13, 6]),  # figure 3: only pools that round up give 55 and 13
        ("nin", [54, 54, 54, 27, 27, 27, 27, 13, 13, 13, 13, 6, 6, 6, 6, 1]),
    ],
)
def test_pools_that_round_up(name: str, sides: list[int]) -> None:
    assert [height for height, _, _ in shapes(name, "conv", "pool")] == sides


@pytest.mark.parametrize(
    ("name", "sides"),
    [
        ("googlenet_2014", [56, 28, 14, 7, 1]),
        ("squeezenet1_0", [54, 27, 13, 1]),
        ("squeezenet1_1", [55, 27, 13, 1]),
        ("inception_v2", [56, 28, 14, 7, 1]),
        ("inception_v3", [73, 35, 17, 8, 1]),
        ("inception_v4", [73, 35, 17, 8, 1]),
        ("fractalnet34", [56, 28, 14, 7, 1]),
    ],
)
def test_pools_that_halve(name: str, sides: list[int]) -> None:
    heights = [height for height, _, _ in shapes(name, "pool")]
    assert list(dict.fromkeys(heights)) == sides


def test_receptive_fields() -> None:
    stack = [layer["receptive_field"] for layer in described("vgg16")["layers"][8:11]]
    start = described("vgg16")["layers"][7]["receptive_field"][0]  # behind the first convolution at jump 4
    assert [field[0] - start for field in stack][:2] == [8, 16], "each 3x3 sees two positions more"
    assert row_of("vgg16", "features.30")["receptive_field"] == [212, 212]
    assert row_of("alexnet_2012", "features.14")["receptive_field"] == [195, 195]
    assert row_of("resnet50", "layer4.2")["receptive_field"] == [427, 427]
    height, width = row_of("inception_v3", "Mixed_6b.branch7x7_2.conv")["receptive_field"]
    assert width - height == 6 * 16, "1x7 at a jump of 16 pixels"


def test_three_3x3_see_what_a_7x7_sees() -> None:
    conv = nn.Sequential(*(nn.Conv2d(4, 4, 3, padding=1, bias=False) for _ in range(3)))
    assert count_macs(conv, (4, 10, 10)) == 27 * 4 * 4 * 100  # 27 C^2 against 49 C^2


def test_normalization_folds_into_the_convolution_before_it() -> None:
    assert row_of("resnet18", "conv1") | {"receptive_field": 0} == {
        "name": "conv1",
        "kind": "conv",
        "label": "CONV7/2-64",
        "output": [112, 112, 64],
        "activations": 802_816,
        "bytes": 3_211_264,
        "params": 9_408 + 128,
        "weights": 9_408,
        "macs": 118_013_952,
        "receptive_field": 0,
    }
    assert not [layer for layer in described("resnet18")["layers"] if layer["label"] == "BN"]
    # Pre-activation cannot fold: 16 blocks and the end. DenseNet-121: 58 layers, 3 transitions and the end.
    alone = {n: sum(x["label"] == "BN" for x in described(n)["layers"]) for n in ("resnetv2_50", "densenet121")}
    assert alone == {"resnetv2_50": 17, "densenet121": 62}


def test_parts_used_only_in_training_are_listed_apart() -> None:
    assert described("inception_v3")["training_only"] == {"params": 3_326_696, "modules": {"AuxLogits": 3_326_696}}
    assert not [layer for layer in described("inception_v3")["layers"] if layer["name"].startswith("AuxLogits")]
    assert "For training only" in as_text(described("googlenet"))
    assert "For training only" not in as_text(described("resnet18"))


def test_the_lectures_inception_module() -> None:
    example = lecture_example()
    assert example["naive"] == 854_196_224
    assert example["bottlenecked"] == 271_351_808
    assert example["bottlenecked_as_stated"] == 358_055_936  # the lecture's 358 M, which has the 3x3 filters twice


def test_inception_modules_with_and_without_bottlenecks() -> None:
    counts = described("googlenet_2014")["inception"]
    assert counts["lecture"] == lecture_example()
    modules = {module["name"]: module for module in counts["modules"]}
    assert len(modules) == 9
    # 3b is the lecture's example except that its bottlenecks are 128 and 32.
    assert modules["inception3b"]["naive"] == 854_196_224
    positions, own = 28 * 28, 256 * 128 + 256 * 128 + 128 * 9 * 192 + 256 * 32 + 32 * 25 * 96 + 256 * 64
    assert modules["inception3b"]["bottlenecked"] == positions * own
    assert described("resnet50")["inception"] is None


def test_both_convolutions_of_a_fork_read_the_bottleneck() -> None:
    modules = {module["name"]: module for module in described("inception_v3")["inception"]["modules"]}
    actual = sum(x["macs"] for x in described("inception_v3")["layers"] if x["name"].startswith("Mixed_7c."))
    assert modules["Mixed_7c"]["bottlenecked"] == actual
    naive = 64 * (2048 * 320 + 2048 * 3 * 384 * 2 + 2048 * 9 * 384 + 384 * 3 * 384 * 2)
    assert modules["Mixed_7c"]["naive"] == naive


def test_count_macs_does_not_change_the_network() -> None:
    network = nn.Sequential(nn.Conv2d(4, 8, 3, 2, 1, groups=2), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8 * 25, 3))
    network.train()
    network[1].eval()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    assert count_macs(network, (4, 10, 10)) == 8 * 2 * 9 * 25 + 200 * 3
    assert [module.training for module in network] == [True, False, True, True]
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert not network._forward_hooks and not network[0]._forward_pre_hooks


def test_describe_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "vgg16", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == described("vgg16")
    assert list(data) == ["network", "input", "layers", "totals", "training_only", "inception", "notes"]


def test_describe_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "googlenet_2014"]) == 0
    text = capsys.readouterr().out
    lines = [line.split() for line in text.splitlines()]
    assert ["FC", "fc", "1x1x1000", "1,000", "4", "1,025,000", "1,024,000", "1,024,000", "907x907"] in lines
    assert ["inception3b", "854", "M", "304", "M"] in lines
    assert "6,998,552" in text
    assert "The lecture says 854 M and 358 M" in text


def test_an_unknown_name_gets_the_closest_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["describe", "vgg61"]) == 2
    assert "no network is called 'vgg61'; did you mean vgg19, vgg16, vgg13?" in capsys.readouterr().err
