"""One order of samples, however many processes draw it, and wherever they are killed."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path

import pytest

from beni.config.compose import compose
from support.processes import start_ranks

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("drawing.py")
STEPS = 40
SECONDS = 300
KINDS = {
    "modalities": (
        *("schedule=packs", "schedule.tokens=300", "schedule.modality=grouped", "schedule.cycle=[image,text]"),
        *("train.batch_size=16", "data.text_share=0.5"),
    ),
}


@pytest.fixture(scope="module")
def draw(tiny_values, tmp_path_factory):
    """draw(kind, world, accumulation, workers, first, kill) -> step -> (ids of all ranks, order hash).

    With ``kill`` the ranks are killed once every one has written so many steps.
    """
    folder = tmp_path_factory.mktemp("order")

    def start(kind, world, accumulation, workers, first=0, kill=None):
        run = compose([*tiny_values, *KINDS[kind], f"train.accumulation={accumulation}", f"compute.workers={workers}"])
        name = folder / f"{kind}-{world}-{accumulation}-{workers}-{first}-{kill}"
        settings = {"run": run, "world": world, "first": first, "last": STEPS}
        ranks = start_ranks(PROGRAM, settings, name, world, SECONDS)
        files = [Path(f"{name}.{rank}") for rank in range(world)]
        deadline = time.monotonic() + SECONDS
        while kill is not None and time.monotonic() < deadline:
            if all(file.exists() and file.read_text().count("\n") >= kill for file in files):
                for file in files:
                    os.kill(json.loads(file.read_text().splitlines()[0])["pid"], signal.SIGKILL)
                break
            time.sleep(0.01)
        codes, said = ranks.end()
        assert codes == [0 if kill is None else -signal.SIGKILL] * world, f"{codes}\n{said}"
        rows = [[json.loads(line) for line in file.read_text().splitlines()] for file in files]
        done = min(map(len, rows))
        seen = {}
        for together in zip(*(some[:done] for some in rows), strict=True):
            assert len({(row["step"], row["order"]) for row in together}) == 1
            assert all(len(row["ids"]) == accumulation for row in together)
            ids = sorted(one for row in together for part in row["ids"] for one in part)
            seen[together[0]["step"]] = (ids, together[0]["order"])
        return seen

    return start


@pytest.fixture(scope="module", params=KINDS)  # other schedules: tests/unit/data/test_schedule.py
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def alone(draw, kind):
    """What one process without loader processes draws."""
    seen = draw(kind, 1, 2, 0)
    assert list(seen) == list(range(STEPS))
    return seen


@pytest.mark.parametrize(("world", "accumulation", "workers"), [(2, 4, 3), (4, 2, 0)])
def test_the_samples_of_every_step_are_those_of_a_single_process(draw, kind, alone, world, accumulation, workers):
    assert draw(kind, world, accumulation, workers) == alone


def test_killed_processes_are_continued_at_another_world_size(draw, kind, alone):
    seen = draw(kind, 2, 2, 3, kill=3)
    assert 3 <= len(seen) < STEPS
    assert seen | draw(kind, 1, 4, 3, first=max(seen) + 1) == alone
