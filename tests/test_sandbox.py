"""The processes that decode costly images: same pixels, limits that hold, and failures that stay inside."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.campaigns.costly_images import damaged, flat, one_tile, run_lengths, saved
from models.preprocess import Preprocess
from serving import sandbox
from serving.errors import Closing, DamagedImage, InferenceFailed, Overloaded, RequestError, TooLarge
from serving.images import decode_here, image_format
from serving.limits import CHILD_BYTES, Limits
from serving.sandbox import Sandbox
from tests.conftest import ROOT
from tests.fakes.pictures import encoded, photograph

LIMITS = Limits(pixels=20_000_000, seconds=5.0)
RECIPES = (
    Preprocess(resize=36, crop=32, interpolation="bicubic"),
    Preprocess(resize=32, crop=28, mean=(0.5,), std=(0.5,), mode="L"),
)


@pytest.fixture
def one() -> Iterator[Sandbox]:
    made = Sandbox(1)
    yield made
    made.close()


def ask(of: Sandbox, body: bytes, limits: Limits = LIMITS) -> np.ndarray:
    return of.decode(body, image_format(body), RECIPES[0], limits)


def child(of: Sandbox) -> psutil.Process:
    [found] = of._idle
    return psutil.Process(found.process.pid)


@pytest.mark.parametrize("name", ["PNG", "BMP", "GIF", "TIFF", "JPEG", "WEBP"])
def test_a_child_decodes_the_same_pixels_as_this_process(one: Sandbox, name: str) -> None:
    body = encoded(photograph(), name)
    for recipe in RECIPES:
        got = one.decode(body, name, recipe, LIMITS)
        assert np.array_equal(got, decode_here(body, name, recipe, LIMITS.pixels))


def test_a_child_is_warm_and_small_and_has_no_secret(one: Sandbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODIUM_TOKEN", "secret")
    assert not one._idle, "an idle service has none"
    ask(one, encoded(photograph()))
    process = child(one)
    ask(one, encoded(photograph()))
    assert child(one) == process
    assert process.memory_info().rss < CHILD_BYTES * 1.2
    assert not {"PODIUM_TOKEN", "torch"} & {*process.environ(), *process.cmdline()}
    assert process.nice() > psutil.Process().nice()


def test_only_the_image_that_exceeds_its_processor_time_fails(one: Sandbox) -> None:
    ask(one, encoded(photograph()))
    before = child(one)
    with pytest.raises(TooLarge, match=r"more than the 100 ms of processor time allowed \(PODIUM_IMAGE_CPU_MS\)"):
        ask(one, run_lengths(4000, 8), Limits(20_000_000, 0.1))
    assert not before.is_running()
    assert ask(one, encoded(photograph())).shape == (32, 32, 3)
    # The time of other processes does not count.
    for _ in range(3):
        ask(one, encoded(photograph(), "TIFF"), Limits(20_000_000, 0.2))


def test_memory_past_its_limit_is_refused(one: Sandbox) -> None:
    limits = Limits(1_000_000)
    with pytest.raises((TooLarge, DamagedImage)):
        ask(one, one_tile(12_000), limits)  # 144 MB
    status = Path(f"/proc/{child(one).pid}/status").read_text("ascii")
    assert int(status.partition("VmHWM:")[2].split()[0]) * 1024 < limits.memory + 48e6
    with pytest.raises((TooLarge, DamagedImage)):
        ask(one, encoded(Image.new("RGB", (20_000, 900)), "TIFF"), limits)
    assert ask(one, encoded(photograph()), limits).shape == (32, 32, 3)


def test_the_message_of_a_library_is_in_the_error_and_not_in_the_log(
    one: Sandbox, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(DamagedImage, match=r"^the TIFF image is damaged: .*\(.*\)$") as error:
        ask(one, damaged(saved(flat(600), "TIFF", compression="tiff_lzw")))
    assert len(str(error.value)) < 500 and str(error.value).isprintable()
    assert capfd.readouterr() == ("", "")


BEGIN = "import os, signal, socket, sys, time; s = socket.socket(fileno=int(sys.argv[1])); "
DIE = BEGIN + "s.sendall(b'R'); s.recv(1); os.kill(os.getpid(), signal.{})"


@pytest.mark.parametrize(
    ("program", "kind", "says"),
    [
        (DIE.format("SIGSEGV"), DamagedImage, "its decoder crashed (SIGSEGV)"),
        (DIE.format("SIGABRT"), DamagedImage, "its decoder crashed (SIGABRT)"),
        (DIE.format("SIGKILL"), Overloaded, "memory ran out"),
        (BEGIN + "s.sendall(b'R'); s.recv(1); sys.exit(3)", DamagedImage, "crashed (status 3)"),
        (BEGIN + "s.sendall(b'RE' + b'\\xff' * 4); s.recv(1)", DamagedImage, "crashed"),
        (BEGIN + "s.sendall(b'RE' + bytes((2, 0, 0, 0)) + b'[]'); s.recv(1)", DamagedImage, "crashed"),
        (BEGIN + "s.sendall(b'RP1234'); s.recv(1)", DamagedImage, "crashed"),
        (BEGIN + "s.sendall(b'R'); time.sleep(60)", TooLarge, "did not end within 0.1 s"),
        ("import sys; sys.exit(1)", InferenceFailed, "its log says why"),
    ],
)
def test_whatever_happens_to_a_child_is_an_error_of_its_image(
    one: Sandbox, monkeypatch: pytest.MonkeyPatch, program: str, kind: type[RequestError], says: str
) -> None:
    good = sandbox.PROGRAM
    monkeypatch.setattr(sandbox, "PROGRAM", program)
    with pytest.raises(kind) as error:
        ask(one, encoded(photograph()), Limits(1_000_000, 0.01))
    assert says in str(error.value)
    assert not one._idle and not one._busy
    monkeypatch.setattr(sandbox, "PROGRAM", good)
    assert ask(one, encoded(photograph())).shape == (32, 32, 3)


def test_if_no_process_can_be_started_the_image_may_be_sent_again(
    one: Sandbox, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.EAGAIN, "Resource temporarily unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(subprocess, "Popen", full)
        with pytest.raises(Overloaded, match="no process can be started"):
            ask(one, encoded(photograph()))
    assert ask(one, encoded(photograph())).shape == (32, 32, 3)


def test_a_limit_on_the_servers_own_memory_holds_for_its_children() -> None:
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_AS, (2**30, 2**30))\n{STARTS.format('one.close()')}"
    done = subprocess.run([sys.executable, "-c", limited], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_closing_ends_a_child_that_is_decoding(one: Sandbox) -> None:
    outcome: list[BaseException] = []

    def decode() -> None:
        try:
            ask(one, run_lengths(4000, 8), Limits(20_000_000, 60.0))
        except RequestError as error:
            outcome.append(error)

    thread = threading.Thread(target=decode)
    thread.start()
    while not one._busy:
        pass
    one.close()
    thread.join(30)
    assert [type(error) for error in outcome] == [Closing]
    with pytest.raises(Closing):
        ask(one, encoded(photograph()))


STARTS = """
import sys
from benchmarks.campaigns.costly_images import run_lengths
from models.preprocess import Preprocess
from serving.limits import CHILD_BYTES, Limits
from serving.sandbox import Sandbox
from tests.fakes.pictures import encoded, photograph
one = Sandbox(1)
one.decode(encoded(photograph()), "PNG", Preprocess(), Limits(1_000_000))
print(one._idle[0].process.pid, flush=True)
{}
"""


@pytest.mark.parametrize(
    "then",
    ["sys.stdin.read()", "one.decode(run_lengths(4000, 8), 'BMP', Preprocess(), Limits(20_000_000, 1.0))"],
    ids=["idle", "at work"],
)
def test_a_child_ends_with_a_server_that_is_killed(then: str) -> None:
    command = [sys.executable, "-c", STARTS.format(then)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as server:
        assert server.stdout
        orphan = psutil.Process(int(server.stdout.readline()))
        server.send_signal(signal.SIGKILL)
    orphan.wait(30)
    assert not orphan.is_running()


def test_a_signal_to_every_process_of_the_service_lets_requests_finish(one: Sandbox) -> None:
    ask(one, encoded(photograph()))
    process = child(one)
    for number in (signal.SIGTERM, signal.SIGINT):
        os.kill(process.pid, number)
        assert ask(one, encoded(photograph())).shape == (32, 32, 3)
    assert child(one) == process
