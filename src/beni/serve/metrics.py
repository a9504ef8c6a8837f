"""What Prometheus is told: of the gateway, and of a worker. Each has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class GatewayMetrics:
    """Requests, answers, workers.

    Attributes:
        answered: by route and status.
        refused: by code of the error.
        seconds: from a request to the end of its answer, by route.
        first: seconds from a request to the first piece of text.
        tokens: by kind, ``prompt`` or ``completion``.
        retried: requests that went on with another worker.
        running: being answered.
        up: by number of the worker, 1 for one that answers, else 0.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.answered = Counter("beni_gateway_requests", "Requests", ["route", "status"], registry=registry)
        self.refused = Counter("beni_gateway_refusals", "Requests refused", ["code"], registry=registry)
        self.seconds = Histogram(
            "beni_gateway_seconds", "Seconds of a request", ["route"], registry=registry, buckets=SECONDS
        )
        self.first = Histogram(
            "beni_gateway_first_text_seconds", "Seconds to the first text", registry=registry, buckets=SECONDS
        )
        self.tokens = Counter("beni_gateway_tokens", "Tokens", ["kind"], registry=registry)
        self.retried = Counter("beni_gateway_retries", "Requests taken over by another worker", registry=registry)
        self.running = Gauge("beni_gateway_running", "Requests being answered", registry=registry)
        self.up = Gauge("beni_gateway_worker_up", "Whether a worker answers", ["worker"], registry=registry)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)


class WorkerMetrics:
    """Batches of a worker.

    Attributes:
        answers: by how they ended.
        rows: conversations of a batch.
        seconds: of a batch.
        tokens: by kind, ``prompt`` or ``completion``.
        waiting: conversations that wait for a batch.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.answers = Counter("beni_worker_answers", "Answers", ["finish"], registry=registry)
        self.rows = Histogram("beni_worker_batch_rows", "Conversations of a batch", registry=registry, buckets=ROWS)
        self.seconds = Histogram("beni_worker_batch_seconds", "Seconds of a batch", registry=registry, buckets=SECONDS)
        self.tokens = Counter("beni_worker_tokens", "Tokens", ["kind"], registry=registry)
        self.waiting = Gauge("beni_worker_waiting", "Conversations that wait", registry=registry)

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)
