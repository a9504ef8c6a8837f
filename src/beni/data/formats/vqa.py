"""Visual question answering: one picture or several, a question and its answer in columns."""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Any, Literal

import numpy as np

from beni.config.ranges import AtLeast, Example, FieldsOf
from beni.data.formats.fields import MEND, caption_of, column, columns_of, pictures_of, short
from beni.data.formats.table import Table, exchange
from beni.data.formats.unread import Fields
from beni.data.metric import BestChoice, ExactAnswer
from beni.data.records.base import Row
from beni.data.records.open import open_with_heldout
from beni.data.sample import Sample
from beni.errors import DataError


class Vqa(Table):
    """Questions that have an answer; held-out ones are scored by it, or by choosing where there are choices.

    Args:
        seed: of the run.
        path: see ``beni.data.records.base.open_rows``.
        subset: see there.
        split: see there.
        rows: take only the first so many.
        columns: names of the columns ``image``, ``question``, ``answer`` and, where there are any, ``choices`` (else
            null). An answer may be a list of what several people said: the most frequent is trained on, of equals the
            first; each counts as right, unless there are choices. Where there are it may be the number of one, from 0.
        suffix: put behind every question, on a line of its own; LLaVA-1.5 asks for "a single word or phrase" there.
        images: folder that relative paths are meant to; null for the working directory.
        ignore: fields of records and of what is in them that are left unread, though they look like pictures or like
            misspelt names.
        heldout_path: file or pattern of the records that are held out; None holds out some of those of ``path``.
        heldout: records held out.
        augment: see ``beni.data.images.Augment``.

    Raises:
        DataError: when a record lacks something; names file and record.
    """

    def __init__(
        self,
        seed: int,
        *,
        path: str | None,
        subset: str | None,
        split: str | None,
        rows: Annotated[int, AtLeast(1)] | None,
        columns: dict[Literal["image", "question", "answer", "choices"], str | None],
        suffix: str,
        images: str | None,
        ignore: list[str],
        heldout_path: str | None,
        heldout: Annotated[int, AtLeast(0), Example("100")],
        augment: Annotated[dict[str, Any], FieldsOf("beni.data.images.Augment")],
    ) -> None:
        self.columns = columns_of(columns, "image", "question", "answer", optional=("choices",))
        self.suffix = suffix
        self.metric = BestChoice() if "choices" in self.columns else ExactAnswer()
        records, held = open_with_heldout(path, heldout_path, subset=subset, split=split, rows=rows)
        settings = {**self.columns, "suffix": suffix}
        fields = Fields(tuple(self.columns.values()), pictures=(self.columns["image"],), slot="image")
        super().__init__(seed, records, held, heldout, augment, images, settings, fields=fields, ignore=ignore)

    def read(self, row: Row, where: str, rng: np.random.Generator | None) -> Sample:
        name = self.columns["image"]
        pictures = pictures_of(column(row, name, where), self.root, name, where)
        question = caption_of(column(row, self.columns["question"], where), self.columns["question"], where)
        choices = self._choices(row, where)
        answer, said = self._answers(column(row, self.columns["answer"], where), choices, where)
        asked = f"{question}\n{self.suffix}" if self.suffix else question
        return Sample("", exchange([*pictures, asked], answer), choices=choices, references=said)

    def _answers(self, value: Any, choices: tuple[str, ...], where: str) -> tuple[str, tuple[str, ...]]:
        """The answer that is trained on, and all that was said."""
        name = self.columns["answer"]
        if choices and isinstance(value, bool):  # true and false are numbers, but no numbers of choices
            raise DataError(
                f"{where}: {name!r} is {str(value).lower()}, expected one of the choices {', '.join(choices)}, or its "
                "number from 0\n  fix: write the choice itself in the record"
            )
        if isinstance(value, int) and value in range(len(choices)):
            return choices[value], ()
        said = tuple(caption_of(one, name, where).strip() for one in (value if isinstance(value, list) else [value]))
        if not said:
            raise DataError(f"{where}: {name!r} is an empty list, expected an answer\n  {MEND}")
        answer = Counter(said).most_common(1)[0][0]
        if choices and answer not in choices:
            raise DataError(f"{where}: the answer {answer!r} is none of the choices {', '.join(choices)}\n  {MEND}")
        return answer, said

    def _choices(self, row: Row, where: str) -> tuple[str, ...]:
        if "choices" not in self.columns:
            return ()
        name = self.columns["choices"]
        value = column(row, name, where)
        if not isinstance(value, list) or len(value) < 2:
            raise DataError(f"{where}: {name!r} is {short(value)}, expected a list of at least two choices\n  {MEND}")
        return tuple(caption_of(one, name, where).strip() for one in value)
