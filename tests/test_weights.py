"""Where weights come from: a publisher (played by a local server), files, seeds; and the errors if they do not fit."""

from __future__ import annotations

import hashlib
import pickle
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from models import Checkpoint, build, spec
from models.console import Usage
from models.preprocess import Preprocess
from models.weights import (
    Network,
    Unreachable,
    Weights,
    WeightsError,
    checkpoint,
    download,
    fetch_state,
    fit,
    load,
    make_untrained,
    read,
    read_labels,
)

BODY = bytes(range(256)) * 4096  # 1 MiB
DIGEST = hashlib.sha256(BODY).hexdigest()


class Publisher(ThreadingHTTPServer):
    """Serves BODY at every path but /absent; `cut` is how many answers, from the first, break off half-way."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.cut = 0
        self.ranges: list[str | None] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"


class Answer(BaseHTTPRequestHandler):
    server: Publisher

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        if self.path.startswith("/absent"):
            self.send_error(404)
            return
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if start >= len(BODY):
            self.send_error(416)
            return
        body = BODY[start:]
        self.send_response(206 if wanted else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.server.cut > 0:
            self.server.cut -= 1
            self.wfile.write(body[: len(body) // 2])
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def publisher(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Publisher]:
    monkeypatch.setenv("PODIUM_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("PODIUM_WEIGHTS_MIRROR", raising=False)
    with Publisher() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def published(publisher: Publisher, sha256: str | None = DIGEST[:8], path: str = "/net.pth") -> Checkpoint:
    return Checkpoint(publisher.url + path, sha256, "Apache-2.0")


def test_a_checkpoint_is_fetched_once_and_checked(publisher: Publisher, tmp_path: Path) -> None:
    path = checkpoint(published(publisher))
    assert path.read_bytes() == BODY
    assert checkpoint(published(publisher)) == path
    assert publisher.ranges == [None]
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["net.pth"]


def test_a_download_that_was_cut_off_continues_from_where_it_stopped(publisher: Publisher) -> None:
    publisher.cut = 1
    assert checkpoint(published(publisher)).read_bytes() == BODY
    assert publisher.ranges == [None, f"bytes={len(BODY) // 2}-"]


def test_the_next_run_continues_the_part_that_a_broken_run_left(publisher: Publisher, tmp_path: Path) -> None:
    publisher.cut = 100
    with pytest.raises(Unreachable, match="the next run continues from it"):
        checkpoint(published(publisher))
    assert [p.name for p in (tmp_path / "cache").iterdir()] == ["net.pth.part"], "half a file has the final name"
    publisher.cut = 0
    publisher.ranges.clear()
    assert checkpoint(published(publisher)).read_bytes() == BODY
    assert publisher.ranges[0] not in (None, "bytes=0-")


def test_a_stale_part_longer_than_the_file_is_deleted(publisher: Publisher, tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    part.write_bytes(BODY + b"more")
    download(f"{publisher.url}/x", part)
    assert part.read_bytes() == BODY


def test_a_file_with_a_wrong_hash_is_refused_and_not_kept(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=f"sha256 begins with {DIGEST[:8]}, expected 00000000"):
        checkpoint(published(publisher, "00000000"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_cached_file_that_changed_is_refused(publisher: Publisher) -> None:
    checkpoint(published(publisher)).write_bytes(b"something else")
    with pytest.raises(WeightsError, match="was deleted"):
        checkpoint(published(publisher))


def test_an_absent_file_is_an_error_that_leaves_no_file(publisher: Publisher, tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="404"):
        checkpoint(published(publisher, path="/absent.pth"))
    assert list((tmp_path / "cache").iterdir()) == []


def test_only_http_addresses_are_fetched(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="only https"):
        download("file:///etc/passwd", tmp_path / "x")


def test_a_mirror_replaces_the_publishers_address(publisher: Publisher, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODIUM_WEIGHTS_MIRROR", f"{publisher.url}/mirror/")
    assert checkpoint(Checkpoint("https://nowhere.invalid/models/net.pth", DIGEST[:8], "MIT")).read_bytes() == BODY


def test_every_hub_file_is_cached_under_its_networks_name(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PODIUM_WEIGHTS_MIRROR", publisher.url)
    url = "https://huggingface.co/timm/inception_v4.tf_in1k/resolve/main/model.safetensors"
    assert checkpoint(Checkpoint(url, None, "Apache-2.0")).name == "inception_v4.tf_in1k.safetensors"


def test_auto_falls_back_to_untrained_with_a_warning(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PODIUM_WEIGHTS_MIRROR", f"{publisher.url}/absent")
    weights, state = fetch_state(spec("squeezenet1_1"), "auto")
    assert (weights.kind, state) == ("untrained", None)
    assert "UNTRAINED" in capsys.readouterr().err
    with pytest.raises(Unreachable):
        fetch_state(spec("squeezenet1_1"), "pretrained")


def test_a_checkpoint_with_a_wrong_hash_fails_in_auto_too(
    publisher: Publisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PODIUM_WEIGHTS_MIRROR", publisher.url)
    with pytest.raises(WeightsError, match="sha256"):
        fetch_state(spec("squeezenet1_1"), "auto")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def state() -> dict[str, torch.Tensor]:
    return build("lenet5").state_dict()


@pytest.mark.parametrize("wrapped", [False, True])
def test_pth_and_safetensors_give_the_same_tensors(
    wrapped: bool, tmp_path: Path, state: dict[str, torch.Tensor]
) -> None:
    save_file(state, tmp_path / "a.safetensors")
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, tmp_path / "a.pth")
    a, b = read(tmp_path / "a.safetensors"), read(tmp_path / "a.pth")
    assert a.keys() == b.keys() == state.keys()
    assert all(torch.equal(a[k], b[k]) for k in state)


def test_half_precision_is_read_as_float32(tmp_path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({k: v.half() for k, v in state.items()}, tmp_path / "a.safetensors")
    assert {v.dtype for v in read(tmp_path / "a.safetensors").values()} == {torch.float32}


class Exploit:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code ran')",))


def test_a_pickle_that_holds_code_is_refused_without_running_it(tmp_path: Path) -> None:
    (tmp_path / "a.pth").write_bytes(pickle.dumps(Exploit()))
    with pytest.raises(WeightsError, match=r"a\.pth cannot be read as weights"):
        read(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_damaged_file_is_named(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(b"garbage")
    with pytest.raises(WeightsError, match=name.replace(".", r"\.")):
        read(tmp_path / name)


def test_a_file_that_is_not_a_state_dict_is_named(tmp_path: Path) -> None:
    torch.save([torch.zeros(1)], tmp_path / "a.pth")
    with pytest.raises(WeightsError, match="does not hold a state_dict"):
        read(tmp_path / "a.pth")


def test_other_suffixes_and_absent_files_are_usage_errors(tmp_path: Path) -> None:
    (tmp_path / "a.npz").write_bytes(b"")
    with pytest.raises(Usage, match=r"\.safetensors, \.pth or \.pt"):
        read(tmp_path / "a.npz")
    with pytest.raises(Usage, match="is neither a file nor"):
        fetch_state(spec("lenet5"), "nowhere.pth")


def test_every_key_that_does_not_fit_is_listed(state: dict[str, torch.Tensor]) -> None:
    keys = list(state)
    wrong = dict(state)
    wrong["typo.weight"] = wrong.pop(keys[0])
    wrong[keys[2]] = torch.zeros(1, 2)
    with pytest.raises(WeightsError) as caught:
        fit(build("lenet5"), wrong, "https://example.org/net.pth")
    text = str(caught.value)
    assert f"net.pth: {len(keys) - 2} of {len(keys)} keys match" in text
    assert f"missing {keys[0]} {tuple(state[keys[0]].shape)}" in text
    assert "unexpected typo.weight" in text
    assert f"{keys[2]} is (1, 2), expected {tuple(state[keys[2]].shape)}" in text


def test_an_error_about_another_class_count_says_which_options_to_pass(tmp_path: Path) -> None:
    torch.save(build("lenet5", classes=7).state_dict(), tmp_path / "seven.pth")
    with pytest.raises(WeightsError, match="--num-classes 7 --labels FILE"):
        load("lenet5", str(tmp_path / "seven.pth"))
    labels = tmp_path / "labels.txt"
    labels.write_text("\n".join("abcdefg"))
    network = load("lenet5", str(tmp_path / "seven.pth"), 7, read_labels(labels))
    assert (network.classes, network.labels[6].label, network.weights.kind) == (7, "g", "custom")
    assert network.weights.sha256 == hashlib.sha256((tmp_path / "seven.pth").read_bytes()).hexdigest()


def test_labels_are_read_from_text_and_json_and_refused_when_empty(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('["cat", {"label": "dog", "synset": "n02084071"}]')
    cat, dog = read_labels(tmp_path / "a.json")
    assert (cat.label, cat.synset, dog.label, dog.synset) == ("cat", None, "dog", "n02084071")
    for text in ("", "cat\n\ndog\n"):
        (tmp_path / "a.txt").write_text(text)
        with pytest.raises(Usage, match="one class per line"):
            read_labels(tmp_path / "a.txt")


# --- untrained --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["squeezenet1_1", "resnet50", "alexnet"])
def test_untrained_weights_are_seeded_and_tell_images_apart(name: str) -> None:
    """A parity check on a network whose answer is constant, overflows or saturates could not fail."""
    recipe = spec(name).preprocess
    states = []
    for _ in range(2):
        torch.manual_seed(torch.seed())
        module = build(name)
        make_untrained(module, recipe)
        states.append(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(s.values() for s in states), strict=True))
    images = torch.randn(3, 3, recipe.crop, recipe.crop, generator=torch.Generator().manual_seed(1))
    images[2] = 0.5
    with torch.inference_mode():
        logits = module(images)
    assert logits.isfinite().all()
    assert 0.2 < float(logits.std(1).mean()) < 20
    assert float((logits[0] - logits[2]).abs().max()) > 0.05


def test_untrained_weights_are_marked_as_untrained() -> None:
    weights, state = fetch_state(spec("resnet50"), "untrained")
    assert weights.record() == {"kind": "untrained", "origin": "seed 0", "sha256": None, "license": None}
    assert state is None


def test_lenet5_ships_with_trained_weights() -> None:
    network = load("lenet5", "pretrained")
    assert network.weights.origin == "models/lenet5.safetensors"
    assert network.weights.license == "Apache-2.0"


@pytest.mark.parametrize("name", ["", "Net", "a b", "../x", "x" * 64])
def test_your_own_network_needs_a_name_that_the_store_accepts(name: str) -> None:
    with pytest.raises(ValueError, match="network name"):
        Network(name, torch.nn.Identity(), Weights("custom", "test"), Preprocess())


def test_densenets_published_spelling_is_read() -> None:
    """torchvision's files name `denselayer1.norm.1.weight` what the module names `denselayer1.norm1.weight`."""
    import re

    module = build("densenet121")
    own = module.state_dict()
    spelled = {re.sub(r"(denselayer\d+\.(?:norm|conv))([12]\.)", r"\1.\2", key): value for key, value in own.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in spelled
    fit(module, spelled, "densenet121.pth")
    with pytest.raises(WeightsError, match=r"unexpected features\.denseblock1\.denselayer1\.norm\.3"):
        fit(module, {**spelled, "features.denseblock1.denselayer1.norm.3.weight": torch.zeros(1)}, "densenet121.pth")
