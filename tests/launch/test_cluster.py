"""On a real SLURM with two nodes, which these tests start (support/cluster.py)."""

from __future__ import annotations

import json
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from beni.launch.names import job_names
from beni.runs.read import runs_of
from beni.runs.status import read_status, write_status
from support import cluster
from support.preemptions import KINDS, STEPS, TINY, Run, administrate, campaign, command, slurm, submit, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1500)]


@pytest.fixture(scope="module")
def running(absent: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that all nodes see."""
    try:
        config = cluster.up()
    except cluster.NoCluster as error:
        absent(str(error))
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLURM_CONF", str(config))
        patch.setenv("OMP_NUM_THREADS", "1")
        over = threading.Event()
        threading.Thread(target=administrate, args=(over,), daemon=True).start()
        yield tmp_path_factory.mktemp("cluster")
        over.set()
    cluster.down()


SHORT = ("train.steps=5", "checkpoint.every=0")


ARMS = ("connector=linear,mlp2x_gelu,swiglu", "train.seed=0,1")
ONE_NODE = ("launcher=slurm_cpu", "launcher.cpus_per_task=1", "launcher.mem_gb=1.5")
TWO_NODES = (
    *("launcher=slurm_multinode", "launcher.nodes=2", "launcher.tasks_per_node=1", "launcher.gpus_per_node=0"),
    *("launcher.cpus_per_task=1", "launcher.mem_gb=1.5", "fsdp=none"),
)


@pytest.mark.parametrize("job", [TWO_NODES, ONE_NODE], ids=["two nodes", "one node"])
def test_a_sweep_is_submitted_by_a_command_that_returns_followed_and_compared(
    running: Path, job: Sequence[str], request: pytest.FixtureRequest
) -> None:
    name = request.node.callspec.id.replace(" ", "_")
    study = running / "runs" / name
    overrides = ("-m", *TINY, *SHORT, f"study.name={name}", *ARMS, *job, "launcher.array_parallelism=2")
    done = command(running, "beni.train", *overrides)
    assert done.returncode == 0, done.stderr
    assert "6 runs submitted to SLURM" in done.stderr
    again = command(running, "beni.train", *overrides)
    assert re.findall(r"^(\d) of 6 runs", again.stderr, re.MULTILINE), again.stderr
    assert "submitted" not in again.stderr
    at_work, called = 0, set(job_names(runs_of(study)).values())
    assert {"connector=linear,s0", "connector=swiglu,s1"} < called
    while "PENDING" in (waiting := slurm("squeue", "-h", "-r", "-o", "%T %j")):
        at_work = max(at_work, waiting.count("RUNNING"))
        assert {line.split()[1] for line in waiting.splitlines()} <= called
        time.sleep(0.5)
    assert at_work <= 2, "no more at a time than launcher.array_parallelism"
    watched = command(running, "beni.launch", "watch", str(study))
    assert watched.stdout.splitlines()[-1] == "6 runs: 6 finished", watched.stdout
    jobs = [json.loads(path.read_text().splitlines()[0])["job"] for path in study.glob("*/jobs.jsonl")]
    assert len({job.split("_")[0] for job in jobs}) == 1, "one array"
    asked = ("sacct", "-nPX", "-o", "State,ExitCode", "-j", jobs[0].split("_")[0])
    until("the end of all jobs", lambda: slurm(*asked).split() == ["COMPLETED|0:0"] * 6, lambda: slurm(*asked))
    compared = command(running, "beni.compare", str(study))
    assert compared.returncode == 0, compared.stderr


SHORT_CAMPAIGN = ("usr2", "sigterm", "requeue", "evicted with grace", "cancelled", "killed")
"""One for each arm; what SLURM does after a node is lost takes it minutes, and is left to a campaign by hand."""


def test_what_interrupts_a_run_changes_no_number_of_it(running: Path) -> None:
    assert campaign(running, SHORT_CAMPAIGN, seed=0, say=print) == []


def test_a_run_that_cannot_be_fails_for_slurm_as_well_and_says_why_in_its_log(running: Path) -> None:
    data = running / "records.json"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    data.write_text(json.dumps([{"conversations": turns}] * 9))
    values = ("data=llava_instruct", f"data.path={data}", "data.heldout=1", "launcher.setup=['sleep 5']")
    run = submit(running, "gone", *values)
    data.unlink()
    watched = run.command("beni.launch", "watch", str(run.study))
    assert watched.returncode == 1
    assert watched.stdout.splitlines()[-1] == "1 run: 1 failed", watched.stdout
    assert "records.json" in watched.stdout
    asked = ("sacct", "-nPX", "-o", "State,ExitCode", "-j", run.job())
    until("the end of the job", lambda: slurm(*asked).split() == ["FAILED|2:0"], lambda: slurm(*asked))
    assert "records.json" in run.command("beni.launch", "logs", str(run.study)).stdout


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["launcher.partition=nowhere"], "invalid partition specified: nowhere\n  fix: set launcher.partition"),
        (["launcher.account=nobody"], "Invalid account"),
        (
            ["launcher.cpus_per_task=64"],
            "SLURM would never start them: PartitionConfig\n  fix: lower launcher.cpus_per_task",
        ),
        (["launcher.gpus_per_node=2"], "fix: set launcher.gpus_per_node=0"),
    ],
)
def test_what_sbatch_refuses_is_one_screen_and_leaves_nothing(running: Path, values: list[str], said: str) -> None:
    job = ("launcher=slurm_cpu", "launcher.mem_gb=1", "study.name=refused")
    done = command(running, "beni.train", *TINY, *SHORT, *job, *values)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not (running / "runs" / "refused").exists()


MINE = """
from beni.resampler.avg_pool import AvgPool


class Mine(AvgPool):
    def __init__(self, tokens, *, side: int) -> None:
        super().__init__(tokens, side=side)
"""


def test_code_and_options_that_are_edited_while_a_run_waits_and_is_queued_again_change_nothing(running: Path) -> None:
    """A part of the user's own and its option file, both broken once the job is submitted."""
    package, option = running / "mine" / "parts_of_mine.py", running / "conf" / "experiment" / "mine.yaml"
    for path in (package, option):
        path.parent.mkdir(parents=True)
    package.write_text(MINE)
    option.write_text("# @package _global_\ndata: {heldout: 8}\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENI_TRUSTED", "parts_of_mine")
        patch.setenv("PYTHONPATH", str(package.parent), prepend=":")
        mine = ("resampler=avg_pool", "resampler.side=1", "resampler._target_=parts_of_mine.Mine")
        run = submit(running, "edited", "--config-dir", str(option.parent.parent), "experiment=mine", *mine)
        package.write_text("raise RuntimeError('edited')\n")
        option.write_text("# @package _global_\ndata: {heldout: none}\n")
        run.wait_for(100)
        KINDS["usr2"].interrupt(run, random.Random(0))
        run.finish()
    assert [step for step, _ in run.losses()] == list(range(1, STEPS + 1))
    starts = [line for line in (run.folder / "jobs.jsonl").read_text().splitlines() if '"started"' in line]
    assert len(starts) == 2, starts


def test_an_arm_that_can_no_longer_win_is_not_trained_by_its_job(running: Path) -> None:
    study = running / "runs" / "race"

    def sweep(seeds: str) -> str:
        arms = ("connector=linear,mlp2x_gelu", f"train.seed={seeds}", "study.stop=0.5", "study.name=race")
        done = command(running, "beni.train", "-m", *TINY, *SHORT, *ONE_NODE, *arms)
        assert done.returncode == 0, done.stderr
        watched = command(running, "beni.launch", "watch", str(study))
        assert watched.returncode == 0, watched.stdout
        return watched.stdout

    sweep("0,1")
    for folder in runs_of(study):  # scores that leave no doubt, with a spread between seeds
        lead = 0.0 if "mlp2x" in folder.name else 0.5 + 0.001 * ("-s1-" in folder.name)
        write_status(folder, **read_status(folder) | {"eval/accuracy": 0.3 + lead})
    said = sweep("2")
    assert said.splitlines()[-1] == "6 runs: 5 finished, 1 dropped", said
    [last] = [Run(folder) for folder in runs_of(study) if "mlp2x" in folder.name and "-s2-" in folder.name]
    assert last.state == "dropped"
    asked = ("sacct", "-nPX", "-o", "State,ExitCode", "-j", last.job())
    until("the end of the job", lambda: slurm(*asked).split() == ["COMPLETED|0:0"], lambda: slurm(*asked))


def test_a_full_queue_is_one_screen_and_leaves_nothing(running: Path) -> None:
    limit = ("sacctmgr", "-i", "modify", "user", "root", "set", "MaxSubmitJobs={}")
    slurm(*(word.format(0) for word in limit))
    try:
        job = ("launcher=slurm_cpu", "launcher.mem_gb=1", "study.name=full")
        done = command(running, "beni.train", "-m", *TINY, *SHORT, *job, "train.seed=0,1")
    finally:
        slurm(*(word.format(-1) for word in limit))
    assert done.returncode == 2
    assert "fix: wait for jobs to end" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert list(running.glob("runs/full/*/status.json")) == []


def interruptible() -> None:
    """A shell lets what it runs in the background ignore Ctrl-C, and a test's programs with it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


def test_a_command_that_waits_can_be_left_and_its_runs_go_on(running: Path) -> None:
    job = ("launcher=slurm_cpu", "launcher.mem_gb=1.5", "launcher.cpus_per_task=1", "launcher.wait=true")
    waiting = subprocess.Popen(
        [sys.executable, "-m", "beni.train", *TINY, *SHORT, *job, "study.name=left"],
        cwd=running,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=interruptible,
    )
    assert waiting.stderr is not None
    said = ""
    while "submitted to SLURM" not in said:
        said += waiting.stderr.readline()
    time.sleep(1)
    waiting.send_signal(signal.SIGINT)
    said += waiting.communicate(timeout=60)[1]
    assert waiting.returncode == 130
    assert "the jobs go on without this command" in said
    assert "Traceback" not in said
    watched = command(running, "beni.launch", "watch", str(running / "runs" / "left"))
    assert watched.stdout.splitlines()[-1] == "1 run: 1 finished", watched.stdout


def test_a_waiting_run_that_is_cancelled_is_told_and_can_be_launched_again(running: Path) -> None:
    run = submit(running, "cancelled", *SHORT, "launcher.additional_parameters={begin: now+1hour}")
    assert "BeginTime" in run.said()
    done = run.command("beni.launch", "cancel", str(run.study))
    assert done.stdout.startswith("1 job cancelled"), done.stdout + done.stderr
    assert run.lies_idle(), run.said()
    assert "CANCELLED" in run.said()
    again = run.command("beni.launch", "retry", str(run.study), "launcher.additional_parameters={}")
    assert again.returncode == 0, again.stderr
    run.finish()
