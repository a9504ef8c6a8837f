"""Checkpoints that are complete or absent, written beside training, and the search for the newest good one.

Each rank copies its part of every tensor to the CPU and goes on training; a thread writes the copy into a hidden folder
and flushes it to disk. When the files of all ranks are there, rank 0 adds a marker with the checksum of every file and
renames the folder. Loading trusts nothing without a marker whose checksums fit; a damaged checkpoint is passed over for
the one before it.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from beni.distributed.collectives import Peers
from beni.errors import ResumeError
from beni.runs.files import COMPLETE as MARKER
from beni.runs.files import checkpoint_name, checkpoints_in, read_json, remove_partials
from beni.runs.shape import OF_MARKER
from beni.training.checkpoint import shards
from beni.training.checkpoint.best import BestCheckpoint
from beni.training.checkpoint.shards import Piece, SavedTensors

VALUES = "state.json"
HIDDEN = ".partial_"


@dataclass(frozen=True)
class Found:
    """A complete checkpoint: its tensors, which are read when asked for, and the plain values beside them."""

    path: Path
    step: int
    tensors: SavedTensors
    values: dict[str, Any]


@dataclass(frozen=True)
class Outcome:
    """What became of a checkpoint; the same on every rank but for the times.

    Attributes:
        problem: why there is none, else null.
        stalled: seconds that training waited.
        seconds: from the copy to the rename.
    """

    step: int
    problem: str | None
    stalled: float
    seconds: float


class Checkpoints:
    """The checkpoints of one run. Every method but ``settled`` is called by all ranks, in the same order.

    Args:
        root: their folder, on a disk that all ranks see.
        peers: the ranks, over a group that nobody else uses: their threads talk while training goes on.
        keep: newest ones kept, at least 1.
        best: which one stays as well.
    """

    def __init__(self, root: Path, peers: Peers, keep: int, best: BestCheckpoint) -> None:
        self.root, self.peers, self.keep, self.best = root, peers, keep, best
        self._thread: threading.Thread | None = None
        self._ended = threading.Event()
        self._result: Outcome | BaseException | None = None

    def newest(self, skipped: list[str]) -> Found | None:
        """The newest complete checkpoint; reasons for passing others over are appended to ``skipped``."""
        for name in self.peers.from_main(lambda: _tidy(self.root)):
            folder = self.root / name
            files, problem = self.peers.from_main(lambda folder=folder: _marked(folder))
            mine = sorted(files.items())[self.peers.rank :: self.peers.world]
            problems = self.peers.gather(_damage(folder, mine))
            problem = problem or next((found for found in problems if found), None)
            if problem is None:
                values = json.loads((folder / VALUES).read_text())
                tensors = SavedTensors([folder / file for file in sorted(files) if file != VALUES])
                return Found(folder, values["step"], tensors, values)
            skipped.append(f"{folder.name}: {problem}")
        return None

    def save(self, step: int, tensors: Mapping[str, Tensor], values: Mapping[str, Any]) -> None:
        """Begins to write ``root/step_<step>``; returns when training may change the tensors.

        The one before it must have been waited for.
        """
        assert self._thread is None, "the checkpoint before has not been waited for"
        begun = time.perf_counter()
        pieces = shards.staged(shards.own_pieces(tensors, self.peers.rank, self.peers.world))
        copied = torch.cuda.current_stream().record_event() if _on_gpu(tensors) else None

        def work() -> None:
            try:
                if copied is not None:
                    copied.synchronize()
                problem = self._write(step, pieces, values)
                self._result = Outcome(step, problem, stalled, time.perf_counter() - begun)
            except BaseException as error:  # is raised where the main thread waits
                self._result = error
            self._ended.set()

        self._ended.clear()
        stalled = time.perf_counter() - begun
        # a daemon: a thread that waits for a rank that is gone must not keep this process alive
        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    @property
    def writing(self) -> bool:
        """Whether a checkpoint has been begun that ``wait`` has not told about."""
        return self._thread is not None

    @property
    def settled(self) -> bool:
        """Whether this rank has written what was last saved, and ``wait`` has not told yet."""
        return self._thread is not None and self._ended.is_set()

    def wait(self) -> Outcome | None:
        """What became of the checkpoint that is being written, once it is; None when there is none."""
        if self._thread is None:
            return None
        begun = time.perf_counter()
        self._ended.wait()
        self._thread.join()  # it still frees its copy; a process that ends meanwhile would be aborted
        self._thread, result = None, self._result
        if isinstance(result, BaseException):
            raise result
        assert result is not None
        waited = time.perf_counter() - begun
        return Outcome(result.step, result.problem, result.stalled + waited, result.seconds)

    def finish(self, seconds: float) -> None:
        """Gives a checkpoint that is being written some time, whatever becomes of it. Any rank may call it alone."""
        if self._thread is not None and self._ended.wait(seconds):
            self._thread.join()

    def discard_old(self) -> None:
        """Removes all but the newest and the best, once another one is the best. None is being written."""
        assert self._thread is None, "the checkpoint before has not been waited for"
        if self.peers.rank == 0:
            self._discard_old(_folders(self.root))

    def _write(self, step: int, pieces: Mapping[str, Piece], values: Mapping[str, Any]) -> str | None:
        """This rank's file; then, on rank 0, the whole. None, or why there is no checkpoint: the same on every rank."""
        partial = self.root / f"{HIDDEN}{step:08d}"
        name = f"shard-{self.peers.rank + 1:05d}-of-{self.peers.world:05d}.safetensors"
        files, problem = {}, None
        try:
            partial.mkdir(parents=True, exist_ok=True)
            if pieces:
                shards.write(partial / name, pieces)
                _flush(partial / name)
                files[name] = _checksum(partial / name)
        except (OSError, SafetensorError) as error:
            problem = f"rank {self.peers.rank}: {error}"
        reports = self.peers.gather((files, problem))
        return self.peers.from_main(lambda: self._complete(step, partial, reports, values))

    def _complete(
        self,
        step: int,
        partial: Path,
        reports: Sequence[tuple[dict[str, int], str | None]],
        values: Mapping[str, Any],
    ) -> str | None:
        problem = next((problem for _, problem in reports if problem), None)
        files = {name: checksum for written, _ in reports for name, checksum in written.items()}
        if problem is None:
            problem = next((_unseen(name) for name in files if not (partial / name).is_file()), None)
        try:
            if problem is None:
                self._commit(step, partial, files, values)
                return None
        except OSError as error:
            problem = str(error)
        shutil.rmtree(partial, ignore_errors=True)
        return problem

    def _commit(self, step: int, partial: Path, files: dict[str, int], values: Mapping[str, Any]) -> None:
        (partial / VALUES).write_text(json.dumps({"step": step, **values}))
        marker = {"files": files | {VALUES: _checksum(partial / VALUES)}}
        (partial / MARKER).write_text(json.dumps(marker))
        for path in (partial / VALUES, partial / MARKER, partial):
            _flush(path)
        final = self.root / checkpoint_name(step)
        _discard(final)  # one that was passed over as damaged, else the run would not come by this step again
        os.replace(partial, final)
        _flush(self.root)
        folders = _folders(self.root)
        mine = folders.index(final) + 1
        self.best.note()
        self._discard_old(folders[:mine])
        for damaged in folders[mine:]:  # of later steps, passed over: left there, they would push out good ones
            _discard(damaged)

    def _discard_old(self, folders: Sequence[Path]) -> None:
        """Removes all but the last ``keep`` of these and the best."""
        kept = self.best.kept()
        for old in folders[: -self.keep]:
            if old.name not in kept:
                _discard(old)


def steps(root: Path) -> list[int]:
    """Steps of the checkpoints in a folder, in order."""
    return list(checkpoints_in(root))


def read(root: Path, step: int) -> Found:
    """The checkpoint of a step, of a run that may go on meanwhile: nothing is changed.

    Raises:
        ResumeError: when there is none, or it is damaged.
    """
    folder = root / checkpoint_name(step)
    if not folder.is_dir():
        there = ", ".join(map(str, steps(root))) or "none"
        raise ResumeError(f"{root} has no checkpoint of step {step}; there are: {there}")
    files, problem = _marked(folder)
    problem = problem or _damage(folder, sorted(files.items()))
    if problem is not None:
        others = ", ".join(str(other) for other in steps(root) if other != step) or "none"
        raise ResumeError(f"{folder}: {problem}\n  fix: choose another one (--checkpoint); there are: {others}")
    tensors = SavedTensors([folder / file for file in sorted(files) if file != VALUES])
    return Found(folder, step, tensors, json.loads((folder / VALUES).read_text()))


def _tidy(root: Path) -> list[str]:
    """Removes what was left half-written; names of the checkpoints, newest first."""
    remove_partials(root)
    for partial in root.glob(f"{HIDDEN}*"):
        shutil.rmtree(partial, ignore_errors=True)
        partial.unlink(missing_ok=True) if partial.is_file() else None
    return [folder.name for folder in reversed(_folders(root))]


def _marked(folder: Path) -> tuple[dict[str, int], str | None]:
    """File names with their checksums, and what is wrong with the marker."""
    if not (folder / MARKER).exists():
        return {}, "no completion marker"
    marker, problem = read_json(folder / MARKER, OF_MARKER)
    if problem is not None:
        return {}, f"{problem}, or of another version of beni"
    files = marker["files"]
    return files, None if VALUES in files else f"{MARKER} does not list {VALUES}"


def _damage(folder: Path, files: Sequence[tuple[str, int]]) -> str | None:
    for name, checksum in files:
        if not (folder / name).is_file():
            return f"{name} is missing"
        if _checksum(folder / name) != checksum:
            return f"{name} does not have the checksum it was saved with"
    return None


def _unseen(name: str) -> str:
    return f"rank 0 does not see {name}, which another rank has written; paths.runs must lie on a disk that all share"


def _discard(folder: Path) -> None:
    """Removes a checkpoint; killed in between, what is left does not look like one."""
    if folder.is_dir():
        hidden = folder.with_name(f"{HIDDEN}old_{folder.name}")
        shutil.rmtree(hidden, ignore_errors=True)
        os.replace(folder, hidden)
        shutil.rmtree(hidden, ignore_errors=True)


def _folders(root: Path) -> list[Path]:
    return list(checkpoints_in(root).values())


def _on_gpu(tensors: Mapping[str, Tensor]) -> bool:
    return any(tensor.is_cuda for tensor in tensors.values())


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
