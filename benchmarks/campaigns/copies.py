"""Copies of an artifact in stores of their own."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path


def copied(folder: Path, store: Path, network: str, version: str) -> Path:
    """A copy of the artifact in `folder`, in `store` under another version; files are shared if possible."""
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
    """Give `path` another content, and leave files alone that share the old one."""
    path.unlink()
    path.write_bytes(text.encode() if isinstance(text, str) else text)
