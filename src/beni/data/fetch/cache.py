"""Fetched pictures on disk, shared by processes and runs.

Contents lie under their own hash, ``blobs/ab/<sha256>``, and a small file for each URL says which one it gave. A file
is written under a temporary name and renamed, so it is complete or absent; its hash is checked when it is read. Beyond
a size the contents used least recently go. How much there is stands in a file to which every process adds what it
wrote; the folder is walked over only when that exceeds the cap or has not been checked for a day.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

HOUR = 3600.0
"""Seconds within which another read of a file does not count as a newer use."""
ROOM = 0.9
"""Share of the cap that is left full when contents go."""
SHARE = 0.001
"""Share of the cap that a process writes before it adds that to the total; each may exceed the cap by so much."""
DAY = 86400.0
"""Seconds for which a total is believed: what a process wrote before it was killed is not in it."""


class ImageCache:
    """URL -> encoded picture.

    Args:
        root: folder; made when needed.
        cap: bytes of all contents.
    """

    def __init__(self, root: Path, cap: int) -> None:
        self.root, self.cap = root, cap
        self._written = 0  # by this process, and not in the total yet

    def get(self, url: str) -> bytes | None:
        """The content, or None when it is not there or not what it was."""
        digest = self._digest(url)
        if digest is None:
            return None
        blob = self._blob(digest)
        try:
            data = blob.read_bytes()
        except OSError:
            return None
        if hashlib.sha256(data).hexdigest() != digest:
            with contextlib.suppress(OSError):
                blob.unlink()
            return None
        with contextlib.suppress(OSError):
            if time.time() - blob.stat().st_mtime > HOUR:
                os.utime(blob)
        return data

    def put(self, url: str, data: bytes) -> None:
        """Keeps a content.

        Raises:
            OSError: when it cannot be written.
        """
        digest = hashlib.sha256(data).hexdigest()
        blob = self._blob(digest)
        if not blob.is_file():
            _replace(blob, data)
            self._written += len(data)
        _replace(self._entry(url), json.dumps({"sha256": digest, "size": len(data)}).encode())
        if self._written >= SHARE * self.cap:
            self._add_up()

    def has(self, url: str) -> bool:
        """Whether there seems to be a content; reading it may still find it damaged."""
        digest = self._digest(url)
        return digest is not None and self._blob(digest).is_file()

    def size(self) -> int:
        """Bytes of all contents, by walking over them."""
        return sum(status.st_size for _, status in self._blobs())

    def _digest(self, url: str) -> str | None:
        """Which content a URL gave; None where that is not known."""
        try:
            digest = json.loads(self._entry(url).read_text())["sha256"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        # it becomes a path, below which others who share the cache must not lead out of it
        return digest if isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest) else None

    def _add_up(self) -> None:
        """Adds to the total what this process has written; makes room where that is too much."""
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return  # another process is at it; the next write tries again
        try:
            written, now = self._written, time.time()
            total, walked = self._total()
            total += written
            if total > self.cap or not 0 <= now - walked < DAY:
                total, walked = self._shrink(), now
            _replace(self.root / "total", json.dumps({"bytes": total, "walked": walked}).encode())
            self._written -= written
        finally:
            lock.release()

    def _total(self) -> tuple[int, float]:
        """Bytes of all contents, and when they were last walked over: never, where that is not known."""
        try:
            known = json.loads((self.root / "total").read_text())
            return int(known["bytes"]), float(known["walked"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0, 0.0

    def _shrink(self) -> int:
        """Removes the contents used least recently where there are too many; returns the bytes that are left."""
        files = sorted(self._blobs(), key=lambda one: one[1].st_mtime)
        total = sum(status.st_size for _, status in files)
        if total > self.cap:
            for path, status in files:
                if total <= ROOM * self.cap:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
                    total -= status.st_size
        return total

    def _blobs(self) -> Iterator[tuple[Path, os.stat_result]]:
        for path in self.root.glob("blobs/*/*"):
            with contextlib.suppress(OSError):  # another process may have removed it
                yield path, path.stat()

    def _blob(self, digest: str) -> Path:
        return self.root / "blobs" / digest[:2] / digest

    def _entry(self, url: str) -> Path:
        name = hashlib.sha256(url.encode(errors="surrogatepass")).hexdigest()
        return self.root / "urls" / name[:2] / name


def _replace(path: Path, data: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.{time.monotonic_ns()}")
    try:
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise
