"""Who may ask, and how often: API keys by their hashes, and a rate for each.

A file of keys has one on each line, or a name and a key; names stand in the log and the metrics, keys nowhere. Keys are
kept and compared as hashes, so neither memory nor the time of a comparison tells one.
"""

from __future__ import annotations

import hashlib
import re
import threading
import time
from collections import OrderedDict
from pathlib import Path

from beni.errors import ConfigError
from beni.serve.refused import Refused

MINUTE = 60.0
ASKERS = 10_000
"""Askers whose rates are remembered; beyond them those that came least recently are forgotten."""
SHORTEST = 16
"""Characters of a key."""


class Keys:
    """API keys.

    Args:
        names: hash of a key -> name of its owner; empty lets everybody in.
    """

    def __init__(self, names: dict[bytes, str]) -> None:
        self.names = names

    @staticmethod
    def read(path: Path) -> Keys:
        """The keys of a file.

        Raises:
            ConfigError: when it cannot be read, holds no key, or one that is too short; does not show any.
        """
        try:
            lines = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"--keys={path} cannot be read: {error}\n  fix: name a file with a key on each line"
            ) from None
        names = {}
        for number, words in enumerate(lines, 1):
            if not words or words[0].startswith("#"):
                continue
            if len(words) > 2 or len(words[-1]) < SHORTEST:
                raise ConfigError(
                    f"--keys={path}, line {number}: expected a key of at least {SHORTEST} characters, "
                    "or a name and a key\n"
                    "  fix: make one with python -c 'import secrets; print(secrets.token_urlsafe(32))'"
                )
            names[_hash(words[-1])] = words[0] if len(words) == 2 else f"key {number}"
        if not names:
            raise ConfigError(f"--keys={path} holds no key\n  fix: write one on a line, or leave out --keys")
        return Keys(names)

    def owner(self, header: str | None, address: str) -> str:
        """Who asks: the name of the key in an ``Authorization`` header, or the address where there are no keys.

        Raises:
            Refused: when there is no key, or an unknown one.
        """
        if not self.names:
            return address
        given = re.fullmatch(r"(?i:bearer) +(\S+) *", header or "")
        if given is None:
            raise Refused(401, "No API key: send the header 'Authorization: Bearer <key>'", "missing_api_key")
        name = self.names.get(_hash(given[1]))
        if name is None:
            raise Refused(401, "Unknown API key", "invalid_api_key")
        return name


class Rates:
    """Requests of everybody in a minute, by a bucket that fills steadily.

    Args:
        rate: requests in a minute; 0 sets no limit.
    """

    def __init__(self, rate: int) -> None:
        self.rate = rate
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # asker -> requests left, when
        self._lock = threading.Lock()

    def take(self, asker: str, now: float | None = None) -> None:
        """Counts a request.

        Raises:
            Refused: when it is one too many.
        """
        if not self.rate:
            return
        now = time.monotonic() if now is None else now
        with self._lock:
            left, before = self._left.pop(asker, (float(self.rate), now))
            left = min(float(self.rate), left + (now - before) * self.rate / MINUTE)
            short = left < 1.0
            self._left[asker] = (left if short else left - 1.0, now)
            while len(self._left) > ASKERS:
                self._left.popitem(last=False)
        if short:
            wait = (1.0 - left) * MINUTE / self.rate
            raise Refused(429, f"More than {self.rate} requests in a minute", "rate_limit_exceeded", wait=wait)


class Places:
    """Requests that are being answered at once.

    Args:
        count: of them at most.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self._places = threading.BoundedSemaphore(count)

    def enter(self) -> None:
        """Takes a place.

        Raises:
            Refused: when there is none.
        """
        if not self._places.acquire(blocking=False):
            raise Refused(429, f"{self.count} requests are being answered already", "too_many_requests", wait=1.0)

    def leave(self) -> None:
        """Gives it back."""
        self._places.release()


def _hash(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogatepass")).digest()
