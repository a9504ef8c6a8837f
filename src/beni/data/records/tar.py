"""WebDataset: tar files whose neighbouring members of one basename make up a record.

A member ``0001.seg.png`` has the basename ``0001`` and becomes the key ``seg.png``. Where members lie is found once and
kept in the cache; a record is then read without unpacking anything.
"""

from __future__ import annotations

import hashlib
import json
import os
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from beni.data.records.base import Row, Rows, any_has, files_fingerprint
from beni.errors import DataError
from beni.paths import cache_dir

TEXTS = ("txt", "text", "caption", "transcript")
NUMBERS = ("cls", "index")
SCHEMA = pa.schema(
    {
        "file": pa.int32(),
        "key": pa.string(),
        "endings": pa.list_(pa.string()),
        "offsets": pa.list_(pa.int64()),
        "sizes": pa.list_(pa.int64()),
    }
)


class TarRows(Rows):
    """Records of tar files, uncompressed.

    Raises:
        DataError: when a file is no tar or holds no member.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files, self.title = list(files), str(files[0])
        self._digest = files_fingerprint(files)
        dates = " ".join(f"{status.st_mtime_ns} {status.st_ctime_ns}" for status in map(Path.stat, files))
        key = hashlib.sha256(f"{self._digest} {dates}".encode()).hexdigest()[:20]
        self._stored = cache_dir() / "rows" / f"{key}-tar.arrow"
        if not self._stored.is_file():
            self._write()
        self._table: pa.Table | None = None
        self._count = len(self._open())
        if self._count == 0:
            raise DataError(f"data.path: {files[0]} holds no member\n  fix: set data.path to other tar files")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_table": None}

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Row:
        found = self._open().slice(number, 1).to_pylist()[0]
        row: Row = {"__key__": found["key"]}
        with self.files[found["file"]].open("rb") as file:
            for ending, offset, size in zip(found["endings"], found["offsets"], found["sizes"], strict=True):
                file.seek(offset)
                row[ending] = self._value(ending, file.read(size), number)
        return row

    def where(self, number: int) -> str:
        found = self._open().slice(number, 1).to_pylist()[0]
        return f"{self.files[found['file']]}, {found['key']}"

    def fingerprint(self) -> str:
        return self._digest

    def has(self, column: str) -> bool:
        return any_has(self, column)

    def _value(self, ending: str, data: bytes, number: int) -> Any:
        last = ending.rpartition(".")[2]
        try:
            if last == "json":
                return json.loads(data)
            if last in TEXTS:
                return data.decode("utf-8-sig")  # some editors begin a text with a byte order mark
            if last in NUMBERS:
                return int(data)
        except ValueError as error:
            raise DataError(
                f"{self.where(number)}.{ending}: {error}\n  fix: correct the member, or remove its record from the tar"
            ) from error
        return data

    def _open(self) -> pa.Table:
        if self._table is None:
            with pa.memory_map(str(self._stored)) as file:
                self._table = pa.ipc.open_file(file).read_all()
        return self._table

    def _write(self) -> None:
        self._stored.parent.mkdir(parents=True, exist_ok=True)
        partial = self._stored.with_suffix(f".{os.getpid()}.partial")
        try:
            with pa.ipc.new_file(str(partial), SCHEMA) as writer:
                for number, file in enumerate(self.files):  # one at a time: a million records are a gigabyte as objects
                    writer.write_table(pa.Table.from_pylist(list(_members(number, file)), SCHEMA))
            os.replace(partial, self._stored)
        finally:
            partial.unlink(missing_ok=True)


def _members(number: int, path: Path) -> Iterator[dict[str, Any]]:
    current: dict[str, Any] | None = None
    seen: set[str] = set()
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if not member.isfile() or not ending or not stem:
                    continue
                key = f"{folder}/{stem}" if folder else stem
                if current is None or current["key"] != key:
                    if current is not None:
                        yield current
                    if key in seen:
                        raise DataError(
                            f"{path}: members of {key} are not contiguous, as WebDataset requires\n"
                            "  fix: tar --sort=name"
                        )
                    seen.add(key)
                    current = {"file": number, "key": key, "endings": [], "offsets": [], "sizes": []}
                current["endings"].append(ending.lower())
                current["offsets"].append(member.offset_data)
                current["sizes"].append(member.size)
    except tarfile.TarError as error:
        raise DataError(
            f"{path} is no uncompressed tar file: {error}\n  fix: gunzip it; records are read at random access"
        ) from error
    if current is not None:
        yield current
