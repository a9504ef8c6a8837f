"""Fields of a record that nobody reads: a picture among them, or a misspelt name, is an error; others are counted.

Unknown keys of a configuration are refused, and so is what a record would lose without a word: a LLaVA record with
``images`` instead of ``image`` would be trained on as text. A format says which fields it reads, which it knows and
does without, and which it knows and cannot obey.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from beni.config.suggest import closest
from beni.data.formats.fields import column_in, short
from beni.errors import DataError


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


IDENTITY = _words(
    "id ids uid uuid __key__ __url__ __index_level_0__ index idx source dataset split license metadata meta"
)
"""Fields of any record that say where it comes from; no format reads or counts them."""
WORDS = {
    "picture": _words(
        "image images img imgs picture pictures pic pics photo photos screenshot screenshots pixels jpg jpeg png webp "
        "gif tif tiff bmp"
    ),
    "video": _words("video videos frames mp4 webm avi mov mkv"),
    "audio": _words("audio audios wav mp3 flac ogg sound sounds"),
}
"""Kind of medium -> words of field names that speak of one."""
ABOUT = _words(
    "id ids idx index size sizes width height w h hash sha sha256 md5 phash count counts num n number source caption "
    "captions description descriptions text texts alt title score scores similarity type format date time category "
    "label labels quality mode dim dims shape resolution ratio aspect area author page duration fps rate license tokens"
)
"""Words that make such a name speak of something about it: ``image_size``."""
NAMES = _words("file filename filepath path url uri name link source")
"""Words of fields that say where a picture came from; beside a picture that is read they add none."""
ARTICLE = {"picture": "an image", "video": "a video", "audio": "audio"}
ENDINGS = {
    "picture": ("png", "jpg", "jpeg", "jfif", "webp", "gif", "bmp", "tif", "tiff", "avif", "heic"),
    "video": ("mp4", "webm", "avi", "mov", "mkv"),
    "audio": ("wav", "mp3", "flac", "ogg", "m4a"),
}
"""Kind of medium -> endings of files that hold one."""
HEADS = {
    "picture": (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*"),
    "audio": (b"ID3", b"fLaC", b"OggS"),
}
"""Kind of medium -> first bytes of files that hold one."""
LONGEST = 2048
"""Characters beyond which a text is no path or URL."""
SHOWN = 12
"""Fields that a notice names."""

CANNOT: dict[str, str] = dict.fromkeys(
    ("tool_calls", "tool_call_id", "function_call", "reasoning_content", "reasoning", "thinking", "name", "tools"),
    "beni cannot render it in a conversation\n  fix: remove the record, or write its content into the text",
)
"""Fields of messages whose words a model would be given, by the documentation of the formats that have them."""
TOP: dict[str, str] = {
    **dict.fromkeys(("system", "system_prompt"), "it would be ignored\n  fix: make it the first message"),
    **dict.fromkeys(
        ("tools", "functions", "chosen", "rejected", "rejected_messages", "rejected_response"),
        "beni trains on conversations, not on tools or preferences\n  fix: remove the record",
    ),
}
"""The same of records with messages."""


@dataclass(frozen=True)
class Fields:
    """What a format knows of the fields of a record, or of a message or part within it.

    Attributes:
        read: columns that it reads, as ``beni.data.formats.fields.column`` finds them.
        optional: those of them that a record may lack; a name like one that is lacking is a misspelling.
        pictures: those of them that hold pictures.
        slot: key of ``data.columns`` that names the column of pictures; empty where no column can.
        known: fields that have no meaning for training.
        refused: field -> what cannot be obeyed, and the fix.
        within: how errors call the owner: ``message `` for those of a message; empty for those of the record.
    """

    read: tuple[str, ...]
    optional: tuple[str, ...] = ()
    pictures: tuple[str, ...] = ()
    slot: str = ""
    known: frozenset[str] = frozenset()
    refused: Mapping[str, str] = field(default_factory=dict)
    within: str = ""


class Unread:
    """Checks the fields of records against what their format reads.

    Args:
        ignore: fields, of records and of what is in them, that ``data.ignore`` leaves unread.

    Attributes:
        seen: fields that mean nothing here, of the records checked since it was last emptied.
        fault: the error that was raised last.
    """

    def __init__(self, ignore: Sequence[str]) -> None:
        self.ignore = frozenset(ignore)
        self.seen: set[str] = set()
        self.fault: DataError | None = None

    def check(self, given: Mapping[str, Any], fields: Fields, where: str) -> None:
        """Keeps the names of fields that mean nothing here in ``seen``.

        Raises:
            DataError: for a picture, video or audio that is not read, a misspelt name, or a field that the format knows
                and beni cannot obey.
        """
        read = {top for name in fields.read if (top := column_in(given, name)) is not None}
        for name, value in given.items():
            if name in read or name in self.ignore or name in fields.known or _is_empty(value):
                continue
            if says := _wrong(name, value, given, fields, read):
                known = name if re.fullmatch(r"[A-Za-z_]\w*", name) else f'"{name}"'
                instead = f", or set 'data.ignore=[{known}]' to train without it"
                self.fault = DataError(f"{where}: {says}{instead}")
                raise self.fault
            if name not in IDENTITY:
                self.seen.add(f"{fields.within}{name}")


def _wrong(name: str, value: Any, given: Mapping[str, Any], fields: Fields, read: Collection[str]) -> str | None:
    """Why a field that is not read would be missed, and the fix; None where it would not."""
    if reason := fields.refused.get(name):
        return f"the {fields.within}field {name!r} is {short(value)}: {reason}"
    if name in IDENTITY and not isinstance(value, bytes):
        return None
    shown = any(not _is_empty(given.get(column_in(given, one) or "")) for one in fields.pictures)
    if kind := medium(name, value, shown):
        return (
            f"the {fields.within}field {name!r} ({short(value)}) looks like {ARTICLE[kind]} and is not read\n"
            f"  fix: {_how(name, kind, fields, shown)}"
        )
    if near := closest(name, (one for one in fields.optional if one not in read), cutoff=0.75):
        return f"unknown {fields.within}field {name!r}\n  fix: did you mean {near!r}? Rename it"
    return None


def notice_of(counts: Counter[str], looked: int, total: int, name: str) -> Iterator[str]:
    """One line on the fields that were counted, or none."""
    if counts:
        shown = ", ".join(f"{field_name!r} ({count})" for field_name, count in counts.most_common(SHOWN))
        more = f" and {len(counts) - SHOWN} more" if len(counts) > SHOWN else ""
        of = f"the {total} records" if looked == total else f"the first {looked} of {total} records"
        yield f"{name}: fields that are not read (records with it, of {of}): {shown}{more}"


def medium(name: str, value: Any, shown: bool = False) -> str | None:
    """``picture``, ``video`` or ``audio`` when a field looks like one by its name or by what it holds.

    Args:
        shown: whether the record has a picture that is read: then a text that names a file or URL adds none.
    """
    words = set(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower().replace("_", " ")))
    if isinstance(value, str) and shown and words & NAMES:
        return None
    if held := _held(value):
        return held
    if words & ABOUT or not _could_hold(value):
        return None
    return next((kind for kind, said in WORDS.items() if any(_stem(word) in said for word in words)), None)


def _stem(word: str) -> str:
    """Without a number at its end: ``image2``; ``mp4`` stays."""
    return word if word in ("mp3", "mp4") else word.rstrip("0123456789")


def _held(value: Any) -> str | None:
    """The medium that a value is by itself."""
    if isinstance(value, list | tuple):
        return _held(value[0]) if value else None
    if isinstance(value, bytes):
        return next((kind for kind, heads in HEADS.items() if value.startswith(heads)), None)
    if isinstance(value, Mapping):
        if "array" in value and "sampling_rate" in value:
            return "audio"
        return _held(value.get("bytes")) or _held(value.get("path")) if {"bytes", "path"} <= value.keys() else None
    if not isinstance(value, str) or (len(value) > LONGEST and not value.startswith("data:")):
        return None
    if data := re.match(r"data:(image|video|audio)/", value):
        return "picture" if data[1] == "image" else data[1]
    before, _, ending = value.partition("?")[0].lower().rpartition(".")
    return (
        None
        if not before or re.search(r"\s", value)
        else next((kind for kind, ends in ENDINGS.items() if ending in ends), None)
    )


def _could_hold(value: Any) -> bool:
    """Whether a value could be a medium, going by its type: numbers and lists of them are not."""
    if isinstance(value, list | tuple):
        return any(_could_hold(one) for one in value)
    return isinstance(value, str | bytes | Mapping)


def _is_empty(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(_is_empty(one) for one in value)
    return value is None or value in ("", b"") or (isinstance(value, Mapping) and all(map(_is_empty, value.values())))


def _how(name: str, kind: str, fields: Fields, shown: bool) -> str:
    if kind != "picture":
        return "beni reads images only: remove the record"
    if fields.within:
        return "make it an image part of the content, or move it to the record's column of images"
    if not fields.slot:
        return "choose an option that reads images (data=captions, vqa, chat ...)"
    if shown:
        return f"put it into {fields.pictures[0]!r}, beside the image that is there"
    return f"set data.columns.{fields.slot}={name}"
