"""The Cauldron's layout: ``images``, and ``texts`` of ``user`` and ``assistant`` (arXiv 2405.02246).

All pictures of a record come first, then its turns; so does Docmatix, and nanoVLM's FineVision has the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from beni.data.formats.fields import MEND, column, pictures_of, short, text_of
from beni.data.formats.table import Table
from beni.data.metric import LossOnly
from beni.data.records.base import Row
from beni.data.records.open import open_rows
from beni.data.sample import Message, Sample
from beni.errors import DataError


class Cauldron(Table):
    """Questions and answers about all pictures of a record.

    Args:
        seed: of the run.
        path: see ``beni.data.records.base.open_rows``.
        subset: of a set of the hub.
        split: of a set of the hub.
        rows: take only the first so many.
        images: folder that relative paths are meant to; null for the working directory.
        heldout: records held out for the loss.
        augment: see ``beni.data.images.Augment``.

    Raises:
        DataError: when a record is not in the format; names file and record.
    """

    metric = LossOnly()

    def __init__(
        self,
        seed: int,
        *,
        path: str | None,
        subset: str | None,
        split: str,
        rows: int | None,
        images: str | None,
        heldout: int,
        augment: dict[str, Any],
    ) -> None:
        records = open_rows(path, subset=subset, split=split, rows=rows)
        super().__init__(seed, records, heldout, augment, images, {})

    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        pictures = pictures_of(column(row, "images", where), self.root, "images", where)
        turns = column(row, "texts", where)
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
            raise DataError(
                f"{where}: 'texts' is {short(turns)}, expected a list of turns with 'user' and 'assistant'\n  {MEND}"
            )
        messages: list[Message] = []
        for turn in turns:
            asked = text_of(turn.get("user"), "user", where)
            shown = tuple(pictures) if not messages else ()
            messages.append(Message("user", (*shown, asked)))
            messages.append(Message("assistant", (text_of(turn.get("assistant"), "assistant", where),)))
        return Sample("", tuple(messages))
