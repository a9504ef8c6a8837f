"""The network side of the fetcher: a thread with an event loop in which all requests of a process run.

Three kinds of work wait for each other nowhere: requests (in the loop), names (a thread each, since a dead name server
holds one for seconds) and pictures (a few threads that decode and write). Nor does a slow host hold up another one.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
import zlib
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from functools import partial
from typing import Any, TypeVar
from urllib.parse import urljoin, urlsplit
from weakref import WeakValueDictionary

import aiohttp
from yarl import URL

from beni.data.fetch.address import Allows, CheckedResolver, PrivateAddress, literal_address, open_socket
from beni.data.fetch.check import Again, check_picture
from beni.data.fetch.hub import hub_headers, hub_url
from beni.data.images import BadImage, public_name

T = TypeVar("T")

MIB = 1 << 20
CHUNK = 1 << 16
REDIRECTS = (301, 302, 303, 307, 308)
LATER = (408, 425, 429)
"""Answers below 500 that may be better next time."""
BACKOFF = 0.5
"""Seconds before the second attempt, on average; twice as many before each further one."""
CHECKS = 4
"""Pictures decoded at once, by one process; workers are many and share the cores."""


@dataclass
class FetchCounts:
    """What a fetcher has done in this process; ``waited`` in seconds."""

    requests: int = 0
    cache_hits: int = 0
    bytes: int = 0
    bad: int = 0
    waited: float = 0.0


class FetchLoop:
    """A thread with an event loop and a session; of one process.

    Args:
        settings: the ``images`` section.
        allows: which addresses may be connected to.
        counts: told of requests and bytes.
    """

    def __init__(self, settings: Mapping[str, Any], allows: Allows, counts: FetchCounts) -> None:
        self.settings, self.allows, self.counts = settings, allows, counts
        self._loop = asyncio.new_event_loop()
        self._loop.set_default_executor(ThreadPoolExecutor(settings["concurrency"], "beni-resolve"))
        self._pool = ThreadPoolExecutor(CHECKS, "beni-check")
        self._session: aiohttp.ClientSession | None = None
        self._all = asyncio.Semaphore(settings["concurrency"])
        # one for each host that is being asked: a crawl of the web has a million of them
        self._hosts: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        self._jitter = random.Random()
        self._thread = threading.Thread(target=self._run, name="beni-fetch", daemon=True)
        self._thread.start()

    def submit(self, task: Coroutine[Any, Any, T]) -> Future[T]:
        """Starts a task in the loop; returns at once."""
        return asyncio.run_coroutine_threadsafe(task, self._loop)

    async def beside(self, work: Callable[[], T]) -> T:
        """Runs what takes time of a core or of the disk outside the loop."""
        return await self._loop.run_in_executor(self._pool, work)

    def close(self) -> None:
        """Cancels all tasks and ends the thread."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)

    async def fetch(self, url: str) -> bytes:
        """The body of an answer, asked for as often as ``images.retries`` allows.

        Raises:
            BadImage: for good.
        """
        name, reason = public_name(url), "connection"
        for attempt in range(self.settings["retries"] + 1):
            try:
                # the host's turn first: who waits for a slow host must not hold one of all the turns meanwhile
                async with self._host(urlsplit(url).hostname or ""), self._all:
                    self.counts.requests += 1
                    data = await asyncio.wait_for(self._attempt(name, url), self.settings["timeout"])
                    await self.beside(
                        lambda data=data: check_picture(
                            name, data, self.settings["max_pixels"], self.settings["min_side"]
                        )
                    )
                self.counts.bytes += len(data)
                return data
            except Again as error:
                reason, wait = error.reason, error.seconds
            except TimeoutError:
                reason, wait = "timeout", None
            except aiohttp.ClientConnectorError as error:
                if isinstance(error.os_error, PrivateAddress):
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

    async def _attempt(self, name: str, url: str) -> bytes:
        """One request with its redirects, each checked as the first one is."""
        hop = hub_url(url)
        for _ in range(self.settings["redirects"] + 1):
            target = self._allowed(name, hop)
            headers = hub_headers(url, str(target))
            async with self._open().get(target, headers=headers, allow_redirects=False) as answer:
                if answer.status in REDIRECTS and "Location" in answer.headers:
                    hop = urljoin(str(target), answer.headers["Location"])
                    continue
                if answer.status in LATER or answer.status >= 500:
                    raise Again(f"http {answer.status}", retry_after(answer.headers.get("Retry-After")))
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

    def _allowed(self, name: str, hop: str) -> URL:
        """The address as the client will read it; a literal one never meets the resolver."""
        target = URL(hop)  # another parser would see a name where this one sees 127.0.0.1 in full-width digits
        if target.scheme not in ("http", "https") or not target.raw_host:
            raise BadImage(name, "not http")
        address = literal_address(target.raw_host)
        if address is not None and not self.allows(address):
            raise BadImage(name, "private address")
        return target

    def _host(self, host: str) -> asyncio.Semaphore:
        return self._hosts.setdefault(host, asyncio.Semaphore(self.settings["per_host"]))

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            limits = aiohttp.ClientTimeout(total=self.settings["timeout"], sock_read=self.settings["idle_timeout"])
            connector = aiohttp.TCPConnector(
                resolver=CheckedResolver(self.allows),
                socket_factory=partial(open_socket, self.allows),
                limit=self.settings["concurrency"],
                ttl_dns_cache=60,
            )
            self._session = aiohttp.ClientSession(
                connector=connector,
                timeout=limits,
                auto_decompress=False,
                cookie_jar=aiohttp.DummyCookieJar(),
                headers={"User-Agent": "beni", "Accept-Encoding": "identity"},
            )
        return self._session

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        waiting = asyncio.all_tasks(self._loop)
        for task in waiting:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*waiting, return_exceptions=True))
        if self._session is not None:
            self._loop.run_until_complete(self._session.close())
        self._pool.shutdown(cancel_futures=True)
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()


def retry_after(value: str | None) -> float | None:
    """Seconds from now, of either form that the header may have; None for what is neither."""
    if value is None:
        return None
    try:
        return float(int(value))
    except (ValueError, OverflowError):
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None
