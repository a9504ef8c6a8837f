"""The Cauldron's layout: ``images``, and ``texts`` of ``user`` and ``assistant`` (arXiv 2405.02246).

All pictures of a record come first, then its turns; so does Docmatix, and nanoVLM's FineVision has the same columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import numpy as np

from beni.config.ranges import AtLeast, Example, FieldsOf
from beni.data.formats.fields import MEND, caption_of, column, columns_of, pictures_of, short
from beni.data.formats.table import Table
from beni.data.formats.unread import CANNOT, Fields
from beni.data.metric import LossOnly
from beni.data.records.base import Row
from beni.data.records.open import open_with_heldout
from beni.data.sample import Message, Sample
from beni.errors import DataError

DEFAULT = {"images": "images", "texts": "texts"}
TURN = Fields(
    ("user", "assistant"),
    refused={
        **CANNOT,
        **dict.fromkeys(("weight", "loss", "train"), "all answers of this format are supervised\n  fix: use data=chat"),
    },
    within="turn ",
)


class Cauldron(Table):
    """Questions and answers about all pictures of a record.

    Args:
        seed: of the run.
        path: see ``beni.data.records.base.open_rows``.
        subset: see there.
        split: see there.
        rows: take only the first so many.
        columns: names of the columns ``images`` and ``texts``.
        images: folder that relative paths are meant to; null for the working directory.
        ignore: fields of records and of what is in them that are left unread, though they look like pictures or like
            misspelt names.
        heldout_path: file or pattern of the records that are held out; None holds out some of those of ``path``.
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
        split: str | None,
        rows: Annotated[int, AtLeast(1)] | None,
        columns: dict[Literal["images", "texts"], str],
        images: str | None,
        ignore: list[str],
        heldout_path: str | None,
        heldout: Annotated[int, AtLeast(0), Example("100")],
        augment: Annotated[dict[str, Any], FieldsOf("beni.data.images.Augment")],
    ) -> None:
        records, held = open_with_heldout(path, heldout_path, subset=subset, split=split, rows=rows)
        self.columns = columns_of(columns, "images", "texts")
        settings = {} if self.columns == DEFAULT else self.columns
        fields = Fields(tuple(self.columns.values()), pictures=(self.columns["images"],), slot="images")
        super().__init__(seed, records, held, heldout, augment, images, settings, fields=fields, ignore=ignore)

    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        shown = self.columns["images"]
        pictures = pictures_of(column(row, shown, where), self.root, shown, where)
        turns = column(row, self.columns["texts"], where)
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, Mapping) for turn in turns):
            raise DataError(
                f"{where}: {self.columns['texts']!r} is {short(turns)}, expected a list of turns with "
                f"'user' and 'assistant'\n  {MEND}"
            )
        messages: list[Message] = []
        for number, turn in enumerate(turns):
            self.unread.check(turn, TURN, f"{where}, turn {number}")
            asked = caption_of(turn.get("user"), "user", where)
            shown = tuple(pictures) if not messages else ()
            messages.append(Message("user", (*shown, asked)))
            messages.append(Message("assistant", (caption_of(turn.get("assistant"), "assistant", where),)))
        return Sample("", tuple(messages))
