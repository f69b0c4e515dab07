"""Which package may import which, what loads lazily, and which words the project may not contain."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter

import pytest

from tests.arrows import (
    GRAPH,
    MODULES,
    PAGE,
    PROGRAMS,
    ROOMS,
    drawn,
    imported,
    imports,
    insert,
    module,
    room_of,
    sources,
)
from tests.conftest import ROOT

# Which of our packages each package may import, besides itself. A dotted name allows that module only.
ARROWS = {
    "models": (),
    "serving": ("models",),
    "export": ("models", "serving"),
    # gpu.sh builds its own files if there is no store to take them from, and checks them as the exporter does.
    "benchmarks": (
        "models",
        "export.parity",
        "export.store",
        "export.to_engine",
        "export.to_onnx",
        "serving",
    ),
    "service": ("models", "serving"),
}

# Which packages of benchmarks each of them may import, besides itself and the ground (the files beside the packages).
# Only `__main__` imports the commands of a package.
BENCHMARK_ROOMS = {
    "ground": (),
    "engine": (),
    "load": (),
    "campaigns": ("load",),
    "peers": ("load",),
    "report": (),
    "advise": (),
}

# These two read records and never run anything.
READERS = ("report", "advise")
RUN = ("serving", "export", "subprocess", "asyncio")

# Loaded inside the function that needs them, so that a command line starts at once and a server needs no torch.
LAZY = {
    "torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pynvml", "cuda", "bentoml",
    "pyarrow", "ray",
}  # fmt: skip

# These consist of torch or onnx code: only the functions that build, export or train import them.
TORCH_FILES = {
    "export/from_onnx.py",
    "export/to_onnx.py",
    "models/describe.py",
    "models/branches.py",
    "models/layers.py",
    "models/train_lenet.py",
}


LONGEST = 600  # lines of a file


@pytest.mark.parametrize("room", ARROWS)
def test_arrows(room: str) -> None:
    allowed = (room, *ARROWS[room])
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"
        for path in sources(room)
        if not module(path).startswith(PROGRAMS)
        for name, node in imports(ast.parse(path.read_text("utf-8")))
        if name.split(".")[0] in (*ROOMS, "service", "tests")
        and not any(name == a or name.startswith(f"{a}.") for a in allowed)
    ]
    assert not wrong


def test_no_import_runs_in_a_circle() -> None:
    try:
        list(TopologicalSorter(GRAPH).static_order())
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_no_file_is_longer_than_a_reader_takes_in() -> None:
    folders = (*ROOMS, "tests", "examples")
    files = [ROOT / "service.py", *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]
    lines = {path.relative_to(ROOT): path.read_text("utf-8").count("\n") for path in files}
    assert len(lines) > 200 and not {path: count for path, count in lines.items() if count > LONGEST}


def test_the_drawn_graph_is_up_to_date() -> None:
    page = PAGE.read_text("utf-8")
    assert insert(page, drawn()) == page, "`python -m tests.arrows` draws it again"


@pytest.mark.parametrize("room", BENCHMARK_ROOMS)
def test_arrows_between_the_packages_of_benchmarks(room: str) -> None:
    allowed = {room, "ground", *BENCHMARK_ROOMS[room]}
    for name, path in MODULES.items():
        if not name.startswith("benchmarks.") or room_of(name) != room or name == "benchmarks.__main__":
            continue
        for found in imported(path):
            if found.startswith("benchmarks."):
                assert room_of(found) in allowed, f"{name} imports {found}"
                assert not found.endswith((".commands", ".__main__")), f"{name} imports {found}"
        if room in READERS:
            runs = {
                top for found, _ in imports(ast.parse(path.read_text("utf-8"))) if (top := found.split(".")[0]) in RUN
            }
            assert not runs, f"{name} imports {', '.join(sorted(runs))}"


@pytest.mark.parametrize("room", ROOMS)
def test_heavy_packages_load_lazily(room: str) -> None:
    families = {f"models/{row.family}.py" for row in __import__("models").SPECS.values()}
    wrong = []
    for path in sources(room):
        name = str(path.relative_to(ROOT))
        if module(path).startswith(PROGRAMS):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        for top in tree.body:
            for package, node in imports(top) if isinstance(top, ast.Import | ast.ImportFrom) else ():
                if package.split(".")[0] in LAZY and not (
                    package.split(".")[0] in ("torch", "onnx") and name in families | TORCH_FILES
                ):
                    wrong.append(f"{name}:{node.lineno} imports {package} when it is imported")
    assert not wrong


@pytest.mark.usefixtures("tiny")  # the service needs something to serve
def test_serving_never_imports_torch() -> None:
    code = "import sys, service; print('torch' in sys.modules, 'onnx' in sys.modules)"
    here = {**os.environ, "PODIUM_MODELS": "tiny"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False False\n"), done.stderr
