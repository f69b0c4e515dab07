"""Copies of an artifact in stores of their own."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path


def copied(folder: Path, store: Path, network: str, version: str) -> Path:
    """The artifact in `folder` once more in `store` under another version, its files shared where they can be."""
    target = store / network / version
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, target, copy_function=link)
    rewrite(
        target / "model.yaml", re.sub(r"(?m)^version: .*$", f"version: {version}", (folder / "model.yaml").read_text())
    )
    (target.parent / "latest").write_text(version)
    return target


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def rewrite(path: Path, text: str | bytes) -> None:
    """`path` with another content, and not what it shares its content with."""
    path.unlink()
    path.write_bytes(text.encode() if isinstance(text, str) else text)
