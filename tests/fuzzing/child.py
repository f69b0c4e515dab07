"""The process that the inputs run in.

`python -m tests.fuzzing.child TARGET CURRENT replay FILE... | fuzz OPTION...`
"""

from __future__ import annotations

import resource
import shlex
import sys
from pathlib import Path

from tests.fuzzing.target import Guard, named

# Address space: a runaway allocation reaches this limit before the memory of the machine ends.
MOST = 8 << 30
# What is instrumented: our own code, and the Python that parses for it.
GUIDES = (
    "serving",
    "models.preprocess",
    "python_multipart",
    "uvicorn.protocols",
    "PIL",
    "json.decoder",
    "tests.fuzzing",
)


def main(name: str, current: str, mode: str, *rest: str) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MOST, resource.getrlimit(resource.RLIMIT_AS)[1]))
    if mode == "replay":
        guard = Guard(named(name), Path(current))
        for file in rest:
            guard(Path(file).read_bytes())
        return
    import atheris

    with atheris.instrument_imports(include=list(GUIDES)):
        target = named(name)
    guard = Guard(target, Path(current))

    def one_input(data: bytes) -> None:
        guard(data)

    # A merge starts a process of its own by this name, through a shell.
    again = shlex.join([sys.executable, "-m", "tests.fuzzing.child", name, f"{current}-inner", "fuzz"])
    # The first inputs must reach instrumented code.
    atheris.Setup([again, *rest, f"-max_len={target.longest}"], atheris.instrument_func(one_input))
    atheris.Fuzz()


if __name__ == "__main__":
    main(*sys.argv[1:])
