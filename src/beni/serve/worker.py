"""A model worker: an engine behind HTTP, in the form of OpenAI's chat completions; for a gateway, not for the world.

Images come along with a request, as data URLs. A client that goes away takes its conversation out of the batch.
"""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import logging
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any

from aiohttp import web

from beni.serve import completions
from beni.serve.completions import DONE, EVENTS, Completion
from beni.serve.engine import Engine, Piece, chat_of, looked_at
from beni.serve.metrics import CONTENT_TYPE
from beni.serve.protocol import ChatRequest, LookRequest, parse
from beni.serve.refused import Refused

log = logging.getLogger("beni.serve.worker")
BODY = 256 * 2**20
"""Bytes of a request: the gateway has held it to less."""

GRACE = 20.0
"""Seconds in which answers that have begun may end."""

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Routes:
    """The routes of a worker.

    Args:
        engine: that answers.
        key: that requests must have; None lets everybody in.
    """

    def __init__(self, engine: Engine, key: str | None) -> None:
        self.engine, self.key, self.since = engine, key, int(time.time())

    def app(self) -> web.Application:
        """The application."""
        app = web.Application(client_max_size=BODY, middlewares=[self._guarded])
        app.router.add_post("/v1/chat/completions", self.chat)
        app.router.add_post("/v1/look", self.look)
        app.router.add_get("/v1/models", self.models)
        app.router.add_get("/healthz", self.health)
        app.router.add_get("/metrics", self.metrics)
        app.on_cleanup.append(self._close)
        return app

    async def chat(self, request: web.Request) -> web.StreamResponse:
        """An answer, whole or as a stream."""
        asked = parse(ChatRequest, await request.read())
        self._require(asked.model)
        usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        async with aclosing(self.engine.answer(chat_of(asked))) as pieces:
            if asked.stream:
                return await self._stream(request, pieces, usage)
            text, last = "", Piece("")
            async for piece in pieces:
                text, last = text + piece.text, piece
        return _json(Completion(self.engine.model).whole(text, last.finish, last.usage))

    async def look(self, request: web.Request) -> web.Response:
        """What the model saw of the images of a conversation."""
        asked = parse(LookRequest, await request.read())
        self._require(asked.model)
        seen = await self.engine.look(looked_at(asked), asked.answer)
        images = [{"image": one.image, "name": one.name, "note": one.note, "url": _png(one.png)} for one in seen]
        return _json({"object": "beni.look", "images": images})

    async def models(self, request: web.Request) -> web.Response:
        """The one model."""
        return _json(completions.models({self.engine.model: self.since}))

    async def health(self, request: web.Request) -> web.Response:
        """200 while it can answer."""
        sound = self.engine.sound()
        body = {"status": "ok" if sound else "failed", "model": self.engine.model, **self.engine.facts()}
        return _json(body, 200 if sound else 503)

    async def metrics(self, request: web.Request) -> web.Response:
        """Metrics for Prometheus."""
        return web.Response(body=self.engine.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _stream(self, request: web.Request, pieces: AsyncIterator[Piece], usage: bool) -> web.StreamResponse:
        completion = Completion(self.engine.model)
        first = await anext(pieces)  # what is refused has a status of its own
        out = web.StreamResponse(headers={"Content-Type": EVENTS, "Cache-Control": "no-store"})
        await out.prepare(request)
        try:
            await out.write(completion.first())
            piece: Piece | None = first
            while piece is not None:
                if piece.text:
                    await out.write(completion.piece(piece.text))
                if piece.finish is not None:
                    await out.write(completion.last(piece.finish))
                    if usage and piece.usage is not None:
                        await out.write(completion.used(piece.usage))
                piece = await anext(pieces, None)
            await out.write(DONE)
        except Refused as error:
            await out.write(completions.event(error.body()))
        except ConnectionError:
            return out  # nobody is there to be told
        await out.write_eof()
        return out

    def _require(self, model: str) -> None:
        if model != self.engine.model:
            raise Refused(404, f"This worker serves {self.engine.model}", "model_not_found", "model")

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if self.key is not None and request.path.startswith("/v1/"):
                given = request.headers.get("Authorization", "").removeprefix("Bearer ")
                if not hmac.compare_digest(given.encode(), self.key.encode()):
                    raise Refused(401, "The worker has a key (BENI_WORKER_KEY), and this is another", "invalid_api_key")
            return await handler(request)
        except Refused as error:
            return _refused(error)
        except web.HTTPException as error:
            return _refused(Refused(error.status, error.reason, error.reason.lower().replace(" ", "_")))
        except Exception:
            log.exception("a request failed")
            return _refused(Refused(500, "The worker has failed", "internal_error"))

    async def _close(self, app: web.Application) -> None:
        self.engine.close()


async def serve_worker(engine: Callable[[], Engine], host: str, port: int, key: str | None) -> None:
    """Answers until a signal comes.

    Args:
        engine: makes it, within the loop in which it answers.

    Raises:
        OSError: when the address cannot be had.
    """
    made = engine()
    # a client that goes away cancels its handler, also while its conversation waits
    runner = web.AppRunner(Routes(made, key).app(), handler_cancellation=True, shutdown_timeout=GRACE)
    await runner.setup()
    ended, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, ended.set)
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        at = runner.addresses[0]
        log.info("%s at http://%s:%d", made.model, at[0], at[1])
        await ended.wait()
    finally:
        await runner.cleanup()


def _refused(error: Refused) -> web.Response:
    answer = _json(error.body(), error.status)
    answer.headers.update(error.headers())
    return answer


def _json(body: Any, status: int = 200) -> web.Response:
    return web.Response(
        body=json.dumps(body, ensure_ascii=False).encode(), status=status, content_type="application/json"
    )


def _png(data: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(data).decode()
