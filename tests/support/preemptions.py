"""A study of six arms on a real SLURM (cluster.py) whose runs something interrupts, and what must hold afterwards.

    python tests/support/preemptions.py --times 100 --seed 0      # a campaign; make slurm runs a shorter one

Every arm of a round is hit by one kind of interruption at a random step, besides what its neighbours on the node get
of theirs. Afterwards the run must have come to its end by itself, or by ``beni.launch retry`` where the interruption is
final; its losses must be those of an undisturbed run, every step once, bit for bit; and the submitter, which waits,
must have named no arm that finished.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import psutil
import yaml

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from beni.launch.states import STUCK
from support import cluster

STEPS = 600
TINY = (
    *(f"vision.architecture.{key}=32" for key in ("hidden_size", "intermediate_size")),
    *("vision.architecture.num_hidden_layers=1", "vision.architecture.num_attention_heads=2"),
    *(f"llm.architecture.{key}=32" for key in ("hidden_size", "intermediate_size")),
    *("llm.architecture.num_hidden_layers=1", "llm.architecture.num_attention_heads=2"),
    *("llm.architecture.num_key_value_heads=1", f"train.steps={STEPS}", "train.batch_size=4", "data.heldout=4"),
    *("eval.examples=4", "eval.gallery=0", "compute.threads=1", "compute.workers=0", "log.every=1"),
    *("checkpoint.every=50", "checkpoint.export=false"),
)
JOB = (
    *("launcher=slurm_cpu", "launcher.cpus_per_task=1", "launcher.mem_gb=1.5", "launcher.signal_delay_s=30"),
    "launcher.timeout_min=30",
)
TWO_NODES = "launcher.nodes=2"
ARMS = (
    *(f"connector={connector} train.seed={seed}" for connector in ("linear", "mlp2x_gelu") for seed in (0, 1)),
    *(f"connector=swiglu train.seed={seed} {TWO_NODES}" for seed in (0, 1)),
)
"""Overrides of each; two of them are of two processes, one a node."""
MINUTES = 10
"""Within which all that is waited for must have come."""
NO_STEP = "starts have saved no step"
"""Why a run was not queued again that was interrupted too often, which is as it should be."""


@dataclass(frozen=True)
class Run:
    """One run of a study.

    Args:
        folder: of the run, below ``<home>/runs/<study>``.
    """

    folder: Path

    @property
    def study(self) -> Path:
        return self.folder.parent

    def command(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        """``python -m MODULE ARGUMENTS`` in the study's working directory."""
        return command(self.study.parent.parent, module, *arguments)

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
        until(f"step {step} of {self.folder.name}", lambda: any(one >= step for one, _ in self.losses()), self.said)

    @property
    def state(self) -> str:
        """As ``status.json`` has it."""
        return json.loads((self.folder / "status.json").read_text())["state"]

    def said(self) -> str:
        """The line of ``beni.launch status`` about it."""
        lines = self.command("beni.launch", "status", str(self.folder)).stdout.splitlines()
        return next((line for line in lines if line.endswith(self.folder.name)), "")

    def lies_idle(self) -> bool:
        """Whether nobody goes on with it, for ``beni.launch status``."""
        return {"lost", "preempted", "failed"} & set(self.said().split()[:3]) != set()

    def finish(self) -> None:
        """Until it is finished."""
        until(f"the end of {self.folder.name}", lambda: self.state == "finished", self.said)


def command(home: Path, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """``python -m MODULE ARGUMENTS`` in a folder."""
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], cwd=home, capture_output=True, text=True, timeout=300
    )


def submit(home: Path, study: str, *overrides: str) -> Run:
    """Hands one run to SLURM."""
    done = command(home, "beni.train", *TINY, *JOB, f"study.name={study}", *overrides)
    assert done.returncode == 0, done.stderr
    [config] = (home / "runs" / study).glob("*/config.yaml")
    return Run(config.parent)


def until(what: str, done: Callable[[], bool], explain: Callable[[], str] = str) -> None:
    """Waits for something to be true; raises AssertionError with an explanation where it takes too long."""
    end = time.monotonic() + 60 * MINUTES
    while not done():
        assert time.monotonic() < end, f"waited {MINUTES} minutes for {what}: {explain()}"
        time.sleep(0.5)


def slurm(*command: str) -> str:
    """What a command of SLURM's prints."""
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def processes(run: Run) -> list[psutil.Process]:
    """Processes of the run's job, one a rank."""
    found = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        words, variables = process.info["cmdline"] or [], process.info["environ"] or {}
        here = f"{variables.get('SLURM_ARRAY_JOB_ID')}_{variables.get('SLURM_ARRAY_TASK_ID')}"
        if "submitit.core._submit" in words and run.job() in (variables.get("SLURM_JOB_ID"), here):
            found.append(process)
    return found


def usr2(run: Run, chance: random.Random) -> None:
    """The signal before a time limit."""
    slurm("scancel", "--signal=USR2", run.job())


def sigterm(run: Run, chance: random.Random) -> None:
    """The signal of an eviction."""
    slurm("scancel", "--signal=TERM", run.job())


def requeue(run: Run, chance: random.Random) -> None:
    """A person, or an administrator, queues the job again: SLURM kills it without a word."""
    slurm("scontrol", "requeue", run.job())


def evicted(run: Run, chance: random.Random) -> None:
    """A job of a higher partition takes the node, after the grace time of ``low`` or at once in ``now``."""
    slurm("sbatch", "-p", "high", "-w", node_of(run), "--exclusive", "-o", "/dev/null", "--wrap", "sleep 3")


def cancelled(run: Run, chance: random.Random) -> None:
    """``scancel`` is final."""
    slurm("scancel", run.job())


def killed(run: Run, chance: random.Random) -> None:
    """SIGKILL to one process of the job."""
    for process in chance.sample(found := processes(run), min(1, len(found))):
        process.send_signal(signal.SIGKILL)


def time_limit(run: Run, chance: random.Random) -> None:
    """The run stands still until SLURM has sent the signal before the limit, or has queued it again anyway."""
    before = restarts(run)
    for process in (found := processes(run)):
        process.suspend()

    def over() -> bool:
        return all(_signalled(process, signal.SIGUSR2) for process in found) or restarts(run) != before

    try:
        until("the signal before the limit", over)
    finally:
        for process in found:
            with suppress(psutil.NoSuchProcess):
                process.resume()


def restarts(run: Run) -> str:
    """How often SLURM has queued it again; a process that stands still outlives that where its slurmd was killed."""
    return re.findall(r"Restarts=(\d+)", slurm("scontrol", "show", "job", "--oneliner", run.job()))[-1]


def _signalled(process: psutil.Process, number: int) -> bool:
    """Whether a signal waits for a process, or it is gone."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return True
    waiting = [int(line.split()[1], 16) for line in lines if line.startswith(("ShdPnd", "SigPnd"))]
    return any(mask >> (number - 1) & 1 for mask in waiting)


def out_of_memory(run: Run, chance: random.Random) -> None:
    """SLURM has killed it while it started, since the arm asks for too little; it is retried with more."""


def node_down(run: Run, chance: random.Random) -> None:
    """An administrator sets the node down."""
    node = node_of(run)
    slurm("scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    time.sleep(2)
    back = ("scontrol", "update", f"nodename={node}", "state=resume")  # refused while the job is still being ended

    def returned() -> bool:
        done = subprocess.run(back, capture_output=True)
        return done.returncode == 0 or "DOWN" not in slurm("scontrol", "show", "node", "--oneliner", node)

    until("the node's return", returned)


def slurmd_killed(run: Run, chance: random.Random) -> None:
    """The node's slurmd dies, and its process lives on while SLURM starts the job again."""
    node = node_of(run)
    cluster.kill_node(node)
    time.sleep(1)
    cluster.start_node(node)


def node_of(run: Run) -> str:
    """The node, or the first one, where it runs."""
    names = ""

    def found() -> bool:
        nonlocal names
        names = slurm("squeue", "-h", "-o", "%N", "-j", run.job()).strip()
        return bool(names)

    until(f"a node of {run.folder.name}", found, run.said)
    return slurm("scontrol", "show", "hostnames", names).split()[0]


@dataclass(frozen=True)
class Kind:
    """A kind of interruption.

    Args:
        interrupt: does it.
        launcher: what a run is submitted with that it hits.
        final: whether ``beni.launch retry`` has to go on with the run; with which values, if there are any.
        starts: whether the run takes steps before.
    """

    interrupt: Callable[[Run, random.Random], None]
    launcher: str = ""
    final: tuple[str, ...] | None = None
    starts: bool = True


KINDS: Mapping[str, Kind] = {
    "usr2": Kind(usr2),
    "sigterm": Kind(sigterm),
    "requeue": Kind(requeue),
    "evicted with grace": Kind(evicted, "launcher.partition=low"),
    "evicted at once": Kind(evicted, "launcher.partition=now"),
    "cancelled": Kind(cancelled, final=()),
    "killed": Kind(killed, final=()),
    "time limit": Kind(time_limit, "launcher.timeout_min=2 launcher.signal_delay_s=60"),
    "out of memory": Kind(out_of_memory, "launcher.mem_gb=0.2", final=("launcher.mem_gb=1.5",), starts=False),
    "node down": Kind(node_down),
    "slurmd killed": Kind(slurmd_killed),
}


def judge(run: Run, reference: Sequence[tuple[int, float]]) -> list[str]:
    """What is wrong with a finished run."""
    losses = run.losses()
    problems = []
    if [step for step, _ in losses] != [step for step, _ in reference]:
        problems.append(f"its steps are {_gaps([step for step, _ in losses])}")
    if wrong := [step for step, loss in losses if loss != dict(reference).get(step)]:
        problems.append(f"{len(wrong)} losses differ, the first at step {wrong[0]}")
    return problems


def _gaps(steps: Sequence[int]) -> str:
    breaks = [f"{a} -> {b}" for a, b in pairwise(steps) if b != a + 1]
    return f"{steps[0]} to {steps[-1]}" + (f" with {', '.join(breaks[:5])}" if breaks else "") if steps else "none"


class Round:
    """The study of six arms once, submitted by a command that waits for it.

    Args:
        home: the working directory.
        study: its name.
        kinds: what interrupts each arm; empty leaves all undisturbed.
    """

    def __init__(self, home: Path, study: str, kinds: Sequence[str] = ()) -> None:
        self.home, self.folder, self.kinds = home, home / "runs" / study, kinds
        self.log = home / f"{study}.log"
        self.retried: set[str] = set()
        further = [KINDS[kind].launcher for kind in kinds] or [""] * len(ARMS)
        # What is on the command line holds for all arms, so what an arm may have of its own stands in all of them.
        self.arms = [" ".join((arm, *JOB, values)).strip() for arm, values in zip(ARMS, further, strict=True)]

    def submit(self) -> None:
        """Starts the submitter, and waits until all arms are SLURM's."""
        words = ",".join(f"'{arm}'" for arm in self.arms)
        values = ("-m", *TINY, "fsdp=none", f"study.name={self.folder.name}", f"hydra.sweeper.arms=[{words}]")
        with self.log.open("w") as log:
            self.submitter = subprocess.Popen(
                [sys.executable, "-m", "beni.train", *values, "launcher.wait=true"],
                cwd=self.home,
                stdout=log,
                stderr=log,
            )
        until(f"jobs of {self.folder.name}", lambda: len(self._submitted()) == len(ARMS), self.said)

    def runs(self) -> list[Run]:
        """In the order of the arms."""
        found = {}
        for path in self._submitted():
            config = yaml.safe_load((path.parent / "config.yaml").read_text())
            found[f"connector={config['choices']['connector']} train.seed={config['train']['seed']}"] = Run(path.parent)
        return [found[arm.removesuffix(TWO_NODES).strip()] for arm in ARMS]

    def said(self) -> str:
        """What the submitter has said."""
        return self.log.read_text()

    def end(self) -> list[str]:
        """Waits for the submitter, which names no arm but those that nobody went on with."""
        self.submitter.wait(60 * MINUTES)
        named = {run.folder.name for run in self.runs() if f"  {run.folder.name}: " in self.said()}
        wrong = [f"the submitter says that {name} failed" for name in sorted(named - self.retried)]
        if (code := self.submitter.returncode) != (2 if named else 0):
            wrong.append(f"the submitter ended with {code}: {self.said()}")
        return wrong

    def _submitted(self) -> list[Path]:
        return [path for path in self.folder.glob("*/jobs.jsonl") if '"submitted"' in path.read_text()]


def interrupt(run: Run, kind: str, step: int, chance: random.Random) -> bool:
    """Interrupts a run, and sees to it that it comes to its end; whether somebody had to retry it."""
    how = KINDS[kind]
    if how.starts:
        run.wait_for(step)
        how.interrupt(run, chance)
    end, retried = time.monotonic() + 60 * MINUTES, False
    while run.state != "finished":
        assert time.monotonic() < end, f"waited {MINUTES} minutes for the end of {run.folder.name}: {run.said()}"
        if run.lies_idle():
            said = run.said()
            assert how.final is not None or NO_STEP in said or STUCK in said, f"nobody goes on with it: {said}"
            done = run.command("beni.launch", "retry", str(run.folder), "launcher.wait=false", *(how.final or ()))
            assert done.returncode == 0, done.stderr
            retried = True
        time.sleep(5)  # asking takes half a second of a core
    return retried


def campaign(home: Path, kinds: Sequence[str], seed: int, say: Callable[[str], None]) -> list[str]:
    """Rounds in which each of ``kinds`` interrupts an arm; what was wrong, one line each."""
    chance = random.Random(seed)
    undisturbed = Round(home, "undisturbed")
    undisturbed.submit()
    wrong = undisturbed.end()
    losses = [run.losses() for run in undisturbed.runs()]
    assert all([step for step, _ in one] == list(range(1, STEPS + 1)) for one in losses), undisturbed.said()
    for number in range(0, len(kinds), len(ARMS)):
        some = [*kinds[number : number + len(ARMS)]]
        some += chance.choices(list(KINDS), k=len(ARMS) - len(some))
        wrong += _round(Round(home, f"round{number // len(ARMS)}", some), losses, chance, say)
    return wrong


def _round(
    this: Round, losses: Sequence[Sequence[tuple[int, float]]], chance: random.Random, say: Callable[[str], None]
) -> list[str]:
    this.submit()
    chances = [random.Random(chance.random()) for _ in this.kinds]

    def one(index: int) -> list[str]:
        run, kind = this.runs()[index], this.kinds[index]
        try:
            if interrupt(run, kind, chances[index].randint(1, STEPS * 2 // 3), chances[index]):
                this.retried.add(run.folder.name)
            found = judge(run, losses[index])
        except (AssertionError, subprocess.SubprocessError, psutil.Error) as error:
            found = [str(error)]
        say(f"{this.folder.name} {ARMS[index]}: {kind}: {'; '.join(found) or 'equal'}")
        return [f"{this.folder.name} {ARMS[index]}: {kind}: {problem}" for problem in found]

    with ThreadPoolExecutor(len(ARMS)) as pool:
        wrong = [problem for found in pool.map(one, range(len(this.kinds))) for problem in found]
    return wrong + [f"{this.folder.name}: {problem}" for problem in this.end()]


def administrate(over: threading.Event) -> None:
    """Does after some seconds, until it is ``over``, what an administrator does later: lets jobs begin that SLURM has
    queued again and holds for two minutes or for good, and brings back nodes that stay down or are drained.
    """
    seen: set[str] = set()
    while not over.wait(6):
        jobs = _lines("squeue", "-h", "-r", "-o", "%A %r")
        held = {line.split()[0] for line in jobs if line.endswith((" BeginTime", STUCK))}
        # SLURM itself drains a node to which a job comes back before its earlier start has ended ("Duplicate jobid").
        nodes = [line.split() for line in _lines("sinfo", "-h", "-N", "-o", "%N %T")]
        down = {name for name, state in nodes if state.startswith(("down", "drain"))}
        for job in held & seen:
            subprocess.run(["scontrol", "release", job], capture_output=True)
            subprocess.run(["scontrol", "update", f"jobid={job}", "starttime=now"], capture_output=True)
        for node in down & seen:
            cluster.start_node(node)
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], capture_output=True)
        seen = held | down


def _lines(*command: str) -> list[str]:
    return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()


def main() -> int:
    """0 where nothing was wrong."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--times", type=int, default=len(KINDS))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", choices=KINDS, help="instead of each once")
    parser.add_argument("--home", type=Path, help="folder of the runs (default: one that is removed if all went well)")
    arguments = parser.parse_args()
    cluster.up()
    threading.Thread(target=administrate, args=(threading.Event(),), daemon=True).start()
    kinds = arguments.kinds or drawn(arguments.times, arguments.seed)
    os.environ["OMP_NUM_THREADS"] = "1"
    home = arguments.home or Path(tempfile.mkdtemp())
    home.mkdir(parents=True, exist_ok=True)
    problems = campaign(home, kinds, arguments.seed, lambda line: print(line, flush=True))
    if arguments.home is None and not problems:
        shutil.rmtree(home)
    print("\n".join(problems) or f"{len(kinds)} interruptions, nothing lost, nothing twice")
    return int(bool(problems))


def drawn(times: int, seed: int) -> list[str]:
    """So many kinds, each as often as the others, in a random order."""
    kinds = [kind for _ in range(-(-times // len(KINDS))) for kind in KINDS][:times]
    random.Random(seed).shuffle(kinds)
    return kinds


if __name__ == "__main__":
    sys.exit(main())
