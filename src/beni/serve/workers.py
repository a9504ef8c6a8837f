"""The workers behind a gateway: which of them answer, which one is asked next, and what it says."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from beni.errors import ConfigError
from beni.serve.completions import Usage
from beni.serve.engine import Piece
from beni.serve.metrics import GatewayMetrics
from beni.serve.refused import Refused

log = logging.getLogger("beni.serve.workers")
EVERY = 1.0
"""Seconds between two looks at a worker."""
SOON = 3.0
"""Seconds in which a worker that is there says that it is."""
WANTED = 0.1
"""Seconds between two looks whether an answer is still waited for."""
UNABLE = 501
"""Status of what an engine does not do: no failure of the worker."""
BUSY = (408, 425, 429)
"""Answers below 500 of a worker that another one may give otherwise."""


class WorkerFailed(Exception):
    """A worker that has not answered to the end."""


class WorkerSilent(WorkerFailed):
    """A worker that has said nothing for too long."""


class WorkerErred(WorkerFailed):
    """A worker that is there, and says that it has failed with a request."""


@dataclass(eq=False)
class Worker:
    """A worker.

    Attributes:
        url: without a path.
        number: in the order of ``--workers``, from 1; metrics, which anybody may read, name it by that.
        models: that it serves, and since when.
        up: it has answered when it was last looked at, and not failed since.
        running: requests that it is answering for this gateway.
    """

    url: str
    number: int = 0
    models: Mapping[str, int] = field(default_factory=dict)
    up: bool = False
    running: int = 0


class Workers:
    """All workers of a gateway.

    Args:
        urls: of the workers.
        key: which they ask for; None for none.
        idle: seconds that one may be silent while it answers.
        connections: to all of them together.

    Raises:
        ConfigError: when a URL is none.
    """

    def __init__(
        self, urls: Sequence[str], metrics: GatewayMetrics, key: str | None, idle: float, connections: int
    ) -> None:
        self.all = [Worker(_checked(url), number) for number, url in enumerate(dict.fromkeys(urls), 1)]
        if not self.all:
            raise ConfigError("--workers names no worker\n  fix: set it to URLs, for instance http://127.0.0.1:8001")
        self.metrics = metrics
        self._options = {
            "headers": {"Authorization": f"Bearer {key}"} if key else {},
            "timeout": httpx.Timeout(idle, connect=SOON, pool=SOON),
            "verify": httpx.create_ssl_context(),
            "trust_env": False,  # a proxy of the environment is for the world outside
        }
        limits = httpx.Limits(max_connections=connections + len(self.all))
        self._client = httpx.Client(**self._options, limits=limits)
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="beni-workers", daemon=True)

    def start(self) -> None:
        """Looks at all workers, then goes on looking."""
        for worker in self.all:
            log.info("worker %d is %s", worker.number, httpx.URL(worker.url).copy_with(userinfo=b""))
        self.look()
        self._thread.start()

    def close(self) -> None:
        """Ends the thread and all connections."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join(timeout=2 * SOON)
        self._client.close()

    def look(self) -> None:
        """Asks each worker whether it is there, and what it serves."""
        for worker in self.all:
            try:
                self._client.get(f"{worker.url}/healthz", timeout=SOON).raise_for_status()
                answer = self._client.get(f"{worker.url}/v1/models", timeout=SOON).raise_for_status().json()
                worker.models = {str(one["id"]): int(one.get("created", 0)) for one in answer["data"]}
                worker.up = True
            except (httpx.HTTPError, ValueError, KeyError, TypeError):
                worker.up = False
            self.metrics.up.labels(worker.number).set(worker.up)

    def models(self) -> dict[str, int]:
        """Names of all models that somebody serves, and since when."""
        served: dict[str, int] = {}
        for worker in self.all:
            for name, created in worker.models.items() if worker.up else ():
                served[name] = min(created, served.get(name, created))
        return served

    def known(self, model: str) -> bool:
        """Whether a worker serves that model, or has served it and may come back."""
        return any(model in worker.models for worker in self.all)

    @contextmanager
    def chosen(self, model: str, without: Collection[Worker]) -> Iterator[Worker | None]:
        """The worker with the fewest requests among those that serve a model; None where there is none."""
        with self._lock:
            fit = [worker for worker in self.all if worker.up and model in worker.models and worker not in without]
            worker = min(fit, key=lambda one: one.running, default=None)
            if worker is not None:
                worker.running += 1
        try:
            yield worker
        finally:
            if worker is not None:
                with self._lock:
                    worker.running -= 1

    def failed(self, worker: Worker) -> None:
        """It gets no request until it has been seen to answer again."""
        worker.up = False
        self.metrics.up.labels(worker.number).set(0)

    def ask(self, worker: Worker, body: bytes) -> Iterator[Piece]:
        """The answer to a request that asks for a stream with usage.

        Raises:
            Refused: as the worker has refused it.
            WorkerFailed: when the answer does not come to its end.
        """
        try:
            with self._client.stream(
                "POST", f"{worker.url}/v1/chat/completions", content=body, headers={"Content-Type": "application/json"}
            ) as answer:
                if answer.status_code != 200:
                    answer.read()
                    raise refusal(answer)
                yield from _pieces(answer.iter_lines())
        except httpx.ReadTimeout:
            raise WorkerSilent(f"{worker.url} was silent for too long") from None
        except httpx.HTTPError as error:
            raise WorkerFailed(f"{worker.url}: {type(error).__name__}") from None

    def post(self, worker: Worker, path: str, body: bytes, wanted: Callable[[], None] = lambda: None) -> Any:
        """What a worker answers to another request.

        Args:
            wanted: asked again and again while the answer does not come; what it raises ends the connection, by which
                the worker knows that nobody waits.

        Raises:
            Refused: as the worker has refused it.
            WorkerFailed: when there is no answer.
        """
        try:
            answer = asyncio.run(self._posted(f"{worker.url}{path}", body, wanted))
            if answer.status_code != 200:
                raise refusal(answer)
            return answer.json()
        except httpx.ReadTimeout:
            raise WorkerSilent(f"{worker.url} was silent for too long") from None
        except (httpx.HTTPError, ValueError) as error:
            raise WorkerFailed(f"{worker.url}: {type(error).__name__}") from None

    async def _posted(self, url: str, body: bytes, wanted: Callable[[], None]) -> httpx.Response:
        async with httpx.AsyncClient(**self._options) as client:
            asked = asyncio.create_task(client.post(url, content=body, headers={"Content-Type": "application/json"}))
            while not (await asyncio.wait([asked], timeout=WANTED))[0]:
                wanted()
            return asked.result()

    def _watch(self) -> None:
        while not self._ended.wait(EVERY):
            self.look()


def refusal(answer: httpx.Response) -> Refused:
    """What a worker has refused a request with, for the one who asked.

    Raises:
        WorkerFailed: when that is the worker's fault, or another worker may take the request.
    """
    told = f"{answer.url.host}:{answer.url.port}: http {answer.status_code}"
    if answer.status_code in (*BUSY, 401, 403):
        raise WorkerFailed(told)
    if answer.status_code >= 500 and answer.status_code != UNABLE:
        raise WorkerErred(told)
    try:
        error = answer.json()["error"]
        message, code, param = str(error["message"]), str(error.get("code") or "invalid_value"), error.get("param")
    except (ValueError, KeyError, TypeError):
        return Refused(400, "The worker has refused the request", "invalid_value")
    status = answer.status_code if 400 <= answer.status_code < 500 or answer.status_code == UNABLE else 400
    return Refused(status, message[:2000], code, None if param is None else str(param))


def _pieces(lines: Iterator[str]) -> Iterator[Piece]:
    finish, usage = None, None
    for line in lines:
        if not line.startswith("data:"):
            continue
        data = line.removeprefix("data:").strip()
        if data == "[DONE]":
            if finish is None or usage is None:
                raise WorkerFailed("an answer without its end")
            yield Piece("", finish, usage)
            return
        try:
            told = json.loads(data)
            if "error" in told:
                raise WorkerFailed("an error in the middle of an answer")
            if used := told.get("usage"):
                usage = Usage(used["prompt_tokens"], used["completion_tokens"])
            for choice in told["choices"]:
                finish = choice["finish_reason"] or finish
                if text := choice["delta"].get("content"):
                    yield Piece(text)
        except (ValueError, KeyError, TypeError):
            raise WorkerFailed("an answer in another form") from None
    raise WorkerFailed("an answer that breaks off")


def _checked(url: str) -> str:
    parsed = httpx.URL(url) if url.startswith(("http://", "https://")) else None
    if parsed is None or not parsed.host or parsed.path not in ("", "/") or parsed.query or parsed.fragment:
        raise ConfigError(f"--workers: {url!r}, expected a URL such as http://127.0.0.1:8001")
    return url.rstrip("/")
