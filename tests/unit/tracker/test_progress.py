import io

import pytest
from rich.console import Console

from beni.tracker.progress import Progress

VALUES = {
    "loss": 2.34567,
    "lr": 3e-4,
    "grad_norm": 1.0,
    "tokens_per_s": 51234.4,
    "samples_per_s": 64.0,
    "data_wait": 0.03,
}


class Clock:
    def __init__(self):
        self.now = 1000.0

    def __call__(self):
        return self.now


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def out():
    return io.StringIO()


@pytest.fixture
def clock():
    return Clock()


def test_a_plain_line_says_step_eta_loss_lr_rates_and_waiting(out, clock):
    with Progress(600, console=Console(file=out), clock=clock) as progress:
        progress.update(1, {})
        clock.now += 10
        progress.update(11, VALUES)
    assert out.getvalue().splitlines() == [
        "step 1/600  ETA -",
        "step 11/600  ETA 0:09:49  loss 2.3457  lr 3.0e-04  51,234 tokens/s  64.0 samples/s  data wait 3%",
    ]


def test_what_is_computed_again_is_shown_where_there_is_any(out, clock):
    cost = {"mfu": 0.4, "memory/peak_gib": 12.34, "goodput/compute": 0.9}
    with Progress(2, console=Console(file=out), clock=clock, every=0) as progress:
        progress.update(1, cost | {"hfu": 0.4})
        progress.update(2, cost | {"hfu": 0.5})
    assert [line.split("  ", 2)[2] for line in out.getvalue().splitlines()] == [
        "MFU 40.0%  12.3 GiB  goodput 90%",
        "MFU 40.0%  HFU 50.0%  12.3 GiB  goodput 90%",
    ]


def test_plain_lines_come_every_ten_seconds_and_first_and_last(out, clock):
    with Progress(100, console=Console(file=out), clock=clock) as progress:
        for step in range(1, 101):
            progress.update(step, {"loss": 1.0})
            clock.now += 1
    steps = [line.split()[1] for line in out.getvalue().splitlines()]
    assert steps == [f"{step}/100" for step in (1, 11, 21, 31, 41, 51, 61, 71, 81, 91, 100)]


def test_a_run_that_stops_early_still_says_where(out, clock):
    progress = Progress(100, console=Console(file=out), clock=clock)

    def run():
        with progress:
            progress.update(1, {})
            progress.update(2, {})
            raise RuntimeError

    with pytest.raises(RuntimeError):
        run()
    assert [line.split()[1] for line in out.getvalue().splitlines()] == ["1/100", "2/100"]


def test_a_file_gets_plain_lines_whatever_force_color_says(out, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Progress(10, console=Console(file=out)) as progress:
        progress.update(10, {"loss": 1.0})
    assert out.getvalue() == "step 10/10  done  loss 1.0000\n"


def test_a_terminal_gets_a_bar(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with Progress(10, console=Console(file=out, force_terminal=True, width=150)) as progress:
        progress.update(5, {"loss": 1.25})
    assert "5/10" in out.getvalue()
    assert "loss 1.2500" in out.getvalue()
    assert "\x1b[" in out.getvalue()


def test_ranks_that_are_not_shown_write_nothing(out):
    with Progress(10, shown=False, console=Console(file=out)) as progress:
        progress.update(1, VALUES)
        progress.update(10, VALUES)
    assert out.getvalue() == ""
