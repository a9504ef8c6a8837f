"""Chat messages as OpenAI and Hugging Face write them: ``role`` and ``content``, a text or a list of parts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np

from beni.config.ranges import AtLeast, Example, FieldsOf
from beni.data.formats.fields import (
    MEND,
    column,
    columns_of,
    interleaved,
    picture_of,
    pictures_of,
    require_column,
    require_used,
    role_of,
    short,
    text_of,
    trained,
    written_out,
)
from beni.data.formats.table import Table
from beni.data.formats.unread import CANNOT, TOP, Fields
from beni.data.images import Image
from beni.data.metric import LossOnly
from beni.data.records.base import Row
from beni.data.records.open import open_with_heldout
from beni.data.sample import Message, Role, Sample
from beni.errors import DataError

ROLES: dict[str, Role] = {"system": "system", "user": "user", "assistant": "assistant"}

MESSAGE = Fields(
    ("role", "content", "train", "weight", "loss"),
    optional=("content", "train", "weight", "loss"),
    refused=CANNOT,
    within="message ",
)
PARTS = {
    "text": Fields(("type", "text"), within="part "),
    "image": Fields(
        ("type", "image;path;url", "index"),
        pictures=("image;path;url",),
        refused={"text": "an image part cannot hold text\n  fix: make the text a part of its own"},
        within="part ",
    ),
    "image_url": Fields(("type", "image_url"), known=frozenset(("detail",)), within="part "),
}


class Chat(Table):
    r"""Conversations of messages.

    A part of a message is ``{"type": "text", "text": ...}``, ``{"type": "image"}`` (the next picture of the images
    column, or its own ``image``, ``path`` or ``url``), or ``{"type": "image_url", "image_url": ...}`` with a URL, a
    ``data:`` URL or ``{"url": ...}``; an image part with an ``index`` is that picture of the images column, from 0. In
    a content that is a text, ``<image>`` stands for the next picture, and ``\<image>`` for the word. A message may say
    whether it is trained on, by ``train``, ``weight`` or ``loss`` (``beni.data.formats.fields.trained``).

    Args:
        seed: of the run.
        path: see ``beni.data.records.base.open_rows``.
        subset: see there.
        split: see there.
        rows: take only the first so many.
        columns: names of the columns ``messages`` and ``images`` (which rows need not have).
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
        columns: dict[Literal["messages", "images"], str],
        images: str | None,
        ignore: list[str],
        heldout_path: str | None,
        heldout: Annotated[int, AtLeast(0), Example("100")],
        augment: Annotated[dict[str, Any], FieldsOf("beni.data.images.Augment")],
    ) -> None:
        self.columns = columns_of(columns, "messages", "images")
        records, held = open_with_heldout(path, heldout_path, subset=subset, split=split, rows=rows)
        require_column(records, self.columns, "images")
        fields = Fields(
            (*self.columns.values(),),
            optional=(self.columns["images"],),
            pictures=(self.columns["images"],),
            slot="images",
            refused=TOP,
        )
        super().__init__(seed, records, held, heldout, augment, images, self.columns, fields=fields, ignore=ignore)

    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        said = column(row, self.columns["messages"], where)
        if not isinstance(said, list) or not said or not all(isinstance(one, Mapping) for one in said):
            raise DataError(
                f"{where}: {self.columns['messages']!r} is {short(said)}, expected a list of messages\n"
                "  fix: set data.columns.messages to the column that holds them"
            )
        shown = self.columns["images"]
        images = _Pictures(pictures_of(row.get(shown), self.root, shown, where), shown)
        messages = []
        for number, one in enumerate(said):
            at = f"{where}, message {number}"
            self.unread.check(one, MESSAGE, at)
            role = role_of(one.get("role"), ROLES, where)  # first: what a tool says may have no content
            content = self._content(one.get("content"), images, at)
            message = Message(role, content, trained(one, role, at))
            if message.supervised:
                text_of("".join(part for part in content if isinstance(part, str)), "content", at)
            messages.append(message)
        require_used(iter(images.left()), len(images.all), where)
        return Sample("", tuple(messages))

    def _content(self, content: Any, images: _Pictures, where: str) -> tuple[str | Image, ...]:
        if isinstance(content, str):
            return interleaved(content, images, where)
        if not isinstance(content, list) or not all(isinstance(part, Mapping) for part in content):
            raise DataError(f"{where}: 'content' is {short(content)}, expected a text or a list of parts\n  {MEND}")
        return tuple(self._part(part, images, where) for part in content)

    def _part(self, part: Mapping[str, Any], images: _Pictures, where: str) -> str | Image:
        kind = part.get("type")
        if kind in PARTS:
            self.unread.check(part, PARTS[kind], where)
        if kind == "text" and isinstance(part.get("text"), str):
            return written_out(part["text"], where)
        if kind == "image_url":
            value = part.get("image_url")
            value = value.get("url") if isinstance(value, Mapping) else value
            return picture_of(value, self.root, "image_url", where)
        if kind == "image":
            own = next((part[name] for name in ("image", "path", "url") if part.get(name) is not None), None)
            if own is not None:
                return picture_of(own, self.root, "image", where)
            return images.at(part.get("index"), where)
        raise DataError(
            f"{where}: a part of type {kind!r} with the keys {', '.join(map(str, part))}; expected a text, image or "
            f"image_url part\n  {MEND}"
        )


class _Pictures(Iterator[Image]):
    """Pictures of the images column, taken in order or by number."""

    def __init__(self, pictures: Sequence[Image], column: str) -> None:
        self.all, self.column = pictures, column
        self._taken: set[int] = set()

    def __next__(self) -> Image:
        number = next((i for i in range(len(self.all)) if i not in self._taken), None)
        if number is None:
            raise StopIteration
        self._taken.add(number)
        return self.all[number]

    def left(self) -> list[Image]:
        """Those that nothing has taken."""
        return [picture for number, picture in enumerate(self.all) if number not in self._taken]

    def at(self, index: Any, where: str) -> Image:
        """The picture of an image part: the one with its ``index``, or the next.

        Raises:
            DataError: when there is none.
        """
        if index is None:
            found = next(self, None)
            if found is None:
                raise DataError(
                    f"{where}: more image parts than images in {self.column!r}\n"
                    "  fix: set data.columns.images to the column that holds them, or correct the record"
                )
            return found
        if not isinstance(index, int) or isinstance(index, bool) or not 0 <= index < len(self.all):
            raise DataError(
                f"{where}: an image part with the index {short(index)}, expected a number below {len(self.all)}, as "
                f"{self.column!r} has so many\n  {MEND}"
            )
        self._taken.add(index)
        return self.all[index]
