"""LLaVA's format: records with ``image`` and ``conversations`` of ``human`` and ``gpt`` turns.

Used by LLaVA-558K (align) and LLaVA-665K (finetune), arXiv 2304.08485 and 2310.03744, and by ShareGPT4V. LLaVA's align
stage (``preprocess_plain`` in its llava/train/train.py) leaves the instruction out: the picture, then the caption, on
which alone there is a loss. It ends captions with a line break, beni with the end token, since answers must end.
"""

from __future__ import annotations

from dataclasses import replace
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
from beni.data.images import Image
from beni.data.metric import LossOnly
from beni.data.records.base import Row
from beni.data.records.open import open_with_heldout
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
        instructions: whether what the user says beside the picture is heard: ``keep``, or ``drop``, for records of one
            picture, one instruction and one caption. ``auto`` is settled by composition: ``drop`` under
            ``template=plain``, ``keep`` under any other; where nobody settles it, it keeps them.
        ignore: fields of records and of what is in them that are left unread, though they look like pictures or like
            misspelt names.
        heldout_path: file or pattern of the records that are held out; None holds out some of those of ``path``.
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
        instructions: Literal["auto", "keep", "drop"],
        ignore: list[str],
        heldout_path: str | None,
        heldout: Annotated[int, AtLeast(0), Example("100")],
        augment: Annotated[dict[str, Any], FieldsOf("beni.data.images.Augment")],
    ) -> None:
        self.columns = columns_of(columns, "image", "conversations")
        records, held = open_with_heldout(path, heldout_path, subset=subset, split=split, rows=rows)
        require_column(records, self.columns, "image")
        folder = images or ("" if str(path).startswith("hf://") else Path(str(path)).expanduser().parent)
        settings = {} if self.columns == DEFAULT else self.columns
        self.drops = instructions == "drop"
        settings = settings | ({"instructions": "drop"} if self.drops else {})
        shown = self.columns["image"]
        fields = Fields((*self.columns.values(),), optional=(shown,), pictures=(shown,), slot="image", refused=TOP)
        super().__init__(seed, records, held, heldout, augment, folder, settings, fields=fields, ignore=ignore)
        if self.drops:
            self.notices += (
                f"{records.title}: only the image and its caption are read, as in LLaVA's own alignment stage; "
                "instructions of the user are dropped (data.instructions=keep keeps them)",
            )

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
        if self.drops:
            messages = _captioned(messages, len(pictures), where)
        named = row.get(shown) or ""
        first = named[0] if isinstance(named, list) else named
        return Sample("", tuple(messages), cluster=first if isinstance(first, str) else "")


def _captioned(messages: list[Message], pictures: int, where: str) -> list[Message]:
    """A picture, an instruction and a caption without the instruction.

    Raises:
        DataError: when they are anything else: of a conversation about a picture nothing can be left out.
    """
    roles = [message.role for message in messages]
    if roles != ["user", "assistant"] or pictures != 1 or not any(isinstance(p, Image) for p in messages[0].content):
        raise DataError(
            f"{where}: {pictures} image{'s' * (pictures != 1)} and the roles {', '.join(roles)}, but "
            "data.instructions=drop drops the instruction beside one image, and expects user and assistant\n"
            "  fix: set data.instructions=keep, or template=chat, or leave the record out"
        )
    shown = tuple(part for part in messages[0].content if isinstance(part, Image))
    return [replace(messages[0], content=shown), messages[1]]
