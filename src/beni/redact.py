"""Passwords and tokens, known by shape or by name: what beni prints and writes has ``***`` in their place."""

from __future__ import annotations

import re

HIDDEN = "***"

_TOKENS = r"(?:(?:access|api|auth|hf|bearer|refresh|session|private|security|hub)[_-]?)?token"
_NAMED = (
    r"(?:[\w-]*[_-])?(?:password|passwd|secret|credentials?|api[_-]?key|access[_-]?key|private[_-]?key|[a-z]+_api_token)"
    rf"|{_TOKENS}"
)
_SIGNED = r"(?:x-amz-(?:signature|credential|security-token)|x-goog-(?:signature|credential)|sig|signature)"
_SHAPES = (
    (re.compile(r"(?<=://)([^\s/@:'\"]*):[^\s/@'\"]+(?=@)"), rf"\1:{HIDDEN}"),
    (re.compile(rf"(?i)([?&](?:{_NAMED}|{_SIGNED})=)[^\s&'\"]+"), rf"\1{HIDDEN}"),
    (re.compile(r"(?i)\b(bearer\s+)[\w.~+/-]{8,}=*"), rf"\1{HIDDEN}"),
    (re.compile(r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[\w-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|AKIA[A-Z0-9]{12,})\b"), HIDDEN),
    (re.compile(r"\beyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*"), HIDDEN),
)
_ASSIGNED = re.compile(
    rf"(?i)(?<![?&\w.])((?:[\w-]+\.)*(?:{_NAMED})=)(?!\$\{{|null\b)('[^']*'|\"[^\"]*\"|[^\s,}}'\"]+)"
)
_NAME = re.compile(rf"(?i){_NAMED}")


def redacted(text: str) -> str:
    """A text with ``***`` for each password of a URL, signature of a link, token of a known form and value of a name
    such as ``api_key=``.
    """
    for shape, instead in _SHAPES:
        text = shape.sub(instead, text)
    return _ASSIGNED.sub(rf"\1{HIDDEN}", text)


def redacted_override(override: str) -> str:
    """An argument of a command line, redacted; variables that are set for a job are secrets whatever their name is."""
    name, equals, _ = override.partition("=")
    if equals and name.lstrip("+").startswith("hydra.job.env_set"):
        return f"{name}={HIDDEN}"
    return redacted(override)


def is_secret(key: str, value: str) -> bool:
    """Whether the value of a key is a password or token, by the key's name or its own shape."""
    return bool(value) and (_NAME.fullmatch(key) is not None or any(shape.search(value) for shape, _ in _SHAPES))
