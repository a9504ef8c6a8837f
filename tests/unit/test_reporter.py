"""What a run tells the terminal is kept in its folder, also what it told before it had one."""

from __future__ import annotations

import json

import torch

from beni.distributed.environment import Environment
from beni.reporter import Reporter
from beni.runs.folder import RunFolder

CPU = torch.device("cpu")


def kept(folder: RunFolder) -> list[str]:
    path = folder.path / "notices.jsonl"
    return [json.loads(line)["text"] for line in path.read_text().splitlines()] if path.is_file() else []


def test_notices_of_all_attempts_are_kept_in_their_order(tiny_run, capsys):
    run = tiny_run()
    for attempt in ("first", "second"):
        folder = RunFolder(run, writes=True)
        report = Reporter(folder, run, Environment(0, 1, 0, CPU))
        report.notice(f"{attempt}, early")
        with folder.opened(), report:
            report.notice(f"{attempt}, within")
    assert kept(folder) == ["first, early", "first, within", "second, early", "second, within"]
    assert "first, early" in capsys.readouterr().err


def test_other_ranks_say_nothing(tiny_run, capsys):
    run = tiny_run()
    folder = RunFolder(run, writes=False)
    with folder.opened(), Reporter(folder, run, Environment(1, 2, 0, CPU)) as report:
        report.notice("rank 1")
    assert kept(folder) == []
    assert "rank 1" not in capsys.readouterr().err
