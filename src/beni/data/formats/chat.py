"""Chat messages as OpenAI and Hugging Face write them: ``role`` and ``content``, a text or a list of parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from beni.data.formats.fields import (
    MEND,
    column,
    columns_of,
    interleaved,
    picture_of,
    pictures_of,
    require_used,
    role_of,
    short,
    text_of,
)
from beni.data.formats.table import Table
from beni.data.images import Image
from beni.data.metric import LossOnly
from beni.data.records.base import Row
from beni.data.records.open import open_rows
from beni.data.sample import Message, Role, Sample
from beni.errors import DataError

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}


class Chat(Table):
    """Conversations of messages.

    A part of a message is ``{"type": "text", "text": ...}``, ``{"type": "image"}`` (the next picture of the images
    column, or its own ``image``, ``path`` or ``url``), or ``{"type": "image_url", "image_url": ...}`` with a URL, a
    ``data:`` URL or ``{"url": ...}``. In a content that is a text, ``<image>`` stands for the next picture. A message
    may say ``"train": false``.

    Args:
        seed: of the run.
        path: see ``beni.data.records.base.open_rows``.
        subset: of a set of the hub.
        split: of a set of the hub.
        rows: take only the first so many.
        columns: names of the columns ``messages`` and ``images`` (which rows need not have).
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
        columns: dict[str, str],
        images: str | None,
        heldout: int,
        augment: dict[str, Any],
    ) -> None:
        self.columns = columns_of(columns, "messages", "images")
        records = open_rows(path, subset=subset, split=split, rows=rows)
        super().__init__(seed, records, heldout, augment, images, self.columns)

    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        said = column(row, self.columns["messages"], where)
        if not isinstance(said, list) or not said or not all(isinstance(one, Mapping) for one in said):
            raise DataError(
                f"{where}: {self.columns['messages']!r} is {short(said)}, expected a list of messages\n"
                "  fix: set data.columns.messages to the column that holds them"
            )
        pictures = pictures_of(row.get(self.columns["images"]), self.root, self.columns["images"], where)
        images = iter(pictures)
        messages = []
        for one in said:
            train = one.get("train")
            if train is not None and not isinstance(train, bool):
                raise DataError(f"{where}: 'train' is {train!r}, expected true or false\n  {MEND}")
            role = role_of(one.get("role"), ROLES, where)  # first: what a tool says may have no content
            content = self._content(one.get("content"), images, where)
            message = Message(role, content, train)
            if message.supervised:
                text_of("".join(part for part in content if isinstance(part, str)), "content", where)
            messages.append(message)
        require_used(images, len(pictures), where)
        return Sample("", tuple(messages))

    def _content(self, content: Any, images: Iterator[Image], where: str) -> tuple[str | Image, ...]:
        if isinstance(content, str):
            return interleaved(content, images, where)
        if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
            raise DataError(f"{where}: 'content' is {short(content)}, expected a text or a list of parts\n  {MEND}")
        return tuple(self._part(part, images, where) for part in content)

    def _part(self, part: Mapping[str, Any], images: Iterator[Image], where: str) -> str | Image:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text"), str):
            return part["text"]
        if kind == "image_url":
            value = part.get("image_url")
            value = value.get("url") if isinstance(value, Mapping) else value
            return picture_of(value, self.root, "image_url", where)
        if kind == "image":
            own = next((part[name] for name in ("image", "path", "url") if part.get(name) is not None), None)
            if own is not None:
                return picture_of(own, self.root, "image", where)
            found = next(images, None)
            if found is None:
                raise DataError(
                    f"{where}: more image parts than pictures in {self.columns['images']!r}\n"
                    "  fix: set data.columns.images to the column that holds them, or mend the record"
                )
            return found
        raise DataError(
            f"{where}: a part of type {kind!r} with the keys {', '.join(map(str, part))}; expected a text, image or "
            f"image_url part\n  {MEND}"
        )
