"""The index: what a schedule must know of every sample, without a pixel being decoded.

Built once for a source, a template and a tokenizer, in shards by worker processes, and kept on disk as Arrow files: a
build that is killed goes on with the shards it lacks. Its columns do not depend on the visual path: tokens are counted
without those of images, and sizes of pictures stand beside them where an image's tokens follow from its size. So every
arm of a study shares one index.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather as feather
from filelock import FileLock
from torch import Generator
from torch.utils.data import DataLoader, Dataset

from beni.data.images import size_if_any
from beni.data.render.template import Renderer
from beni.data.sample import Bind, at_hand
from beni.data.source import Source
from beni.errors import DataError
from beni.paths import cache_dir
from beni.types import IGNORE

SHARD = 8192
"""Samples of one file."""
SHOWN = 5
"""Bad samples that an error names."""
ENOUGH = 200
"""Bad samples after which a build gives up."""
FEW_BAD = 10
"""So many bad samples end no run that skips them, whatever their share."""
VERSION = 2

Progress = Callable[[int, int], None]
"""Called with samples done and samples altogether."""


@dataclass(frozen=True)
class Columns:
    """One row a sample; sizes one row an image.

    Attributes:
        text: tokens without those that stand for images.
        labels: supervised tokens.
        images: pictures.
        digest: hash of text and picture keys, equal for equal content.
        bad: 1 for a sample that cannot be used, of which nothing else is known; else 0.
        starts: sample ``i`` owns rows ``starts[i]`` to ``starts[i + 1]`` of ``sizes``.
        sizes: (height, width) in pixels, (0, 0) for a picture that cannot be opened; empty where no one asked.
    """

    text: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    digest: np.ndarray
    bad: np.ndarray
    starts: np.ndarray
    sizes: np.ndarray

    def __len__(self) -> int:
        return len(self.text)

    def take(self, rows: np.ndarray) -> Columns:
        """Chosen samples, in the order of ``rows``."""
        sized = len(self.sizes) > 0
        counts = self.images[rows] if sized else np.zeros(len(rows), dtype=np.int64)
        starts = np.concatenate([[0], np.cumsum(counts)])
        places = np.repeat(self.starts[:-1][rows] - starts[:-1], counts) + np.arange(starts[-1])
        values = {name: getattr(self, name)[rows] for name in ("text", "labels", "images", "digest", "bad")}
        return Columns(**values, starts=starts, sizes=self.sizes[places] if sized else self.sizes)

    @staticmethod
    def join(parts: list[Columns]) -> Columns:
        """One after another."""
        counts = np.concatenate([np.diff(part.starts) for part in parts])
        values = {
            one.name: np.concatenate([getattr(part, one.name) for part in parts])
            for one in fields(Columns)
            if one.name != "starts"
        }
        return Columns(**values, starts=np.concatenate([[0], np.cumsum(counts)]))


@dataclass(frozen=True)
class Index:
    """Columns of a source's training samples, by epoch where they differ between epochs.

    Attributes:
        sized: whether sizes of pictures are read; their headers suffice.
        workers: processes that build.
        progress: told how far a build is.
        bind: how pictures of the source can be opened.
        max_bad: share of bad samples that is put up with; None puts up with none.
        trusted: folders of indices that this run has held against the files they were measured on.
    """

    source: Source
    renderer: Renderer
    sized: bool
    workers: int = 0
    progress: Progress | None = None
    bind: Bind = at_hand
    max_bad: float | None = None
    trusted: set[str] = field(default_factory=set, compare=False)

    def __getstate__(self) -> dict[str, object]:
        """Loader workers get everything but the progress bar of the main process."""
        return {**self.__dict__, "progress": None, "workers": 0}

    def columns(self, epoch: int) -> Columns:
        """What the index knows of all samples of an epoch.

        Raises:
            DataError: naming the first faulty samples, each with its place and fix.
        """
        parts = []
        for source, epochs, rows in self.source.parts(epoch):
            if source is self.source:
                return self._whole(source, epoch)
            which = epochs if source.varies else np.zeros_like(epochs)
            drawn, inverse = np.unique(which, return_inverse=True)
            whole = {int(one): self._whole(source, int(one)) for one in drawn}
            if len(whole) == 1:
                parts.append(next(iter(whole.values())).take(rows))
            else:
                offsets = np.cumsum([0, *(len(one) for one in whole.values())])
                parts.append(Columns.join(list(whole.values())).take(offsets[inverse] + rows))
        return Columns.join(parts)

    def mean_tokens(self, source: Source) -> float:
        """Tokens of a sample of ``source``, those of images left out."""
        columns = self._whole(source, 0)
        return float(columns.text[columns.bad == 0].mean())

    def _whole(self, source: Source, epoch: int) -> Columns:
        epoch = epoch if source.varies else 0
        located = source.located if self.sized else ""
        key = f"{VERSION} {source.fingerprint()} {self.renderer.hash()} {located} {self.sized} {epoch} {len(source)}"
        folder = cache_dir() / "index" / hashlib.sha256(key.encode()).hexdigest()[:20]
        shards = -(-len(source) // SHARD)
        files = [folder / f"{shard:06d}.arrow" for shard in range(shards)]
        # looked at once by a run: its processes must not disagree about sizes that change meanwhile
        if folder.name not in self.trusted or not all(file.is_file() for file in files):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):  # ranks and runs that want the same index wait for the one that builds
                missing = [
                    shard
                    for shard, file in enumerate(files)
                    if not (file.is_file() and self._holds(source, epoch, file))
                ]
                self._build(source, epoch, missing, files)
            self.trusted.add(folder.name)
        columns = Columns.join([_read(file) for file in files])
        self._require_good(source, epoch, np.flatnonzero(columns.bad).tolist(), len(columns))
        return columns

    def _holds(self, source: Source, epoch: int, file: Path) -> bool:
        """Whether a shard is as it would be built now: its pictures as they were measured, bad samples still bad."""
        if self.sized and not _unchanged(_seen_file(file)):
            return False
        first = int(file.stem) * SHARD
        bad = np.flatnonzero(_read(file).bad)
        return all(self.fault(source, first + int(index), epoch) is not None for index in bad[:SHOWN])

    def _build(self, source: Source, epoch: int, missing: list[int], files: list[Path]) -> None:
        bad: list[int] = []
        done = len(source) - sum(min(SHARD, len(source) - shard * SHARD) for shard in missing)
        for shard, (columns, seen) in zip(missing, self._shards(source, epoch, missing), strict=False):
            bad += (np.flatnonzero(columns.bad) + shard * SHARD).tolist()
            files[shard].unlink(missing_ok=True)  # until what it was measured on stands beside it
            _replace(_seen_file(files[shard]), seen)
            _replace(files[shard], _table(columns))
            done += len(columns)
            if self.progress is not None:
                self.progress(done, len(source))
            if len(bad) >= ENOUGH and self.max_bad is None:
                break
        self._require_good(source, epoch, bad, done)

    def _require_good(self, source: Source, epoch: int, bad: Sequence[int], done: int) -> None:
        """Return where there are no more bad samples than the index puts up with.

        Raises:
            DataError: naming the first.
        """
        if not bad or (self.max_bad is not None and len(bad) <= max(FEW_BAD, self.max_bad * done) and len(bad) < done):
            return
        faults = [str(self.fault(source, index, epoch)) for index in bad[:SHOWN]]
        more = f"\n... and {len(bad) - SHOWN} more" if len(bad) > SHOWN else ""
        if self.max_bad is None:
            fix = "\n  fix: correct the records, or set records.on_bad=skip to train without them"
        else:
            fix = f"\n  fix: correct the records, or raise records.max_bad={self.max_bad}"
        raise DataError(f"{len(bad)} of the first {done} samples cannot be used\n" + "\n".join(faults) + more + fix)

    def fault(self, source: Source, index: int, epoch: int) -> DataError | None:
        """What is wrong with a sample; None where nothing is."""
        try:
            sample = self.bind(source.train(index, epoch if source.varies else 0))
            self.renderer.encode(sample, [()] * len(sample.images), fit=False)
        except DataError as error:
            return error
        return None

    def _shards(self, source: Source, epoch: int, missing: list[int]) -> Iterator[tuple[Columns, pa.Table]]:
        return iter(
            DataLoader(
                _Shards(source, self.renderer, self.sized, epoch, self.bind),
                batch_size=None,
                sampler=missing,
                num_workers=min(self.workers, len(missing)) if len(missing) > 1 else 0,
                generator=Generator(),  # else torch's global generator would be drawn from
            )
        )


@dataclass(frozen=True)
class _Shards(Dataset[tuple[Columns, pa.Table]]):
    """Shard number -> its columns, and the files whose sizes in pixels are among them."""

    source: Source
    renderer: Renderer
    sized: bool
    epoch: int
    bind: Bind

    def __getitem__(self, shard: int) -> tuple[Columns, pa.Table]:
        rows, sizes = [], []
        seen: dict[str, tuple[int, int, int]] = {}
        for index in range(shard * SHARD, min((shard + 1) * SHARD, len(self.source))):
            try:
                sample = self.bind(self.source.train(index, self.epoch))
                images = sample.images
                encoded = self.renderer.encode(sample, [()] * len(images), fit=False)
            except DataError:
                rows.append((0, 0, 0, 0, 1))
                continue
            digest = hashlib.blake2b(encoded.ids.tobytes(), digest_size=8)
            for image in images:
                digest.update(image.key.encode(errors="surrogatepass"))
            labels = int((encoded.labels[1:] != IGNORE).sum())
            rows.append((len(encoded.ids), labels, len(images), int.from_bytes(digest.digest(), "little"), 0))
            for image in images if self.sized else ():
                if image.path is not None:
                    seen.setdefault(image.path, _status(image.path))  # before it is read: a later change shows
                sizes.append(size_if_any(image))
        table = np.array(rows, dtype=np.uint64).reshape(-1, 5)
        text, labels, images, bad = (table[:, i].astype(np.int64) for i in (0, 1, 2, 4))
        counts = images if self.sized else np.zeros_like(images)
        starts = np.concatenate([[0], np.cumsum(counts)])
        sized = np.array(sizes, dtype=np.int64).reshape(-1, 2)
        return Columns(text, labels, images, table[:, 3], bad, starts, sized), _seen_table(seen)


def _status(path: str | bytes) -> tuple[int, int, int]:
    """Bytes of a file and when it was last written and replaced, in nanoseconds; -1 where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return -1, -1, -1
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _seen_file(shard: Path) -> Path:
    """The files that a shard was measured on."""
    return shard.with_suffix(".seen")


def _seen_table(seen: Mapping[str, tuple[int, int, int]]) -> pa.Table:
    names = pa.array([os.fsencode(path) for path in seen], pa.binary())
    numbers = np.array(list(seen.values()), dtype=np.int64).reshape(-1, 3)
    return pa.table({"path": names, **{name: numbers[:, i] for i, name in enumerate(("bytes", "written", "replaced"))}})


def _unchanged(seen: Path) -> bool:
    """Whether all files are as they were; 3 microseconds each on a local disk."""
    if not seen.is_file():
        return False
    table = feather.read_table(str(seen))
    before = zip(*(table[name].to_pylist() for name in ("bytes", "written", "replaced")), strict=True)
    return all(_status(path) == was for path, was in zip(table["path"].to_pylist(), before, strict=True))


def _replace(path: Path, table: pa.Table) -> None:
    partial = path.with_suffix(f"{path.suffix}.{os.getpid()}.partial")
    feather.write_feather(table, str(partial), compression="zstd")
    os.replace(partial, path)


def _table(columns: Columns) -> pa.Table:
    """Counts fit 32 bits; two files in one would be needed for sizes, so those of a sample stand in one list."""
    sizes = [
        columns.sizes[a:b].ravel().astype(np.int32)
        for a, b in zip(columns.starts[:-1].tolist(), columns.starts[1:].tolist(), strict=True)
    ]
    return pa.table(
        {
            "text": columns.text.astype(np.int32),
            "labels": columns.labels.astype(np.int32),
            "images": columns.images.astype(np.int32),
            "digest": columns.digest,
            "bad": columns.bad.astype(np.int8),
            "sizes": pa.array(sizes, pa.list_(pa.int32())),
        }
    )


def _read(path: Path) -> Columns:
    table = feather.read_table(str(path))
    names = ("text", "labels", "images", "bad", "digest")
    text, labels, images, bad, digest = (table[name].to_numpy() for name in names)
    lists = table["sizes"].combine_chunks()
    starts = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))]) // 2
    sizes = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)
    text, labels, images, bad = (column.astype(np.int64) for column in (text, labels, images, bad))
    return Columns(text, labels, images, digest.astype(np.uint64), bad, starts.astype(np.int64), sizes.astype(np.int64))
