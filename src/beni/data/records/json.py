"""JSON arrays and JSON lines by byte offsets, so that a file of millions of records needs no memory.

Arrow's reader would want one schema for all records, which LLaVA's do not have (ids are numbers here and texts there).
Where records begin is found in one pass over pieces of the file, and kept in the cache.
"""

from __future__ import annotations

import codecs
import hashlib
import json
import os
from array import array
from collections.abc import Iterator
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from beni.data.records.base import Row, Rows, any_has
from beni.errors import DataError
from beni.paths import cache_dir

PIECE = 1 << 24
"""Bytes read at once."""
LONGEST = 1 << 28
"""Characters of a record beyond which a file is taken to be damaged."""
SPACE = " \t\r\n"
BYTE_ORDER_MARK = "\ufeff"
"""Some editors begin a file with it."""


class JsonRows(Rows):
    """Records of a ``.json`` (an array) or ``.jsonl`` file.

    Raises:
        DataError: when the file is in no such form; names it and the record.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.title = path, str(path)
        self._stored, self._digest = _indexed(path)
        self._opened: tuple[np.ndarray, mmap] | None = None
        self._count = len(np.load(self._stored, mmap_mode="r"))

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_opened": None}  # a worker maps the files itself

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> Row:
        spans, content = self._open()
        start, end = map(int, spans[number])
        try:
            return json.loads(content[start:end])
        except ValueError as error:
            raise _damaged(self.path, number, start, str(error)) from error

    def where(self, number: int) -> str:
        return f"{self.path}, record {number}"

    def fingerprint(self) -> str:
        return self._digest

    def has(self, column: str) -> bool:
        return any_has(self, column)

    def _open(self) -> tuple[np.ndarray, mmap]:
        if self._opened is None:
            with self.path.open("rb") as file:
                content = mmap(file.fileno(), 0, access=ACCESS_READ)
            self._opened = np.load(self._stored, mmap_mode="r"), content
        return self._opened


def _indexed(path: Path) -> tuple[Path, str]:
    """The file in the cache that holds (start, end) in bytes of each record, and the hash of the content."""
    status = path.stat()
    times = f"{status.st_mtime_ns} {status.st_ctime_ns}"  # the first can be set, and is by tar, rsync and cp -p
    key = hashlib.sha256(f"1 {path.resolve()} {status.st_size} {times}".encode()).hexdigest()[:20]
    stored, told = cache_dir() / "rows" / f"{key}.npy", cache_dir() / "rows" / f"{key}.txt"
    if not (stored.is_file() and told.is_file()):
        spans = array("q")  # 16 bytes a record; a list of tuples takes ten times as much
        for span in _spans(path):
            spans.extend(span)
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
        stored.parent.mkdir(parents=True, exist_ok=True)
        partial = stored.with_suffix(f".{os.getpid()}.npy")
        np.save(partial, np.frombuffer(spans, dtype=np.int64).reshape(-1, 2))
        os.replace(partial, stored)
        written = told.with_suffix(f".{os.getpid()}.txt")
        written.write_text(digest)
        os.replace(written, told)
    return stored, told.read_text()


def _spans(path: Path) -> Iterator[tuple[int, int]]:
    return _lines(path) if path.suffix.lower() == ".jsonl" else _elements(path)


def _require_object(row: Any, path: Path, number: int) -> None:
    if not isinstance(row, dict):
        raise DataError(
            f"{path}, record {number} is {json.dumps(row)[:40]}, expected an object\n"
            '  fix: write each record with its fields: {"id": ..., ...}'
        )


def _damaged(path: Path, number: int, byte: int, why: str) -> DataError:
    return DataError(
        f"{path} is not valid JSON: record {number} (byte {byte}): {why}\n"
        "  fix: correct the record; where the file was cut while it was copied, copy it again"
    )


def _not_utf8(path: Path, why: UnicodeDecodeError) -> DataError:
    with path.open("rb") as file:
        known = {codecs.BOM_UTF16_LE: "UTF-16LE", codecs.BOM_UTF16_BE: "UTF-16BE"}.get(file.read(2))
    guess = f"it begins as {known} does" if known else f"{why.reason}: the byte 0x{why.object[why.start]:02x}"
    return DataError(
        f"{path} is not valid JSON: it is not UTF-8 ({guess})\n"
        f"  fix: write it as UTF-8: iconv -f {known or 'LATIN1'} -t UTF-8 {path.name} > utf8{path.suffix}"
    )


def _lines(path: Path) -> Iterator[tuple[int, int]]:
    """Where the lines that hold anything begin and end, in bytes."""
    start = number = 0
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                try:
                    row = json.loads(line.decode("utf-8-sig"))
                except UnicodeDecodeError as error:
                    raise _not_utf8(path, error) from error
                except ValueError as error:
                    raise _damaged(path, number, start, str(error)) from error
                _require_object(row, path, number)
                yield start, start + len(line)
                number += 1
            start += len(line)


def _elements(path: Path) -> Iterator[tuple[int, int]]:
    """Where the elements of an array begin and end, in bytes."""
    with path.open("rb") as file:
        text = _Text(path, file)
        if text.skip() and text.peek() == BYTE_ORDER_MARK:
            text.advance(1)
        if not text.skip():
            raise DataError(f"{path} is not valid JSON: it is empty\n  fix: set data.path to a file with records")
        if text.peek() != "[":
            raise DataError(
                f"{path} holds a {type(text.decode(0)).__name__}, expected a list of records\n"
                "  fix: write the records as one list, or one a line into a .jsonl file"
            )
        text.advance(1)
        number = 0
        while text.skip() and text.peek() != "]":
            start = text.byte
            _require_object(text.decode(number), path, number)
            yield start, text.byte
            number += 1
            if not text.skip() or text.peek() not in ",]":
                raise text.damaged(number, "expected a comma or the end of the list")
            if text.peek() == ",":
                text.advance(1)
        if not text.skip():
            raise text.damaged(number, "the list does not end")
        text.advance(1)
        if text.skip():
            raise text.damaged(number, "something stands behind the list")


class _Text:
    """A text file read piece by piece, with the byte that the next character stands at."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path, self.byte = path, 0
        self._file, self._decoder = file, codecs.getincrementaldecoder("utf-8")()
        self._buffer, self._at, self._ended = "", 0, False
        self._scan = json.JSONDecoder().raw_decode

    def peek(self) -> str:
        return self._buffer[self._at]

    def skip(self) -> bool:
        """Past white space; False at the end of the file."""
        while True:
            while self._at < len(self._buffer) and self._buffer[self._at] in SPACE:
                self.advance(1)
            if self._at < len(self._buffer):
                return True
            if not self._more():
                return False

    def advance(self, characters: int) -> None:
        passed = self._buffer[self._at : self._at + characters]
        self.byte += len(passed) if passed.isascii() else len(passed.encode(errors="surrogatepass"))
        self._at += characters

    def decode(self, number: int) -> Any:
        """The value that begins here."""
        while True:
            try:
                value, end = self._scan(self._buffer, self._at)
            except json.JSONDecodeError as error:
                cut = error.pos >= len(self._buffer) - 16 or error.msg.startswith("Unterminated string")
                if cut and len(self._buffer) - self._at < LONGEST and self._more():
                    continue
                raise self.damaged(number, f"{error.msg} at its character {error.pos - self._at}") from error
            if end == len(self._buffer) and self._more():
                continue  # a number may go on
            self.advance(end - self._at)
            return value

    def damaged(self, number: int, why: str) -> DataError:
        return _damaged(self.path, number, self.byte, why)

    def _more(self) -> bool:
        if self._ended:
            return False
        piece = self._file.read(PIECE)
        self._ended = not piece
        try:
            text = self._decoder.decode(piece, final=self._ended)
        except UnicodeDecodeError as error:
            raise _not_utf8(self.path, error) from error
        self._buffer, self._at = self._buffer[self._at :] + text, 0
        return bool(text) or not self._ended
