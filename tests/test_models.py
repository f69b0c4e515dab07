"""The networks: every row checked against the reference and the papers' arithmetic, and what `build` guarantees."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from models import SETS, SPECS, Checkpoint, Spec, build, expand, spec
from models.__main__ import main
from models.branches import Pool, Trained
from models.console import Usage
from models.densenet import DenseNet
from models.fractalnet import Fractal, drop_path
from models.layers import DropPath, LocalResponseNorm
from models.preprocess import IMAGENET_MEAN, IMAGENET_STD, Preprocess, pixels
from models.resnet import ResNet
from tests.conftest import ROOT, SHARED

NAMES = tuple(SPECS)

# torchvision's and timm's networks, which the reference describes key by key.
REFERENCED = (
    *("alexnet", "vgg11", "vgg13", "vgg16", "vgg19", "vgg16_bn", "vgg19_bn", "googlenet"),
    *("inception_v3", "inception_v4", "inception_resnet_v2"),
    *("resnet18", "resnet34", "resnet50", "resnet101", "resnet152", "resnetv2_50", "resnetv2_101"),
    *("wide_resnet50_2", "wide_resnet101_2", "resnext50_32x4d", "resnext101_32x8d"),
    *("densenet121", "densenet161", "densenet169", "densenet201", "squeezenet1_0", "squeezenet1_1"),
)
OTHERS = (
    *("lenet5", "alexnet_2012", "zfnet", "nin", "vgg11_bn", "vgg13_bn", "googlenet_2014", "inception_v2"),
    *("resnet50_2015", "resnet152_stochastic_depth", "fractalnet34"),
)


@cache
def on_meta(name: str, classes: int | None = None, size: int | None = None) -> nn.Module:
    """The network without memory for its weights: these tests look at shapes only."""
    with torch.device("meta"):
        return build(name, classes, size)


@cache
def reference() -> dict[str, Any]:
    path = SHARED / "reference" / "architectures.json"
    if not path.exists():
        return {}
    found: dict[str, Any] = json.loads(path.read_text("utf-8"))["networks"]
    return found


def run(network: nn.Module, name: str, size: int | None = None) -> Any:
    recipe = spec(name).preprocess
    side = size or recipe.crop
    with torch.no_grad():
        return network(torch.empty(2, recipe.channels, side, side, device="meta"))


# --- the table --------------------------------------------------------------------------------------------------------


def test_every_name_of_the_contract_is_a_row() -> None:
    assert sorted(NAMES) == sorted((*REFERENCED, *OTHERS))


def test_sets() -> None:
    assert SETS["five"] == ("alexnet", "vgg16", "googlenet", "resnet50", "resnext50_32x4d")
    assert SETS["winners"] == ("alexnet_2012", "zfnet", "vgg19", "googlenet_2014", "resnet152")
    assert SETS["all"] == NAMES


def test_expand_keeps_the_order_and_drops_duplicates() -> None:
    assert expand(["vgg16", "nin"], "five") == ["vgg16", "nin", "alexnet", "googlenet", "resnet50", "resnext50_32x4d"]
    assert expand((), "all") == list(NAMES)


@pytest.mark.parametrize(
    ("names", "set_name", "says"),
    [
        (["resnet5"], None, "did you mean .*resnet50"),
        (["VGG-16"], None, "no network is called 'VGG-16'"),
        (["vgg16"], "six", "no set is called 'six'; the sets are five, winners, all"),
        ([], None, "name a network or a set"),
    ],
)
def test_expand_refuses_unknown_names(names: list[str], set_name: str | None, says: str) -> None:
    with pytest.raises(Usage, match=says):
        expand(names, set_name)


@pytest.mark.parametrize("field", ["params", "macs", "classes"])
def test_a_row_is_validated(field: str) -> None:
    values: dict[str, Any] = {"params": 1, "macs": 1, "classes": 1, field: 0}
    with pytest.raises(ValueError, match="must be positive"):
        Spec("x", "module.Class", year=2012, paper="", **values)


def test_a_row_names_a_class() -> None:
    with pytest.raises(ValueError, match=r"'x' is not 'module\.Class'"):
        Spec("x", "x", 1, 1, 2012, "")


def test_torchvision_checkpoints_carry_their_hash_in_their_name() -> None:
    found = [
        row.checkpoint for row in SPECS.values() if row.checkpoint and "download.pytorch.org" in row.checkpoint.url
    ]
    assert len(found) == 26
    for checkpoint in found:
        match = re.fullmatch(r"https://download\.pytorch\.org/models/[a-z0-9_-]+-([0-9a-f]{8})\.pth", checkpoint.url)
        assert match is not None
        assert checkpoint.sha256 == match[1]
        assert (checkpoint.license, checkpoint.top1 is None) == ("BSD-3-Clause", False)


def test_every_other_checkpoint_but_the_one_we_ship_has_a_hash() -> None:
    others = [c for row in SPECS.values() if (c := row.checkpoint) and "download.pytorch.org" not in c.url]
    hashed = [c for c in others if c.sha256 and re.fullmatch(r"[0-9a-f]{8}|[0-9a-f]{64}", c.sha256)]
    assert [c for c in others if c not in hashed] == [Checkpoint("lenet5.safetensors", None, "Apache-2.0")]


def test_the_networks_without_a_checkpoint() -> None:
    assert {name for name, row in SPECS.items() if row.checkpoint is None} == {
        "alexnet_2012", "zfnet", "nin", "googlenet_2014", "inception_v2", "resnet50_2015", "resnet152_stochastic_depth",
        "fractalnet34",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_a_mean_of_one_half_equals_transform_input(name: str) -> None:
    recipe = SPECS[name].preprocess
    value = np.linspace(0, 1, 11)
    for channel, (mean, std) in enumerate(zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)):
        # torchvision: ImageNet's normalisation, then x * (std / 0.5) + (mean - 0.5) / 0.5 inside the network.
        two_steps = (value - mean) / std * (std / 0.5) + (mean - 0.5) / 0.5
        np.testing.assert_allclose((value - recipe.mean[channel]) / recipe.std[channel], two_steps, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "recipe"),
    [
        ("resnet50", (256, 224, "bilinear", 0.485)),
        ("alexnet_2012", (256, 227, "bilinear", 0.485)),
        ("inception_v3", (342, 299, "bilinear", 0.5)),
        ("inception_v4", (341, 299, "bicubic", 0.5)),
        ("inception_resnet_v2", (333, 299, "bicubic", 0.5)),
        ("resnetv2_50", (235, 224, "bicubic", 0.5)),
        ("lenet5", (32, 32, "bilinear", 0.1307)),
    ],
)
def test_recipes(name: str, recipe: tuple[int, int, str, float]) -> None:
    found = SPECS[name].preprocess
    assert (found.resize, found.crop, found.interpolation, found.mean[0]) == recipe


# --- what build makes -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", REFERENCED)
def test_reference(name: str) -> None:
    if not reference():
        pytest.skip(f"no reference at {SHARED}")
    facts = reference()[name]
    own = {key: list(value.shape) for key, value in on_meta(name).state_dict().items()}
    assert own == facts["keys"]
    assert list(own) == list(facts["keys"]), "the order that files are written in"
    row = SPECS[name]
    assert (row.params, row.macs) == (facts["params"], facts["macs_eval"])
    assert [row.preprocess.channels, row.preprocess.crop, row.preprocess.crop] == facts["input"]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("lenet5", 61_706),
        ("alexnet_2012", 60_965_224),  # with two groups, as on the paper's two GPUs
        ("nin", 7_595_176),  # Caffe's file of 29 MB
        ("googlenet_2014", 13_378_280),  # Caffe's bvlc_googlenet, both heads included
        ("resnet152_stochastic_depth", 60_192_808),
    ],
)
def test_counts_of_the_published_networks(name: str, params: int) -> None:
    assert sum(p.numel() for p in on_meta(name).parameters()) == params == SPECS[name].params


def test_the_parts_of_googlenet_that_run_hold_seven_million_parameters() -> None:
    row = SPECS["googlenet_2014"]
    assert row.params - row.training_only == 6_998_552


@pytest.mark.parametrize("name", NAMES)
def test_build_is_in_eval_mode_and_takes_a_batch(name: str) -> None:
    network = on_meta(name)
    assert not any(module.training for module in network.modules())
    assert {p.dtype for p in network.parameters()} == {torch.float32}
    assert run(network, name).shape == (2, SPECS[name].classes)


@pytest.mark.parametrize("name", NAMES)
def test_another_number_of_classes(name: str) -> None:
    assert run(on_meta(name, 7), name).shape == (2, 7)


def test_no_classes_at_all() -> None:
    with pytest.raises(Usage, match="resnet18: 0 classes"):
        build("resnet18", 0)


FULLY_CONNECTED = {"lenet5", "alexnet", "alexnet_2012", "zfnet"} | {n for n in NAMES if n.startswith("vgg")}


@pytest.mark.parametrize("name", [n for n in NAMES if n not in FULLY_CONNECTED])
def test_another_input_size(name: str) -> None:
    assert run(on_meta(name, size=320), name, 320).shape == (2, 1000)
    smallest = 75 if SPECS[name].preprocess.crop == 299 else 48 if name == "nin" else 32
    assert run(on_meta(name, size=smallest), name, smallest).shape == (2, 1000)
    with pytest.raises(Usage, match=f"^{name}: its strides need an input of at least {smallest}, not {smallest - 1}"):
        on_meta(name, size=smallest - 1)


@pytest.mark.parametrize("name", sorted(FULLY_CONNECTED))
def test_a_fully_connected_layer_fixes_the_size(name: str) -> None:
    with pytest.raises(Usage, match=rf"^{name}: the first fully connected layer reads [567] x [567] maps.*own input"):
        on_meta(name, size=160)


def test_a_whole_multiple_of_the_maps_is_averaged_down() -> None:
    network = on_meta("vgg11", size=448)
    assert isinstance(network.avgpool, nn.AvgPool2d)
    assert run(network, "vgg11", 448).shape == (2, 1000)
    assert list(network.state_dict()) == list(on_meta("vgg11").state_dict())


def test_the_stride_of_2015_is_on_the_first_convolution() -> None:
    old, new = on_meta("resnet50_2015"), on_meta("resnet50")
    assert isinstance(old, ResNet) and isinstance(new, ResNet)
    blocks: list[Any] = [network.get_submodule("layer2.0") for network in (old, new)]
    assert [(block.conv1.stride[0], block.conv2.stride[0]) for block in blocks] == [(2, 1), (1, 2)]


# --- layers as published ----------------------------------------------------------------------------------------------


def test_local_response_norm_is_the_papers_formula() -> None:
    x = np.random.default_rng(0).normal(size=(2, 7, 3, 4)) * 50  # large enough that the sum matters
    expected = np.empty_like(x)
    for i in range(7):
        # Krizhevsky et al. 2012, section 3.3: j from max(0, i - n/2) to min(N - 1, i + n/2), n = 5.
        near = x[:, max(0, i - 2) : min(7 - 1, i + 2) + 1]
        expected[:, i] = x[:, i] / (2 + 1e-4 * (near**2).sum(1)) ** 0.75
    assert abs(expected / x - 2**-0.75).max() > 0.05
    np.testing.assert_allclose(LocalResponseNorm()(torch.from_numpy(x)).numpy(), expected, rtol=1e-12)


def test_average_pools_include_or_exclude_the_padding() -> None:
    ones = torch.ones(1, 1, 5, 5)
    assert Pool("average").build()(ones)[0, 0, 0, 0] == 1
    assert Pool("padded").build()(ones)[0, 0, 0, 0] == pytest.approx(4 / 9)
    assert Pool("max").build()(ones).shape == ones.shape


@pytest.mark.parametrize("name", ["googlenet", "googlenet_2014", "inception_v3"])
def test_auxiliary_heads_answer_in_training_only(name: str) -> None:
    with torch.device("meta"):
        network = build(name, 11).train()
    trained = run(network, name)
    assert isinstance(trained, Trained)
    assert trained.logits.shape == (2, 11)
    assert [t.shape for t in trained.auxiliary] == [(2, 11)] * (1 if name == "inception_v3" else 2)
    assert isinstance(run(network.eval(), name), Tensor)


def test_evaluation_does_not_read_the_auxiliary_heads() -> None:
    torch.manual_seed(0)
    network = build("googlenet", 10, 64)
    image = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        before = network(image)
        for head in ("aux1", "aux2"):
            for parameter in network.get_submodule(head).parameters():
                parameter.fill_(float("nan"))
        assert torch.equal(network(image), before)


def test_drop_path_drops_whole_examples_and_scales_the_rest() -> None:
    torch.manual_seed(0)
    layer, x = DropPath(0.25), torch.ones(400, 2, 3, 3)
    kept = layer.train()(x).flatten(1)
    assert torch.equal(kept.min(1).values, kept.max(1).values)
    assert kept.unique().tolist() == pytest.approx([0, 4 / 3])
    assert 0.15 < float((kept[:, 0] == 0).float().mean()) < 0.35
    assert layer.eval()(x) is x


def test_stochastic_depth_evaluates_as_the_plain_network() -> None:
    torch.manual_seed(0)
    plain, dropping = ResNet("basic", (1, 1, 1, 1), size=32), ResNet("basic", (1, 1, 1, 1), drop=0.5, size=32)
    dropping.load_state_dict(plain.state_dict())
    image = torch.rand(8, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(plain.eval()(image), dropping.eval()(image))
    rates = [m.probability for m in on_meta("resnet152_stochastic_depth").modules() if isinstance(m, DropPath)]
    assert rates == pytest.approx([0.5 * i / 50 for i in range(1, 51)])


def test_a_fractal_joins_its_columns_by_their_mean() -> None:
    torch.manual_seed(0)
    fractal = Fractal(3, 4, columns=3).eval()
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        a = fractal.first
        inner = (a.short(x) + (a.second.short(a.first.short(x)))) / 2  # f_2, one column of one and one of two
        b = fractal.second
        expected = (fractal.short(x) + b.short(inner) + b.second.short(b.first.short(inner))) / 3
        torch.testing.assert_close(fractal(x), expected)


def test_a_fractal_trained_on_one_column_is_that_column() -> None:
    ends = [torch.tensor(float(i)) for i in range(3)]
    assert drop_path(ends, 0) == [ends[2]], "0 is the deepest"
    assert drop_path(ends, 2) == [ends[0]]
    assert drop_path(ends[1:], 2) == ends[1:], "a column that does not end here must not change the result"


def test_local_drop_path_keeps_at_least_one_column(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = [torch.tensor(float(i)) for i in range(4)]
    torch.manual_seed(0)
    kept = [len(drop_path(ends, None)) for _ in range(200)]
    assert 3.2 < float(np.mean(kept)) < 3.6  # 15 % dropped
    monkeypatch.setattr("models.fractalnet.LOCAL_DROP", 2.0)
    assert len(drop_path(ends, None)) == 1


def test_densenets_checkpoints_write_a_dot_in_the_names_of_layers() -> None:
    keys = list(on_meta("densenet121").state_dict())
    published = [re.sub(r"(denselayer\d+\.(?:norm|conv))([12])\.", r"\1.\2.", key) for key in keys]
    assert sum(a != b for a, b in zip(keys, published, strict=True)) == 58 * 12
    assert [DenseNet.respell(key) for key in published] == keys
    assert [DenseNet.respell(key) for key in keys] == keys


def test_squeezenet_sees_100_photographs_as_torchvision_does() -> None:
    golden, weights = SHARED / "reference" / "squeezenet1_1.json", SHARED / "weights" / "squeezenet1_1.safetensors"
    if not (golden.exists() and weights.exists()):
        pytest.skip(f"no photographs and weights at {SHARED}")
    from safetensors.torch import load_file

    network, recipe = build("squeezenet1_1"), SPECS["squeezenet1_1"].preprocess
    network.load_state_dict(load_file(weights))
    expected: dict[str, list[tuple[int, float]]] = json.loads(golden.read_text("utf-8"))["images"]
    images = [pixels(Image.open(SHARED / "images" / name), recipe) for name in expected]
    with torch.inference_mode():
        scores = torch.cat([network(normalised(image, recipe)) for image in images]).softmax(1)
    values, classes = scores.topk(5)
    assert classes.tolist() == [[c for c, _ in top] for top in expected.values()]
    # The golden values are rounded to 1e-6; a float32 sum in another order was seen to move one by 2.5e-6.
    assert values.flatten().tolist() == pytest.approx([p for top in expected.values() for _, p in top], abs=1e-5)


def normalised(image: np.ndarray[Any, Any], recipe: Preprocess) -> Tensor:
    x = torch.from_numpy(image.copy()).permute(2, 0, 1).float() / 255
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (recipe.mean, recipe.std))
    return ((x - mean) / std)[None]


# --- the command ------------------------------------------------------------------------------------------------------


def test_listing_imports_no_torch() -> None:
    code = "import sys; from models.__main__ import main; main(['list', '--json']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert [row["name"] for row in json.loads(done.stdout)] == list(NAMES)


def test_list_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--set", "winners", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert tuple(rows) == SETS["winners"]
    resnet = rows["resnet152"]
    assert (resnet["family"], resnet["year"], resnet["params"], resnet["macs"]) == (
        "resnet", 2015, 60_192_808, 11_513_626_624,
    )  # fmt: skip
    assert (resnet["input"], resnet["classes"], resnet["sets"]) == ([224, 224, 3], 1000, ["winners", "all"])
    assert (resnet["published"]["top5_error"], resnet["entry"]["top5_error"]) == (6.7, 3.57)
    assert resnet["checkpoint"]["url"].endswith("/resnet152-394f9c45.pth")
    assert rows["zfnet"]["checkpoint"] is None
    for number in ("11.7", "Clarifai", "14.8", "16.1"):
        assert number in rows["zfnet"]["note"]


def test_list_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list", "--set", "five"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[1:6]] == list(SETS["five"])
    assert "resnet50         2015     25.56   4.089  224x224x3" in lines[4]
