"""The index: what a schedule must know of every sample, without a pixel being decoded.

Built once for a source, a template and a tokenizer, in shards by worker processes, and kept on disk as Arrow files: a
build that is killed goes on with the shards it lacks. Its columns do not depend on the visual path: tokens are counted
without those of images, and sizes of pictures stand beside them where an image's tokens follow from its size. So every
arm of a study shares one index.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
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
"""Faulty samples that an error names."""
ENOUGH = 200
"""Faulty samples after which a build gives up."""
VERSION = 1

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
        starts: sample ``i`` owns rows ``starts[i]`` to ``starts[i + 1]`` of ``sizes``.
        sizes: (height, width) in pixels, (0, 0) for a picture that cannot be opened; empty where no one asked.
    """

    text: np.ndarray
    labels: np.ndarray
    images: np.ndarray
    digest: np.ndarray
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
        values = {name: getattr(self, name)[rows] for name in ("text", "labels", "images", "digest")}
        return Columns(**values, starts=starts, sizes=self.sizes[places] if sized else self.sizes)

    @staticmethod
    def join(parts: list[Columns]) -> Columns:
        """One after another."""
        counts = np.concatenate([np.diff(part.starts) for part in parts])
        values = {
            field.name: np.concatenate([getattr(part, field.name) for part in parts])
            for field in fields(Columns)
            if field.name != "starts"
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
    """

    source: Source
    renderer: Renderer
    sized: bool
    workers: int = 0
    progress: Progress | None = None
    bind: Bind = at_hand

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
        return float(self._whole(source, 0).text.mean())

    def _whole(self, source: Source, epoch: int) -> Columns:
        epoch = epoch if source.varies else 0
        key = f"{VERSION} {source.fingerprint()} {self.renderer.hash()} {self.sized} {epoch} {len(source)}"
        folder = cache_dir() / "index" / hashlib.sha256(key.encode()).hexdigest()[:20]
        shards = -(-len(source) // SHARD)
        files = [folder / f"{shard:06d}.arrow" for shard in range(shards)]
        if not all(file.is_file() for file in files):
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / ".lock"):  # ranks and runs that want the same index wait for the one that builds
                missing = [shard for shard, file in enumerate(files) if not file.is_file()]
                self._build(source, epoch, missing, files)
        return Columns.join([_read(file) for file in files])

    def _build(self, source: Source, epoch: int, missing: list[int], files: list[Path]) -> None:
        faults: list[str] = []
        done = len(source) - sum(min(SHARD, len(source) - shard * SHARD) for shard in missing)
        for shard, (columns, found) in zip(missing, self._shards(source, epoch, missing), strict=False):
            faults += found
            if columns is not None:
                partial = files[shard].with_suffix(f".{os.getpid()}.partial")
                _write(columns, partial)
                os.replace(partial, files[shard])
            done += min(SHARD, len(source) - shard * SHARD)
            if self.progress is not None:
                self.progress(done, len(source))
            if len(faults) >= ENOUGH:
                break
        if faults:
            more = f"\n... and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
            raise DataError(
                f"{len(faults)} of the first {done} samples cannot be used\n" + "\n".join(faults[:SHOWN]) + more
            )

    def _shards(self, source: Source, epoch: int, missing: list[int]) -> Iterator[tuple[Columns | None, list[str]]]:
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
class _Shards(Dataset[tuple[Columns | None, list[str]]]):
    """Shard number -> its columns, or None and what is wrong with its samples."""

    source: Source
    renderer: Renderer
    sized: bool
    epoch: int
    bind: Bind

    def __getitem__(self, shard: int) -> tuple[Columns | None, list[str]]:
        rows, sizes, faults = [], [], []
        for index in range(shard * SHARD, min((shard + 1) * SHARD, len(self.source))):
            try:
                sample = self.bind(self.source.train(index, self.epoch))
                images = sample.images
                encoded = self.renderer.encode(sample, [()] * len(images), fit=False)
            except DataError as error:
                faults.append(str(error))
                if len(faults) >= ENOUGH:
                    break
                continue
            digest = hashlib.blake2b(encoded.ids.tobytes(), digest_size=8)
            for image in images:
                digest.update(image.key.encode(errors="surrogatepass"))
            labels = int((encoded.labels[1:] != IGNORE).sum())
            rows.append((len(encoded.ids), labels, len(images), int.from_bytes(digest.digest(), "little")))
            sizes += [size_if_any(image) for image in images] if self.sized else []
        if faults:
            return None, faults
        table = np.array(rows, dtype=np.uint64).reshape(-1, 4)
        text, labels, images = (table[:, i].astype(np.int64) for i in range(3))
        counts = images if self.sized else np.zeros_like(images)
        starts = np.concatenate([[0], np.cumsum(counts)])
        return Columns(text, labels, images, table[:, 3], starts, np.array(sizes, dtype=np.int64).reshape(-1, 2)), []


def _write(columns: Columns, path: Path) -> None:
    """Counts fit 32 bits; two files in one would be needed for sizes, so those of a sample stand in one list."""
    sizes = [
        columns.sizes[a:b].ravel().astype(np.int32)
        for a, b in zip(columns.starts[:-1].tolist(), columns.starts[1:].tolist(), strict=True)
    ]
    table = pa.table(
        {
            "text": columns.text.astype(np.int32),
            "labels": columns.labels.astype(np.int32),
            "images": columns.images.astype(np.int32),
            "digest": columns.digest,
            "sizes": pa.array(sizes, pa.list_(pa.int32())),
        }
    )
    feather.write_feather(table, str(path), compression="zstd")


def _read(path: Path) -> Columns:
    table = feather.read_table(str(path))
    text, labels, images, digest = (table[name].to_numpy() for name in ("text", "labels", "images", "digest"))
    lists = table["sizes"].combine_chunks()
    starts = np.concatenate([[0], np.cumsum(lists.value_lengths().to_numpy(zero_copy_only=False))]) // 2
    sizes = lists.flatten().to_numpy(zero_copy_only=False).reshape(-1, 2)
    wide = (column.astype(np.int64) for column in (text, labels, images))
    return Columns(*wide, digest.astype(np.uint64), starts.astype(np.int64), sizes.astype(np.int64))
