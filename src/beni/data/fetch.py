"""Pictures that lie on a network: fetched ahead of time, checked, cached, and given up on by rule.

A process that draws steps has one thread with an event loop in which all its requests run; what it will need is known
from the schedule. A picture that cannot be had is told as ``BadImage`` and stays bad for the whole run, so that a run
that is resumed replaces the same samples even if the server has recovered meanwhile.
"""

from __future__ import annotations

import asyncio
import atexit
import ipaddress
import os
import random
import socket
import threading
import time
import zlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from PIL import Image as PILImage

from beni.data.image_cache import ImageCache
from beni.data.images import BadImage, Image, decode, public_name
from beni.data.verdicts import Verdicts
from beni.errors import DataError
from beni.paths import cache_dir

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Allows = Callable[[Address], bool]

MIB = 1 << 20
CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
LATER = (408, 425, 429)
"""Answers below 500 that may be better next time."""
BACKOFF = 0.5
"""Seconds before the second attempt, on average; twice as many before each further one."""


def is_public(address: Address) -> bool:
    """Whether an address belongs to the public internet, in whichever way it is written."""
    mapped = getattr(address, "ipv4_mapped", None)
    if mapped is not None:
        return is_public(mapped)
    return address.is_global and not address.is_multicast


def anywhere(address: Address) -> bool:
    """For ``images.private_addresses=true``."""
    return True


@dataclass
class FetchCounts:
    """What a fetcher has done in this process; ``waited`` in seconds."""

    requests: int = 0
    cache_hits: int = 0
    bytes: int = 0
    bad: int = 0
    waited: float = 0.0


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
        self.allows = allows or (anywhere if settings["private_addresses"] else is_public)
        root = Path(settings["cache"]).expanduser() if settings["cache"] else cache_dir() / "images"
        self.cache = ImageCache(root, int(settings["cache_gib"] * 1024**3))
        self.counts = FetchCounts()
        self.notices: list[str] = []
        self._told = False
        self._pending: dict[str, Future[bytes | None]] = {}
        self._loop: _Loop | None = None
        self._process = os.getpid()

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to this process."""
        return self.__dict__ | {"_pending": {}, "_loop": None, "counts": FetchCounts(), "_process": None}

    def want(self, urls: Sequence[str]) -> None:
        """Asks for pictures ahead of time; returns at once."""
        self._here()
        for url in urls:
            if url not in self._pending and self.verdicts.reason(url) is None and not self.cache.has(url):
                self._ask(url)

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

    def bind(self, image: Image) -> Image:
        """The same picture, opened through this fetcher where it has a URL."""
        return image if image.url is None else Image(partial(self.open, image.url), image.key, image.url)

    def open(self, url: str) -> PILImage.Image:
        """Fetched and opened, not yet decoded."""
        return PILImage.open(BytesIO(self.get(url)))

    def close(self) -> None:
        """Ends all requests and the thread of this process."""
        if self._loop is not None and self._process == os.getpid():
            self._loop.close()
        self._loop = None
        self._pending = {}

    def _get(self, url: str) -> bytes:
        for _ in range(2):  # what the cache held a moment ago may have had to go
            if (reason := self.verdicts.reason(url)) is not None:
                raise BadImage(public_name(url), reason)
            pending = self._pending.pop(url, None)
            if pending is None:
                if (data := self.cache.get(url)) is not None:
                    self.counts.cache_hits += 1
                    return data
                pending = self._ask(url)
                del self._pending[url]
            try:
                fetched = pending.result()
            except BadImage as error:
                self.counts.bad += 1
                self.verdicts.give(url, error.reason)
                raise
            if fetched is not None:
                return fetched
            if (data := self.cache.get(url)) is not None:
                return data
        raise BadImage(public_name(url), "the cache loses what is put into it")

    def _ask(self, url: str) -> Future[bytes | None]:
        if self._loop is None:
            self._loop = _Loop(self.settings, self.allows)
            atexit.register(self.close)
        self._pending[url] = asked = self._loop.submit(partial(self._fetch, url))
        return asked

    async def _fetch(self, url: str) -> bytes | None:
        """None where the content is in the cache; else the content."""
        assert self._loop is not None
        data = await self._loop.fetch(url, self.counts)
        try:
            await asyncio.to_thread(self.cache.put, url, data)
        except OSError as error:  # a full disk must not end a run
            if not self._told:
                self._told = True
                self.notices.append(f"fetched pictures cannot be kept in {self.cache.root}: {error}")
            return data
        return None

    def _here(self) -> None:
        """After a fork nothing of the parent's loop runs in this process."""
        if self._process != os.getpid():
            self._process, self._loop, self._pending = os.getpid(), None, {}
            self.counts = FetchCounts()


class _Again(Exception):
    """May be better next time, after ``seconds`` where the server says so."""

    def __init__(self, reason: str, seconds: float | None = None) -> None:
        super().__init__(reason)
        self.reason, self.seconds = reason, seconds


class _PrivateAddress(OSError):
    """No address of a host may be connected to."""


class _Resolver(AbstractResolver):
    """Resolves to the addresses that are allowed, so what is checked is what is connected to."""

    def __init__(self, allows: Allows) -> None:
        self.allows, self.inner = allows, aiohttp.ThreadedResolver()

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self.inner.resolve(host, port, family)
        allowed = [one for one in found if self.allows(ipaddress.ip_address(one["host"].partition("%")[0]))]
        if not allowed:
            raise _PrivateAddress(f"{host} has a private address")
        return allowed

    async def close(self) -> None:
        await self.inner.close()


@dataclass
class _Loop:
    """A thread with an event loop and a session; of one process."""

    settings: Mapping[str, Any]
    allows: Allows
    loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def __post_init__(self) -> None:
        self._session: aiohttp.ClientSession | None = None
        self._hosts: defaultdict[str, asyncio.Semaphore] = defaultdict(
            lambda: asyncio.Semaphore(self.settings["per_host"])
        )
        self._all = asyncio.Semaphore(self.settings["concurrency"])
        self._jitter = random.Random()
        self._thread = threading.Thread(target=self._run, name="beni-fetch", daemon=True)
        self._thread.start()

    def submit(self, task: Callable[[], Awaitable[bytes | None]]) -> Future[bytes | None]:
        async def run() -> bytes | None:
            return await task()

        return asyncio.run_coroutine_threadsafe(run(), self.loop)

    def close(self) -> None:
        if self._thread.is_alive():
            self.loop.call_soon_threadsafe(self.loop.stop)
            self._thread.join(timeout=10)

    def _run(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()
        waiting = asyncio.all_tasks(self.loop)
        for task in waiting:
            task.cancel()
        self.loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        if self._session is not None:
            self.loop.run_until_complete(self._session.close())
        self.loop.run_until_complete(self.loop.shutdown_default_executor())
        self.loop.close()

    async def fetch(self, url: str, counts: FetchCounts) -> bytes:
        """With retries.

        Raises:
            BadImage: for good.
        """
        name, reason = public_name(url), "connection"
        for attempt in range(self.settings["retries"] + 1):
            try:
                async with self._all, self._hosts[urlsplit(url).hostname or ""]:
                    counts.requests += 1
                    data = await asyncio.wait_for(self._attempt(url), self.settings["timeout"])
                    await asyncio.to_thread(self._check, name, data)
                    counts.bytes += len(data)
                    return data
            except _Again as error:
                reason, wait = error.reason, error.seconds
            except TimeoutError:
                reason, wait = "timeout", None
            except aiohttp.ClientConnectorError as error:
                if isinstance(error.os_error, _PrivateAddress):
                    raise BadImage(name, "private address") from None
                reason, wait = "connection", None
            except aiohttp.ClientPayloadError:
                reason, wait = "truncated", None
            except (aiohttp.InvalidURL, ValueError):
                raise BadImage(name, "not a URL") from None
            except (aiohttp.ClientError, OSError):
                reason, wait = "connection", None
            if attempt < self.settings["retries"]:
                own = BACKOFF * 2**attempt * self._jitter.uniform(0.5, 1.5)
                await asyncio.sleep(min(own if wait is None else max(wait, own), self.settings["timeout"]))
        raise BadImage(name, reason)

    async def _attempt(self, url: str) -> bytes:
        """One request with its redirects, each checked as the first one is."""
        name, hop = public_name(url), _resolved(url)
        token_host = urlsplit(hop).hostname if url.startswith("hf://") else None
        for _ in range(self.settings["redirects"] + 1):
            self._require_allowed(name, hop)
            headers = _token(token_host) if urlsplit(hop).hostname == token_host else {}
            async with self._open().get(hop, headers=headers, allow_redirects=False) as answer:
                if answer.status in REDIRECTS and "Location" in answer.headers:
                    hop = urljoin(hop, answer.headers["Location"])
                    continue
                if answer.status in LATER or answer.status >= 500:
                    raise _Again(f"http {answer.status}", _retry_after(answer.headers.get("Retry-After")))
                if answer.status != 200:
                    raise BadImage(name, f"http {answer.status}")
                return await self._body(name, answer)
        raise BadImage(name, "redirects")

    async def _body(self, name: str, answer: aiohttp.ClientResponse) -> bytes:
        most = int(self.settings["max_mib"] * MIB)
        if (answer.content_length or 0) > most:
            raise BadImage(name, "too large")
        body = bytearray()
        async for chunk in answer.content.iter_chunked(CHUNK):
            body += chunk
            if len(body) > most:
                raise BadImage(name, "too large")
        data = bytes(body)
        if answer.headers.get("Content-Encoding", "identity").lower() in ("gzip", "deflate"):  # unasked for
            try:
                data = zlib.decompressobj(47).decompress(data, most + 1)
            except zlib.error:
                raise BadImage(name, "not an image") from None
            if len(data) > most:
                raise BadImage(name, "too large")
        return data

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = aiohttp.ClientTimeout(
                total=self.settings["timeout"], sock_read=self.settings["idle_timeout"], sock_connect=None
            )
            connector = aiohttp.TCPConnector(
                resolver=_Resolver(self.allows), limit=self.settings["concurrency"], ttl_dns_cache=60
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=limits,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "beni", "Accept-Encoding": "identity"},
            )
        return self._session

    def _require_allowed(self, name: str, hop: str) -> None:
        """A literal address never meets the resolver."""
        parts = urlsplit(hop)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise BadImage(name, "not http")
        try:
            address = ipaddress.ip_address(parts.hostname.partition("%")[0])
        except ValueError:
            return
        if not self.allows(address):
            raise BadImage(name, "private address")

    def _check(self, name: str, data: bytes) -> None:
        """Decodes it: neither a name nor a content type tells what a file is.

        Raises:
            BadImage: when it is no picture, or one that is not wanted.
            _Again: when it ends too early, which another attempt may mend.
        """
        if not data:
            raise _Again("empty")
        try:
            with PILImage.open(BytesIO(data)) as picture:
                width, height = picture.size
        except PILImage.DecompressionBombError:
            raise BadImage(name, "too many pixels") from None
        except Exception:  # Pillow raises anything
            raise BadImage(name, "not an image") from None
        if width * height > self.settings["max_pixels"]:
            raise BadImage(name, "too many pixels")
        if min(width, height) < self.settings["min_side"]:
            raise BadImage(name, "too small")
        try:
            decode(Image.from_bytes(data, name))
        except DataError:
            raise _Again("truncated") from None


def _resolved(url: str) -> str:
    """``hf://datasets/owner/name/path`` -> where the hub serves it; other URLs as they are."""
    if not url.startswith("hf://"):
        return url
    from huggingface_hub import constants

    parts = url.removeprefix("hf://").split("/")
    depth = 3 if parts[0] in ("datasets", "spaces") else 2
    return "/".join([constants.ENDPOINT, *parts[:depth], "resolve/main", *parts[depth:]])


def _token(host: str | None) -> dict[str, str]:
    from huggingface_hub import get_token

    token = get_token()
    return {"Authorization": f"Bearer {token}"} if host and token else {}


def _retry_after(value: str | None) -> float | None:
    """Seconds from now, of either form that the header may have."""
    if value is None:
        return None
    if value.strip().isdigit():
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None
