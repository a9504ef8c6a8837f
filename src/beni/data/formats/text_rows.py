"""Texts in a column: language modelling without pictures, one sample a row."""

from __future__ import annotations

from typing import Annotated

import numpy as np

from beni.config.ranges import AtLeast, Example
from beni.data.formats.fields import column, text_of
from beni.data.formats.table import Table
from beni.data.formats.unread import Fields
from beni.data.metric import LossOnly
from beni.data.records.base import Row
from beni.data.records.open import open_with_heldout
from beni.data.sample import Message, Sample


class TextRows(Table):
    """Texts; with ``template=plain`` every token is supervised.

    Args:
        seed: of the run.
        path: see ``beni.data.records.base.open_rows``.
        subset: see there.
        split: see there.
        rows: take only the first so many.
        column: that holds the text.
        ignore: fields of records and of what is in them that are left unread, though they look like pictures or like
            misspelt names.
        heldout_path: file or pattern of the records that are held out; None holds out some of those of ``path``.
        heldout: records held out for the loss.

    Raises:
        DataError: when a record has no text; names file and record.
    """

    metric = LossOnly()

    def __init__(
        self,
        seed: int,
        *,
        path: str | None,
        subset: str | None,
        split: str | None,
        rows: Annotated[int, AtLeast(1)] | None,
        column: str,
        ignore: list[str],
        heldout_path: str | None,
        heldout: Annotated[int, AtLeast(0), Example("100")],
    ) -> None:
        self.column = column
        records, held = open_with_heldout(path, heldout_path, subset=subset, split=split, rows=rows)
        settings = {"column": column}
        super().__init__(seed, records, held, heldout, {}, None, settings, fields=Fields((column,)), ignore=ignore)

    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        said = text_of(column(row, self.column, where), self.column, where)
        return Sample("", (Message("assistant", (said,)),))
