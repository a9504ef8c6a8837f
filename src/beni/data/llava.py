"""LLaVA's JSON format: a list of records with ``image`` and ``conversations`` of ``human`` and ``gpt`` turns.

Used by LLaVA-558K (align) and LLaVA-665K (finetune), arXiv 2304.08485 and 2310.03744.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from beni.data.images import Augment, Image
from beni.data.sample import Message, Role, Sample, Source
from beni.data.tokens import IMAGE
from beni.errors import DataError
from beni.nn.streams import numpy_stream

ROLES: dict[str, Role] = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}


class LlavaJson(Source):
    """Conversations about local pictures.

    Args:
        seed: of the run; the split into training and held-out records does not depend on it.
        path: the JSON (or JSON lines) file; null is refused with the command that fetches the set.
        images: folder that the records' ``image`` paths are relative to; null takes the JSON file's folder.
        heldout: records held out for the loss, the same for every seed.
        augment: see ``beni.data.images.Augment``.

    Raises:
        DataError: when the file is missing or not in the format; names file and record.
    """

    task = "loss"

    def __init__(
        self, seed: int, *, path: str | None, images: str | None, heldout: int, augment: dict[str, Any]
    ) -> None:
        if path is None:
            raise DataError(
                "data.path is null; set data.path to LLaVA's .json file and data.images to its picture folder"
            )
        self.path = Path(path).expanduser()
        if not self.path.is_file():
            raise DataError(f"data.path={path} does not exist")
        self.root = Path(images).expanduser() if images else self.path.parent
        self.augment = Augment.from_config(augment)
        count = len(self.records)
        if count <= heldout:
            raise DataError(f"{self.path} has {count} records, data.heldout={heldout} leaves none to train on")
        order = numpy_stream(0, "data.heldout").permutation(count)
        self._heldout, self._train = sorted(order[:heldout].tolist()), sorted(order[heldout:].tolist())

    def __len__(self) -> int:
        return len(self._train)

    def train(self, index: int, epoch: int) -> Sample:
        return self._sample(self._train[index])

    def heldout(self) -> Sequence[Sample]:
        return [self._sample(record) for record in self._heldout]

    def fingerprint(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()[:16]

    @cached_property
    def records(self) -> list[dict[str, Any]]:
        """The file's records."""
        try:
            text = self.path.read_text(encoding="utf-8")
            if self.path.suffix == ".jsonl":
                records = [json.loads(line) for line in text.split("\n") if line.strip()]
            else:
                records = json.loads(text)
        except ValueError as error:
            raise DataError(f"{self.path} is not valid JSON: {error}") from error
        if not isinstance(records, list):
            raise DataError(f"{self.path} holds a {type(records).__name__}, expected a list of records")
        for index, record in enumerate(records):
            if not isinstance(record, dict):
                raise DataError(f"{self.path}, record {index}: a {type(record).__name__}, expected an object")
        return records

    def _sample(self, index: int) -> Sample:
        record, where = self.records[index], f"{self.path}, record {index}"
        turns = record.get("conversations")
        if not isinstance(turns, list) or not turns or not all(isinstance(turn, dict) for turn in turns):
            raise DataError(f"{where}: no list of turns in 'conversations'; found the keys {sorted(record)}")
        names = record.get("image") or []
        pending = [names] if isinstance(names, str) else names
        if not isinstance(pending, list) or not all(isinstance(name, str) for name in pending):
            raise DataError(f"{where}: 'image' is {names!r}, expected a path or a list of paths")
        images = iter([Image.from_path(self.root / name) for name in pending])
        messages = [self._message(turn, images, where) for turn in turns]
        if next(images, None) is not None:
            raise DataError(f"{where}: {len(pending)} images but fewer {IMAGE} in the text")
        # LLaVA's own ids repeat: several conversations about one picture carry the picture's number
        return Sample(f"{index}-{record.get('id', '')}", tuple(messages), cluster=pending[0] if pending else "")

    def _message(self, turn: dict[str, Any], images: Any, where: str) -> Message:
        role = ROLES.get(str(turn.get("from")))
        if role is None:
            raise DataError(f"{where}: unknown role {turn.get('from')!r}, expected one of {', '.join(ROLES)}")
        content: list[str | Image] = []
        for i, text in enumerate(str(turn.get("value", "")).split(IMAGE)):
            if i > 0:
                image = next(images, None)
                if image is None:
                    raise DataError(f"{where}: more {IMAGE} in the text than images")
                content.append(image)
            if text:
                content.append(text)
        return Message(role, tuple(content))
