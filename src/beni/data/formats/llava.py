"""LLaVA's format: records with ``image`` and ``conversations`` of ``human`` and ``gpt`` turns.

Used by LLaVA-558K (align) and LLaVA-665K (finetune), arXiv 2304.08485 and 2310.03744, and by ShareGPT4V.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np

from beni.config.ranges import AtLeast, Example, FieldsOf
from beni.data.formats.fields import (
    columns_of,
    interleaved,
    pictures_of,
    require_column,
    require_used,
    role_of,
    text_of,
    trained,
)
from beni.data.formats.table import Table
from beni.data.formats.unread import CANNOT, TOP, Fields
from beni.data.metric import LossOnly
from beni.data.records.base import Row
from beni.data.records.open import open_rows
from beni.data.sample import Message, Role, Sample
from beni.errors import DataError

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}

DEFAULT = {"image": "image", "conversations": "conversations"}
TURN = Fields(
    ("from", "value", "train", "weight", "loss"),
    optional=("train", "weight", "loss"),
    refused=CANNOT,
    within="turn ",
)


class LlavaJson(Table):
    r"""Conversations about pictures that ``<image>`` stands for in their texts; ``\<image>`` is the word itself.

    A turn may say whether it is trained on, by ``train``, ``weight`` or ``loss``
    (``beni.data.formats.fields.trained``).

    Args:
        seed: of the run; the split into training and held-out records does not depend on it.
        path: the JSON file, or whatever ``beni.data.records.open.open_rows`` reads; null is refused.
        subset: see there.
        split: see there.
        rows: take only the first so many.
        columns: names of the columns ``image`` (which rows need not have) and ``conversations``.
        images: folder that the records' ``image`` paths are relative to; null takes the file's folder.
        ignore: fields of records and of what is in them that are left unread, though they look like pictures or like
            misspelt names.
        heldout: records held out for the loss, the same for every seed.
        augment: see ``beni.data.images.Augment``.

    Raises:
        DataError: when the file is missing or not in the format; names file and record.
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
        columns: dict[Literal["image", "conversations"], str],
        images: str | None,
        ignore: list[str],
        heldout: Annotated[int, AtLeast(0), Example("100")],
        augment: Annotated[dict[str, Any], FieldsOf("beni.data.images.Augment")],
    ) -> None:
        self.columns = columns_of(columns, "image", "conversations")
        records = open_rows(path, subset=subset, split=split, rows=rows)
        require_column(records, self.columns, "image")
        folder = images or ("" if str(path).startswith("hf://") else Path(str(path)).expanduser().parent)
        settings = {} if self.columns == DEFAULT else self.columns
        shown = self.columns["image"]
        fields = Fields((*self.columns.values(),), optional=(shown,), pictures=(shown,), slot="image", refused=TOP)
        super().__init__(seed, records, heldout, augment, folder, settings, fields=fields, ignore=ignore)

    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        said_in, shown = self.columns["conversations"], self.columns["image"]
        turns = row.get(said_in)
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise DataError(
                f"{where}: no list of turns in {said_in!r}; found the keys {sorted(row)}\n"
                f"  fix: give it {said_in!r}, set data.columns.conversations, or choose "
                "the option of its format (data=chat, vqa, captions ...)"
            )
        pictures = pictures_of(row.get(shown), self.root, shown, where)
        images = iter(pictures)
        messages = []
        for number, turn in enumerate(turns):
            self.unread.check(turn, TURN, f"{where}, turn {number}")
            role = role_of(turn.get("from"), ROLES, where)
            said = turn.get("value")
            if role == "assistant" or not isinstance(said, str):
                said = text_of(said, "value", where)
            messages.append(Message(role, interleaved(said, images, where), trained(turn, role, where)))
        require_used(images, len(pictures), where)
        named = row.get(shown) or ""
        first = named[0] if isinstance(named, list) else named
        return Sample("", tuple(messages), cluster=first if isinstance(first, str) else "")
