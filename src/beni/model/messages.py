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


def as_conversations(given: Any) -> tuple[Sequence[Conversation], bool]:
    """-> conversations, and whether one was given instead of a list of them.

    Raises:
        DataError: when it is neither.
    """
    one = _holds(given, Mapping)
    talks = [given] if one else given
    if _holds(talks, Sequence) and all(_holds(talk, Mapping) for talk in talks):
        return talks, one
    raise DataError(
        f"a conversation is {given!r:.120}, expected a list of messages, or a list of such lists\n"
        "  fix: write [{'role': 'user', 'content': ...}]"
    )


def _holds(given: Any, kind: type) -> bool:
    """Whether it is a list of at least one, all of a kind."""
    listed = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    return listed and len(given) > 0 and all(isinstance(one, kind) for one in given)


def _message(turn: Any, pictured: bool) -> Message:
    if not isinstance(turn, Mapping) or set(turn) != {"role", "content"} or turn["role"] not in ROLES:
        told = dict(turn) if isinstance(turn, Mapping) else turn
        raise DataError(
            f"a message has the fields {told!r:.120}, expected role ({', '.join(ROLES)}) and content\n"
            "  fix: leave out other fields; nothing reads them"
        )
    content = turn["content"]
    if not isinstance(content, Sequence) or isinstance(content, bytes):
        raise DataError(
            f"the content of a message is {content!r:.80}, expected a text or a list of parts\n"
            "  fix: write a text, or [{'type': 'text', 'text': ...}]"
        )
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    return Message(turn["role"], tuple(_part(part, pictured) for part in parts))


def _part(part: Any, pictured: bool) -> str | Image:
    fields: Mapping[str, Any] = part if isinstance(part, Mapping) else {}
    if fields.get("type") == "text" and set(fields) == {"type", "text"} and isinstance(fields["text"], str):
        return fields["text"]
    given = [fields[key] for key in ("image", "path", "url") if key in fields]
    if fields.get("type") == "image" and len(fields) == 1 + len(given) <= 2 and (given or not pictured):
        return as_image(given[0]) if given else Image(PILImage.Image, IMAGE)
    raise DataError(
        f"a part of a message is {dict(fields) if fields else part!r:.120}\n"
        "  fix: write {'type': 'text', 'text': ...} or {'type': 'image', 'image': <a PIL image, a path or bytes>}"
    )
