"""Services on their addresses, from the first request to the last: SIGTERM and Ctrl-C end them in good order."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable, Sequence

from aiohttp import web

from beni.serve.access import Keys
from beni.serve.engine import Engine
from beni.serve.gateway import Gateway
from beni.serve.metrics import GatewayMetrics
from beni.serve.settings import Limits
from beni.serve.worker import Routes
from beni.serve.workers import Workers
from beni.serve.wsgi import make_server

log = logging.getLogger("beni.serve")
GRACE = 20.0
"""Seconds in which answers that have begun may end."""
SIGNALS = (signal.SIGINT, signal.SIGTERM)


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
    for number in SIGNALS:
        loop.add_signal_handler(number, ended.set)
    try:
        site = web.TCPSite(runner, host, port)
        await site.start()
        at = runner.addresses[0]
        log.info("worker: %s at http://%s:%d", made.model, at[0], at[1])
        await ended.wait()
    finally:
        await runner.cleanup()


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
        log.info("gateway: http://%s:%d", server.effective_host, int(server.effective_port))
        server.run()  # which ends at KeyboardInterrupt, when its threads have ended
    finally:
        gateway.close()
