"""On a real SLURM with two nodes, which these tests start (support/cluster.py)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from support import cluster
from support.preemptions import KINDS, TINY, Run, campaign, slurm

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
        yield tmp_path_factory.mktemp("cluster")
    cluster.down()


SHORT = ("train.steps=5", "checkpoint.every=0")


def test_a_sweep_over_two_nodes_each_is_submitted_at_once_and_compared(running: Path) -> None:
    arms = ("connector=linear,mlp2x_gelu,swiglu", "train.seed=0,1")
    run = Run(running, "sweep")
    done = run.command(
        "beni.train",
        *("-m", *TINY, *SHORT, "study.name=sweep", *arms, "launcher=slurm_multinode", "launcher.nodes=2"),
        *("launcher.tasks_per_node=1", "launcher.gpus_per_node=0", "launcher.cpus_per_task=1", "launcher.mem_gb=1.5"),
        *("launcher.array_parallelism=2", "fsdp=none"),
    )
    assert done.returncode == 0, done.stderr
    assert "6 runs submitted to SLURM" in done.stderr
    watched = run.command("beni.launch", "watch", str(run.study))
    assert watched.stdout.splitlines()[-1] == "6 runs: 6 finished", watched.stdout
    jobs = [json.loads(path.read_text().splitlines()[0])["job"] for path in run.study.glob("*/jobs.jsonl")]
    assert len({job.split("_")[0] for job in jobs}) == 1, "one array"
    states = slurm("sacct", "-nPX", "-o", "State,ExitCode", "-j", jobs[0].split("_")[0]).split()
    assert states == ["COMPLETED|0:0"] * 6
    compared = run.command("beni.compare", str(run.study))
    assert compared.returncode == 0, compared.stderr


def test_what_interrupts_a_run_changes_no_number_of_it(running: Path) -> None:
    assert campaign(running, list(KINDS), seed=0, say=print) == []


def test_a_run_that_cannot_be_fails_for_slurm_as_well_and_says_why_in_its_log(running: Path) -> None:
    data = running / "records.json"
    turns = [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]
    data.write_text(json.dumps([{"conversations": turns}] * 9))
    values = ("data=llava_instruct", f"data.path={data}", "data.heldout=1", "launcher.setup=['sleep 5']")
    run = Run(running, "gone", *values)
    run.submit()
    data.unlink()
    watched = run.command("beni.launch", "watch", str(run.study))
    assert watched.returncode == 1
    assert watched.stdout.splitlines()[-1] == "1 run: 1 failed", watched.stdout
    assert "records.json" in watched.stdout
    assert slurm("sacct", "-nPX", "-o", "State,ExitCode", "-j", run.job()).split() == ["FAILED|2:0"]
    assert "records.json" in run.command("beni.launch", "logs", str(run.study)).stdout


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (["launcher.partition=nowhere"], "invalid partition specified: nowhere\n  fix: set launcher.partition"),
        (["launcher.account=nobody"], "Invalid account"),
        (["launcher.cpus_per_task=64"], "Requested node configuration is not available"),
        (["launcher.gpus_per_node=2"], "fix: set launcher.gpus_per_node=0"),
    ],
)
def test_what_sbatch_refuses_is_one_screen_and_leaves_nothing(running: Path, values: list[str], said: str) -> None:
    run = Run(running, "refused")
    job = ("launcher=slurm_cpu", "launcher.mem_gb=1", "study.name=refused")
    done = run.command("beni.train", *TINY, *SHORT, *job, *values)
    assert done.returncode == 2
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not run.study.exists() or list(run.study.glob("*/status.json")) == []


def test_code_and_options_that_are_edited_meanwhile_change_nothing(running: Path) -> None:
    """A part of the user's own, whose file is broken while its job waits."""
    package = running / "mine" / "parts_of_mine.py"
    package.parent.mkdir()
    package.write_text("from beni.resampler.avg_pool import AvgPool\n\n\nclass Mine(AvgPool):\n    pass\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BENI_TRUSTED", "parts_of_mine")
        patch.setenv("PYTHONPATH", str(package.parent), prepend=":")
        run = Run(running, "edited", "resampler=avg_pool", "resampler.side=1", "resampler._target_=parts_of_mine.Mine")
        run.overrides = (*run.overrides, *SHORT, "launcher.setup=['sleep 5']")
        run.submit()
        package.write_text("raise RuntimeError('edited')\n")
        run.finish()
