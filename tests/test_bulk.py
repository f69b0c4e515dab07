"""Bulk: what counts as an input, how inputs are cut into parts, one row for each, and runs that end and continue."""

from __future__ import annotations

import asyncio
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image

from models.console import Failure, Usage
from serving import bulk, inputs
from serving.__main__ import final, main
from serving.artifact import Artifact
from serving.images import Picture
from serving.inputs import Columns, Entry, place, source
from serving.limits import Limits
from tests.conftest import ROOT
from tests.fakes.interface import started

pytest.importorskip("ray", reason="ray is not installed; pip install 'podium[bulk]'")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")
fs = pytest.importorskip("pyarrow.fs")

# BentoML 1.4.40 with pydantic 2.11 and later, when its SDK is first imported.
pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")

LIMITS: dict[str, Any] = {"image": Limits(1_000_000), "max_bytes": 1_000_000}
WITHIN_S = 240.0


def jpeg(i: int) -> bytes:
    """A picture whose colour depends on `i`."""
    file = io.BytesIO()
    colour = tuple(int(c) for c in np.random.default_rng(i).integers(0, 256, 3))
    Image.new("RGB", (48 + i % 7, 40), colour).save(file, "JPEG")
    return file.getvalue()


def pictures(folder: Path, count: int) -> list[Path]:
    paths = [folder / f"{i % 3}" / f"{i:04}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(jpeg(i))
    return paths


def listed(text: str | Path, root: Path) -> list[str]:
    return sorted(str(Path(path).relative_to(root)) for path in source(str(text)).files())


def elsewhere(folder: Path) -> inputs.Place:
    """`folder` as a filesystem that is not local, as object storage is not."""
    return inputs.Place(fs.SubTreeFileSystem(str(folder), fs.LocalFileSystem()), "", "store://")


# --- what counts ------------------------------------------------------------------------------------------------------


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.PNG", "notes.txt", ".hidden.jpg", "x/c.jpeg", "x/y/d.jpg", "x/[e].jpg", ".git/f.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "x" / "round").symlink_to(tmp_path, target_is_directory=True)
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "a.jpg")
    return tmp_path


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("", ["a.jpg", "b.PNG", "linked.jpg", "x/[e].jpg", "x/c.jpeg", "x/y/d.jpg"]),
        ("a.jpg", ["a.jpg"]),
        ("*.jpg", ["a.jpg", "linked.jpg"]),
        ("*", ["a.jpg", "b.PNG", "linked.jpg", "notes.txt"]),
        ("**/*.jpg", ["a.jpg", "linked.jpg", "x/[e].jpg", "x/y/d.jpg"]),
        ("x/**/*", ["x/[e].jpg", "x/c.jpeg", "x/y/d.jpg"]),
        ("?.[jP]*", ["a.jpg", "b.PNG"]),
        ("x/[!c]*.jpg", ["x/[e].jpg"]),
        ("x/[[]e].jpg", ["x/[e].jpg"]),
    ],
)
def test_a_folder_a_file_and_a_glob(tree: Path, pattern: str, found: list[str]) -> None:
    assert listed(tree / pattern, tree) == found


def test_another_filesystem_lists_the_same(tree: Path) -> None:
    (tree / "x" / "round").unlink()  # object storage has no links to folders
    there = inputs.Source(elsewhere(tree))
    assert sorted(there.files()) == listed(tree, tree)


def test_a_uri_is_a_place_and_its_secret_is_never_written(tree: Path) -> None:
    assert listed(f"file://{tree}/x/*.jpg", tree) == ["x/[e].jpg"]
    assert inputs.without_secret("s3://key:secret@bucket/a?region=eu") == "s3://bucket/a?region=eu"
    s3 = source("s3://key:secret@bucket/photos/*.jpg?region=eu-west-1&endpoint_override=127.0.0.1:9")
    assert (s3.base.path, s3.base.prefix, s3.depth) == ("bucket/photos", "s3://", 0)
    with pytest.raises(Usage, match="is not an address that pyarrow can open"):
        place("nowhere://bucket")


def test_an_empty_source_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(Usage, match="nothing at"):
        list(source(str(tmp_path / "missing")).files())


# --- how it is cut and kept -------------------------------------------------------------------------------------------


def table(path: Path, bodies: list[bytes | None], rows_in_group: int, **columns: Any) -> Path:
    pq.write_table(pa.table({"image": pa.array(bodies, pa.binary()), **columns}), path, row_group_size=rows_in_group)
    return path


@pytest.mark.parametrize(
    ("rows", "group", "cut"),
    [
        (10, 4, [(0, 4), (4, 4), (8, 2)]),  # whole groups, because two of them are too many
        (10, 2, [(0, 4), (4, 4), (8, 2)]),
        (10, 10, [(0, 3), (3, 3), (6, 4)]),  # one group in equal pieces
        (7, 6, [(0, 3), (3, 3), (6, 1)]),
        (0, 4, []),
    ],
)
def test_a_parquet_file_is_cut_by_its_row_groups(
    tmp_path: Path, rows: int, group: int, cut: list[tuple[int, int]]
) -> None:
    path = table(tmp_path / "t.parquet", [b""] * rows, group)
    parts = list(inputs.parts(source(str(path)), 4, Columns()))
    assert [(one.first, one.rows) for (one,) in parts] == cut
    found = [name for part in parts for name, _ in inputs.images(place(str(tmp_path)), part, Columns(), 9)]
    assert found == [f"{path}#{i}" for i in range(rows)]


def test_many_files_share_a_part_and_the_list_returns_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "PARTS_IN_A_LIST", 3)
    paths = [str(path) for path in pictures(tmp_path / "in", 17)]
    odd = os.fsdecode(b"\xff odd.jpg")
    (tmp_path / "in" / odd).write_bytes(b"")
    folder = place(str(tmp_path / "list"))
    parts = list(inputs.parts(source(str(tmp_path / "in")), 2, Columns()))
    assert inputs.write_list(parts, folder) == (9, 18)
    back = [inputs.read_list(folder, part) for part in range(9)]
    assert back == parts and len(list((tmp_path / "list").iterdir())) == 3
    names = [os.fsdecode(entry.path) for part in back for entry in part]
    assert sorted(names) == sorted([*paths, str(tmp_path / "in" / odd)])


def test_the_list_of_many_takes_no_memory(tmp_path: Path) -> None:
    """Whatever yields the inputs, memory holds only one part of them."""
    import tracemalloc

    many = ([Entry(f"/bucket/photographs/{part:06}/{i:04}.jpg".encode()) for i in range(256)] for part in range(400))
    inputs.write_list(iter([[Entry(b"x")]]), place(str(tmp_path / "warm")))  # so that pyarrow has loaded everything
    tracemalloc.start()
    try:
        assert inputs.write_list(many, place(str(tmp_path / "list"))) == (400, 102_400)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 3_000_000  # the names alone are 4 MB, and 12 MB as Python has them


def test_the_columns_are_found_by_type_and_name(tmp_path: Path) -> None:
    bodies = [jpeg(0), None, jpeg(2)]
    plain = table(tmp_path / "plain.parquet", bodies, 2, label=["a", "b", "c"], filename=["1.jpg", "2.jpg", None])
    struct = pa.array(
        [{"bytes": jpeg(0), "path": "p.jpg"}, None], pa.struct({"bytes": pa.binary(), "path": pa.string()})
    )
    pq.write_table(pa.table({"image": struct, "n": [1, 2]}), tmp_path / "hf.parquet")
    two = table(tmp_path / "two.parquet", bodies, 2, thumbnail=pa.array([b"", b"", b""]), code=[7, 8, 9])

    def read(path: Path, columns: Columns = inputs.FOUND) -> list[tuple[str, int]]:
        entry = Entry(os.fsencode(str(path)), 0, pq.read_metadata(path).num_rows)
        return [(name, size_of(load)) for name, load in inputs.images(place("/"), [entry], columns, 10_000)]

    def size_of(load: inputs.Load) -> int:
        try:
            return len(load())
        except inputs.Unreadable as error:
            assert "no bytes" in str(error)
            return -1

    assert read(plain) == [("1.jpg", len(jpeg(0))), ("2.jpg", -1), (f"{plain}#2", len(jpeg(2)))]
    assert read(tmp_path / "hf.parquet") == [("p.jpg", len(jpeg(0))), (f"{tmp_path / 'hf.parquet'}#1", -1)]
    assert [name for name, _ in read(two, Columns("image", "code"))] == ["7", "8", "9"]
    with pytest.raises(Usage, match=r"2 columns of bytes \(image, thumbnail\); --image-column names one"):
        list(inputs.parts(source(str(two)), 4, Columns()))
    with pytest.raises(Usage, match="no column 'picture'; it has image, thumbnail, code"):
        list(inputs.parts(source(str(two)), 4, Columns("picture")))
    (tmp_path / "torn.parquet").write_bytes(plain.read_bytes()[:-9])
    with pytest.raises(Failure, match=r"torn\.parquet is not a Parquet file that can be read"):
        list(inputs.parts(source(str(tmp_path / "torn.parquet")), 4, Columns()))


def test_a_damaged_row_group_still_gives_its_rows(tmp_path: Path) -> None:
    path = table(tmp_path / "t.parquet", [np.random.default_rng(i).bytes(5_000) for i in range(40)], 20)
    entry = Entry(os.fsencode(str(path)), 0, 40)
    torn = bytearray(path.read_bytes())
    second = pq.read_metadata(path).row_group(1).column(0)
    start = second.dictionary_page_offset or second.data_page_offset
    torn[start : start + second.total_compressed_size] = bytes(second.total_compressed_size)
    path.write_bytes(torn)
    found = list(inputs.images(place("/"), [entry], Columns(), 10_000))
    assert [name for name, _ in found] == [f"{path}#{i}" for i in range(40)]
    assert len(found[0][1]()) == 5_000
    with pytest.raises(inputs.Unreadable, match="the Parquet file cannot be read"):
        found[39][1]()


# --- the answers ------------------------------------------------------------------------------------------------------


def job(tiny: Artifact, folder: Path | str, **more: Any) -> bulk.Job:
    return bulk.job(tiny, str(folder), **{"engine": "onnxruntime", "precision": "fp32", **LIMITS, **more})


@pytest.mark.parametrize("threads", [1, 3])
async def test_a_row_equals_the_answer_of_the_service_and_a_bad_image_is_one_row(
    tiny: Artifact, tmp_path: Path, threads: int
) -> None:
    bodies = [jpeg(i) for i in range(40)]
    bodies[3], bodies[17], bodies[39] = b"not an image", jpeg(17)[:300], bytes(1_000_001)
    wide = io.BytesIO()
    Image.new("L", (2_000, 2_000)).save(wide, "PNG")
    bodies[20] = wide.getvalue()
    paths = []
    for i, body in enumerate(bodies):
        paths.append(tmp_path / f"{i:02}.jpg")
        paths[-1].write_bytes(body)
    entries = [*(Entry(os.fsencode(str(path))) for path in paths), Entry(os.fsencode(str(tmp_path / "gone.jpg")))]
    classifier = bulk.Classifier(tiny, job(tiny, tmp_path, top_k=3), 1, threads)
    found, counts = classifier.table(inputs.images(place(str(tmp_path)), entries, Columns(), LIMITS["max_bytes"]))
    rows = found.to_pylist()
    assert found.schema.equals(bulk.schema())
    assert [row["path"] for row in rows] == [*map(str, paths), str(tmp_path / "gone.jpg")]
    errors = {i: row["error_code"] for i, row in enumerate(rows) if row["error_code"]}
    assert errors == {
        3: "unsupported_image", 17: "damaged_image", 20: "too_large", 39: "too_large", 40: "unreadable",
    }  # fmt: skip
    assert counts == bulk.Counts(41, Counter(errors.values()))

    async with started(tiny, PODIUM_ENGINE="onnxruntime", PODIUM_MAX_PIXELS="1000000") as serving:
        later = asyncio.get_running_loop().time() + WITHIN_S
        good = {i: Picture(bodies[i], LIMITS["image"]) for i in range(39) if i not in errors}
        answers = {i: await serving.classify(picture, top_k=3, deadline=later) for i, picture in good.items()}
    assert len(answers) == 36
    for i, answer in answers.items():
        said, row = answer["predictions"], rows[i]
        assert [one["class_id"] for one in said] == row["class_ids"]
        assert [(one["label"], one["synset"]) for one in said] == list(zip(row["labels"], row["synsets"], strict=True))
        assert [one["probability"] for one in said] == pytest.approx(row["probabilities"], abs=2e-6)


def test_scores_that_are_not_finite_are_the_error_of_one_row(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    classifier = bulk.Classifier(tiny, job(tiny, tmp_path), 1, 1)
    run = classifier.engine.run

    def broken(batch: Any) -> Any:
        scores = run(batch)
        scores[1] = np.nan
        return scores

    monkeypatch.setattr(classifier.engine, "run", broken)
    found, counts = classifier.table((str(i), partial(jpeg, i)) for i in range(3))
    assert [row["error_code"] for row in found.to_pylist()] == [None, "internal", None]
    assert counts.errors == {"internal": 1}


def test_a_job_is_checked(tiny: Artifact, tmp_path: Path) -> None:
    assert job(tiny, tmp_path, engine="auto", precision="auto").engine in ("onnxruntime", "openvino")
    assert job(tiny, tmp_path).top_k == 5 and job(tiny, "a").source == str(Path("a").absolute())
    with pytest.raises(Usage, match="--top-k 11: tiny has 10 classes, so 1 to 10"):
        job(tiny, tmp_path, top_k=11)
    with pytest.raises(Failure, match="no file for engine auto at precision int8"):
        job(tiny, tmp_path, engine="auto", precision="int8")


def test_actors_fill_the_nodes() -> None:
    nodes = [{"CPU": 4.0}, {"CPU": 7.0}, {"memory": 1.0}, {"CPU": 8.0, "GPU": 2.0}]
    assert bulk.actors(nodes, gpu=False) == (19, 1)
    assert bulk.actors(nodes, gpu=False, cores=4) == (4, 4)
    assert bulk.actors(nodes, gpu=True) == (2, 4)
    assert bulk.actors(nodes, gpu=True, cores=8) == (1, 8)
    with pytest.raises(Failure, match="no node with a GPU"):
        bulk.actors(nodes[:2], gpu=True)
    with pytest.raises(Failure, match="--cores 9: no node has so many; the largest has 8"):
        bulk.actors(nodes, gpu=False, cores=9)


# --- the folder of a run ----------------------------------------------------------------------------------------------


def prepared(tiny: Artifact, folder: Path, out: inputs.Place, **more: Any) -> dict[str, Any]:
    return bulk.prepare(job(tiny, folder, **more), tiny, str(folder), out, lambda _: None)


def test_a_run_continues_only_with_the_same_arguments(tiny: Artifact, tmp_path: Path) -> None:
    pictures(tmp_path / "in", 5)
    out = place(str(tmp_path / "out"))
    manifest = prepared(tiny, tmp_path / "in", out, part_size=2)
    assert (manifest["parts"], manifest["images"]) == (3, 5)
    (tmp_path / "in" / "later.jpg").write_bytes(jpeg(9))  # the list stays what it was
    assert prepared(tiny, tmp_path / "in", out, part_size=2) == manifest
    with pytest.raises(Usage, match="holds another run: part_size was 2, now 3; max_pixels was 1000000, now 9"):
        prepared(tiny, tmp_path / "in", out, part_size=3, image=Limits(9))
    with pytest.raises(Usage, match="is not empty"):
        prepared(tiny, tmp_path / "in", place(str(tmp_path / "in")))
    (tmp_path / "none").mkdir()
    with pytest.raises(Usage, match="has no images"):
        prepared(tiny, tmp_path / "none", place(str(tmp_path / "out2")))


@pytest.mark.parametrize("remote", [False, True])
def test_a_part_is_done_once_and_a_truncated_one_again(
    tiny: Artifact, tmp_path: Path, remote: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The work of an actor without Ray; with `remote`, into a filesystem that is not the machine's own."""
    paths = pictures(tmp_path / "in", 10)
    (tmp_path / "out").mkdir()
    out = elsewhere(tmp_path / "out") if remote else place(str(tmp_path / "out"))
    monkeypatch.setattr(inputs, "place", lambda text, known=inputs.place: out if text == "out" else known(text))
    wanted = job(tiny, tmp_path / "in", part_size=4)
    bulk.prepare(wanted, tiny, str(tmp_path / "in"), out, lambda _: None)
    worker = bulk.Worker(wanted, str(tmp_path / "in"), "out", 1)
    first = worker({"part": np.array([0, 2])})
    assert first["failed"] == ["", ""] and [json.loads(c)["images"] for c in first["counts"]] == [4, 2]
    assert bulk.done(out) == ({0, 2}, bulk.Counts(6))
    zero, two = (tmp_path / "out" / bulk.part_name(part) for part in (0, 2))
    two.write_bytes(two.read_bytes()[:-20])
    before = zero.stat().st_mtime_ns
    assert bulk.done(out) == ({0}, bulk.Counts(4))
    assert worker({"part": np.array([0, 1])})["failed"] == ["", ""] and zero.stat().st_mtime_ns == before
    assert not list((tmp_path / "out").glob("*.tmp"))
    two.unlink()
    assert worker({"part": np.array([2])})["failed"] == [""]
    assert bulk.done(out) == ({0, 1, 2}, bulk.Counts(10))
    rows = pq.read_table(tmp_path / "out").column("path").to_pylist()
    assert sorted(rows) == sorted(map(str, paths))
    broken = worker({"part": np.array([7])})  # there is no such part: the answer has the reason, nothing is raised
    assert broken["counts"] == [bulk.Counts().json()] and broken["failed"][0]


def test_a_worker_that_cannot_see_the_source_says_so(tiny: Artifact, tmp_path: Path) -> None:
    with pytest.raises(Failure, match="every node must see it"):
        bulk.Worker(job(tiny, tmp_path), str(tmp_path / "gone"), str(tmp_path), 1)


def test_the_last_line() -> None:
    ran = {"images": 1_500, "seconds": 10.04, "images_per_second": 149.4}
    summary: dict[str, Any] = {"images": 2_000, "errors": {"damaged_image": 1, "too_large": 2_000}, "this_run": ran}
    assert final(summary, "out") == (
        "2,000 images, 500 of them done before; 1,500 in 10.0 s, 149.4 images/s; "
        "errors: 1 damaged_image, 2,000 too_large; out"
    )


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--model", "tiny", "--part-size", "0"], "--part-size 0 must be at least 1"),
        (["--model", "nosuch"], "no exported model is called 'nosuch'"),
        (["--model", "tiny"], "there is nothing at"),
        (["--model", "tiny", "--engine", "abacus"], "no engine is called 'abacus'"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_a_wrong_command_is_one_line(
    argv: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bulk", str(tmp_path / "gone"), "--out", str(tmp_path / "out"), *argv]) in (1, 2)
    said = capsys.readouterr()
    assert message in said.err and said.err.count("\n") == 1 and not said.out


@pytest.mark.usefixtures("tiny")
def test_a_missing_cluster_is_reported_at_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pictures(tmp_path / "in", 2)
    with socket.socket() as probe:  # bound and not listening: no other process gets the port meanwhile
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
        argv = ["bulk", str(tmp_path / "in"), "--model", "tiny", "--out", str(tmp_path / "out")]
        assert main([*argv, "--ray-address", address]) == 1
    assert f"there is no Ray cluster at {address}" in capfd.readouterr().err


# --- the command ------------------------------------------------------------------------------------------------------


def command(folder: Path, out: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "serving", "bulk", str(folder), "--model", "tiny", "--out", str(out), "--engine",
        "onnxruntime", "--precision", "fp32", *more,
    ]  # fmt: skip


def alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(scope="session")
def orphans() -> Iterator[list[psutil.Process]]:
    """Processes that must have ended by the end of all tests: Ray's agents spend a minute on reporting its end."""
    processes: list[psutil.Process] = []
    yield processes
    deadline = time.monotonic() + WITHIN_S
    while any(map(alive, processes)):
        assert time.monotonic() < deadline, [process for process in processes if alive(process)]
        time.sleep(0.05)


@pytest.mark.usefixtures("tiny")
def test_a_killed_run_continues_without_repeating(tmp_path: Path, orphans: list[psutil.Process]) -> None:
    """The driver is killed; the same command then continues and does not touch a finished part."""
    paths = [path for copy in range(6) for path in pictures(tmp_path / "in" / str(copy), 100)]
    paths[5].write_bytes(b"not an image")
    out = tmp_path / "out"
    run = command(tmp_path / "in", out, "--part-size", "2")
    process = subprocess.Popen(run, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    deadline = time.monotonic() + WITHIN_S
    while not list(out.glob("part-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    ray = psutil.Process(process.pid).children(recursive=True)
    workers = [child for child in ray if "agent" not in child.cmdline()[0].lower()]
    orphans += ray
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert workers
    while any(map(alive, workers)):  # the Ray that it had started ends with it
        assert time.monotonic() < deadline
        time.sleep(0.05)
    before = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert 0 < len(before) < 300 and not (out / bulk.SUMMARY).exists()
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=WITHIN_S, check=False)
    assert (done.returncode, done.stderr) == (0, "")  # and no progress bar without a terminal
    assert "errors: 1 unsupported_image" in done.stdout and done.stdout.count("\n") == 1
    after = {path.name: path.stat().st_mtime_ns for path in out.glob("part-*")}
    assert len(after) == 300 and {name: after[name] for name in before} == before
    rows = pq.read_table(out).to_pylist()
    assert sorted(row["path"] for row in rows) == sorted(map(str, paths))
    assert {row["path"] for row in rows if row["error_code"]} == {str(paths[5])}
    summary = json.loads((out / bulk.SUMMARY).read_text())
    assert summary["images"] == 600 and 0 < summary["this_run"]["images"] <= 600 - 2 * len(before)
    assert summary["this_run"]["driver_peak_mb"] < 500


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_ctrl_c_keeps_what_was_finished(tmp_path: Path) -> None:
    for copy in range(6):
        pictures(tmp_path / "in" / str(copy), 100)
    # A shell that runs the tests in the background makes them, and what they start, ignore Ctrl-C.
    heed = "import os, signal, sys; signal.signal(signal.SIGINT, signal.SIG_DFL); os.execv(sys.argv[1], sys.argv[1:])"
    process = subprocess.Popen(
        [sys.executable, "-c", heed, *command(tmp_path / "in", tmp_path / "out", "--part-size", "1")],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    deadline = time.monotonic() + WITHIN_S
    while not list((tmp_path / "out").glob("part-*")):
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    _, errors = process.communicate(timeout=WITHIN_S)
    assert process.returncode == 130 and errors == "python -m serving: interrupted; what was finished is kept\n"
    assert 0 < len(list((tmp_path / "out").glob("part-*"))) < 600


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_no_row_is_lost_with_a_node() -> None:
    """`PODIUM_LOST_NODE_IMAGES` sets how many; the script checks every row."""
    count = int(os.environ.get("PODIUM_LOST_NODE_IMAGES", "3000"))
    script = [sys.executable, "examples/bulk_with_a_lost_node.py", "--model", "tiny", "--images", str(count)]
    here = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*script, "--part-size", "8"], cwd=ROOT, env=here, capture_output=True, text=True, timeout=1_800, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "killed one of 3 nodes" in done.stdout
    assert f"{count:,} rows, each of {count:,} images once" in done.stdout


# Every Python with its folder on PYTHONPATH runs it, also the actors of Ray. It ends the process without an exception.
KILLER = """
import os
from PIL import ImageFile
load = ImageFile.ImageFile.load
ImageFile.ImageFile.load = lambda image: os._exit(1) if image.size == (13, 13) else load(image)
"""


@pytest.mark.slow
@pytest.mark.usefixtures("tiny")
def test_an_image_that_kills_its_process_fails_only_its_part(tmp_path: Path) -> None:
    """Decoding one of 40 images always ends the process: nine parts are done, and the tenth once decoding is mended."""
    paths = pictures(tmp_path / "in", 40)
    Image.new("RGB", (13, 13)).save(paths[21], "PNG")  # which Pillow decodes, and KILLER waits for
    (tmp_path / "killer").mkdir()
    (tmp_path / "killer" / "sitecustomize.py").write_text(KILLER)
    out, run = tmp_path / "out", command(tmp_path / "in", tmp_path / "out", "--part-size", "4")
    with_killer = {**os.environ, "PYTHONPATH": os.pathsep.join((str(tmp_path / "killer"), str(ROOT)))}

    def ran(environment: dict[str, str] | None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            run, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=WITHIN_S, check=False
        )

    def named() -> dict[str, list[str]]:
        return {file.name: pq.read_table(file).column("path").to_pylist() for file in out.glob("part-*")}

    failed = ran(with_killer)
    assert failed.returncode == 1 and not (out / bulk.SUMMARY).exists(), failed
    last = failed.stderr.splitlines()[-1]
    assert "1 of 10 parts failed" in last and "its process or node died every time" in last
    before = named()
    assert len(before) == 9 and {len(rows) for rows in before.values()} == {4}
    assert str(paths[21]) not in chain(*before.values())
    done = ran(None)
    assert (done.returncode, done.stderr) == (0, "")
    after = named()
    assert {name: after[name] for name in before} == before
    assert sorted(chain(*after.values())) == sorted(map(str, paths))
