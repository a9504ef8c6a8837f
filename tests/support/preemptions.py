"""Runs on a real SLURM (cluster.py) that something interrupts, and what must hold afterwards.

    python tests/support/preemptions.py --times 100 --seed 0      # a campaign; make slurm runs a short one

Every kind of interruption hits a run at a random moment. Afterwards the run must have come to its end by itself, or by
``beni.launch retry`` where the interruption is final, and its losses must be those of an undisturbed run: every step
once, each bit for bit.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support import cluster

STEPS = 1500
TINY = (
    *(f"vision.architecture.{key}=32" for key in ("hidden_size", "intermediate_size")),
    *("vision.architecture.num_hidden_layers=1", "vision.architecture.num_attention_heads=2"),
    *(f"llm.architecture.{key}=32" for key in ("hidden_size", "intermediate_size")),
    *("llm.architecture.num_hidden_layers=1", "llm.architecture.num_attention_heads=2"),
    *("llm.architecture.num_key_value_heads=1", f"train.steps={STEPS}", "train.batch_size=4", "data.heldout=4"),
    *("eval.examples=4", "eval.gallery=0", "compute.threads=1", "compute.workers=0", "log.every=1"),
    *("checkpoint.every=100", "checkpoint.export=false"),
)
JOB = (
    *("launcher=slurm_cpu", "launcher.cpus_per_task=1", "launcher.mem_gb=1.5", "launcher.signal_delay_s=30"),
    "launcher.timeout_min=30",
)
MINUTES = 8
"""Within which an interrupted run must have ended; SLURM holds a job that it queues again for two."""


class Run:
    """One run of a study of its own.

    Args:
        home: the working directory.
        name: of the study.
        overrides: further ones.
    """

    def __init__(self, home: Path, name: str, *overrides: str) -> None:
        self.home, self.study, self.overrides = home, home / "runs" / name, overrides

    def command(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``python -m MODULE ARGUMENTS`` where the run is."""
        return subprocess.run(
            [sys.executable, "-m", module, *arguments], cwd=self.home, capture_output=True, text=True, timeout=300
        )

    def submit(self) -> Run:
        """Hands it to SLURM."""
        done = self.command("beni.train", *TINY, *JOB, f"study.name={self.study.name}", *self.overrides)
        assert done.returncode == 0, done.stderr
        return self

    @property
    def folder(self) -> Path:
        [config] = self.study.glob("*/config.yaml")
        return config.parent

    def job(self) -> str:
        """Its newest job."""
        lines = [json.loads(line) for line in (self.folder / "jobs.jsonl").read_text().splitlines()]
        return [line["job"] for line in lines if line["event"] == "submitted"][-1]

    def losses(self) -> list[tuple[int, float]]:
        """Step and loss of every line, in the order in which they were written."""
        try:
            text = (self.folder / "metrics.jsonl").read_text()
        except OSError:
            return []
        rows = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
        return [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row]

    def wait_for(self, step: int) -> None:
        """Until so many steps are taken."""
        _until(f"step {step} of {self.study.name}", lambda: any(one >= step for one, _ in self.losses()))

    def states(self) -> dict[str, Any]:
        """``status.json``."""
        return json.loads((self.folder / "status.json").read_text())

    def said(self) -> str:
        """What ``beni.launch status`` prints of it."""
        return self.command("beni.launch", "status", str(self.study)).stdout

    def finish(self) -> None:
        """Until it is finished."""
        _until(f"the end of {self.study.name}", lambda: self.states()["state"] == "finished", self.said)


def _until(what: str, done: Callable[[], bool], explain: Callable[[], str] = str) -> None:
    end = time.monotonic() + 60 * MINUTES
    while not done():
        assert time.monotonic() < end, f"waited {MINUTES} minutes for {what}: {explain()}"
        time.sleep(0.5)


def slurm(*command: str) -> str:
    """What a command of SLURM's prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def processes(run: Run) -> list[psutil.Process]:
    """Processes of the run's job, below submitit's."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, variables = process.info["cmdline"] or [], process.info["environ"] or {}
        here = f"{variables.get('SLURM_ARRAY_JOB_ID')}_{variables.get('SLURM_ARRAY_TASK_ID')}"
        if "submitit.core._submit" in words and run.job() in (variables.get("SLURM_JOB_ID"), here):
            found.append(process)
    return found


def usr2(run: Run) -> None:
    """The signal before a time limit."""
    slurm("scancel", "--signal=USR2", run.job())


def requeue(run: Run) -> None:
    """A person, or an administrator, queues the job again: SLURM kills it without a word."""
    slurm("scontrol", "requeue", run.job())


def evicted(run: Run) -> None:
    """A job of a higher partition takes the node, after the grace time of ``low`` or at once in ``now``."""
    node = slurm("squeue", "-h", "-o", "%N", "-j", run.job()).strip()
    slurm("sbatch", "-p", "high", "-w", node, "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")


def cancelled(run: Run) -> None:
    """``scancel`` is final; retry goes on."""
    slurm("scancel", run.job())
    _until("the job's end", lambda: not slurm("squeue", "-h", "-j", run.job()).strip())
    _retry(run)


def killed(run: Run) -> None:
    """SIGKILL to the process, as by a lack of memory on its machine; retry goes on."""
    for process in processes(run):
        process.send_signal(signal.SIGKILL)
    _until("the job's end", lambda: not slurm("squeue", "-h", "-j", run.job()).strip())
    _retry(run)


def node_down(run: Run) -> None:
    """An administrator sets the node down."""
    node = slurm("squeue", "-h", "-o", "%N", "-j", run.job()).strip()
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    time.sleep(2)
    back = ("scontrol", "update", f"nodename={node}", "state=resume")  # refused while the job is still being ended
    _until("the node's return", lambda: subprocess.run(back, capture_output=True).returncode == 0)


def slurmd_killed(run: Run) -> None:
    """The node's slurmd dies, and its process lives on while SLURM starts the job again."""
    node = slurm("squeue", "-h", "-o", "%N", "-j", run.job()).strip()
    cluster.kill_node(node)
    time.sleep(1)
    cluster.start_node(node)


def _retry(run: Run) -> None:
    assert " lost" in run.said() or " preempted" in run.said() or " failed" in run.said(), run.said()
    done = run.command("beni.launch", "retry", str(run.study))
    assert done.returncode == 0, done.stderr


KINDS: dict[str, tuple[Callable[[Run], None], tuple[str, ...]]] = {
    "usr2": (usr2, ()),
    "requeue": (requeue, ()),
    "evicted with grace": (evicted, ("launcher.partition=low",)),
    "evicted at once": (evicted, ("launcher.partition=now",)),
    "cancelled": (cancelled, ()),
    "killed": (killed, ()),
    "node down": (node_down, ()),
    "slurmd killed": (slurmd_killed, ()),
}
"""What interrupts a run, and what such a run is submitted with."""


def judge(run: Run, reference: Sequence[tuple[int, float]]) -> list[str]:
    """What is wrong with a finished run."""
    losses = run.losses()
    problems = []
    if [step for step, _ in losses] != [step for step, _ in reference]:
        problems.append(f"its steps are {_gaps([step for step, _ in losses])}")
    if wrong := [step for step, loss in losses if loss != dict(reference)[step]]:
        problems.append(f"{len(wrong)} losses differ, the first at step {wrong[0]}")
    return problems


def _gaps(steps: Sequence[int]) -> str:
    breaks = [f"{a} -> {b}" for a, b in pairwise(steps) if b != a + 1]
    return f"{steps[0]} to {steps[-1]}" + (f" with {', '.join(breaks[:5])}" if breaks else "") if steps else "none"


def campaign(home: Path, kinds: Sequence[str], seed: int, say: Callable[[str], None]) -> list[str]:
    """Interrupts a run for each of ``kinds``, three at a time; what was wrong, one line each."""
    chance = random.Random(seed)
    reference = Run(home, "reference").submit()
    reference.finish()
    losses = reference.losses()
    assert [step for step, _ in losses] == list(range(1, STEPS + 1))

    def interrupt(number: int, kind: str, step: int) -> list[str]:
        run = Run(home, f"run{number}", *KINDS[kind][1]).submit()
        run.wait_for(step)
        KINDS[kind][0](run)
        run.finish()
        found = judge(run, losses)
        say(f"{kind}: {'; '.join(found) or 'equal'}")
        return [f"{kind} ({run.study.name}): {problem}" for problem in found]

    with ThreadPoolExecutor(3) as pool:
        steps = [chance.randint(1, STEPS // 2) for _ in kinds]
        return [problem for found in pool.map(interrupt, range(len(kinds)), kinds, steps) for problem in found]


def main() -> int:
    """0 where nothing was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=len(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, help="instead of each once")
    arguments = parser.parse_args()
    cluster.up()
    chance = random.Random(arguments.seed)
    kinds = (
        arguments.kinds
        or [*KINDS, *chance.choices(list(KINDS), k=max(0, arguments.times - len(KINDS)))][: arguments.times]
    )
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as home:
        os.environ["OMP_NUM_THREADS"] = "1"
        problems = campaign(Path(home), kinds, arguments.seed, lambda line: print(line, flush=True))
    print("\n".join(problems) or f"{len(kinds)} interruptions, nothing lost, nothing twice")
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
