"""The arrows of the house: which room may import which, what loads lazily, and what the project may not say."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

ROOMS = ("models", "export", "serving", "benchmarks")

# What each room may import of ours, beside itself. A dotted name allows that module alone.
ARROWS = {
    "models": (),
    "serving": ("models",),
    "export": ("models", "serving"),
    # gpu.sh makes its own files where there is no store to take them from, and checks them as the exporter does.
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

# Loaded inside the function that needs them, so that a command line starts at once and a server needs no torch.
LAZY = {
    "torch", "onnx", "onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "pynvml", "cuda", "bentoml",
    "pyarrow", "ray",
}  # fmt: skip

# Programs of their own, each started as one process, written as its server's documentation writes them.
PROGRAMS = "benchmarks/peers/with_"

# torch or onnx is what these are made of: nothing imports them but the functions that build, export or train.
TORCH_FILES = {
    "export/from_onnx.py",
    "export/to_onnx.py",
    "models/describe.py",
    "models/layers.py",
    "models/train_lenet.py",
}


def sources(room: str) -> list[Path]:
    return [ROOT / "service.py"] if room == "service" else sorted((ROOT / room).rglob("*.py"))


def imports(tree: ast.AST) -> Iterator[tuple[str, ast.stmt]]:
    """Every import in `tree` as "package.module" (of `from x import y`, both x and x.y), with its statement."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((f"{node.module}.{alias.name}", node) for alias in node.names)


@pytest.mark.parametrize("room", ARROWS)
def test_arrows(room: str) -> None:
    allowed = (room, *ARROWS[room])
    wrong = [
        f"{path.relative_to(ROOT)}:{node.lineno} imports {name}"
        for path in sources(room)
        if not str(path.relative_to(ROOT)).startswith(PROGRAMS)
        for name, node in imports(ast.parse(path.read_text("utf-8")))
        if name.split(".")[0] in (*ROOMS, "service", "tests")
        and not any(name == a or name.startswith(f"{a}.") for a in allowed)
    ]
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_heavy_packages_load_lazily(room: str) -> None:
    families = {f"models/{row.family}.py" for row in __import__("models").SPECS.values()}
    wrong = []
    for path in sources(room):
        name = str(path.relative_to(ROOT))
        if name.startswith(PROGRAMS):
            continue
        tree = ast.parse(path.read_text("utf-8"))
        for top in tree.body:
            for module, node in imports(top) if isinstance(top, ast.Import | ast.ImportFrom) else ():
                if module.split(".")[0] in LAZY and not (
                    module.split(".")[0] in ("torch", "onnx") and name in families | TORCH_FILES
                ):
                    wrong.append(f"{name}:{node.lineno} imports {module} when it is imported")
    assert not wrong


@pytest.mark.usefixtures("tiny")  # the service wants something to serve
def test_serving_never_imports_torch() -> None:
    code = "import sys, service; print('torch' in sys.modules, 'onnx' in sys.modules)"
    here = {**os.environ, "PODIUM_MODELS": "tiny"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=here, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "False False\n"), done.stderr
