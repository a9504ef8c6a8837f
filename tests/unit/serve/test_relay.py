"""Answers that break off go on with another worker, and nobody gets half of one and half of another."""

from __future__ import annotations

from contextlib import contextmanager

import pytest

from beni.serve import relay
from beni.serve.completions import Usage
from beni.serve.engine import Piece
from beni.serve.metrics import GatewayMetrics
from beni.serve.refused import Refused
from beni.serve.relay import ATTEMPTS, Left, Relay
from beni.serve.workers import Worker, WorkerFailed, WorkerSilent

LAST = Piece("", "stop", Usage(3, 2))


class Scripted:
    """Workers that say what stands in a script, one line for each request that they get."""

    def __init__(self, **scripts):
        self.all = [Worker(name, {"m": 0}, up=True) for name in scripts]
        self.scripts, self.asked, self.metrics = scripts, [], GatewayMetrics()

    @contextmanager
    def chosen(self, model, without):
        yield next((one for one in self.all if one.up and one not in without), None)

    def failed(self, worker):
        worker.up = False

    def ask(self, worker, body):
        self.asked.append(worker.url)
        for piece in self.scripts[worker.url].pop(0):
            if isinstance(piece, Exception):
                raise piece
            yield Piece(piece) if isinstance(piece, str) else piece


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    monkeypatch.setattr(relay, "PATIENCE", 0.3)
    monkeypatch.setattr(relay, "STEP", 0.01)


def answer(workers, **options):
    pieces = list(Relay(workers, 5.0).answer("m", b"", **options))
    assert pieces[-1].finish == "stop"
    return [piece.text for piece in pieces if piece.text]


def test_a_whole_answer_is_passed_on():
    workers = Scripted(a=[["one", " two", LAST]])
    assert answer(workers) == ["one", " two"]


def test_an_answer_that_breaks_off_goes_on_behind_what_was_sent():
    workers = Scripted(a=[["one", " tw", WorkerFailed("")]], b=[["on", "e t", "wo ", "three", LAST]])
    assert answer(workers) == ["one", " tw", "o ", "three"]
    assert workers.asked == ["a", "b"]


def test_one_that_broke_off_at_its_very_end_is_ended_by_another():
    workers = Scripted(a=[["one", WorkerFailed("")]], b=[["one", LAST]])
    assert answer(workers) == ["one"]


@pytest.mark.parametrize("other", [["one three", LAST], ["two", LAST], ["on", LAST], [LAST]])
def test_another_answer_is_not_mixed_in(other):
    workers = Scripted(a=[["one", " two", WorkerFailed("")]], b=[other])
    sent: list[str] = []
    pieces = (sent.append(piece.text) for piece in Relay(workers, 5.0).answer("m", b""))
    with pytest.raises(Refused) as refused:
        list(pieces)
    assert refused.value.code == "worker_failed"
    assert "".join(sent) == "one two"


def test_a_refusal_of_a_worker_is_final():
    workers = Scripted(a=[[Refused(400, "wrong", "invalid")]], b=[["one", LAST]])
    with pytest.raises(Refused, match="wrong"):
        answer(workers)
    assert workers.asked == ["a"]


def test_a_request_that_ends_every_worker_is_given_to_few():
    workers = Scripted(**{name: [[WorkerFailed("")]] * 5 for name in "abcdefg"})
    with pytest.raises(Refused) as refused:
        answer(workers)
    assert refused.value.status == 503
    assert len(workers.asked) == ATTEMPTS


def test_a_worker_that_comes_back_is_asked_again_and_one_that_does_not_is_waited_for_shortly():
    workers = Scripted(a=[[WorkerFailed("")], ["one", LAST]])
    workers.failed = lambda worker: None  # it has been seen to answer since
    assert answer(workers) == ["one"]
    with pytest.raises(Refused) as refused:
        answer(Scripted(a=[[WorkerFailed("")]]))
    assert refused.value.code == "no_worker"


def test_a_silent_worker_that_is_up_is_at_work_and_one_that_is_not_has_failed():
    workers = Scripted(a=[[WorkerSilent("")]], b=[["one", LAST]])
    with pytest.raises(Refused) as refused:
        answer(workers)
    assert (refused.value.status, workers.asked) == (504, ["a"])
    workers = Scripted(a=[[WorkerSilent("")]], b=[["one", LAST]])
    ask = workers.ask

    def fails(worker, body):
        worker.up = worker.url != "a"
        yield from ask(worker, body)

    workers.ask = fails
    assert answer(workers) == ["one"]


def test_nothing_is_said_to_one_who_has_gone_and_an_answer_has_its_time():
    with pytest.raises(Left):
        answer(Scripted(a=[["one", " two", LAST]]), left=lambda: True)
    with pytest.raises(Refused) as refused:
        list(Relay(Scripted(a=[["one", LAST]]), -1.0).answer("m", b""))
    assert refused.value.status in (503, 504)
