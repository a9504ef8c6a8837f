"""All rows of a set in one pass, with long bytes cut short: enough to tell which rows show the same image."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from beni.data.records.base import First, Joined, Row, Rows
from beni.data.records.table import TableRows
from beni.data.records.tar import TarRows
from beni.errors import DataError

TAIL = 64
"""Bytes kept of an encoded image, its last: they are compressed pixels, so that equal ones mean equal images."""
CHUNK = 1024
"""Rows of a table that are held at once."""


def skim(rows: Rows) -> Iterator[Row | None] | None:
    """The rows in order, None for one that cannot be read. Bytes of tables are cut to their length and their end, so
    that one page of each image is read from disk.

    Returns:
        None where rows cannot be read without reading all of their images (tar files).
    """
    if isinstance(rows, First):
        inner = skim(rows.rows)
        return None if inner is None else (row for row, _ in zip(inner, range(len(rows)), strict=False))
    if isinstance(rows, Joined):
        parts = [skim(part) for part in rows.parts]
        known = [part for part in parts if part is not None]
        return (row for part in known for row in part) if len(known) == len(parts) else None
    if isinstance(rows, TarRows):
        return None
    return _table(rows) if isinstance(rows, TableRows) else _each(rows)


def _each(rows: Rows) -> Iterator[Row | None]:
    for number in range(len(rows)):
        try:
            yield rows[number]
        except DataError:
            yield None


def _table(rows: TableRows) -> Iterator[Row | None]:
    for start in range(0, len(rows), CHUNK):
        count = min(CHUNK, len(rows) - start)
        try:
            chunk = cast(pa.Table, rows.table[start : start + count])
            short = [pa.chunked_array([_shortened(part) for part in column.chunks]) for column in chunk.columns]
            yield from pa.Table.from_arrays(short, chunk.column_names).to_pylist()
        except pa.ArrowException:  # a damaged file; training says so when it comes to the row
            yield from [None] * count


def _shortened(column: pa.Array) -> pa.Array:
    """A column whose bytes, however deep, are their length and their end."""
    kind = column.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        lengths = pc.cast(pc.cast(pc.call_function("binary_length", [column]), pa.string()), kind)
        ends = pc.call_function("binary_slice", [column], pc.SliceOptions(-TAIL))
        return pc.call_function("binary_join_element_wise", [lengths, ends, pa.scalar(b" ", kind)])
    if pa.types.is_struct(kind):
        fields = [_shortened(column.field(i)) for i in range(kind.num_fields)]
        return pa.StructArray.from_arrays(fields, names=[field.name for field in kind], mask=column.is_null())
    if pa.types.is_list(kind) or pa.types.is_large_list(kind):
        return _list(column)
    return column


def _list(column: pa.Array) -> pa.Array:
    inner = _shortened(column.flatten())
    lengths = pc.fill_null(pc.call_function("list_value_length", [column]), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array([0, *lengths.cumsum().tolist()], pa.int64())
    return pa.LargeListArray.from_arrays(offsets, inner, mask=column.is_null())
