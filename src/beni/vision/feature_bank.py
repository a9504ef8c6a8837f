"""Feature bank: what a frozen encoder makes of a view, kept on disk, so that no later epoch or run encodes it again.

A view's key is a hash of its transformed pixels: content, augmentation and transform are all in it. The folder is named
after everything else that decides the features (``describe``). Values come back bit for bit, in their dtype.

How many views pass the encoder at once can change the last bits of the result; their order and their neighbours do not
(measured: docs/visual_path.md). So a batch is never encoded in part. Either all of its views are in the bank, or the
whole batch passes the encoder as it would without a bank, and the bank keeps what it did not have.

How the rows lie on disk is told in feature_shards.py.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from beni.errors import ResourceError
from beni.types import VisualTokens
from beni.vision.base import VisionEncoder
from beni.vision.feature_shards import FORMAT, KEY, Form, Row, Shard, Writer, leaves


def describe(vision: VisionEncoder, node: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """Everything but the pixels that decides an encoder's features: its config and weights, and what computes them.

    Args:
        node: resolved config of the encoder.
        precision: ``bf16`` (autocast) or ``fp32``.
    """
    digest, device = hashlib.blake2b(digest_size=KEY), torch.device("cpu")
    for name, tensor in (*vision.named_parameters(), *vision.named_buffers()):
        device = tensor.device
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    spec = vision.spec()
    return {
        "format": FORMAT,
        "encoder": dict(node),
        "channels": [name for name, given in (("attn", spec.attn), ("keys", spec.keys > 0)) if given],
        "weights": digest.hexdigest(),
        "precision": precision,
        "device": device.type,
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
    }


def fingerprint(description: Mapping[str, Any]) -> str:
    """``describe``'s answer -> 16 hexadecimal digits, the name of the encoder's folder in a bank."""
    text = json.dumps(description, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


class FeatureBank:
    """The views that one encoder has seen.

    Args:
        folder: of the bank; every encoder has a folder of its own below it.
        description: of the encoder, by ``describe``.
        notice: told what was damaged and is left out, and when no more can be written.

    Raises:
        ResourceError: when the folder cannot be made.

    Attributes:
        hits: views looked up that were in the bank.
        misses: views looked up that were not.
        encoded: views that passed the encoder: those missing, and the others of their batches.
    """

    def __init__(self, folder: Path, description: Mapping[str, Any], notice: Callable[[str], None]) -> None:
        self.path = folder / fingerprint(description)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._tell(description)
        except OSError as error:
            raise ResourceError(
                f"compute.feature_bank={folder} cannot be used: {error}\n"
                "  fix: set it to a folder that can be written to"
            ) from error
        self.hits = self.misses = self.encoded = 0
        self._bf16, self._notice = description["precision"] == "bf16", notice
        self._shards: list[Shard] = []
        self._known: set[str] = set()
        self._places: dict[bytes, int] = {}  # key -> number of the shard and of its row, as one int: a third the memory
        self._more: dict[bytes, list[int]] = {}  # further places of keys that several processes wrote
        self._writers: dict[Form, Writer] = {}  # views of another size have tokens of another form
        self._writes = True
        self._look()

    def __len__(self) -> int:
        """Views in the bank, as far as this process has looked."""
        return len(self._places)

    def encode(
        self, vision: VisionEncoder, pixels: Float[Tensor, "i 3 height width"], keys: Sequence[str]
    ) -> VisualTokens:
        """``(i, 3, height, width) -> (i, n, d)``: ``vision(pixels)``, from the bank where it holds all views.

        Args:
            vision: the encoder that was described.
            keys: ``pixel_key`` of each view.

        Raises:
            ValueError: when there are not as many keys as views.
        """
        if len(keys) != len(pixels):
            raise ValueError(f"{len(keys)} pixel keys for {len(pixels)} views")
        if vision.training or torch.is_autocast_enabled(pixels.device.type) != self._bf16:
            return vision(pixels)  # features that differ from those of the run: dropout, another precision
        views = [bytes.fromhex(key) for key in keys]
        rows = [self._row(view) for view in views]
        if any(row is None for row in rows):
            self._look()  # another process may have written them meanwhile
            rows = [self._row(view) if row is None else row for view, row in zip(views, rows, strict=True)]
        found = [i for i, row in enumerate(rows) if row is not None]
        self.hits, self.misses = self.hits + len(found), self.misses + len(views) - len(found)
        stored = [row for row in rows if row is not None]
        if len(found) == len(views):
            form = stored[0].form
            return form.tokens(form.unpack([row.data for row in stored], pixels.device))

        self.encoded += len(views)
        tokens = vision(pixels)
        form = Form.of(tokens)
        self._keep(tokens, form, {view: i for i, view in reversed(list(enumerate(views))) if rows[i] is None})
        if found:
            # what a view once was it stays, whatever batch it is in now: else a resumed run could have other digits
            at = torch.tensor(found, device=pixels.device)
            once = form.unpack([row.data for row in stored], pixels.device)
            for ours, theirs in zip(leaves(tokens), once, strict=True):
                if 0 not in ours.stride():  # expanded: the same for every view
                    ours.index_copy_(0, at, theirs)
        return tokens

    def close(self) -> None:
        """Ends this process's shards; nothing is written afterwards."""
        self._writes = False
        for writer in self._writers.values():
            writer.close()

    def _keep(self, tokens: VisualTokens, form: Form, fresh: dict[bytes, int]) -> None:
        """Appends the rows ``fresh`` (key -> row) of ``tokens``, which are of ``form``."""
        if not self._writes:
            return
        rows = form.pack(tokens, list(fresh.values()))
        try:
            if form not in self._writers:
                self._writers[form] = Writer(self.path, form)
            self._writers[form].append(list(fresh), rows)
        except OSError as error:  # a full disk costs time, not the run
            self.close()
            self._notice(f"feature bank: {error}; no more views are written to {self.path}")
        self._look()

    def _row(self, key: bytes) -> Row | None:
        """A stored view, from the first place where its bytes are whole."""
        while (place := self._places.get(key)) is not None:
            shard = self._shards[place >> 40]
            data = shard.row(place & (1 << 40) - 1)
            if data is not None and shard.form is not None:
                return Row(shard.form, data)
            self._notice(f"feature bank: a damaged row of {shard.data} is left out")
            others = self._more.get(key)
            if others:
                self._places[key] = others.pop(0)
            else:
                del self._places[key]
        return None

    def _look(self) -> None:
        """Takes in what any process has appended since the last look."""
        for path in sorted(self.path.glob("*.index")):  # named by time: who wrote a view first is read
            if path.name not in self._known:
                self._known.add(path.name)
                self._shards.append(Shard(path, self._notice))
        for number, shard in enumerate(self._shards):
            for key, slot in shard.grown():
                place = number << 40 | slot
                if self._places.setdefault(key, place) != place:
                    self._more.setdefault(key, []).append(place)

    def _tell(self, description: Mapping[str, Any]) -> None:
        """Writes for a person what the folder's name stands for."""
        path = self.path / "encoder.json"
        if not path.exists():
            partial = path.with_name(f".{path.name}.{os.getpid()}")
            partial.write_text(json.dumps(description, indent=1, sort_keys=True, default=str))
            partial.replace(path)
