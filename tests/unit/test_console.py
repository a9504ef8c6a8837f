"""Standard output and error that never end a run."""

from __future__ import annotations

import io
import sys
from pathlib import Path

import pytest
from rich.console import Console

from beni.console import output_problems, printing_command, unfailing_output


@pytest.fixture
def full(monkeypatch: pytest.MonkeyPatch):
    """Standard error on a full disk, as Python opens it."""
    stream = io.TextIOWrapper(open("/dev/full", "wb", buffering=0), line_buffering=True)  # noqa: SIM115
    yield lambda: monkeypatch.setattr(sys, "stderr", stream) or stream  # in the test: pytest sets its own before it
    stream.close()


def test_every_way_to_print_survives_a_full_disk_and_the_problem_is_remembered(full):
    stream = full()
    with unfailing_output():
        print("print", file=sys.stderr, flush=True)
        Console(stderr=True).print("rich")
        assert output_problems() == {"stderr": "No space left on device"}
    assert sys.stderr is stream


def test_what_is_lost_leaves_nothing_in_the_stream_that_fails_when_the_process_ends(full):
    stream = full()
    with unfailing_output():
        print("lost", file=sys.stderr)
    stream.flush()


def test_lines_reach_a_disk_that_takes_them_at_once(tmp_path: Path, monkeypatch):
    with (tmp_path / "log").open("w", encoding="utf-8") as log:
        monkeypatch.setattr(sys, "stdout", log)
        log.write("before ")
        with unfailing_output(), unfailing_output():
            print("größer")
            assert (tmp_path / "log").read_text(encoding="utf-8") == "before größer\n"
        assert sys.stdout is log


def test_streams_without_a_file_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(sys, "stdout", own := io.StringIO())
    with unfailing_output():
        assert sys.stdout is own


@pytest.mark.parametrize(("code", "expected"), [(0, 2), (3, 3)])
def test_a_command_that_prints_its_result_fails_where_it_is_lost(monkeypatch, capsys, code, expected):
    with open("/dev/full", "w") as disk:
        monkeypatch.setattr(sys, "stdout", disk)

        @printing_command
        def main(argv):
            print("the result")
            return code

        assert main([]) == expected
    assert ("free disk space" in capsys.readouterr().err) == (code == 0)
