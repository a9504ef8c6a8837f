"""Fields of a record as formats need them: columns, texts, pictures, roles. What is none is told with its place."""

from __future__ import annotations

import base64
import binascii
import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from beni.config.suggest import closest
from beni.data.images import Image
from beni.data.records.base import Row
from beni.data.render.tokens import IMAGE
from beni.data.sample import Role
from beni.errors import DataError

REMOTE = ("http://", "https://", "hf://")
MEND = "fix: mend the record, or leave it out of the file"
_ABSENT = object()


def columns_of(given: Mapping[str, str | None], *known: str, optional: tuple[str, ...] = ()) -> dict[str, str]:
    """Which column holds what: as ``data.columns`` says, else the one of the same name; null for none.

    Raises:
        DataError: when it names something that the format does not have.
    """
    if unknown := [name for name in given if name not in (*known, *optional)]:
        near = closest(unknown[0], (*known, *optional))
        raise DataError(
            f"data.columns.{unknown[0]}={given[unknown[0]]}: expected {', '.join((*known, *optional))}\n"
            f"  fix: {f'did you mean data.columns.{near}?' if near else f'leave out data.columns.{unknown[0]}'}"
        )
    return {name: name for name in known} | {name: said for name, said in given.items() if said is not None}


def column(row: Row, name: str, where: str) -> Any:
    """A value by its column; ``a.b`` is the field ``b`` of ``a``, or of all its elements, and ``jpg;png`` whichever
    there is.

    Raises:
        DataError: when there is none; says which columns there are, and the one that was probably meant.
    """
    for alternative in name.split(";"):
        value: Any = row
        for part in [alternative] if alternative in row else alternative.split("."):
            value = _field(value, part)
        if value is not _ABSENT:
            return value
    near = closest(name, row)
    raise DataError(
        f"{where}: no column {name!r}; there are {', '.join(map(repr, sorted(row)))}\n"
        f"  fix: set the column in data.columns{f', perhaps to {near}' if near else ''}"
    )


def _field(value: Any, name: str) -> Any:
    if isinstance(value, list) and all(isinstance(one, Mapping) and name in one for one in value):
        return [one[name] for one in value]
    return value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT


def text_of(value: Any, name: str, where: str) -> str:
    """A text.

    Raises:
        DataError: when it is none, or empty.
    """
    if not isinstance(value, str):
        raise DataError(f"{where}: {name!r} is {short(value)}, expected a text\n  {MEND}")
    if not value.strip():
        raise DataError(f"{where}: {name!r} is empty, expected a text\n  {MEND}")
    return value


def pictures_of(value: Any, root: Path, name: str, where: str) -> list[Image]:
    """What a column holds as pictures: none, one or a list of paths, URLs, bytes or ``{"bytes", "path"}``.

    Raises:
        DataError: when it is something else.
    """
    if value is None or value == "":
        return []
    many = value if isinstance(value, list | tuple) else [value]
    return [picture_of(one, root, name, where) for one in many]


def picture_of(value: Any, root: Path, name: str, where: str) -> Image:
    """One picture; see ``pictures_of``."""
    if isinstance(value, bytes):
        return _encoded(value, name)
    if isinstance(value, Mapping):
        if value.get("bytes"):
            return _encoded(value["bytes"], str(value.get("path") or name))
        value = value.get("path")
    if not isinstance(value, str) or not value:
        raise DataError(f"{where}: {name!r} is {short(value)}, expected a path or a list of paths\n  {MEND}")
    if value.startswith(REMOTE):
        return Image.from_url(value)
    if value.startswith("data:"):
        try:
            return _encoded(base64.b64decode(value.partition(",")[2], validate=True), name)
        except binascii.Error as error:
            raise DataError(f"{where}: {name!r} is no valid data URL: {error}\n  {MEND}") from error
    return Image.from_path(root / value)


def _encoded(data: bytes, name: str) -> Image:
    # a hash, as the names in a table may all be the same, and several questions about one page are no independent ones
    return Image.from_bytes(data, f"{name}#{hashlib.blake2b(data, digest_size=8).hexdigest()}")


def interleaved(text: str, images: Iterator[Image], where: str) -> tuple[str | Image, ...]:
    """A text with ``<image>`` in it, the next pictures in their places.

    Raises:
        DataError: when there are too few.
    """
    content: list[str | Image] = []
    for i, piece in enumerate(text.split(IMAGE)):
        if i > 0:
            image = next(images, None)
            if image is None:
                raise DataError(
                    f"{where}: more {IMAGE} in the text than images\n"
                    f"  fix: add the missing pictures to the record, or remove {IMAGE} from its text"
                )
            content.append(image)
        if piece:
            content.append(piece)
    return tuple(content)


def require_used(images: Iterator[Image], count: int, where: str) -> None:
    """Return when every picture has found its place.

    Raises:
        DataError: otherwise.
    """
    if next(images, None) is not None:
        raise DataError(
            f"{where}: {count} images but fewer {IMAGE} in the text\n"
            f"  fix: put {IMAGE} where each picture belongs, or remove the picture from the record"
        )


def role_of(value: Any, roles: Mapping[str, Role], where: str) -> Role:
    """A role by the word that the format has for it.

    Raises:
        DataError: for another word.
    """
    role = roles.get(str(value))
    if role is None:
        raise DataError(
            f"{where}: unknown role {value!r}, expected one of {', '.join(roles)}\n"
            "  fix: rename the role in the record, or leave the record out"
        )
    return role


def short(value: Any) -> str:
    """How errors show a value."""
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
