"""Conversations in transformers' form, with images of any kind, to beni's samples."""

from __future__ import annotations

import base64
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image as PILImage

from beni.data.images import Image
from beni.data.render.tokens import IMAGE
from beni.data.sample import Message, Sample
from beni.errors import DataError

Picture = PILImage.Image | str | Path | bytes
"""An image: decoded (any mode), the path of a file, a file's content, or that as ``data:image/png;base64,...``."""

Conversation = Sequence[Mapping[str, Any]]
"""Messages with ``role`` and ``content``: a text, or a list of parts ``{"type": "text", "text": ...}`` and ``{"type":
"image", "image": ...}`` (or ``path`` or ``url`` for ``image``), in reading order."""
DATA = re.compile("data:[^,]*;base64,(.*)", re.S)

ROLES = ("system", "user", "assistant")


def as_image(picture: Any) -> Image:
    """An image of any of the forms, not yet decoded.

    Raises:
        DataError: when it is none, or its address is one that would have to be fetched.
    """
    if isinstance(picture, PILImage.Image):
        return Image(picture.copy, "image")  # decoding closes what it opens, which is the caller's
    if isinstance(picture, bytes):
        return Image.from_bytes(picture, "image")
    if isinstance(picture, str) and (data := DATA.fullmatch(picture)):
        return as_image(_content_of(data[1]))
    if isinstance(picture, str | Path) and "://" not in str(picture):
        return Image.from_path(Path(picture))
    what = picture if isinstance(picture, str) else type(picture).__name__
    raise DataError(
        f"an image is {what:.120}, expected a PIL image, the path of a file or its content as bytes\n"
        "  fix: open it first, for instance PIL.Image.open(path), or Image.fromarray(array)"
    )


def _content_of(coded: str) -> bytes:
    try:
        return base64.b64decode(coded, validate=True)
    except ValueError as error:
        raise DataError(
            f"an image is {coded[:40]!r} ..., which is no base64: {error}\n  fix: encode the content of its file"
        ) from error


def as_sample(conversation: Conversation, pictured: bool) -> Sample:
    """A conversation in transformers' form -> beni's.

    Args:
        pictured: every image must be there, not its place only.

    Raises:
        DataError: when a message has another form.
    """
    return Sample("conversation", tuple(_message(turn, pictured) for turn in conversation))


def _message(turn: Mapping[str, Any], pictured: bool) -> Message:
    if set(turn) != {"role", "content"} or turn["role"] not in ROLES:
        raise DataError(
            f"a message has the fields {dict(turn)!r:.120}, expected role ({', '.join(ROLES)}) and content\n"
            "  fix: leave out other fields; nothing reads them"
        )
    content = turn["content"]
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Message(turn["role"], tuple(_part(part, pictured) for part in parts))


def _part(part: Mapping[str, Any], pictured: bool) -> str | Image:
    if part.get("type") == "text" and set(part) == {"type", "text"}:
        return part["text"]
    given = [part[key] for key in ("image", "path", "url") if key in part]
    if part.get("type") == "image" and len(part) == 1 + len(given) <= 2 and (given or not pictured):
        return as_image(given[0]) if given else Image(PILImage.Image, IMAGE)
    raise DataError(
        f"a part of a message is {dict(part)!r:.120}\n"
        "  fix: write {'type': 'text', 'text': ...} or {'type': 'image', 'image': <a PIL image, a path or bytes>}"
    )
