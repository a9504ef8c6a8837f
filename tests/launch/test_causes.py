"""Which log comes first: the one with the error that the others follow from."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from beni.launch.causes import by_cause

CAUSES = [
    "OutOfMemoryError: the cause\nsrun: Job step aborted: Waiting up to 32 seconds\n",
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB\n",
    "[rank1]: ValueError: row 3\n",
    "1: KeyError: 'x'\n",
    "Traceback (most recent call last):\n  File ...\nAssertionError\n",
    "DataError: records.json: no such file\n  fix: name another\n",
    "slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.\n",
    "Fatal Python error: Segmentation fault\n",
    "Killed\n",
]
FOLLOWING = [
    "RuntimeError: gloo peer closed\n",
    "RuntimeError: [/src/gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:4711\n",
    "[rank0]: torch.distributed.DistBackendError: NCCL error: remote process exited or there was a network error\n",
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n",
    "srun: error: node1: task 1: Killed\n",
    "slurmstepd: error: *** STEP 7.0 ON node1 CANCELLED AT 2026-11-30T16:00:00 ***\n",
    "ConnectionResetError: [Errno 104] Connection reset by peer\n",
]
HARMLESS = [
    "accuracy Error bar 0.1 fine\n",
    "Error bars are those of five seeds\n",
    "step 3 loss 2.0 (no ValueError: so far)\n",
    "UserWarning: slow\n",
    "",
]


def test_causes_come_before_what_follows_from_them_and_that_before_the_rest(tmp_path: Path) -> None:
    texts = [*HARMLESS, *FOLLOWING, *CAUSES]
    for number, text in enumerate(texts):
        path = tmp_path / f"{number:02d}.err"
        path.write_text(text)
        os.utime(path, (number, number))
    told = [path.read_text() for path in by_cause(tmp_path.glob("*"))]
    assert told == [*CAUSES, *FOLLOWING, *HARMLESS]


@pytest.mark.parametrize("late", [0, 1])
def test_of_two_causes_the_log_that_ended_first_comes_first(tmp_path: Path, late: int) -> None:
    paths = [tmp_path / name for name in ("a.err", "b.err")]
    for number, path in enumerate(paths):
        path.write_text("ValueError: x\n")
        os.utime(path, (10 + (number == late), 10 + (number == late)))
    assert by_cause(paths) == [paths[1 - late], paths[late]]
