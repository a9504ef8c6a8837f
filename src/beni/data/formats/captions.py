"""Captions: a picture and what it shows, in columns, in a folder or in WebDataset tars."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import numpy as np

from beni.config.ranges import AtLeast, Example, FieldsOf
from beni.data.formats.fields import MEND, caption_of, column, columns_of, pictures_of, short
from beni.data.formats.table import Table, exchange
from beni.data.formats.unread import Fields
from beni.data.metric import LossOnly
from beni.data.records.base import Row
from beni.data.records.open import open_with_heldout
from beni.data.sample import Sample
from beni.errors import DataError


class Captions(Table):
    """Pictures to describe.

    Args:
        seed: of the run; draws prompts and captions.
        path: see ``beni.data.records.base.open_rows``.
        subset: see there.
        split: see there.
        rows: take only the first so many.
        columns: names of the columns ``image`` and ``caption``; a caption may be a list, of which each epoch draws one.
        prompts: what is said after the picture, one drawn each time; empty for nothing, as in LLaVA's align stage.
        images: folder that relative paths are meant to; null for the working directory.
        ignore: fields of records and of what is in them that are left unread, though they look like pictures or like
            misspelt names.
        heldout_path: file or pattern of the records that are held out; None holds out some of those of ``path``.
        heldout: records held out for the loss, with the first prompt and caption.
        augment: see ``beni.data.images.Augment``.

    Raises:
        DataError: when a record lacks something; names file and record.
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
        columns: dict[Literal["image", "caption"], str],
        prompts: list[str],
        images: str | None,
        ignore: list[str],
        heldout_path: str | None,
        heldout: Annotated[int, AtLeast(0), Example("100")],
        augment: Annotated[dict[str, Any], FieldsOf("beni.data.images.Augment")],
    ) -> None:
        self.columns = columns_of(columns, "image", "caption")
        self.prompts = prompts
        records, held = open_with_heldout(path, heldout_path, subset=subset, split=split, rows=rows)
        settings = {**self.columns, "prompts": prompts, "seed": seed}
        # where nothing is drawn, one index serves all epochs; what the first record says ``read`` holds the others to
        self._listed = isinstance(column(records[0], self.columns["caption"], records.where(0)), list)
        varies = self._listed or len(prompts) > 1
        read = tuple(self.columns.values())
        fields = Fields(read, pictures=(self.columns["image"],), slot="image")
        super().__init__(seed, records, held, heldout, augment, images, settings, varies, fields=fields, ignore=ignore)

    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        name = self.columns["image"]
        pictures = pictures_of(column(row, name, where), self.root, name, where)
        if not pictures:
            raise DataError(f"{where}: {name!r} holds no image, expected one\n  {MEND}")
        value = column(row, self.columns["caption"], where)
        if isinstance(value, list) and not self._listed:
            raise DataError(
                f"{where}: {self.columns['caption']!r} is {short(value)}, but a text in the first record\n"
                "  fix: write a list in every record"
            )
        many = value if isinstance(value, list) else [value]
        if not many:
            raise DataError(f"{where}: {self.columns['caption']!r} is an empty list, expected a caption\n  {MEND}")
        caption = caption_of(many[_drawn(rng, len(many))], self.columns["caption"], where)
        prompt = self.prompts[_drawn(rng, len(self.prompts))] if self.prompts else None
        return Sample("", exchange([*pictures, *([] if prompt is None else [prompt])], caption))


def _drawn(rng: np.random.Generator | None, count: int) -> int:
    return 0 if rng is None or count == 1 else int(rng.integers(count))
