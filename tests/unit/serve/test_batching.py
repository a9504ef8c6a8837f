"""Conversations that wait are answered together; none waits for one that is wrong, and none stays without an answer."""

from __future__ import annotations

import asyncio
import threading

import pytest

from beni.errors import DataError
from beni.serve.batching import Batcher
from beni.serve.completions import Usage
from beni.serve.engine import Chat, Piece, Turn
from beni.serve.metrics import WorkerMetrics
from beni.serve.refused import Refused

LAST = Piece("", "stop", Usage(1, 1))


def chat(text):
    return Chat((Turn("user", (text,)),))


def said(job):
    return job.chat.turns[0].parts[0]


async def collected(batcher, text):
    try:
        return "".join([piece.text async for piece in batcher.answer(chat(text))])
    except Refused as error:
        return error


class Echo:
    """Answers each conversation with its own words; those of ``wrong`` cannot be answered."""

    def __init__(self, wrong=(), error=None):
        self.batches, self.wrong, self.error = [], wrong, error
        self.go_on = threading.Event()
        self.go_on.set()

    def __call__(self, jobs):
        self.batches.append([said(job) for job in jobs])
        self.go_on.wait(10)
        for job in jobs:
            if said(job) in self.wrong:
                raise self.error or DataError("it is wrong\n  fix: set data.x")
        for job in jobs:
            job.tell(Piece(said(job)))
            job.tell(LAST)


def run(echo, task, most=4, linger=0.05, waiting=100):
    async def main():
        batcher = Batcher(echo, most, linger, waiting, WorkerMetrics())
        try:
            return await task(batcher)
        finally:
            batcher.close()

    return asyncio.run(main())


def test_those_that_come_together_are_batched_in_their_order_up_to_a_number():
    echo, texts = Echo(), [str(i) for i in range(10)]

    async def task(batcher):
        return await asyncio.gather(*(collected(batcher, text) for text in texts))

    assert run(echo, task) == texts
    assert echo.batches == [texts[:4], texts[4:8], texts[8:]]


def test_one_that_is_wrong_is_told_and_the_others_are_answered():
    echo = Echo(wrong=("b",))

    async def task(batcher):
        return await asyncio.gather(*(collected(batcher, text) for text in "abc"))

    a, b, c = run(echo, task)
    assert (a, c) == ("a", "c")
    assert (b.status, b.message) == (400, "it is wrong")


def test_an_engine_that_fails_fails_its_batch_and_answers_the_next():
    echo = Echo(wrong=("bad",), error=RuntimeError("out of memory: key=secret"))

    async def task(batcher):
        first = await asyncio.gather(collected(batcher, "bad"), collected(batcher, "good"))
        return [*first, await collected(batcher, "next"), batcher.sound()]

    bad, good, following, sound = run(echo, task)
    assert (bad.status, good.status, following, sound) == (500, 500, "next", True)
    assert "secret" not in bad.message


def test_an_engine_that_forgets_an_answer_is_told_as_a_failure():
    async def task(batcher):
        return await collected(batcher, "x")

    assert run(lambda jobs: None, task).status == 500


def test_one_who_goes_away_while_waiting_is_not_answered():
    echo = Echo()
    echo.go_on.clear()

    async def task(batcher):
        first = asyncio.create_task(collected(batcher, "first"))
        await asyncio.sleep(0.2)
        gone, stays = (asyncio.create_task(collected(batcher, text)) for text in ("gone", "stays"))
        await asyncio.sleep(0.1)
        gone.cancel()
        await asyncio.sleep(0.1)
        echo.go_on.set()
        return await asyncio.gather(first, stays)

    assert run(echo, task) == ["first", "stays"]
    assert echo.batches == [["first"], ["stays"]]


def test_more_than_may_wait_are_refused_and_may_come_again():
    echo = Echo()
    echo.go_on.clear()

    async def task(batcher):
        waiting = [asyncio.create_task(collected(batcher, str(i))) for i in range(3)]
        await asyncio.sleep(0.3)
        waiting += [asyncio.create_task(collected(batcher, str(i))) for i in range(3, 5)]
        await asyncio.sleep(0.1)
        refused = await collected(batcher, "too many")
        echo.go_on.set()
        return refused, await asyncio.gather(*waiting)

    refused, answered = run(echo, task, most=1, waiting=4)
    assert isinstance(refused, Refused)
    assert (refused.status, refused.wait) == (429, 1.0)
    assert answered == ["0", "1", "2", "3", "4"]


@pytest.mark.parametrize("most", [1, 3])
def test_no_answer_is_lost_under_load(most):
    echo, texts = Echo(), [str(i) for i in range(200)]

    async def one(batcher, number, text):
        await asyncio.sleep(number % 7 / 200)
        return await collected(batcher, text)

    async def task(batcher):
        return await asyncio.gather(*(one(batcher, i, text) for i, text in enumerate(texts)))

    assert run(echo, task, most=most, linger=0.001, waiting=1000) == texts
    assert sorted(text for batch in echo.batches for text in batch) == sorted(texts)


def test_work_that_nobody_waits_for_any_more_is_not_begun():
    async def task(batcher):
        done, go_on = [], threading.Event()
        first = asyncio.ensure_future(batcher.beside(lambda: go_on.wait(10)))
        second = asyncio.ensure_future(batcher.beside(lambda: done.append("second")))
        third = asyncio.ensure_future(batcher.beside(lambda: done.append("third")))
        await asyncio.sleep(0.05)
        second.cancel()
        await asyncio.sleep(0.05)
        go_on.set()
        await asyncio.gather(first, third)
        return done

    assert run(Echo(), task) == ["third"]
