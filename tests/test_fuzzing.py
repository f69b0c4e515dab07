"""The fuzzers of tests/fuzzing: their kept corpus, a bounded run of each, and a proof that each finds a defect."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from tests.fuzzing.run import Finding, fuzz, kept, replay
from tests.fuzzing.target import NAMES, Guard, named, under_way

SECONDS = 10
MOST_KEPT = 1_000_000  # bytes of all corpora
HAS_ATHERIS = importlib.util.find_spec("atheris") is not None

needs_atheris = pytest.mark.skipif(
    not HAS_ATHERIS, reason="atheris is not installed; it has wheels for Linux on x86-64 and Python 3.11 to 3.13 alone"
)
needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="the peak of one input's memory is read from /proc")

PLANTED = {
    "decode_is_slow": "s of processor time; 0.2 are allowed",
    "decode_allocates": "bytes at the peak; 200,000,000 are allowed",
    "decode_raises": "a planted defect",
    "decode_is_our_fault": "500 it failed",
    "decode_gives_other_pixels": r"uint8 \(1, ",
    "forms_lose_a_part": r"here, \[b",
    "oip_brightens": "of \\[",
    "oip_answers_another": "for ",
    "oip_raises": "a planted defect",
    "connection_raises": "a planted defect",
    "connection_hoards": "bytes of requests are held",
    "connection_insists": "bytes of answers that nobody reads are held",
    "connection_answers_twice": "have more answers than one more",
    "connection_forgets_time": "is open and has no timer",
    "connection_never_ends": "the connection is open 600 s after",
}


def files(target: str) -> list[Path]:
    return sorted(path for path in kept(target).iterdir() if path.is_file())


@pytest.mark.parametrize("target", NAMES)
def test_the_kept_corpus_breaks_nothing(target: str, tmp_path: Path) -> None:
    assert len(files(target)) > 10
    found = replay(target, files(target), tmp_path)
    assert found is None, str(found)


def test_the_kept_corpus_is_small() -> None:
    assert sum(file.stat().st_size for target in NAMES for file in files(target)) < MOST_KEPT


@needs_proc
@pytest.mark.parametrize("planted", PLANTED)
def test_a_planted_defect_is_found_in_the_corpus(planted: str, tmp_path: Path) -> None:
    guard = Guard(named(f"planted:{planted}"), tmp_path / "current", mortal=False)
    with pytest.raises(Exception, match=PLANTED[planted]):
        for file in files(planted.partition("_")[0]):
            guard(file.read_bytes())
    assert under_way(tmp_path / "current") == file.read_bytes()


@needs_proc
@pytest.mark.parametrize("planted", ["decode_hangs_in_python", "decode_hangs_in_c"])
def test_an_input_that_never_ends_is_stopped_and_reported(planted: str, tmp_path: Path) -> None:
    found = replay(f"planted:{planted}", files("decode"), tmp_path)
    assert isinstance(found, Finding) and found.words.endswith("more than twice the processor time allowed")
    # It is the first file, it is where the report says, and the report says how to run it again.
    assert found.data == files("decode")[0].read_bytes() == found.file.read_bytes()
    assert str(found).endswith(f"python -m tests.fuzzing planted:{planted} {found.file}")


@needs_atheris
@pytest.mark.slow
def test_coverage_guides_the_fuzzer_to_a_deep_defect(tmp_path: Path) -> None:
    seeds = tmp_path / "seeds"
    seeds.mkdir()
    (seeds / "text").write_bytes(b"a text")
    assert replay("planted:deep_down", [seeds / "text"], tmp_path) is None
    found = fuzz("planted:deep_down", 6 * SECONDS, tmp_path, seeds=seeds)
    assert isinstance(found, Finding) and found.data.startswith(b"qzj!")
    assert "the word is said" in found.words and found.file.read_bytes() == found.data


@needs_atheris
@pytest.mark.slow
@pytest.mark.parametrize("target", NAMES)
def test_a_short_fuzzing_run_finds_no_defect(target: str, tmp_path: Path) -> None:
    found = fuzz(target, SECONDS, tmp_path)
    assert found is None, str(found)
