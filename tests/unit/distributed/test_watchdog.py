"""The watchdog ends what hangs and says where, and leaves alone what is only slow."""

from __future__ import annotations

import multiprocessing
import threading
import time

import pytest
import torch.distributed as dist

from beni.distributed import watchdog
from beni.distributed.watchdog import Place, Watchdog
from beni.errors import HUNG

SECONDS = 0.3


class Ended:
    """What a watchdog of these tests did instead of ending the process."""

    def __init__(self) -> None:
        self.code, self.message, self.stack = None, "", ""
        self.event = threading.Event()

    def report(self, message, stack):
        self.message, self.stack = message, stack

    def leave(self, code):
        self.code = code
        self.event.set()


@pytest.fixture
def ended():
    return Ended()


@pytest.fixture
def watching(ended, monkeypatch):
    """watching(seconds=..., rank=..., world=...) -> a watchdog that calls ``ended``."""
    monkeypatch.setattr(watchdog, "LAST_WORDS", 0.2)
    return lambda seconds=SECONDS, rank=0, world=1: Watchdog(seconds, rank, world, ended.report, ended.leave)


def past_first_step(dog):
    for step in range(3):
        dog.beat("data", step)
        dog.beat("step", step)


def test_a_process_that_does_not_move_is_ended_with_its_place_and_stack(watching, ended, capfd):
    with watching() as dog:
        past_first_step(dog)
        dog.beat("data", 3)
        assert ended.event.wait(20)
    assert ended.code == HUNG == 70
    assert ended.message.startswith("rank 0 hangs in step 4, phase data: no progress for ")
    assert "log.watchdog_s" in ended.message
    assert "test_a_process_that_does_not_move" in ended.stack
    said = capfd.readouterr().err
    assert "rank 0 hangs in step 4" in said
    assert "most recent call first" in said  # every thread, as faulthandler writes them


def test_a_process_that_moves_is_left_alone(watching, ended):
    with watching() as dog:
        past_first_step(dog)
        for _ in range(10):
            dog.beat()
            time.sleep(SECONDS / 3)
    assert not ended.event.wait(2 * SECONDS)


def test_nothing_is_watched_at_0(watching, ended):
    threads = threading.active_count()
    with watching(0) as dog:
        past_first_step(dog)
        assert threading.active_count() == threads
    assert ended.code is None


def test_who_is_done_is_no_longer_watched(watching, ended):
    with watching() as dog:
        past_first_step(dog)
    assert not ended.event.wait(3 * SECONDS)


@pytest.mark.parametrize(
    ("place", "allowed"),
    [
        (Place(5, "data", 9, False), 2),
        (Place(5, "step", 9, False), 2),
        (Place(5, "step", 9, True), 20),
        (Place(0, "start"), 20),
        (Place(5, "save", 9, False), 20),
        (Place(5, "evaluate", 9, False), 10),
        (Place(5, "step", 9, False, longest=4.0), 12),
    ],
)
def test_what_takes_long_may(place, allowed):
    assert place.allowance(2) == allowed


def test_the_first_step_of_a_start_has_time_to_compile(watching):
    dog = watching()
    dog.beat("data", 7)
    dog.beat("step", 7)
    assert dog._place.first
    dog.beat("data", 8)
    assert not dog._place.first


def test_the_slowest_until_now_is_remembered_by_phase(watching, monkeypatch):
    clock = iter([0.0, 1.0, 9.0, 10.0, 10.5])
    monkeypatch.setattr(watchdog.time, "monotonic", lambda: next(clock))
    dog = watching()
    dog.beat("data", 0)
    dog.beat("step", 0)  # after 8 s of data
    dog.beat("data", 1)  # after 1 s of step
    assert dog._place.longest == 8.0
    dog.beat("step", 1)
    assert dog._place.longest == 1.0


def test_a_job_that_was_suspended_has_not_hung(watching, ended, monkeypatch):
    clock = [0.0]

    def later():
        clock[0] += 1000.0  # every look comes much later than it should
        return clock[0]

    dog = watching()
    past_first_step(dog)
    monkeypatch.setattr(watchdog.time, "monotonic", later)
    with dog:
        assert not ended.event.wait(SECONDS / 2)


def test_the_loaders_of_a_process_that_hangs_are_ended(watching, ended):
    loader = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    loader.start()
    with watching() as dog:
        past_first_step(dog)
        assert ended.event.wait(20)
    loader.join(20)
    assert loader.exitcode == -9


@pytest.fixture
def store(monkeypatch):
    """A store as a process group of two has it; the other rank's part is played by the test."""
    server = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", lambda: server)
    return server


def other(store, place):
    store.set("beni/watchdog/place/1", watchdog.json.dumps(watchdog.astuple(place)))


def test_the_rank_that_has_come_least_far_is_the_one_that_hangs(watching, ended, store):
    other(store, Place(2, "data", 5, False))
    store.set("beni/watchdog/stack/1", "in the middle of a picture")
    with watching(world=2) as dog:
        past_first_step(dog)  # and waits in a collective of its step 3
        assert ended.event.wait(20)
    assert ended.message.splitlines()[0].startswith("rank 1 hangs in step 3, phase data")
    assert "the others are waiting: rank 0: step 3, step" in ended.message
    assert ended.stack == "main thread of rank 1:\nin the middle of a picture"


def test_a_rank_that_does_not_answer_is_said_to(watching, ended, store):
    other(store, Place(2, "step", 5, False))
    with watching(world=2) as dog:
        past_first_step(dog)
        assert ended.event.wait(20)
    first, second, *_ = ended.message.splitlines()
    assert first.startswith("rank 1 hangs in step 3, phase step")
    assert first.endswith("and its process does not answer")
    assert "rank 0" in second  # waits in a collective of the same step, and answers
    assert "does not answer" not in second


@pytest.mark.parametrize("phase", ["save", "evaluate"])
def test_a_rank_that_waits_for_another_ones_checkpoint_is_left_alone(watching, ended, store, phase):
    other(store, Place(2, phase, 5, False))
    with watching(world=2) as dog:
        past_first_step(dog)
        dog.beat("data", 3)
        assert not ended.event.wait(2.5 * SECONDS)


def test_a_rank_that_is_done_holds_nobody_up(watching, ended, store):
    store.set("beni/watchdog/place/1", "done")
    with watching(world=2) as dog:
        past_first_step(dog)
        for _ in range(8):
            dog.beat()
            time.sleep(SECONDS / 3)
    assert ended.code is None
    assert store.get("beni/watchdog/place/0") == b"done"


def test_a_host_of_the_store_that_hangs_is_the_one(watching, ended, store, monkeypatch):
    hung = threading.Event()

    class Stopped:
        """A store whose host answers once and never again."""

        def __init__(self) -> None:
            self.asked = 0

        def clone(self):
            return self

        def set(self, key, text):
            self.asked += 1
            if self.asked > 1:
                hung.wait(60)

        def check(self, keys):
            return True

        def get(self, key):
            return watchdog.json.dumps([2, "step", 5, False, 0.0]).encode()

    monkeypatch.setattr(dist.distributed_c10d, "_get_default_store", Stopped)
    with watching(rank=1, world=2) as dog:
        past_first_step(dog)
        assert ended.event.wait(20)
    hung.set()
    assert ended.message.splitlines()[0].startswith("rank 0 hangs in step 3, phase step")
    assert "does not answer" in ended.message.splitlines()[0]
