"""Parquet, arrow, csv and sets of the Hugging Face hub, through ``datasets``: mapped from disk, pictures encoded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from filelock import FileLock

from beni import hub
from beni.data.rows import HUB, Row, Rows, files_fingerprint
from beni.errors import DataError
from beni.paths import cache_dir

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}
CHUNK = 512
"""Rows written at once when a stream is kept."""


class TableRows(Rows):
    """Rows of a ``datasets.Dataset``."""

    def __init__(self, table: Dataset, name: str, fingerprint: str) -> None:
        # as arrow, pictures are bytes or a path: they are decoded when their sample is drawn, if at all
        self.table, self.name, self._fingerprint = table.with_format("arrow"), name, fingerprint

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Row:
        try:
            return self.table[number].to_pylist()[0]
        except Exception as error:  # arrow raises anything for a damaged file
            raise DataError(f"{self.where(number)}: {type(error).__name__}: {error}") from error

    def where(self, number: int) -> str:
        return f"{self.name}, row {number}"

    def fingerprint(self) -> str:
        return self._fingerprint


def from_files(files: Sequence[Path], rows: int | None) -> Rows:
    """Files of one kind.

    Raises:
        DataError: when they cannot be read.
    """
    fingerprint = files_fingerprint(files)
    builder = BUILDERS[files[0].suffix.lower()]
    names = [str(file) for file in files]
    name = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"
    if rows is not None:
        stream = _loaded(name, builder, data_files=names, split="train", streaming=True)
        return _kept(stream, rows, name, f"{fingerprint}-{rows}")
    return TableRows(_loaded(name, builder, data_files=names, split="train"), name, fingerprint)


def from_saved(folder: Path, split: str) -> Rows:
    """What ``save_to_disk`` has written.

    Raises:
        DataError: when it has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    table = load_from_disk(str(folder))
    if isinstance(table, DatasetDict):
        if split not in table:
            raise DataError(f"data.split={split}: {folder} has {', '.join(map(str, table))}")
        table, folder = table[split], folder / split
    return TableRows(table, str(folder), files_fingerprint(sorted(folder.glob("data-*.arrow"))))


def from_hub(name: str, subset: str | None, split: str, rows: int | None) -> Rows:
    """A set of the hub.

    Raises:
        DataError: when it is neither in the cache nor reachable, or has no such subset or split.
    """
    from datasets import DownloadConfig
    from huggingface_hub import constants

    shown = f"{HUB}{name}{f', {subset}' if subset else ''}, {split}"
    host = urlsplit(constants.ENDPOINT).hostname or constants.ENDPOINT
    offline = constants.HF_HUB_OFFLINE or not hub.reachable(host)
    options: dict[str, Any] = {"name": subset, "split": split}
    try:
        if rows is not None:
            key = hashlib.sha256(f"{name} {subset} {split}".encode()).hexdigest()[:16]
            kept = _spool(f"{key}-{rows}")
            if kept.is_file():
                return _from_spool(kept, shown, f"{key}-{rows}")
            if offline:
                raise OSError(f"{host} cannot be reached")
            return _kept(_loaded(shown, name, streaming=True, **options), rows, shown, f"{key}-{rows}")
        table = _loaded(shown, name, download_config=DownloadConfig(local_files_only=offline), **options)
    except (DataError, OSError) as error:
        if not offline:
            raise
        raise DataError(
            f"data.path={HUB}{name} is not in the cache, and "
            + ("HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{host} cannot be reached")
            + "\n  fix: run once where there is a network, or set data.path to a local copy "
            f"(hf download {name} --repo-type dataset --local-dir ...)"
        ) from error
    return TableRows(table, shown, str(table._fingerprint))


def _loaded(shown: str, *arguments: Any, **options: Any) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(*arguments, **options)
    except Exception as error:  # the builders raise anything
        said = str(error).strip().splitlines() or [""]
        raise DataError(f"data.path: {shown} cannot be read: {type(error).__name__}: {said[0]}") from error


def _spool(key: str) -> Path:
    return cache_dir() / "spool" / f"{key}.parquet"


def _kept(stream: IterableDataset, rows: int, shown: str, key: str) -> Rows:
    """The first rows of a stream, written to the cache once for all processes."""
    import pyarrow.parquet as parquet

    path = _spool(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            partial = path.with_suffix(f".{os.getpid()}.partial")
            writer = None
            for table in _tables(stream, rows):
                if writer is None:
                    writer = parquet.ParquetWriter(partial, table.schema)
                writer.write_table(table.cast(writer.schema))
            if writer is None:
                raise DataError(f"data.path: {shown} has no rows")
            writer.close()
            os.replace(partial, path)
    return _from_spool(path, shown, key)


def _tables(stream: IterableDataset, rows: int) -> Iterator[Any]:
    left = rows
    for table in stream.with_format("arrow").iter(batch_size=CHUNK):
        yield table.slice(0, left)
        left -= len(table)
        if left <= 0:
            return


def _from_spool(path: Path, shown: str, key: str) -> Rows:
    table = _loaded(shown, "parquet", data_files=[str(path)], split="train")
    return TableRows(table, shown, hashlib.sha256(key.encode()).hexdigest()[:16])
