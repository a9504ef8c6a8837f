"""Pictures that lie on a network: fetched ahead of time, checked, cached, and given up on by rule.

A process that draws steps has one thread with an event loop in which all its requests run; what it will need is known
from the schedule. A picture that cannot be had is told as ``BadImage`` and stays bad for the whole run, so that a run
that is resumed replaces the same samples even if the server has recovered meanwhile.
"""

from __future__ import annotations

import atexit
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image as PILImage

from beni.data.fetch.address import Allows, any_address, is_public
from beni.data.fetch.cache import ImageCache
from beni.data.fetch.loop import FetchCounts, FetchLoop
from beni.data.fetch.verdicts import Verdicts
from beni.data.images import BadImage, Image, public_name
from beni.data.sample import Sample
from beni.paths import cache_dir

T = TypeVar("T")


class Fetcher:
    """URL -> encoded picture.

    Args:
        settings: the ``images`` section.
        verdicts: on pictures that are bad; its own, in memory, by default.
        allows: which addresses may be connected to; by default as ``private_addresses`` says.

    A fetcher can be pickled and forked: thread, loop and connections are made in the process that uses them.
    """

    def __init__(
        self, settings: Mapping[str, Any], verdicts: Verdicts | None = None, allows: Allows | None = None
    ) -> None:
        self.settings = dict(settings)
        self.verdicts = verdicts or Verdicts(None, 0)
        self.allows = allows or (any_address if settings["private_addresses"] else is_public)
        root = Path(settings["cache"]).expanduser() if settings["cache"] else cache_dir() / "images"
        self.cache = ImageCache(root, int(settings["cache_gib"] * 1024**3))
        self.counts = FetchCounts()
        self.notices: list[str] = []
        self._told = False
        self._pending: dict[str, Future[bytes | None]] = {}
        self._loop: FetchLoop | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        return self.__dict__ | {"_pending": {}, "_loop": None, "counts": FetchCounts(), "_process": None}

    def want(self, urls: Sequence[str]) -> None:
        """Asks for pictures ahead of time; returns at once."""
        self._here()
        for url in urls:
            if url not in self._pending and self.verdicts.reason(url) is None and not self.cache.has(url):
                self._pending[url] = self._ask(url)

    def get(self, url: str) -> bytes:
        """The encoded picture; waits for it.

        Raises:
            BadImage: when it cannot be had, or is none.
        """
        self._here()
        start = time.perf_counter()
        try:
            return self._get(url)
        finally:
            self.counts.waited += time.perf_counter() - start

    def bind(self, sample: Sample) -> Sample:
        """The sample, whose pictures that have a URL are opened through this fetcher, when they are opened."""
        if all(image.url is None for image in sample.images):
            return sample
        messages = tuple(replace(m, content=tuple(map(self._bound, m.content))) for m in sample.messages)
        return replace(sample, messages=messages)

    def open(self, url: str) -> PILImage.Image:
        """Fetched and opened, not yet decoded."""
        return PILImage.open(BytesIO(self.get(url)))

    def close(self) -> None:
        """Ends all requests and the thread of this process."""
        if self._loop is not None and self._process == os.getpid():
            self._loop.close()
            atexit.unregister(self.close)
        self._loop = None
        self._pending = {}

    def _bound(self, part: str | Image) -> str | Image:
        if isinstance(part, str) or part.url is None:
            return part
        return Image(partial(self.open, part.url), part.key, part.url, content=partial(self.get, part.url))

    def _get(self, url: str) -> bytes:
        if (reason := self.verdicts.reason(url)) is not None:
            raise BadImage(public_name(url), reason)
        pending = self._pending.pop(url, None)
        if pending is None:
            if (data := self.cache.get(url)) is not None:
                self.counts.cache_hits += 1
                return data
            pending = self._ask(url)
        fetched = self._outcome(url, pending)
        if fetched is None:
            fetched = self.cache.get(url)
        if fetched is None:  # it had to go, or was damaged, before it was read: once more, past the cache
            loop = self._running()
            fetched = self._outcome(url, loop.submit(loop.fetch(url)))
        return fetched

    def _outcome(self, url: str, pending: Future[T]) -> T:
        try:
            return pending.result()
        except BadImage as error:
            self.counts.bad += 1
            self.verdicts.give(url, error.reason)
            raise

    def _ask(self, url: str) -> Future[bytes | None]:
        loop = self._running()
        return loop.submit(self._fetch(loop, url))

    async def _fetch(self, loop: FetchLoop, url: str) -> bytes | None:
        """None where the content is in the cache; else the content."""
        data = await loop.fetch(url)
        try:
            await loop.beside(partial(self.cache.put, url, data))
        except OSError as error:  # a full disk must not end a run
            if not self._told:
                self._told = True
                self.notices.append(f"fetched images cannot be cached in {self.cache.root}: {error}")
            return data
        return None

    def _running(self) -> FetchLoop:
        if self._loop is None:
            self._loop = FetchLoop(self.settings, self.allows, self.counts)
            atexit.register(self.close)
        return self._loop

    def _here(self) -> None:
        """After a fork nothing of the parent's loop runs in this process."""
        if self._process != os.getpid():
            self._process, self._loop, self._pending = os.getpid(), None, {}
            self.counts = FetchCounts()
