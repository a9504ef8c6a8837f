"""Parquet, arrow, csv and sets of the Hugging Face hub, through ``datasets``: mapped from disk, pictures encoded."""

from __future__ import annotations

import csv
import hashlib
import os
import re
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

import pyarrow as pa
from filelock import FileLock

from beni import hub
from beni.data.records.base import Row, Rows, files_fingerprint
from beni.data.records.splits import canonical, pick
from beni.errors import DataError
from beni.paths import cache_dir

HUB = "hf://datasets/"

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

BUILDERS = {".parquet": "parquet", ".arrow": "arrow", ".csv": "csv"}
CHUNK = 64
"""Rows held in memory when a stream is kept; with pictures in them some 10 MB."""
LOOK = "fix: check data.path, data.subset and data.split, and whether the files are complete"


class TableRows(Rows):
    """Rows of a ``datasets.Dataset``."""

    def __init__(self, table: Dataset, name: str, fingerprint: str) -> None:
        # as arrow, pictures are bytes or a path: they are decoded when their sample is drawn, if at all
        self.table, self.title, self._fingerprint = table.with_format("arrow"), name, fingerprint
        self._named = {column: named for column, kind in table.features.items() if (named := _names_in(kind))}

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, number: int) -> Row:
        try:
            row = cast(pa.Table, self.table[number]).to_pylist()[0]
            return row | {column: named(row[column]) for column, named in self._named.items()}
        except Exception as error:  # arrow raises anything for a damaged file
            raise DataError(f"{self.where(number)}: {type(error).__name__}: {error}") from error

    def where(self, number: int) -> str:
        return f"{self.title}, row {number}"

    def fingerprint(self) -> str:
        return self._fingerprint

    def has(self, column: str) -> bool:
        return column in self.table.column_names


def _names_in(kind: Any) -> Callable[[Any], Any] | None:
    """What writes names in the place of the numbers of labels (``ClassLabel``); None for columns without any."""
    from datasets import ClassLabel

    if isinstance(kind, ClassLabel):
        return partial(_label, kind.names)
    if (inner := getattr(kind, "feature", None)) is not None or isinstance(kind, list):
        named = _names_in(kind[0] if isinstance(kind, list) else inner)
        return None if named is None else partial(_labels, named)
    return None


def _label(names: Sequence[str], number: int | None) -> str | None:
    return None if number is None or number < 0 else names[number]  # -1 is how hidden labels of test sets are written


def _labels(named: Callable[[Any], Any], many: Sequence[Any] | None) -> list[Any] | None:
    return None if many is None else [named(one) for one in many]


def from_files(files: Sequence[Path]) -> Rows:
    """Files of one kind.

    Raises:
        DataError: when they cannot be read.
    """
    name, where = _names(files)
    return TableRows(_loaded(name, **where), name, files_fingerprint(files))


def first_of_files(files: Sequence[Path], rows: int) -> Rows:
    """The first rows of files of one kind, streamed and kept.

    Raises:
        DataError: when they cannot be read.
    """
    name, where = _names(files)
    return _kept(_loaded(name, **where, streaming=True), rows, name, f"{files_fingerprint(files)}-{rows}")


def _names(files: Sequence[Path]) -> tuple[str, dict[str, Any]]:
    """What errors call the files, and what ``datasets`` must know of them."""
    names = [str(file) for file in files]
    where: dict[str, Any] = {"path": BUILDERS[files[0].suffix.lower()], "data_files": names, "split": "train"}
    if where["path"] == "csv":
        where |= _csv_as_written(files)
    return names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more", where


def _csv_as_written(files: Sequence[Path]) -> dict[str, Any]:
    """Settings by which every cell of a csv file is the text that stands there: ``3``, ``NA``, ``false``, nothing.

    Raises:
        DataError: when a file is not UTF-8, has no header, or a column twice.
    """
    from datasets import Features, Value

    headers = [_header(file) for file in files]
    for file, columns in zip(files, headers, strict=True):
        twice = [name for name, count in Counter(columns).items() if count > 1]
        if twice or set(columns) != set(headers[0]) or not columns:
            what = f"has the column {twice[0]!r} twice" if twice else f"has the columns {', '.join(columns) or 'none'}"
            raise DataError(
                f"data.path: {file} {what}, expected those of {files[0]}, each once\n"
                "  fix: name them in the first line of the file, or set data.path to files of the same columns"
            )
    # pandas has this name for a column without one, such as it writes itself in front
    names = [name or f"Unnamed: {number}" for number, name in enumerate(headers[0])]
    texts = Features({name: Value("string") for name in names})
    return {"features": texts, "keep_default_na": False, "na_filter": False}


def _header(file: Path) -> list[str]:
    """Names of the columns of a csv file; all of it is read, to be sure that it is UTF-8.

    Raises:
        DataError: when it is not; names the line.
    """
    with file.open("rb") as lines:
        for number, line in enumerate(lines):
            try:
                line.decode()
            except UnicodeDecodeError as error:
                raise DataError(
                    f"data.path: {file}, line {number + 1} is not UTF-8 (the byte 0x{line[error.start]:02x} at column "
                    f"{error.start + 1})\n  fix: find out its encoding, perhaps Latin-1, and write it as UTF-8: "
                    f"iconv -f LATIN1 -t UTF-8 {file.name} > utf8.csv"
                ) from error
    with file.open(encoding="utf-8-sig", newline="") as text:
        return next(csv.reader(text), [])


def from_saved(folder: Path, split: str | None) -> Rows:
    """What ``save_to_disk`` has written.

    Raises:
        DataError: when it has no such split.
    """
    from datasets import DatasetDict, load_from_disk

    table = load_from_disk(str(folder))
    if isinstance(table, DatasetDict):
        if split not in table:
            raise DataError(
                f"data.split={split}: {folder} has {', '.join(map(str, table))}\n  fix: set data.split to one of them"
            )
        table, folder = table[split], folder / split
    elif split is not None:
        own = None if table.split is None else re.split(r"[\[+]", str(table.split))[0]
        pick(str(folder), [own if own is None else canonical(own)], split)
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
            + "\n  fix: run once with network access, or set data.path to a local copy "
            f"(hf download {name} --repo-type dataset --local-dir copy, then data.path='copy/**/*.parquet'; data.split "
            "and data.subset choose among its files too)"
        ) from error
    files = [Path(part["filename"]) for part in table.cache_files]
    return TableRows(table, shown, files_fingerprint(files))  # its own hash changes with the files' dates


def _loaded(shown: str, *arguments: Any, **options: Any) -> Any:
    from datasets import load_dataset

    try:
        return load_dataset(*arguments, **options)
    except Exception as error:  # the builders raise anything
        said = str(error).strip().splitlines() or [""]
        raise DataError(f"data.path: {shown} cannot be read: {type(error).__name__}: {said[0]}\n  {LOOK}") from error


def _spool(key: str) -> Path:
    return cache_dir() / "spool" / f"{key}.arrow"


def _kept(stream: IterableDataset, rows: int, shown: str, key: str) -> Rows:
    """The first rows of a stream, written to the cache once for all processes."""
    path = _spool(key)
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            partial = path.with_suffix(f".{os.getpid()}.partial")
            try:
                _write(stream, rows, partial)
                os.replace(partial, path)
            except Exception as error:  # readers of files and networks raise anything
                raise DataError(
                    f"data.path: {shown} cannot be read: {type(error).__name__}: {error}\n  {LOOK}"
                ) from error
            finally:
                partial.unlink(missing_ok=True)
    return _from_spool(path, shown, key)


def _write(stream: IterableDataset, rows: int, path: Path) -> None:
    # what the set says of its columns: a first chunk without a value would say that they have no type
    schema = stream.features.arrow_schema if stream.features else None
    writer: pa.RecordBatchStreamWriter | None = None
    try:
        for chunk in stream.take(rows).with_format("arrow").iter(batch_size=CHUNK):
            table = cast(pa.Table, chunk)  # what the format says
            schema = schema or table.schema
            writer = writer or pa.ipc.new_stream(path, schema)
            writer.write_table(table.select(schema.names).cast(schema))
    finally:
        if writer is not None:
            writer.close()
    if writer is None:
        raise ValueError("it has no rows")


def _from_spool(path: Path, shown: str, key: str) -> Rows:
    from datasets import Dataset

    return TableRows(Dataset.from_file(str(path)), shown, hashlib.sha256(key.encode()).hexdigest()[:16])
