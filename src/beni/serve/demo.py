"""All services on one machine, each a process of its own; they end together."""

from __future__ import annotations

import argparse
import logging
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import httpx

from beni.errors import BeniError, ConfigError, ResourceError
from beni.serve.examples import write_examples
from beni.serve.settings import EXAMPLES
from beni.signals import handling

log = logging.getLogger("beni.serve")
HOST = "127.0.0.1"
READY = 600.0
"""Seconds in which a service must be there: a large model takes its time to be read."""
GRACE = 30.0
"""Seconds in which one must have ended."""
STEP = 0.2


class Stopped(Exception):
    """A signal has come."""


def run_demo(arguments: argparse.Namespace) -> None:
    """Starts workers, gateway and page, says where they are, and ends them when a signal comes.

    Raises:
        ResourceError: when a service ends by itself.
        ConfigError: when a number is wrong, or there is no such folder.
    """
    if arguments.workers < 1:
        raise ConfigError(f"--workers={arguments.workers}, expected at least 1")
    if not arguments.run.is_dir():
        raise ConfigError(f"{arguments.run} is no folder\n  fix: name the folder of a run, or its model/")
    ports = free_ports([arguments.port, arguments.gateway_port, *[0] * arguments.workers])
    workers = [f"http://{HOST}:{port}" for port in ports[2:]]
    gateway = f"http://{HOST}:{ports[1]}"
    services, drawn = Services(), tempfile.TemporaryDirectory(prefix="beni-examples-")
    with handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), _stop):
        try:
            log.info("starting %s", arguments.run)
            for url, port in zip(workers, ports[2:], strict=True):
                services.start("worker", [*_of_model(arguments), "--port", str(port)], f"{url}/healthz")
            services.start("gateway", ["--workers", ",".join(workers), "--port", str(ports[1])], f"{gateway}/healthz")
            folder = arguments.examples or _examples(arguments.run, Path(drawn.name))
            examples = [] if folder is None else ["--examples", str(folder)]
            page = f"http://{HOST}:{ports[0]}"
            services.start("app", ["--gateway", gateway, "--port", str(ports[0]), *examples], page)
            services.wait()
            log.info("the page: %s    the API: %s/v1    Ctrl-C ends both", page, gateway)
            services.follow()
        except Stopped:
            log.info("ending")
        finally:
            services.end()
            drawn.cleanup()


class Services:
    """Processes that belong together.

    Args:
        log: where they write; None for where this process does.
    """

    def __init__(self, log: IO[bytes] | None = None) -> None:
        self.log = log
        self.running: list[tuple[str, subprocess.Popen[bytes], str]] = []

    def start(self, name: str, arguments: Sequence[str], url: str) -> None:
        """Starts a service.

        Args:
            url: that answers when it is there.
        """
        command = [sys.executable, "-m", "beni.serve", name, *arguments]
        # a group of its own: Ctrl-C in the terminal reaches this process only, which ends the others in order
        process = subprocess.Popen(command, start_new_session=True, stdout=self.log, stderr=self.log)
        self.running.append((name, process, url))

    def wait(self) -> None:
        """Until all of them are there.

        Raises:
            ResourceError: when one has ended, or is not there in time.
        """
        end = time.monotonic() + READY
        for name, _, url in self.running:
            while not _answers(url):
                self._require_running()
                if time.monotonic() > end:
                    raise ResourceError(f"{name} is not there after {READY:g} s\n  fix: read what it has printed above")
                time.sleep(STEP)

    def follow(self) -> None:
        """Until one of them has ended.

        Raises:
            ResourceError: then.
        """
        while True:
            self._require_running()
            time.sleep(STEP)

    def end(self) -> None:
        """Ends all of them, those that others ask last."""
        for _, process, _ in reversed(self.running):
            if process.poll() is None:
                process.terminate()
        until = time.monotonic() + GRACE
        for _, process, _ in reversed(self.running):
            try:
                process.wait(max(0.1, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _require_running(self) -> None:
        for name, process, _ in self.running:
            if (code := process.poll()) is not None:
                raise ResourceError(f"{name} has ended with exit code {code}\n  fix: read what it has printed above")


def _examples(run: Path, folder: Path) -> Path | None:
    """Held-out images of the run to begin with; None where there are none, which is told."""
    try:
        write_examples(run, folder, EXAMPLES)
    except BeniError as error:
        log.warning("the page begins without examples: %s", error)
        return None
    return folder


def _answers(url: str) -> bool:
    try:
        return httpx.get(url, timeout=STEP * 10, trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


def _of_model(arguments: argparse.Namespace) -> list[str]:
    """Options of the workers."""
    words = [str(arguments.run)]
    names = ("checkpoint", "name", "engine", "gpus", "device", "precision", "threads", "batch", "linger", "waiting")
    for name in names:
        value = getattr(arguments, name)
        words += [] if value is None else [f"--{name}", str(value)]
    return words


def free_ports(asked: Sequence[int]) -> list[int]:
    """The ports that are asked for, which must be free; any free one for each 0.

    Raises:
        ConfigError: when one is not.
    """
    held, ports = [], []
    try:
        for port in asked:
            held.append(socket.socket())
            held[-1].setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                held[-1].bind((HOST, port))
            except (OSError, OverflowError) as error:
                raise ConfigError(f"port {port} cannot be had: {error}\n  fix: set --port or --gateway-port") from None
            ports.append(held[-1].getsockname()[1])
    finally:
        for one in held:
            one.close()
    return ports


def _stop(number: int, frame: object) -> None:
    raise Stopped
