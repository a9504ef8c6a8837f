"""The files of a feature bank: rows of visual tokens, appended by many processes without a lock.

Every process appends to shards of its own, one for each size of view. ``<shard>.data`` holds rows of one
length end to end, and ``<shard>.index`` a header and for each row a line of fixed length, with checksums of the row and
of the line. A row is written before its line, so a process that is killed leaves at most a row without a line or half a
line, and neither is read. Only the process that began a shard ever writes to it, so no lock is needed.
"""

from __future__ import annotations

import json
import os
import time
import zlib
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from beni.types import VisualTokens

FORMAT = 2
KEY = 16  # bytes of a view's key
LINE = 2 * KEY + 19  # of the index: key, checksum of the row, checksum of the line, in hexadecimal digits
ALIGN = 64
DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in (torch.float64, torch.float32, torch.float16)} | {
    "bfloat16": torch.bfloat16,
    "bool": torch.bool,
}


@dataclass(frozen=True)
class Leaf:
    """One tensor of visual tokens.

    Attributes:
        shape: of one row.
        dtype: its name in torch.
        stride: of a batch, in elements. Features are given back as they lay in memory: a matrix product over a slice
            of a tensor and one over its contiguous copy may differ in the last bit.
    """

    shape: tuple[int, ...]
    dtype: str
    stride: tuple[int, ...] = field(compare=False)

    @staticmethod
    def of(tensor: Tensor) -> Leaf:
        shape, stride = tuple(tensor.shape[1:]), tensor.stride()
        span = 1 + sum((n - 1) * step for n, step in zip(shape, stride[1:], strict=True))
        if stride[0] < span or 0 in stride:  # rows that lie in each other: expanded, or the batch is no outer axis
            stride = torch.empty(1, *shape, device="meta").stride()
        return Leaf(shape, str(tensor.dtype).removeprefix("torch."), stride)

    @property
    def bytes(self) -> int:
        return int(np.prod(self.shape)) * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class Form:
    """What the visual tokens of every view of an encoder are, but for their values.

    Attributes:
        grid: as in ``VisualTokens``.
        own: name and what is kept of it, for every field with one entry a token that there is.
        sources: as in ``VisualTokens``.
    """

    grid: tuple[int, int] | None
    own: tuple[tuple[str, Leaf], ...]
    sources: tuple[Form, ...]

    @staticmethod
    def of(tokens: VisualTokens) -> Form:
        sources = tuple(Form.of(source) for source in tokens.sources)
        return Form(tokens.grid, tuple((name, Leaf.of(tensor)) for name, tensor in tokens.per_token().items()), sources)

    @staticmethod
    def from_json(value: Mapping[str, Any]) -> Form:
        """The inverse of ``asdict`` after JSON."""
        own = tuple(
            (name, Leaf(tuple(leaf["shape"]), leaf["dtype"], tuple(leaf["stride"]))) for name, leaf in value["own"]
        )
        if unknown := [leaf.dtype for _, leaf in own if leaf.dtype not in DTYPES]:
            raise ValueError(f"unknown dtype {unknown[0]}")
        rows, columns = value["grid"] or (0, 0)
        return Form(
            (rows, columns) if rows else None, own, tuple(Form.from_json(source) for source in value["sources"])
        )

    @property
    def leaves(self) -> list[Leaf]:
        """The stored tensors, in the order of the function ``leaves``."""
        return [*(leaf for _, leaf in self.own), *(leaf for source in self.sources for leaf in source.leaves)]

    @property
    def row(self) -> int:
        """Bytes of a view on disk."""
        return sum(_aligned(leaf.bytes) for leaf in self.leaves)

    def pack(self, tokens: VisualTokens, rows: list[int]) -> np.ndarray:
        """The bytes of some rows, ``(k, self.row)``."""
        out = np.zeros((len(rows), self.row), dtype=np.uint8)
        for (start, leaf), tensor in zip(self._placed(), leaves(tokens), strict=True):
            chosen = tensor.detach()[torch.tensor(rows, device=tensor.device)].cpu()
            out[:, start : start + leaf.bytes] = chosen.reshape(len(rows), -1).contiguous().view(torch.uint8).numpy()
        return out

    def unpack(self, rows: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
        """The bytes of rows -> the tensors of a batch of them, in the order of ``leaves``."""
        out = []
        for start, leaf in self._placed():
            shape = (len(rows), *leaf.shape)
            host = torch.empty(len(rows), leaf.bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
            for into, row in zip(host.numpy(), rows, strict=True):
                into[:] = row[start : start + leaf.bytes]
            tensor = host.view(DTYPES[leaf.dtype]).view(shape)
            if leaf.stride[1:] == tensor.stride()[1:] and leaf.stride[0] == tensor[0].numel():
                out.append(tensor.to(device, non_blocking=True))
            else:
                strided = torch.empty_strided(shape, leaf.stride, dtype=tensor.dtype, device=device)
                out.append(strided.copy_(tensor, non_blocking=True))
        return out

    def tokens(self, tensors: Sequence[Tensor]) -> VisualTokens:
        """Tensors in the order of ``leaves`` -> visual tokens."""
        own, rest = tensors[: len(self.own)], tensors[len(self.own) :]
        sources = []
        for form in self.sources:
            count = len(form.leaves)
            sources.append(form.tokens(rest[:count]))
            rest = rest[count:]
        return VisualTokens.of({name: x for (name, _), x in zip(self.own, own, strict=True)}, self.grid, tuple(sources))

    def _placed(self) -> Iterator[tuple[int, Leaf]]:
        """Every leaf with the place of its first byte in a row."""
        start = 0
        for leaf in self.leaves:
            yield start, leaf
            start += _aligned(leaf.bytes)


@dataclass(frozen=True)
class Row:
    """The bytes of one view, and what they are."""

    form: Form
    data: np.ndarray


def leaves(tokens: VisualTokens) -> list[Tensor]:
    """Every tensor of visual tokens, those of their sources last."""
    return [*tokens.per_token().values(), *(tensor for source in tokens.sources for tensor in leaves(source))]


def _aligned(count: int) -> int:
    return -(-count // ALIGN) * ALIGN


class Shard:
    """The two files of one process, read as far as they are whole.

    Attributes:
        form: of its rows; None until the header has been read.
    """

    def __init__(self, index: Path, notice: Callable[[str], None]) -> None:
        self.index, self.data, self.form = index, index.with_suffix(".data"), None
        self._notice, self._read, self._broken = notice, 0, False
        self._sums, self._sound = array("I"), bytearray()
        self._map = np.empty(0, dtype=np.uint8)

    def grown(self) -> Iterator[tuple[bytes, int]]:
        """Key and number of each row that was appended since the last call."""
        if self._broken or not self.index.exists() or self.index.stat().st_size <= self._read:
            return
        with self.index.open("rb") as file:
            file.seek(self._read)
            text = file.read()
        if self.form is None:
            header, end, text = text.partition(b"\n")
            if not end:
                return  # being written now, or its process was killed while it was
            self._read += len(header) + 1
            self.form = _read_header(header)
            if self.form is None:
                self._broken = True
                self._notice(f"feature bank: {self.index} has no readable header and is left out")
                return
        for start in range(0, len(text) - LINE + 1, LINE):
            self._read += LINE
            line, slot = text[start : start + LINE], len(self._sums)
            read = _read_line(line, slot)
            self._sums.append(read[1] if read else 0)
            self._sound.append(False)
            if read:
                yield read[0], slot
            else:
                self._notice(f"feature bank: a damaged line of {self.index} is left out")

    def row(self, slot: int) -> np.ndarray | None:
        """The bytes of a row, mapped from disk; None when they are not those that were written."""
        if self.form is None:
            return None
        start, end = slot * self.form.row, (slot + 1) * self.form.row
        if end > len(self._map):
            if not self.data.is_file() or end > self.data.stat().st_size:
                return None
            self._map = np.memmap(self.data, dtype=np.uint8, mode="r")
        row = self._map[start:end]
        if not self._sound[slot]:  # once a process: 3 GiB/s
            self._sound[slot] = zlib.crc32(row.data) == self._sums[slot]
        return row if self._sound[slot] else None


class Writer:
    """Begins a shard in ``folder`` and appends to it."""

    def __init__(self, folder: Path, form: Form) -> None:
        stem = f"{time.time_ns():020d}-{os.getpid()}"
        self._data = (folder / f"{stem}.data").open("xb", buffering=0)
        self._index = (folder / f"{stem}.index").open("xb", buffering=0)
        self._slot = 0
        header = json.dumps(asdict(form)).encode()
        try:
            _write(self._index.fileno(), f"{zlib.crc32(header):08x} ".encode() + header + b"\n")
        except OSError:
            self.close()
            raise

    def close(self) -> None:
        """Both files."""
        self._data.close()
        self._index.close()

    def append(self, keys: list[bytes], rows: np.ndarray) -> None:
        """Rows, then their lines."""
        _write(self._data.fileno(), rows.data.cast("B"))
        lines = b""
        for key, row in zip(keys, rows, strict=True):
            line = f"{key.hex()} {zlib.crc32(row.data):08x} ".encode()
            lines += line + f"{zlib.crc32(line, self._slot):08x}\n".encode()
            self._slot += 1
        _write(self._index.fileno(), lines)


def _write(file: int, data: bytes | memoryview) -> None:
    """All of it; ``os.write`` may take less, and says nothing where a disk fills up in between."""
    rest = memoryview(data)
    while rest:
        rest = rest[os.write(file, rest) :]


def _read_header(line: bytes) -> Form | None:
    checksum, _, text = line.partition(b" ")
    try:
        return Form.from_json(json.loads(text)) if int(checksum, 16) == zlib.crc32(text) else None
    except (ValueError, KeyError, TypeError):
        return None


def _read_line(line: bytes, slot: int) -> tuple[bytes, int] | None:
    """Key and checksum of a row; None where the line is not as it was written, or not in its place."""
    try:
        key, row, checksum = line.decode("ascii").split()
        if int(checksum, 16) != zlib.crc32(line[: 2 * KEY + 10], slot):
            return None
        return bytes.fromhex(key), int(row, 16)
    except ValueError:
        return None
