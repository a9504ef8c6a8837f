"""Services of ``beni.serve`` as processes of their own, on loopback, and what is asked of them."""

from __future__ import annotations

import base64
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

STARTS = 120.0
"""Seconds in which a service must say where it is."""
ADDRESS = re.compile(r"http://127\.0\.0\.1:\d+")


class Service:
    """A service that runs.

    Attributes:
        url: where it answers.
        lines: that it has written.
    """

    def __init__(self, *arguments: str, **environment: str) -> None:
        command = [sys.executable, "-m", "beni.serve", *arguments]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=os.environ | environment
        )
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.url = self._address(arguments[0])

    @property
    def said(self) -> str:
        return "".join(self.lines)

    def kill(self) -> None:
        """Ends it at once, as a machine that fails."""
        self.process.kill()
        self.process.wait()

    def end(self) -> int:
        """Ends it in good order; returns its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(60)
        self._reader.join(10)
        return code

    def _read(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout as lines:
            for line in lines:
                self.lines.append(line)

    def _address(self, name: str) -> str:
        end = time.monotonic() + STARTS
        while time.monotonic() < end:
            for line in list(self.lines):
                if f"beni.serve.{name} " in line and (found := ADDRESS.search(line)):
                    return found[0]
            assert self.process.poll() is None, self.said
            time.sleep(0.05)
        raise AssertionError(f"{name} did not start: {self.said}")


@contextmanager
def serving(
    run: Path, workers: int = 1, of_worker: Sequence[str] = (), of_gateway: Sequence[str] = (), **environment: str
) -> Iterator[tuple[Service, list[Service]]]:
    """Workers of a run, and a gateway in front of them; both in good order at the end."""
    started: list[Service] = []
    try:
        words = ("worker", str(run), "--name", "tiny", "--port", "0", "--threads", "1", *of_worker)
        threads = [
            threading.Thread(target=lambda: started.append(Service(*words, **environment))) for _ in range(workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(started) == workers
        urls = ",".join(worker.url for worker in started)
        gateway = Service("gateway", "--workers", urls, "--port", "0", *of_gateway, **environment)
        started.append(gateway)
        yield gateway, started[:-1]
    finally:
        for service in reversed(started):
            service.end()


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def asking(text: str, *urls: str) -> list[dict[str, Any]]:
    """A message about images."""
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    return [{"role": "user", "content": [*parts, {"type": "text", "text": text}]}]


def require_shape(answer: httpx.Response) -> dict[str, Any]:
    """The error of an answer, which must be in the form of OpenAI's API."""
    assert answer.headers["content-type"].startswith("application/json"), answer.text[:200]
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert error["type"]
    return error


def value_of(metrics: str, name: str) -> float:
    """The sum of a metric over its labels."""
    return sum(
        float(line.rsplit(" ", 1)[1]) for line in metrics.splitlines() if re.match(rf"{re.escape(name)}(?:\{{| )", line)
    )
