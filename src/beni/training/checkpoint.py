"""Checkpoints that are complete or absent, and the search for the newest good one.

A checkpoint is written into a hidden folder, flushed to disk, given a marker with the checksum of every file, and
renamed. Loading trusts nothing without a marker whose checksums fit; a damaged one is passed over for the one before
it.
"""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

MARKER = "complete.json"
TENSORS = "state.safetensors"
VALUES = "state.json"


@dataclass(frozen=True)
class Found:
    """A complete checkpoint: its tensors and the plain values beside them."""

    path: Path
    step: int
    tensors: dict[str, Tensor]
    values: dict[str, Any]


def save(root: Path, step: int, tensors: dict[str, Tensor], values: dict[str, Any], keep: int) -> Path:
    """Writes ``root/step_<step>`` and removes all but the newest ``keep``."""
    root.mkdir(parents=True, exist_ok=True)
    final, partial = root / f"step_{step:08d}", root / f".partial_{step:08d}"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    save_file(tensors, partial / TENSORS)
    (partial / VALUES).write_text(json.dumps({"step": step, **values}))
    marker = {name: _checksum(partial / name) for name in (TENSORS, VALUES)}
    (partial / MARKER).write_text(json.dumps(marker))
    for name in (TENSORS, VALUES, MARKER):
        _flush(partial / name)
    _flush(partial)
    shutil.rmtree(final, ignore_errors=True)
    os.replace(partial, final)
    _flush(root)
    # a folder of a later step is one that was passed over as damaged: left there, it would push out a good one
    folders = _folders(root)
    mine = folders.index(final) + 1
    for old in (*folders[: max(0, mine - keep)], *folders[mine:]):
        shutil.rmtree(old)
    return final


def newest(root: Path, skipped: list[str]) -> Found | None:
    """The newest complete checkpoint below ``root``; reasons for passing others over are appended to ``skipped``."""
    for partial in root.glob(".partial_*"):
        shutil.rmtree(partial, ignore_errors=True)  # another rank may be removing it too
    for folder in reversed(_folders(root)):
        problem = _problem(folder)
        if problem is None:
            values = json.loads((folder / VALUES).read_text())
            return Found(folder, values["step"], load_file(folder / TENSORS), values)
        skipped.append(f"{folder.name}: {problem}")
    return None


def _problem(folder: Path) -> str | None:
    try:
        marker = json.loads((folder / MARKER).read_text())
    except (OSError, ValueError):
        return "no completion marker"
    for name in (TENSORS, VALUES):
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _checksum(folder / name) != marker.get(name):
            return f"{name} does not have the checksum it was saved with"
    return None


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.glob("step_*") if path.is_dir())


def _checksum(path: Path) -> int:
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(1 << 22):
            value = zlib.crc32(chunk, value)
    return value


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
