"""Handlers of signals are those of before once a block or a command has ended."""

from __future__ import annotations

import signal

import pytest

from beni.serve.__main__ import main
from beni.signals import handling


def test_a_handler_is_called_inside_the_block_and_put_back_after_an_error():
    heard, before = [], signal.getsignal(signal.SIGUSR1)

    def hear(number, frame):
        heard.append(number)

    with pytest.raises(ZeroDivisionError), handling([signal.SIGUSR1], hear):  # noqa: PT012
        signal.raise_signal(signal.SIGUSR1)
        raise ZeroDivisionError
    assert heard == [signal.SIGUSR1]
    assert signal.getsignal(signal.SIGUSR1) == before


@pytest.mark.parametrize("words", [["worker", "nowhere"], ["demo", "nowhere"]])
def test_a_service_leaves_no_handler_behind(words, capsys):
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    assert main(words) == 2
    assert {number: signal.getsignal(number) for number in before} == before
