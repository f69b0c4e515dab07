"""Which module imports which, read from the source. `python -m tests.arrows` draws it in docs/architecture.md."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
BEGIN, END = "<!-- arrows -->\n", "<!-- /arrows -->"

ROOMS = ("models", "export", "serving", "benchmarks")

# Separate programs, each started as one process and written as the documentation of its server shows.
PROGRAMS = "benchmarks.peers.with_"


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


def module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module(path): path for room in (*ROOMS, "service") for path in sources(room)}


def imported(path: Path) -> Iterator[str]:
    """Our modules that the file imports, anywhere in it."""
    for name, _ in imports(ast.parse(path.read_text("utf-8"))):
        if (found := name if name in MODULES else name.rpartition(".")[0]) in MODULES:
            yield found


# The modules that each module imports.
GRAPH = {name: sorted(set(imported(path)) - {name}) for name, path in MODULES.items()}


def room_of(name: str) -> str:
    return name.split(".")[1] if name.count(".") > 1 else "ground"


def box(name: str) -> str:
    """The box that a module is drawn in: its package, or its package inside benchmarks."""
    top = name.split(".")[0]
    return f"benchmarks.{room_of(name)}" if top == "benchmarks" and name != "benchmarks.__main__" else top


def drawn() -> str:
    """The arrows between packages as a Mermaid flowchart."""
    pairs = {
        (box(name), box(other))
        for name, others in GRAPH.items()
        for other in others
        if name != "benchmarks.__main__" and not name.startswith(PROGRAMS)
    }
    lines = [f"    {begin} --> {end}" for begin, end in sorted(pairs) if begin != end]
    return "\n".join(["```mermaid", "flowchart TD", *lines, "```"]) + "\n"


def insert(page: str, graph: str) -> str:
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}{graph}{END}{rest.partition(END)[2]}"


if __name__ == "__main__":
    PAGE.write_text(insert(PAGE.read_text("utf-8"), drawn()), "utf-8")
    print(PAGE.relative_to(ROOT))
