"""A fault campaign, ``python tests/support/faults.py --kills 50 --seed 0``: runs are broken in seeded ways.

A run on the tiny model, of one rank or of two that share its weights, is started with ``python -m beni.train``, broken,
and started again until it ends. Afterwards these must hold:

- the digits of every step's loss are those of a run that nobody touched, at the same number of ranks;
- each start goes on from the newest checkpoint that is whole, by this program's own reading of the files;
- ranks that are left end by themselves, with the exit code that the docs promise, and no process of the run is left.

Moments inside a rank (a write, a micro-batch) are hit by wrapping a function in that rank's process, ``--as-rank``.
Such a fault leaves a file when it strikes, and one that does not fails the campaign. Of all, some of which may come
when a run has just ended, nine in ten must strike.
"""

from __future__ import annotations

import argparse
import errno
import functools
import importlib
import json
import os
import random
import re
import resource
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
STEPS = 24
EVERY = 5
EVALUATES = 7
"""Steps between evaluations, which come where nothing has been saved: a signal there is what saves."""
PATIENCE = 180
"""Seconds after which a run that should have ended has not."""
STRUCK = 0.9
"""Share of the faults of a campaign that must have met their run."""
OVERRIDES = (
    *(f"train.steps={STEPS}", f"checkpoint.every={EVERY}", "train.accumulation=2", "compute.workers=1"),
    *("optim.lr=1e-2", "connector.dropout=0.1", "data.text_share=0.3", "data.heldout=2"),
    *(f"eval.every={EVALUATES}", "eval.examples=2", "checkpoint.export=true"),
)
"""64 samples in steps of 8: an epoch is 8 steps, and a step two micro-batches a rank."""


# --- in a rank ---------------------------------------------------------------------------------------------------


def hook(where: str, calls: int, action: str, struck: str, thread: str | None = None) -> None:
    """At call number ``calls`` of a function ``module:path.name``: die before it, or find the disk full in it.

    Args:
        action: kill, hang, full (for what is large), refuse (the disk takes none of this write), or a signal's number.
        struck: file that is made then.
        thread: name of the one whose calls count; None counts all.
    """
    module, _, path = where.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original = getattr(owner, name)
    seen = [0]

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        seen[0] += thread in (None, threading.current_thread().name)
        if seen[0] != calls:
            return original(*args, **kwargs)
        os.close(os.open(struck, os.O_CREAT))
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "hang":
            time.sleep(10 * PATIENCE)
        if action == "refuse":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if action.isdigit():
            os.kill(os.getpid(), int(action))
            return original(*args, **kwargs)
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limit[1]))  # below a shard, above everything else
        try:
            return original(*args, **kwargs)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    setattr(owner, name, wrapped)


def be_rank(spec: dict[str, Any]) -> None:
    """Runs ``python -m beni.train`` in this process, with its hooks."""
    for one in spec["hooks"]:
        hook(**one, struck=spec["struck"])
    sys.argv = ["beni.train", *spec["overrides"]]
    runpy.run_module("beni.train", run_name="__main__", alter_sys=True)


# --- around the ranks --------------------------------------------------------------------------------------------


class Process:
    """A rank in a session of its own: executed, or forked from this program, which spares it the imports."""

    def __init__(self, spec: dict[str, Any], variables: dict[str, str], output: Path, fork: bool) -> None:
        self.code: int | None = None
        with output.open("ab") as out:
            if fork:
                self.pid = os.fork()
                if self.pid == 0:
                    self._child(spec, variables, out.fileno())
                return
            command = [sys.executable, "-m", "beni.train", *spec["overrides"]]
            if spec["hooks"]:
                command = [sys.executable, __file__, "--as-rank", json.dumps(spec)]
            self.process = subprocess.Popen(
                command, env=os.environ | variables, stdout=out, stderr=out, start_new_session=True
            )
            self.pid = self.process.pid

    def _child(self, spec: dict[str, Any], variables: dict[str, str], out: int) -> None:
        code = 1
        try:
            os.setsid()
            os.dup2(out, 1)
            os.dup2(out, 2)
            os.environ.update(variables)
            be_rank(spec)
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    def poll(self) -> int | None:
        """The exit code, negative for a signal; None while it runs."""
        if self.code is None:
            if hasattr(self, "process"):
                self.code = self.process.poll()
            else:
                pid, status = os.waitpid(self.pid, os.WNOHANG)
                self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def send(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def in_session(leader: int) -> list[int]:
    """Processes that live in the session of ``leader``."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


@dataclass
class Life:
    """The ranks of one start of a run."""

    ranks: list[Process]
    output: Path
    folder: Path
    struck: list[Path]

    def lines(self, name: str) -> list[dict[str, Any]]:
        """The rows of a JSON-lines file of the run; floats as their digits."""
        rows = []
        for path in self.folder.glob(f"runs/*/*/{name}"):
            for line in path.read_text().splitlines():
                try:
                    rows.append(json.loads(line, parse_float=str))
                except ValueError:
                    continue
        return rows

    def step(self) -> int:
        """The last step whose loss this life has written; -1 before the first."""
        if not re.search(r"^step \d+/", self.output.read_text(errors="replace"), re.MULTILINE):
            return -1  # what stands in the file is of lives before
        return max((row["step"] for row in self.lines("metrics.jsonl") if "train/loss" in row), default=0)

    def until(self, ready: Callable[[], bool], seconds: float = PATIENCE) -> bool:
        """Waits; False when the time is over or all ranks have ended before."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if ready():
                return True
            if all(rank.poll() is not None for rank in self.ranks):
                return ready()
            time.sleep(0.003)
        return False

    def end(self) -> list[int]:
        """Exit codes, once all ranks have ended by themselves and left nothing behind.

        Raises:
            AssertionError: when they do not.
        """
        try:
            ended = self.until(lambda: all(rank.poll() is not None for rank in self.ranks))
            codes = [rank.poll() for rank in self.ranks]
            assert ended, f"ranks still run: {codes}\n{self.said()}"
            deadline = time.monotonic() + 15  # a loader process may be writing its last batch
            while left := [pid for rank in self.ranks for pid in in_session(rank.pid)]:
                assert time.monotonic() < deadline, f"processes are left: {left}"
                time.sleep(0.02)
        finally:
            self.kill()
        return [code for code in codes if code is not None]

    def kill(self) -> None:
        """Whatever is left, at once."""
        for rank in self.ranks:
            for pid in in_session(rank.pid):
                os.kill(pid, signal.SIGKILL)

    def said(self) -> str:
        """The end of what the ranks wrote to the terminal."""
        return self.output.read_text(errors="replace")[-4000:]


def whole_checkpoints(folder: Path) -> list[int]:
    """Steps whose checkpoint is whole: this program's own reading of the files."""
    steps = []
    for marker in folder.glob("runs/*/*/checkpoints/step_*/complete.json"):
        try:
            files = json.loads(marker.read_text())["files"]
        except ValueError:
            continue
        if all((p := marker.with_name(n)).is_file() and zlib.crc32(p.read_bytes()) == c for n, c in files.items()):
            steps.append(int(marker.parent.name.removeprefix("step_")))
    return sorted(steps)


@dataclass
class Campaign:
    """Runs that are broken and go on."""

    root: Path
    values: Sequence[str]
    fork: bool
    expected: dict[int, dict[int, str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    missed: int = 0
    starts: int = 0

    def start(self, folder: Path, world: int, hooks: dict[int, list[dict[str, Any]]], *more: str) -> Life:
        """Starts all ranks; ``hooks`` by rank."""
        folder.mkdir(parents=True, exist_ok=True)
        self.starts += 1
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        output, struck = folder / f"output-{self.starts}", folder / f"struck-{self.starts}"
        mode = "full" if world > 1 else "none"
        overrides = [*self.values, *OVERRIDES, f"fsdp={mode}", f"paths.runs={folder / 'runs'}", *more]
        shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks = []
        for rank in range(world):
            variables = {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
            if world > 1:
                variables |= shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            spec = {"overrides": overrides, "hooks": hooks.get(rank, []), "struck": f"{struck}-{rank}"}
            ranks.append(Process(spec, variables, output, self.fork))
        return Life(ranks, output, folder, [Path(f"{struck}-{rank}") for rank in hooks])

    def reference(self, world: int) -> dict[int, str]:
        """step -> digits of the loss of a run that nobody touches."""
        if world not in self.expected:
            life = self.start(self.root / f"whole-{world}", world, {})
            assert life.end() == [0] * world, life.said()
            self.expected[world] = losses(life)
            assert sorted(self.expected[world]) == list(range(1, STEPS + 1))
            assert len(set(self.expected[world].values())) == STEPS
        return self.expected[world]

    def run(self, world: int, faults: Sequence[tuple[str, random.Random]]) -> None:
        """Runs with these faults, one in each life, and a last life in peace."""
        folder = self.root / "broken"
        for kind, rng in faults:
            if max(whole_checkpoints(folder), default=0) > STEPS - 5:  # little is left to be broken
                self.finish(folder, world)
            struck = self.goes_on(folder, kind, world, rng)
            self.missed += not struck
            self.counts[f"{kind} x{world}" + ("" if struck else ", missed: the run ended before")] += 1
        self.finish(folder, world)

    def finish(self, folder: Path, world: int) -> None:
        """A life in peace, and what must hold after it."""
        whole = whole_checkpoints(folder)
        life = self.start(folder, world, {})
        assert life.end() == [0] * world, life.said()
        self.resumed_from(life, whole)
        assert losses(life) == self.reference(world)
        status = json.loads(next(folder.glob("runs/*/*/status.json")).read_text())
        assert (status["state"], status["step"], status["error"]) == ("finished", STEPS, None)
        same_weights(next(folder.glob("runs/*/*/model")), next(folder.glob(f"runs/*/*/checkpoints/step_{STEPS:08d}")))
        shutil.rmtree(folder)

    def goes_on(self, folder: Path, kind: str, world: int, rng: random.Random) -> bool:
        """One life that meets one fault; False when it came to its end before."""
        whole = whole_checkpoints(folder)
        began = max(whole, default=0)
        life = FAULTS[kind](self, folder, world, rng, began)
        try:
            self.resumed_from(life, whole)
            expected = self.reference(world)
            assert all(expected[step] == digits for step, digits in losses(life).items())
            assert all(path.exists() for path in life.struck), "the fault never happened"
            return bool(life.struck) or any(rank.poll() for rank in life.ranks)  # a full disk ends no run
        except AssertionError as error:
            raise AssertionError(f"{kind} on {world} ranks: {error}\n{life.said()}") from error
        finally:
            life.kill()

    def resumed_from(self, life: Life, whole: list[int]) -> None:
        """Whether the life began with the newest whole checkpoint, and with no other."""
        said = [line for line in life.output.read_text(errors="replace").splitlines() if "resumed after step" in line]
        started = [int(line.rpartition(" ")[2]) for line in said]
        if not started and life.step() < 0:
            return  # it came to no step
        assert started == whole[-1:], f"began at {started}, whole are {whole}\n{life.said()}"


def same_weights(exported: Path, checkpoint: Path) -> None:
    """Whether the model that is saved at the end has the weights of the last checkpoint."""
    from safetensors.torch import load_file

    from beni.training.checkpoint.shards import SavedTensors

    model = load_file(exported / "model.safetensors")
    saved = SavedTensors(sorted(checkpoint.glob("*.safetensors")))
    trained = [name for name in saved if name.startswith("model/")]
    assert len(trained) > 20
    for name in trained:
        assert model[name.removeprefix("model/")].equal(saved[name]), name


def losses(life: Life) -> dict[int, str]:
    """step -> digits of the loss, of all lives of the folder."""
    return {row["step"]: row["train/loss"] for row in life.lines("metrics.jsonl") if "train/loss" in row}


# --- faults: (campaign, folder, ranks, random numbers, step it begins at) -> the life that met it ----------------


def _kill_outside(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int, step: int) -> Life:
    life = campaign.start(folder, world, {})
    life.until(lambda: life.step() >= step)
    time.sleep(rng.random() * 0.1)
    victim = rng.randrange(world)
    life.ranks[victim].send(signal.SIGKILL)
    _ended(life, victim, life.end())
    return life


def _ended(life: Life, victim: int, codes: list[int]) -> None:
    """Who is left when a rank is killed sees a collective fail; or had ended before."""
    assert codes[victim] == -signal.SIGKILL or codes == [0] * len(codes), (codes, life.said())
    assert {code for rank, code in enumerate(codes) if rank != victim} <= {0, 1}, (codes, life.said())


def kill_anywhere(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """SIGKILL to a rank some time after a step."""
    return _kill_outside(campaign, folder, world, rng, began, rng.randrange(began, STEPS - 1))


def kill_early(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """SIGKILL to all ranks (a launcher does so when one is gone) while they start, or later."""
    life = campaign.start(folder, world, {})
    time.sleep(rng.random() * (3 if campaign.fork else 12))
    for rank in life.ranks:
        rank.send(signal.SIGKILL)
    life.end()
    return life


def kill_at_epoch(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """SIGKILL to a rank where an epoch ends."""
    borders = [step for step in (8, 16) if step > began] or [STEPS - 1]
    return _kill_outside(campaign, folder, world, rng, began, rng.choice(borders))


def _kill_inside(
    campaign: Campaign, folder: Path, world: int, where: str, calls: int, rank: int, thread: str | None = None
) -> Life:
    one = {"where": where, "calls": calls, "action": "kill", "thread": thread}
    life = campaign.start(folder, world, {rank: [one]})
    _ended(life, rank, life.end())
    return life


def kill_in_accumulation(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """SIGKILL to a rank before the second micro-batch of a step."""
    call = 2 * rng.randrange(1, STEPS - began)
    where = "beni.model.modeling:BeniForConditionalGeneration.forward"
    return _kill_inside(campaign, folder, world, where, call, rng.randrange(world))


SAVING = (
    "beni.training.checkpoint.shards:write",
    "beni.training.checkpoint.files:_checksum",
    "beni.training.checkpoint.files:_flush",
    "beni.training.checkpoint.files:Checkpoints._complete",
    "beni.training.checkpoint.files:Checkpoints._commit",
    "beni.training.checkpoint.files:_discard",
)


WRITER = "checkpoint"
"""Name of the thread that saves; what the main thread calls verifies the checkpoint that a run goes on from."""


def kill_in_save(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """SIGKILL to a rank while it writes a checkpoint, or rank 0 while it completes one."""
    where = rng.choice(SAVING)
    by_all = where in SAVING[:3]
    saves = sum(step % EVERY == 0 or step == STEPS for step in range(began + 1, STEPS + 1))
    calls = rng.randrange(1, min(saves, 3) + 1)  # each is called at least once a save
    return _kill_inside(campaign, folder, world, where, calls, rng.randrange(world) if by_all else 0, WRITER)


def disk_full(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """The disk takes no shard of one checkpoint, or not its marker; then a SIGKILL."""
    at = 1 if began + 2 * EVERY >= STEPS else rng.randrange(1, 3)
    shard = {"where": SAVING[0], "calls": at, "action": "full"}
    marker = {"where": "pathlib:Path.write_text", "calls": 2 * at, "action": "refuse", "thread": WRITER}
    hooks = {rng.randrange(world): [shard]} if rng.random() < 0.5 else {0: [marker]}
    life = campaign.start(folder, world, hooks)
    lost = EVERY * (began // EVERY + at)
    told = f"the checkpoint of step {min(lost, STEPS)} could not be saved"
    life.until(lambda: told in life.output.read_text(errors="replace") or life.step() >= STEPS)
    if rng.random() < 0.5:
        victim = rng.randrange(world)
        life.ranks[victim].send(signal.SIGKILL)
        _ended(life, victim, life.end())
    else:
        assert life.end() == [0] * world, life.said()
    assert told in life.output.read_text(errors="replace"), life.said()
    assert not list(folder.glob("runs/*/*/checkpoints/.partial_*")) or life.step() < STEPS
    return life


def truncate(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """SIGKILL to a rank, and then one file of the newest checkpoint loses bytes."""
    step = min(STEPS - 1, (began // EVERY + 1) * EVERY + 2)
    life = _kill_outside(campaign, folder, world, rng, began, step)
    files = sorted(path for path in folder.glob("runs/*/*/checkpoints/step_*/*"))
    newest = [path for path in files if path.parent == files[-1].parent] if files else []
    if newest:
        victim = rng.choice(newest)
        with victim.open("r+b") as file:
            file.truncate(rng.randrange(victim.stat().st_size))
    return life


def _ask(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int, number: int) -> Life:
    life = campaign.start(folder, world, {})
    step = rng.randrange(began, STEPS - 2)
    life.until(lambda: life.step() > step)
    asked = range(world) if rng.random() < 0.5 else [rng.randrange(world)]
    for rank in asked:
        life.ranks[rank].send(number)
    codes = life.end()
    if codes != [0] * world:  # else it had come to its end already
        assert codes == [75] * world, (codes, life.said())
        status = json.loads(next(folder.glob("runs/*/*/status.json")).read_text())
        assert status["state"] == "preempted"
        assert whole_checkpoints(folder)[-1] == life.step() > step
    return life


def ask_term(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """SIGTERM to a rank, or to all."""
    return _ask(campaign, folder, world, rng, began, signal.SIGTERM)


def ask_usr2(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """SIGUSR2 to a rank, or to all."""
    return _ask(campaign, folder, world, rng, began, signal.SIGUSR2)


def ask_int(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """SIGINT to a rank, or to all."""
    return _ask(campaign, folder, world, rng, began, signal.SIGINT)


def _asked(campaign: Campaign, folder: Path, world: int, rng: random.Random, where: str, calls: int) -> Life:
    """A signal to a rank, or to all, at that call of a function; all end with the exit code for it."""
    number = rng.choice((signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT))
    asked = range(world) if rng.random() < 0.3 else [rng.randrange(world)]
    one = {"where": where, "calls": calls, "action": str(int(number))}
    life = campaign.start(folder, world, {rank: [one] for rank in asked})
    assert life.end() == [75] * world, ([rank.poll() for rank in life.ranks], life.said())
    status = json.loads(next(folder.glob("runs/*/*/status.json")).read_text())
    assert (status["state"], status["error"]["type"]) == ("preempted", "Preempted")
    return life


def ask_building(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """A signal to a rank, or to all, while the model is built."""
    # the first model is that of the plan, before the run listens to signals
    life = _asked(campaign, folder, world, rng, "beni.model.modeling:BeniForConditionalGeneration.__init__", 2)
    assert max(whole_checkpoints(folder), default=0) == began
    return life


def ask_evaluating(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """A signal to a rank, or to all, in the next evaluation: also one that is made up for."""
    life = _asked(campaign, folder, world, rng, "beni.evals.subject:Subject.read", 1)
    evaluated = next(step for step in (*range(EVALUATES, STEPS, EVALUATES), STEPS) if step >= began)
    assert whole_checkpoints(folder)[-1] == evaluated
    return life


def hang(campaign: Campaign, folder: Path, world: int, rng: random.Random, began: int) -> Life:
    """A rank is stopped (SIGSTOP), or its loader hangs; the watchdog ends the run and says which rank it is."""
    victim, stops, patience = rng.randrange(world), world > 1 and rng.random() < 0.6, "log.watchdog_s=3"
    loading = {"where": "beni.data.batch.loader:Steps.__getitem__", "calls": rng.randrange(3, 6), "action": "hang"}
    life = campaign.start(folder, world, {} if stops else {victim: [loading]}, patience)
    if stops:
        life.until(lambda: life.step() > began + 1)
        life.ranks[victim].send(signal.SIGSTOP)
    watching = [rank for rank in range(world) if not (stops and rank == victim)]
    ended = life.until(lambda: all(life.ranks[rank].poll() is not None for rank in watching))
    life.ranks[victim].send(signal.SIGKILL)  # what a launcher does
    codes = life.end()
    assert ended, f"the watchdog ended nothing\n{life.said()}"
    assert [codes[rank] for rank in watching] == [70] * len(watching), (codes, life.said())
    status = json.loads(next(folder.glob("runs/*/*/status.json")).read_text())
    said = status["error"]["message"]
    assert (status["state"], status["error"]["type"]) == ("failed", "Hang")
    assert said.startswith(f"rank {victim} hangs in step "), said
    if stops:
        assert "its process does not answer" in said.splitlines()[0], said
    else:
        assert "phase data" in said.splitlines()[0], said
        assert f"main thread of rank {victim}" in status["error"]["traceback"]
    return life


FAULTS: dict[str, Callable[[Campaign, Path, int, random.Random, int], Life]] = {
    fault.__name__: fault
    for fault in (
        kill_anywhere,
        kill_early,
        kill_at_epoch,
        kill_in_accumulation,
        kill_in_save,
        disk_full,
        truncate,
        ask_term,
        ask_usr2,
        ask_int,
        ask_building,
        ask_evaluating,
        hang,
    )
}


def plan(kills: int, seed: int, kinds: Sequence[str]) -> list[tuple[int, list[tuple[str, random.Random]]]]:
    """Runs as (ranks, faults); every kind comes about equally often at each number of ranks."""
    rng = random.Random(seed)
    drawn: list[str] = []
    while len(drawn) < kills:
        drawn += rng.sample(list(kinds), len(kinds))
    runs, number = [], 0
    while number < kills:
        some = drawn[number : min(kills, number + rng.randrange(2, 5))]
        runs.append((1 + len(runs) % 2, [(kind, random.Random(f"{seed}-{number + i}")) for i, kind in enumerate(some)]))
        number += len(some)
    return runs


def main(arguments: Sequence[str]) -> int:
    """Runs a campaign; exit code 0 when everything held."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="faults in all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, default=list(FAULTS))
    parser.add_argument("--world", type=int, help="ranks of every run; else 1 and 2 in turn")
    parser.add_argument("--fork", action="store_true", help="ranks begin with everything imported: for short campaigns")
    parser.add_argument("--as-rank", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.as_rank:
        be_rank(json.loads(options.as_rank))
        return 0
    if options.fork:
        for module in ("beni.run", "beni.train", "transformers.models.llama.modeling_llama"):
            importlib.import_module(module)
    sys.path.insert(0, str(TESTS))
    from conftest import TINY_PARTS, TINY_TRAINING

    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="beni-faults-") as root:
        campaign = Campaign(Path(root), [*TINY_PARTS, *TINY_TRAINING], options.fork)
        for world, faults in plan(options.kills, options.seed, options.kinds):
            campaign.run(options.world or world, faults)
            print(f"{sum(campaign.counts.values())} faults, {time.monotonic() - begun:.0f} s", flush=True)
        for name, count in sorted(campaign.counts.items()):
            print(f"{count:4d}  {name}")
        faults = sum(campaign.counts.values())
        struck = faults - campaign.missed
        print(f"{struck} of {faults} faults struck in {campaign.starts} starts, every loss as if untouched")
    return int(struck < STRUCK * faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
