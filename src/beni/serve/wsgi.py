"""The server of the gateway: waitress, whose one loop receives requests and whose threads answer them.

So a client that sends slowly keeps no thread, each piece of a stream is sent when it is written, and a client that goes
away is noticed. What waitress refuses by itself (no HTTP, too long a head or body, too slow) it says here in the form
of all other errors, and the rest of a body that is too long is read and dropped, since a client that is still sending
when the connection is closed never reads why.

Source: waitress 3.0, https://docs.pylonsproject.org/projects/waitress (its classes name those that they make).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask
from waitress.utilities import Error, RequestEntityTooLarge

from beni.serve.refused import Refused

MIB = 1 << 20
DRAINED = 512 * MIB
"""Bytes of a body that is too long which are read and dropped before the connection is closed."""
HEAD = 32 * 1024
"""Bytes of a request's head."""
CONNECTIONS = 1000
SILENT = 60
"""Seconds after which a connection is closed on which nothing happens."""
SLACK = 16
"""Threads beyond those that answer, for health, metrics and refusals."""

CODES = {
    400: ("The request is not valid HTTP", "bad_request"),
    408: ("The request did not arrive in time", "request_timeout"),
    413: ("The body is too large", "request_too_large"),
    431: ("The head of the request is too large", "headers_too_large"),
    501: ("The request is not valid HTTP: this transfer encoding is not supported", "bad_request"),
}


class TooSlow(Error):
    """A request that does not arrive in time."""

    code = 408
    reason = "Request Timeout"


class OpenAIErrorTask(ErrorTask):
    """An error of waitress in the form of OpenAI's API."""

    request: Any

    def execute(self) -> None:
        code = int(self.request.error.code)
        status = {501: 400}.get(code, code)
        message, name = CODES.get(code, ("The server has failed", "internal_error"))
        body = json.dumps(Refused(status, message, name).body()).encode()
        self.status = f"{status} {self.request.error.reason if status == code else 'Bad Request'}"
        self.response_headers = [("Content-Type", "application/json")]
        self.set_close_on_finish()
        self.content_length = len(body)
        self.write(body)


class _Dropped:
    """Takes what is received of a body and keeps nothing."""

    def append(self, data: bytes) -> None:
        """Drops it."""

    def __len__(self) -> int:
        return 0

    def close(self) -> None:
        """Holds nothing."""


class Parser(HTTPRequestParser):
    """A request that is received, within a time, and to its end where it is too long."""

    adj: Any
    body_rcv: Any

    def __init__(self, adj: Any) -> None:
        super().__init__(adj)
        self.begun = time.monotonic()
        self._dropping = False

    def received(self, data: bytes) -> int:
        """Takes the next bytes; returns how many."""
        if not self.completed and time.monotonic() - self.begun > self.adj.receive_timeout:
            return self._ended(data, TooSlow(""))
        if self._dropping:
            return self._drop(data)
        taken = super().received(data)
        if isinstance(self.error, RequestEntityTooLarge) and not self.expect_continue and self.body_rcv is not None:
            self._dropping, self.completed = True, False
            self.body_rcv.buf = _Dropped()
            return taken if self.chunked else taken + self._drop(data[taken:])
        if self.error is not None:
            self.expect_continue = False
        return taken

    def _drop(self, data: bytes) -> int:
        taken = self.body_rcv.received(data) if data else 0
        self.body_bytes_received += taken
        if self.body_rcv.completed or self.body_rcv.error or self.body_bytes_received > DRAINED:
            self.completed = True
        return taken

    def _ended(self, data: bytes, error: Error) -> int:
        if not self.headers_finished:
            self.parse_header(b"GET / HTTP/1.0\r\n")
        self.error, self.completed, self.expect_continue = error, True, False
        return len(data)


class Channel(HTTPChannel):
    """A connection."""

    parser_class = Parser
    error_task_class = OpenAIErrorTask


class Server(TcpWSGIServer):
    """A server on one address; ``run()`` answers until it is interrupted."""

    channel_class = Channel
    effective_host: str
    effective_port: int


def make_server(
    app: Callable[..., Any], host: str, port: int, threads: int, max_body_mib: float, receive_timeout: float
) -> Server:
    """A server that listens.

    Args:
        port: 0 takes a free one, which ``effective_port`` tells.
        threads: requests that are answered at once.

    Raises:
        OSError: when the address cannot be had.
    """
    settings: Any = Adjustments(
        host=host,
        port=port,
        threads=threads + SLACK,
        max_request_body_size=int(max_body_mib * MIB) + 1,
        max_request_header_size=HEAD,
        connection_limit=CONNECTIONS,
        channel_timeout=SILENT,
        cleanup_interval=5,
        channel_request_lookahead=1,  # so that a client that goes away is noticed while it is answered
        ident=None,
        asyncore_use_poll=True,
    )
    settings.receive_timeout = receive_timeout
    return Server(app, adj=settings)
