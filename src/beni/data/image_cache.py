"""Fetched pictures on disk, shared by processes and runs.

Contents lie under their own hash, ``blobs/ab/<sha256>``, and a small file for each URL says which one it gave. A file
is written under a temporary name and renamed, so it is complete or absent; its hash is checked when it is read. Beyond
a size the contents used least recently go.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import FileLock, Timeout

HOUR = 3600.0
"""Seconds within which another read of a file does not count as a newer use."""
ROOM = 0.9
"""Share of the cap that is left full when contents go."""
CHECK = 0.05
"""Share of the cap that a process writes before it adds up sizes; by so much it may exceed the cap."""


class ImageCache:
    """URL -> encoded picture.

    Args:
        root: folder; made when needed.
        cap: bytes of all contents.
    """

    def __init__(self, root: Path, cap: int) -> None:
        self.root, self.cap = root, cap
        self._written = cap  # the first write adds up what is there

    def get(self, url: str) -> bytes | None:
        """The content, or None when it is not there or not what it was."""
        entry = self._entry(url)
        try:
            digest = json.loads(entry.read_text())["sha256"]
            blob = self._blob(str(digest))
            data = blob.read_bytes()
        except (OSError, ValueError, KeyError, TypeError):
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
        if self._written >= CHECK * self.cap:
            self._written = 0
            self._shrink()

    def has(self, url: str) -> bool:
        """Whether there seems to be a content; reading it may still find it damaged."""
        return self._entry(url).is_file()

    def size(self) -> int:
        """Bytes of all contents, by walking over them."""
        return sum(status.st_size for _, status in self._blobs())

    def _shrink(self) -> None:
        lock = FileLock(self.root / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            return  # another process is at it
        try:
            files = sorted(self._blobs(), key=lambda one: one[1].st_mtime)
            excess = sum(status.st_size for _, status in files) - self.cap
            if excess <= 0:
                return
            excess += int((1 - ROOM) * self.cap)
            for path, status in files:
                if excess <= 0:
                    break
                with contextlib.suppress(OSError):
                    path.unlink()
                    excess -= status.st_size
        finally:
            lock.release()

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
