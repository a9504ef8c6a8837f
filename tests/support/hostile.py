"""A web server on loopback that does what servers on the internet do to people who fetch pictures."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import struct
import threading
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable
from io import BytesIO

import numpy as np
from aiohttp import web
from PIL import Image

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def noise(number: int, size: tuple[int, int] = (24, 20), mode: str = "RGB") -> Image.Image:
    """The picture of a number."""
    channels = len(mode.replace("1", "L"))
    values = np.random.default_rng(number).integers(0, 256, (size[1], size[0], channels), dtype=np.uint8)
    return Image.fromarray(values if channels > 1 else values[..., 0], mode if channels > 1 else "L").convert(mode)


def encoded(picture: Image.Image, form: str = "PNG", **options) -> bytes:
    file = BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def rotated() -> bytes:
    """A JPEG that says it is to be turned."""
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(noise(5), "JPEG", exif=exif, quality=95)


def animated() -> bytes:
    frames = [noise(i, mode="L") for i in range(3)]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


def palette() -> bytes:
    picture = noise(7).quantize(16)
    return encoded(picture, "PNG", transparency=3)


def sixteen_bits() -> bytes:
    values = np.random.default_rng(8).integers(0, 65536, (20, 24), dtype=np.uint16)
    return encoded(Image.fromarray(values), "PNG")


def bomb(side: int = 30_000) -> bytes:
    """A PNG whose header promises 30,000 x 30,000 pixels, in a few hundred bytes."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    body = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


GOOD: dict[str, bytes] = {
    "plain.png": encoded(noise(1)),
    "photo.jpg": encoded(noise(2, (64, 48)), "JPEG"),
    "page.webp": encoded(noise(3), "WEBP"),
    "cmyk.jpg": encoded(noise(4, mode="CMYK"), "JPEG"),
    "rotated.jpg": rotated(),
    "animated.gif": animated(),
    "palette.png": palette(),
    "sixteen.png": sixteen_bits(),
    "alpha.png": encoded(noise(9, mode="RGBA")),
    "grey.png": encoded(noise(10, mode="L")),
    "says_html.jpg": encoded(noise(11)),  # served as text/html, and still a picture
    "no_length.png": encoded(noise(12)),
    "gzipped.png": encoded(noise(13)),
    "later.png": encoded(noise(14)),  # 500 at first
    "busy.png": encoded(noise(15)),  # 429 at first
    "moved.png": encoded(noise(16)),  # behind two redirects
    "drops_once.png": encoded(noise(17)),  # the connection is reset at first
    "cut_once.png": encoded(noise(18)),  # ends too early at first
    "unavailable.png": encoded(noise(19)),  # 503 with a date in Retry-After at first
}
"""What is a picture in the end."""

BAD: dict[str, str] = {
    "404.jpg": "http 404",
    "410.jpg": "http 410",
    "403.jpg": "http 403",
    "500.jpg": "http 500",
    "always_busy.jpg": "http 429",
    "drip.jpg": "timeout",
    "hang.jpg": "timeout",
    "idle.jpg": "timeout",
    "too_long_length.jpg": "truncated",
    "short_length.jpg": "truncated|connection",  # what follows may be taken for a broken answer
    "loop.jpg": "redirects",
    "to_metadata.jpg": "private address",
    "to_file.jpg": "not http",
    "html.jpg": "not an image",
    "json.jpg": "not an image",
    "truncated.jpg": "truncated",
    "truncated.png": "truncated",
    "truncated.webp": "not an image",
    "pixel.gif": "too small",
    "bomb.png": "too many pixels",
    "empty.jpg": "empty",
    "huge.jpg": "too large",
    "huge_no_length.jpg": "too large",
    "gzip_bomb.jpg": "too large",
    "reset.jpg": "connection",
    "garbage.jpg": "connection",
    "svg.jpg": "not an image",
}
"""What never is, and why."""


class HostileServer:
    """Use as a context manager; ``url(name)`` of the keys of ``GOOD`` and ``BAD``, or ``n<number>.png`` for noise.

    Attributes:
        requests: by path, how often it was asked for.
        latency: seconds before a ``n<number>.png`` answers.
        recovered: everything is a picture now.
    """

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter()
        self.latency = 0.0
        self.recovered = False
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> HostileServer:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._event_loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    def url(self, name: str) -> str:
        return f"http://127.0.0.1:{self.port}/{name}"

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._event_loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application()
        app.router.add_get("/{name}", self._answer)
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.port: int = runner.addresses[0][1]
        self._ready.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        name = request.match_info["name"]
        self.requests[name] += 1
        first = self.requests[name] == 1
        if self.recovered:
            return web.Response(body=GOOD.get(name, GOOD["plain.png"]))
        if name[0] == "n" and name[1:-4].isdigit():
            await asyncio.sleep(self.latency)
            return web.Response(body=encoded(noise(int(name[1:-4]))), content_type="image/png")
        stem = name.partition(".")[0]
        if stem.isdigit():
            return web.Response(status=int(stem), text="no")
        special = getattr(self, f"_{stem}", None)
        if special is not None:
            return await special(request, first)
        if name.startswith("truncated"):
            form = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP"}[name.partition(".")[2]]
            whole = encoded(noise(20, (64, 64)), form)
            return web.Response(body=whole[: len(whole) * 2 // 3])
        return web.Response(body=GOOD[name])

    async def _says_html(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(body=GOOD["says_html.jpg"], content_type="text/html")

    async def _no_length(self, request: web.Request, first: bool) -> web.StreamResponse:
        return await self._chunked(request, [GOOD["no_length.png"]])

    async def _gzipped(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(body=gzip.compress(GOOD["gzipped.png"]), headers={"Content-Encoding": "gzip"})

    async def _later(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(status=500) if first else web.Response(body=GOOD["later.png"])

    async def _busy(self, request: web.Request, first: bool) -> web.StreamResponse:
        if first:
            return web.Response(status=429, headers={"Retry-After": "0"})
        return web.Response(body=GOOD["busy.png"])

    async def _unavailable(self, request: web.Request, first: bool) -> web.StreamResponse:
        if first:
            return web.Response(status=503, headers={"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"})
        return web.Response(body=GOOD["unavailable.png"])

    async def _moved(self, request: web.Request, first: bool) -> web.StreamResponse:
        hop = int(request.query.get("hop", 0))
        if hop < 2:
            raise web.HTTPFound(f"/moved.png?hop={hop + 1}")
        return web.Response(body=GOOD["moved.png"])

    async def _drops_once(self, request: web.Request, first: bool) -> web.StreamResponse:
        return await self._reset(request, first) if first else web.Response(body=GOOD["drops_once.png"])

    async def _cut_once(self, request: web.Request, first: bool) -> web.StreamResponse:
        whole = GOOD["cut_once.png"]
        return web.Response(body=whole[: len(whole) // 2] if first else whole)

    async def _always_busy(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(status=429, headers={"Retry-After": "0"})

    async def _drip(self, request: web.Request, first: bool) -> web.StreamResponse:
        """A byte now and then: never idle, never done."""
        return await self._chunked(request, [b"\xff"] * 100, pause=0.05)

    async def _hang(self, request: web.Request, first: bool) -> web.StreamResponse:
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(self._stop.wait(), 5)
        return web.Response(status=500)

    async def _idle(self, request: web.Request, first: bool) -> web.StreamResponse:
        return await self._chunked(request, [b"\xff\xd8", b"\xff"], pause=5)

    async def _too_long_length(self, request: web.Request, first: bool) -> web.StreamResponse:
        """Promises more than it sends."""
        return await self._raw(request, b"HTTP/1.1 200 OK\r\nContent-Length: 5000\r\n\r\n" + GOOD["photo.jpg"][:600])

    async def _short_length(self, request: web.Request, first: bool) -> web.StreamResponse:
        """Promises less than the picture has."""
        return await self._raw(request, b"HTTP/1.1 200 OK\r\nContent-Length: 300\r\n\r\n" + GOOD["photo.jpg"])

    async def _loop(self, request: web.Request, first: bool) -> web.StreamResponse:
        raise web.HTTPFound("/loop.jpg")

    async def _to_metadata(self, request: web.Request, first: bool) -> web.StreamResponse:
        raise web.HTTPFound("http://169.254.169.254/latest/meta-data")

    async def _to_file(self, request: web.Request, first: bool) -> web.StreamResponse:
        raise web.HTTPFound("file:///etc/passwd")

    async def _html(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(text="<html>not found, but politely</html>", content_type="image/jpeg")

    async def _json(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.json_response({"error": "gone"})

    async def _svg(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(text='<svg xmlns="http://www.w3.org/2000/svg"/>', content_type="image/svg+xml")

    async def _pixel(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(body=encoded(noise(0, (1, 1)), "GIF"))

    async def _bomb(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(body=bomb())

    async def _empty(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(body=b"")

    async def _huge(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(body=bytes(3 << 20))

    async def _huge_no_length(self, request: web.Request, first: bool) -> web.StreamResponse:
        return await self._chunked(request, [bytes(1 << 16)] * 100)

    async def _gzip_bomb(self, request: web.Request, first: bool) -> web.StreamResponse:
        return web.Response(body=gzip.compress(bytes(30 << 20)), headers={"Content-Encoding": "gzip"})

    async def _reset(self, request: web.Request, first: bool) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()

    async def _garbage(self, request: web.Request, first: bool) -> web.StreamResponse:
        return await self._raw(request, b"this is not HTTP\r\n\r\n")

    async def _raw(self, request: web.Request, data: bytes) -> web.StreamResponse:
        """Bytes past the server's own protocol, then the end of the connection."""
        assert request.transport is not None
        request.transport.write(data)
        await asyncio.sleep(0.05)
        if request.transport is not None:  # the other side may have been faster
            request.transport.close()
        return web.Response()

    async def _chunked(self, request: web.Request, chunks: list[bytes], pause: float = 0.0) -> web.StreamResponse:
        answer = web.StreamResponse()
        answer.enable_chunked_encoding()
        with contextlib.suppress(ConnectionError):
            await answer.prepare(request)
            for chunk in chunks:
                await answer.write(chunk)
                if pause:
                    with contextlib.suppress(asyncio.TimeoutError):
                        await asyncio.wait_for(self._stop.wait(), pause)
            await answer.write_eof()
        return answer
