"""Fields of a record as formats need them: columns, texts, pictures, roles. What is none is told with its place."""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import url2pathname

from beni.config.suggest import closest
from beni.data.images import Image
from beni.data.records.base import Row, Rows
from beni.data.render.tokens import IMAGE
from beni.data.sample import Role
from beni.errors import DataError

REMOTE = ("http", "https", "hf")
"""Schemes of pictures that are fetched."""
ESCAPED = f"\\{IMAGE}"
"""How a text has the word ``<image>`` in it, and no picture."""
MARK = re.compile(rf"(?<!\\){IMAGE}")
"""Where the next picture belongs."""
MEND = "fix: correct the record, or remove it from the file"
_ABSENT = object()


def columns_of(given: Mapping[Any, str | None], *known: str, optional: tuple[str, ...] = ()) -> dict[str, str]:
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
    _, value = _found(row, name)
    if value is not _ABSENT:
        return value
    near = closest(name, row)
    raise DataError(
        f"{where}: no column {name!r}; there are {', '.join(map(repr, sorted(row)))}\n"
        f"  fix: set the column in data.columns{f', perhaps to {near}' if near else ''}"
    )


def column_in(row: Mapping[str, Any], name: str) -> str | None:
    """The field of a row that ``column`` reads by this name; None where there is none."""
    return _found(row, name)[0]


def _found(row: Mapping[str, Any], name: str) -> tuple[str | None, Any]:
    """The field of a row that a column is in, and its value; of alternatives the first that holds anything."""
    found: tuple[str | None, Any] = (None, _ABSENT)
    for alternative in name.split(";"):
        value: Any = row
        for part in [alternative] if alternative in row else alternative.split("."):
            value = _field(value, part)
        if value is not _ABSENT and (found[1] is _ABSENT or found[1] is None):
            found = alternative if alternative in row else alternative.partition(".")[0], value
    return found


def _field(value: Any, name: str) -> Any:
    if isinstance(value, list) and all(isinstance(one, Mapping) and name in one for one in value):
        return [one[name] for one in value]
    return value.get(name, _ABSENT) if isinstance(value, Mapping) else _ABSENT


def require_column(rows: Rows, columns: Mapping[str, str], name: str) -> None:
    """Return when a column that rows may lack is there in some row, or has its own name, as nobody asked for it then.

    Raises:
        DataError: otherwise.
    """
    wanted = columns[name]
    if wanted != name and not rows.has(wanted):
        there = sorted(rows[0]) if len(rows) else []
        near = closest(wanted, there)
        raise DataError(
            f"data.columns.{name}={wanted}: no record of {rows.title} has it; the first has "
            f"{', '.join(map(repr, there))}\n  fix: set data.columns.{name}={near or name}"
        )


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


def caption_of(value: Any, name: str, where: str) -> str:
    r"""A text in which no picture has a place, ``\<image>`` written out.

    Raises:
        DataError: when it is none, empty, or has ``<image>`` in it.
    """
    return written_out(text_of(value, name, where), where)


def written_out(text: str, where: str) -> str:
    r"""A text in which no picture has a place: ``\<image>`` becomes the word ``<image>``.

    Raises:
        DataError: for ``<image>`` without the escape.
    """
    if MARK.search(text):
        raise DataError(
            f"{where}: {IMAGE} in a text that cannot hold an image: {short(text)}\n"
            f"  fix: remove it, or write \\{IMAGE} for the literal text (in JSON \\\\{IMAGE})"
        )
    return text.replace(ESCAPED, IMAGE)


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
    if scheme := re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", value):
        return _addressed(value, scheme[1].lower(), name, where)
    if value.startswith("data:"):
        try:
            return _encoded(base64.b64decode(value.partition(",")[2], validate=True), name)
        except binascii.Error as error:
            raise DataError(f"{where}: {name!r} is no valid data URL: {error}\n  {MEND}") from error
    return Image.from_path(root / value)


def _addressed(value: str, scheme: str, name: str, where: str) -> Image:
    """A picture by its URL.

    Raises:
        DataError: when it is of another scheme than those that are read, or names a file of another machine.
    """
    if scheme in REMOTE:
        return Image.from_url(scheme + value[len(scheme) :])
    if scheme == "file":
        parts = urlsplit(value)
        if parts.netloc.lower() in ("", "localhost") and not parts.query and not parts.fragment:
            return Image.from_path(Path(url2pathname(parts.path)))
    expected = ", ".join(f"{one}://" for one in (*REMOTE, "file"))
    raise DataError(
        f"{where}: {name!r} is {short(value)}, expected a path or a URL of {expected} (file:// with three slashes, and "
        f"? and # written as %3F and %23)\n  {MEND}"
    )


def _encoded(data: bytes, name: str) -> Image:
    # a hash, as the names in a table may all be the same, and several questions about one page are no independent ones
    return Image.from_bytes(data, f"{name}#{hashlib.blake2b(data, digest_size=8).hexdigest()}")


def interleaved(text: str, images: Iterator[Image], where: str) -> tuple[str | Image, ...]:
    r"""A text with ``<image>`` in it, the next pictures in their places; ``\<image>`` is the word itself.

    Raises:
        DataError: when there are too few.
    """
    content: list[str | Image] = []
    for i, piece in enumerate(MARK.split(text)):
        if i > 0:
            image = next(images, None)
            if image is None:
                raise DataError(
                    f"{where}: more {IMAGE} in the text than images\n"
                    f"  fix: add the missing images to the record, remove {IMAGE} from its text, or write \\{IMAGE} "
                    "for the word itself"
                )
            content.append(image)
        if piece:
            content.append(piece.replace(ESCAPED, IMAGE))
    return tuple(content)


def require_used(images: Iterator[Image], count: int, where: str) -> None:
    """Return when every picture has found its place.

    Raises:
        DataError: otherwise.
    """
    if next(images, None) is not None:
        raise DataError(
            f"{where}: {count} images but fewer {IMAGE} in the text\n"
            f"  fix: put {IMAGE} where each image belongs, or remove the image from the record"
        )


def role_of(value: Any, roles: Mapping[str, Role], where: str) -> Role:
    """A role by the word that the format has for it.

    Raises:
        DataError: for another word.
    """
    role = roles.get(str(value))
    if role is None:
        raise DataError(
            f"{where}: unknown role {short(value)}, expected one of {', '.join(roles)}\n"
            "  fix: rename the role in the record, or remove the record"
        )
    return role


def trained(given: Mapping[str, Any], role: Role, where: str) -> bool | None:
    """Whether a message is supervised, by whichever field says so; None where none does: assistants' are.

    ``train`` is true or false; ``weight`` is 0 or 1, as in OpenAI's fine-tuning and axolotl; ``loss`` is true or false,
    as in ms-swift. The last two speak of assistants' messages only.

    Raises:
        DataError: for another value, a message of somebody else that is to be supervised by ``weight`` or ``loss``, or
            two fields that disagree.
    """
    said: dict[str, bool] = {}
    for name, values in (("train", (False, True)), ("weight", (0, 1)), ("loss", (False, True))):
        value = given.get(name)
        if value is None:
            continue
        if value not in values or (isinstance(value, bool) is (name == "weight")):
            words = "0 or 1" if name == "weight" else "true or false"
            raise DataError(f"{where}: {name!r} is {value!r}, expected {words}\n  {MEND}")
        if value and name != "train" and role != "assistant":
            raise DataError(
                f"{where}: {name!r} is {value!r} in a message of the {role}, expected it in an assistant's only\n"
                '  fix: write "train": true to supervise this message, or remove the field'
            )
        said[name] = bool(value)
    if len(set(said.values())) > 1:
        raise DataError(f"{where}: {' and '.join(said)} disagree about whether the message is supervised\n  {MEND}")
    return next(iter(said.values()), None)


def short(value: Any) -> str:
    """How errors show a value."""
    said = repr(value)
    return said if len(said) <= 60 else f"{said[:57]}..."
