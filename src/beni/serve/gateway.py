"""The gateway: OpenAI's chat completions over HTTP, in front of workers.

It checks who asks and what, fetches images, and relays answers. A request is logged as one line of JSON with its
number, who asked (the name of a key, never the key), status, seconds and tokens; texts and images are not, and neither
are requests of programs that watch it.
"""

from __future__ import annotations

import json
import logging
import secrets
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from flask import Flask, Response, g, request
from werkzeug.exceptions import HTTPException

from beni.serve import completions
from beni.serve.access import Keys, Places, Rates
from beni.serve.completions import DONE, EVENTS, Completion
from beni.serve.engine import Piece
from beni.serve.metrics import CONTENT_TYPE, GatewayMetrics
from beni.serve.openapi import document
from beni.serve.pictures import Pictures, data_url
from beni.serve.protocol import ChatRequest, LookRequest, Unread, parse
from beni.serve.refused import Refused
from beni.serve.relay import Left, Relay
from beni.serve.settings import LOOPBACK, Limits
from beni.serve.workers import Workers
from beni.serve.wsgi import make_server

log = logging.getLogger("beni.serve.gateway")
CHAT, LOOK = "/v1/chat/completions", "/v1/look"
UNASKED = 256
"""New tokens of an answer, at most, where the request does not say."""
WATCHED = ("/healthz", "/metrics")
"""Asked every few seconds by programs that look whether the gateway is there; the log is about what people ask."""
GONE = 499
"""Status in the log of a request whose client has gone."""

R = TypeVar("R", ChatRequest, LookRequest)


@dataclass(frozen=True)
class Gateway:
    """What the routes work with.

    Attributes:
        local: it listens on loopback only, so it answers to no other name: a page of the web that resolves to
            this machine gets nothing.
    """

    workers: Workers
    relay: Relay
    pictures: Pictures
    keys: Keys
    rates: Rates
    places: Places
    limits: Limits
    metrics: GatewayMetrics
    local: bool

    @staticmethod
    def make(workers: Workers, keys: Keys, limits: Limits, metrics: GatewayMetrics, local: bool) -> Gateway:
        """A gateway with these limits."""
        relay, pictures = Relay(workers, limits.timeout), Pictures(limits)
        rates, places = Rates(limits.rate), Places(limits.concurrency)
        return Gateway(workers, relay, pictures, keys, rates, places, limits, metrics, local)

    def close(self) -> None:
        """Ends all threads."""
        self.pictures.close()
        self.workers.close()

    def app(self) -> Flask:
        """The WSGI application."""
        app = Flask("beni", static_folder=None)
        if self.local:
            app.config["TRUSTED_HOSTS"] = list(LOOPBACK)
        app.before_request(self._begin)
        app.after_request(self._end)
        app.register_error_handler(Exception, self._failed)
        app.add_url_rule(CHAT, view_func=self.chat, methods=["POST"])
        app.add_url_rule(LOOK, view_func=self.look, methods=["POST"])
        app.add_url_rule("/v1/models", view_func=self.list_models)
        app.add_url_rule("/v1/models/<path:model>", view_func=self.one_model)
        app.add_url_rule("/healthz", view_func=self.health)
        app.add_url_rule("/metrics", view_func=self.prometheus)
        app.add_url_rule("/openapi.json", view_func=self.openapi)
        return app

    def chat(self) -> Response:
        """An answer, whole or as a stream."""
        self._admit()
        asked = self._read(ChatRequest)
        model, body = asked.model, self._for_worker(asked)
        pieces = self._counted(self.relay.answer(model, body, _left()), g.begun, g.line)
        if not asked.stream:
            said = list(pieces)
            text, last = "".join(piece.text for piece in said), said[-1]
            return _json(Completion(model).whole(text, last.finish, last.usage))
        first = next(pieces)  # what is refused has a status of its own only while nothing has been sent
        usage = asked.stream_options is not None and bool(asked.stream_options.include_usage)
        answer = Response(_stream(Completion(model), first, pieces, usage), mimetype=EVENTS)
        answer.headers["X-Accel-Buffering"] = "no"
        answer.call_on_close(pieces.close)
        return answer

    def look(self) -> Response:
        """What the model saw of the images of a conversation."""
        self._admit()
        asked = self._read(LookRequest)
        content = self._with_images(asked, asked.chat)
        return _json(self.relay.once(asked.model, LOOK, json.dumps(content).encode(), _left()))

    def list_models(self) -> Response:
        """What is served."""
        self._known()
        return _json(completions.models(self.workers.models()))

    def one_model(self, model: str) -> Response:
        """One of them."""
        self._known()
        served = self.workers.models()
        if model not in served:
            raise _unknown(model)
        return _json(completions.models({model: served[model]})["data"][0])

    def health(self) -> Response:
        """200 while at least one worker answers."""
        up = sum(worker.up for worker in self.workers.all)
        answer = _json({"status": "ok" if up else "no worker", "workers": {"up": up, "all": len(self.workers.all)}})
        answer.status_code = 200 if up else 503
        return answer

    def prometheus(self) -> Response:
        """Metrics."""
        return Response(self.metrics.text(), content_type=CONTENT_TYPE)

    def openapi(self) -> Response:
        """The document; names of models stand in it for those only whom ``/v1/models`` tells them."""
        try:
            self._known()
        except Refused:
            return _json(document(self.limits, []))
        return _json(document(self.limits, list(self.workers.models())))

    def _known(self) -> None:
        g.asker = self.keys.owner(request.headers.get("Authorization"), request.remote_addr or "")

    def _admit(self) -> None:
        """Before anything is read: who asks, not too often, and there is a place."""
        self._known()
        self.rates.take(g.asker)
        self.places.enter()
        g.placed = True

    def _read(self, kind: type[R]) -> R:
        """The request in the body.

        Raises:
            Refused: when it is another one, beyond a limit, or for a model that nobody serves.
        """
        if request.mimetype != "application/json":
            raise Refused(415, "The body must be application/json", "unsupported_media_type")
        asked, limits = parse(kind, request.get_data(cache=False)), self.limits
        chat, texts = (asked, "messages") if isinstance(asked, ChatRequest) else (asked.chat, "messages and answer")
        for name, value, most in (
            ("messages", len(chat.messages), limits.max_messages),
            (f"characters of {texts}", asked.characters, limits.max_characters),
            ("max_tokens", chat.longest or 1, limits.max_tokens),
        ):
            if value > most:
                raise Refused(400, f"{name}: {value}, at most {most} are taken", "too_long", name.rpartition(" ")[2])
        if chat.stream_options is not None and not chat.stream:
            raise Refused(400, "stream_options are of a stream only", "invalid_value", "stream_options")
        if not self.workers.known(asked.model):
            raise _unknown(asked.model)
        return asked

    def _for_worker(self, asked: ChatRequest) -> bytes:
        """The request as a worker takes it: images along with it, every choice made."""
        content = self._with_images(asked, asked)
        content |= {"stream": True, "stream_options": {"include_usage": True}}
        content.pop("max_completion_tokens", None)
        content["max_tokens"] = asked.longest or min(UNASKED, self.limits.max_tokens)
        if asked.temperature and asked.seed is None:
            content["seed"] = secrets.randbits(62)  # another worker would draw the same
        return json.dumps(content).encode()

    def _with_images(self, asked: ChatRequest | LookRequest, chat: ChatRequest) -> dict[str, Any]:
        contents = self.pictures.read(chat.images)
        for image, data in zip(chat.images, contents, strict=True):
            image.url = data_url(data)
        content = asked.model_dump(exclude_none=True, exclude=set(Unread.model_fields))
        return content | {"messages": chat.model_dump(exclude_none=True)["messages"]}

    def _counted(self, pieces: Generator[Piece], begun: float, line: dict[str, Any]) -> Generator[Piece]:
        """The pieces, whose times and tokens are counted; those of a stream come when the request is gone."""
        heard = False
        for piece in pieces:
            if not heard:
                self.metrics.first.observe(time.perf_counter() - begun)
                heard = True
            if piece.usage is not None:
                self.metrics.tokens.labels("prompt").inc(piece.usage.prompt)
                self.metrics.tokens.labels("completion").inc(piece.usage.completion)
                line |= {"prompt_tokens": piece.usage.prompt, "completion_tokens": piece.usage.completion}
            yield piece

    def _begin(self) -> None:
        g.begun, g.id, g.asker, g.line, g.placed = time.perf_counter(), secrets.token_hex(8), "", {}, False
        self.metrics.running.inc()

    def _end(self, answer: Response) -> Response:
        answer.headers["X-Request-Id"] = g.id
        answer.headers["Cache-Control"] = "no-store"
        answer.headers["X-Content-Type-Options"] = "nosniff"
        route = request.url_rule.rule if request.url_rule else "other"
        answer.call_on_close(partial(self._ended, route, answer.status_code, g.begun, g.id, g.asker, g.line, g.placed))
        return answer

    def _ended(
        self, route: str, status: int, begun: float, number: str, asker: str, line: dict[str, Any], placed: bool
    ) -> None:
        if placed:
            self.places.leave()
        took, status = time.perf_counter() - begun, line.pop("status", status)
        self.metrics.running.dec()
        self.metrics.answered.labels(route, status).inc()
        self.metrics.seconds.labels(route).observe(took)
        told = {"id": number, "asker": asker, "route": route, "status": status, "seconds": round(took, 4)}
        log.log(logging.DEBUG if route in WATCHED else logging.INFO, "%s", json.dumps(told | line))

    def _failed(self, error: Exception) -> Response:
        """Any error in the form of OpenAI's API."""
        headers: dict[str, str] = {}
        if isinstance(error, Left):
            g.line["status"] = GONE
            error = Refused(400, "The client has gone", "client_gone")
        elif isinstance(error, HTTPException):
            headers = {name: value for name, value in error.get_headers() if name == "Allow"}
            error = Refused(error.code or 500, error.description or error.name, error.name.lower().replace(" ", "_"))
        elif not isinstance(error, Refused):
            log.error("request %s failed", g.id, exc_info=error)
            error = Refused(500, "The gateway has failed", "internal_error")
        self.metrics.refused.labels(error.code).inc()
        g.line["code"] = error.code
        answer = _json(error.body())
        answer.status_code = error.status
        answer.headers.update(headers | error.headers())
        return answer


def serve_gateway(
    urls: Sequence[str], keys: Keys, limits: Limits, host: str, port: int, local: bool, worker_key: str | None
) -> None:
    """Relays until a signal comes.

    Args:
        local: answer to names of this machine only.

    Raises:
        ConfigError: when a URL is none.
        OSError: when the address cannot be had.
    """
    metrics = GatewayMetrics()
    workers = Workers(urls, metrics, worker_key, limits.idle_timeout, limits.concurrency)
    gateway = Gateway.make(workers, keys, limits, metrics, local)
    try:
        server = make_server(gateway.app(), host, port, limits.concurrency, limits.max_body_mib, limits.receive_timeout)
        workers.start()
        log.info("at http://%s:%d", server.effective_host, int(server.effective_port))
        server.run()  # which ends at KeyboardInterrupt, when its threads have ended
    finally:
        gateway.close()


def _stream(completion: Completion, first: Piece, rest: Iterator[Piece], usage: bool) -> Iterator[bytes]:
    """A stream of events; one that fails ends with an error and without ``[DONE]``."""
    yield completion.first()
    try:
        for piece in _chained(first, rest):
            if piece.text:
                yield completion.piece(piece.text)
            if piece.finish is not None:
                yield completion.last(piece.finish)
                if usage and piece.usage is not None:
                    yield completion.used(piece.usage)
        yield DONE
    except Refused as error:
        yield completions.event(error.body())
    except Left:
        return


def _chained(first: Piece, rest: Iterator[Piece]) -> Iterator[Piece]:
    yield first
    yield from rest


def _left() -> Callable[[], bool]:
    """What tells whether the client of this request has gone."""
    return request.environ.get("waitress.client_disconnected", lambda: False)


def _json(body: Any) -> Response:
    return Response(json.dumps(body, ensure_ascii=False).encode(), mimetype="application/json")


def _unknown(model: str) -> Refused:
    return Refused(
        404, f"The model '{model[:80]}' is not served; /v1/models lists those that are", "model_not_found", "model"
    )
