"""LLaVA's format: records with ``image`` and ``conversations`` of ``human`` and ``gpt`` turns.

Used by LLaVA-558K (align) and LLaVA-665K (finetune), arXiv 2304.08485 and 2310.03744, and by ShareGPT4V.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from beni.data.formats.fields import interleaved, pictures_of, require_used, role_of, text_of
from beni.data.formats.table import Table
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


class LlavaJson(Table):
    """Conversations about pictures that ``<image>`` stands for in their texts.

    Args:
        seed: of the run; the split into training and held-out records does not depend on it.
        path: the JSON file, or whatever ``beni.data.records.base.open_rows`` reads; null is refused.
        images: folder that the records' ``image`` paths are relative to; null takes the file's folder.
        heldout: records held out for the loss, the same for every seed.
        augment: see ``beni.data.images.Augment``.

    Raises:
        DataError: when the file is missing or not in the format; names file and record.
    """

    metric = LossOnly()

    def __init__(
        self, seed: int, *, path: str | None, images: str | None, heldout: int, augment: dict[str, Any]
    ) -> None:
        rows = open_rows(path)
        folder = images or Path(str(path)).expanduser().parent
        super().__init__(seed, rows, heldout, augment, folder, {})

    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        turns = row.get("conversations")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise DataError(
                f"{where}: no list of turns in 'conversations'; found the keys {sorted(row)}\n"
                "  fix: give it 'conversations', or choose the option of its format (data=chat, vqa, captions ...)"
            )
        pictures = pictures_of(row.get("image"), self.root, "image", where)
        images = iter(pictures)
        messages = []
        for turn in turns:
            role = role_of(turn.get("from"), ROLES, where)
            said = turn.get("value")
            if role == "assistant" or not isinstance(said, str):
                said = text_of(said, "value", where)
            messages.append(Message(role, interleaved(said, images, where)))
        require_used(images, len(pictures), where)
        named = row.get("image") or ""
        first = named[0] if isinstance(named, list) else named
        return Sample("", tuple(messages), cluster=first if isinstance(first, str) else "")
