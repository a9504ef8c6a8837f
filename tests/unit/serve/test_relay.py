"""Answers that break off go on with another worker, and nobody gets half of one and half of another."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import contextmanager

import pytest

from beni.serve import relay
from beni.serve.completions import Usage
from beni.serve.engine import Piece
from beni.serve.metrics import GatewayMetrics
from beni.serve.refused import Refused
from beni.serve.relay import ATTEMPTS, Left, Relay
from beni.serve.workers import Worker, WorkerErred, WorkerFailed, Workers, WorkerSilent

LAST = Piece("", "stop", Usage(3, 2))


class Scripted:
    """Workers that say what stands in a script, one line for each request that they get."""

    def __init__(self, **scripts):
        self.all = [Worker(name, models={"m": 0}, up=True) for name in scripts]
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

    def post(self, worker, path, body, wanted):
        self.asked.append(worker.url)
        found = self.scripts[worker.url].pop(0)
        if isinstance(found, Exception):
            raise found
        wanted()
        return found


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


def test_a_look_that_a_worker_fails_with_is_given_to_no_other_and_takes_none_out_of_service():
    for error, status in ((WorkerErred(""), 502), (WorkerSilent(""), 504), (Refused(501, "draws nothing", "no"), 501)):
        workers = Scripted(a=[error], b=["seen"])
        with pytest.raises(Refused) as refused:
            Relay(workers, 5.0).once("m", "/v1/look", b"")
        assert (refused.value.status, workers.asked) == (status, ["a"])
        assert all(worker.up for worker in workers.all)


def test_a_look_goes_on_with_another_worker_where_one_has_ended():
    workers = Scripted(a=[WorkerFailed("")], b=["seen"])
    assert Relay(workers, 5.0).once("m", "/v1/look", b"") == "seen"
    assert [worker.up for worker in workers.all] == [False, True]


@pytest.fixture
def silent():
    """The address of a server that takes requests and says nothing; an event that its client has gone."""
    gone = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve():
            connection, _ = listening.accept()
            with connection:
                while connection.recv(65536):
                    pass
            gone.set()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}", gone
        assert gone.wait(5)
        thread.join(5)


def at(url, idle):
    workers = Workers([url], GatewayMetrics(), None, idle, 4)
    workers.all[0].up, workers.all[0].models = True, {"m": 0}
    return workers


def test_a_worker_is_not_asked_any_more_for_a_client_that_has_gone(silent):
    url, gone = silent
    begun = time.monotonic()
    workers = at(url, 30.0)
    with pytest.raises(Left):
        Relay(workers, 30.0).once("m", "/v1/look", b"{}", lambda: time.monotonic() - begun > 0.3)
    assert gone.wait(5)
    workers.close()
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(("timeout", "idle"), [(0.3, 30.0), (30.0, 0.3)])
def test_a_look_that_takes_too_long_is_told_so_once(silent, timeout, idle):
    workers = at(silent[0], idle)
    begun = time.monotonic()
    with pytest.raises(Refused) as refused:
        Relay(workers, timeout).once("m", "/v1/look", b"{}")
    workers.close()
    assert (refused.value.status, refused.value.code, workers.all[0].up) == (504, "timeout", True)
    assert time.monotonic() - begun < 10
