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
_REFERENCE = re.compile(r"""\"?[$`]|''$|""$""")
"""How a value begins that a shell reads elsewhere, or that is empty."""
_KEPT_IN_FILE = re.compile(r"(?i)(?:credentials?|private[_-]?key)=[\"']?(?:/|~|\.{1,2}/)")
"""Names whose values may be paths of the file that holds the secret."""
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
    """Whether the value of a key is a password or token, or has one in it: by the key's name, by its own shape, or by a
    name that it gives one (``export API_KEY=...``) unless a shell would read it from a variable, command or file.
    """
    if not value:
        return False
    if _NAME.fullmatch(key) is not None or any(shape.search(value) for shape, _ in _SHAPES):
        return True
    return any(not _is_elsewhere(found) for found in _ASSIGNED.finditer(value))


def _is_elsewhere(assigned: re.Match[str]) -> bool:
    return bool(_REFERENCE.match(assigned[2]) or _KEPT_IN_FILE.search(assigned[0]))
