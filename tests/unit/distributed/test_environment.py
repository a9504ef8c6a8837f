"""Who a process is and where it meets the others, from torchrun's variables or SLURM's own."""

from __future__ import annotations

import subprocess
import sys

import pytest

from beni.distributed import environment
from beni.distributed.environment import Environment, first_host, process_group, read_environment, rendezvous
from beni.errors import ConfigError, ResourceError

SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "3",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_JOB_NODELIST": "gpu[07-08]",
}


@pytest.mark.parametrize(
    ("nodes", "host"),
    [
        ("localhost", "localhost"),
        ("node[01-03,7]", "node01"),
        ("node[7,01-03]", "node7"),
        ("gpu-a[001,005-009],login2", "gpu-a001"),
        ("host-3,host-4", "host-3"),
        ("r[1-2]n[10-12]", "r1n10"),
        ("a100[2-4].cluster.local,b1", "a1002.cluster.local"),
    ],
)
def test_the_first_machine_of_a_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize("nodes", ["", "node[", ",a", "[]"])
def test_what_is_no_list_is_refused_with_a_fix(nodes):
    with pytest.raises(ConfigError, match="fix: set MASTER_ADDR"):
        first_host(nodes)


def test_a_task_of_srun_knows_itself_and_where_to_meet():
    found = read_environment("cpu", SLURM)
    assert (found.rank, found.world, found.local_rank, found.local_world) == (3, 4, 1, 2)
    assert rendezvous(SLURM) == {"MASTER_ADDR": "gpu07", "MASTER_PORT": str(12_000 + 4711)}
    assert rendezvous(SLURM | {"SLURM_STEP_NODELIST": "gpu08"})["MASTER_ADDR"] == "gpu08"
    ports = {rendezvous(SLURM | {"SLURM_JOB_ID": str(j), "SLURM_STEP_ID": str(s)})["MASTER_PORT"]
             for j in (4711, 4712) for s in (0, 1)}  # fmt: skip
    assert len(ports) == 4


def test_explicit_variables_come_first():
    own = {"MASTER_ADDR": "10.0.0.1", "MASTER_PORT": "29500"}
    assert read_environment("cpu", SLURM | own).rank == 3
    assert rendezvous(SLURM | own) == own
    assert rendezvous(SLURM | {"MASTER_ADDR": "10.0.0.1"})["MASTER_PORT"] == "16711"
    torchrun = own | {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "0"}
    found = read_environment("cpu", SLURM | torchrun)
    assert (found.rank, found.world, found.local_rank) == (1, 2, 0)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"SLURM_NTASKS": "many"}, "SLURM_NTASKS is 'many'"),
        ({"SLURM_LOCALID": ""}, "SLURM_LOCALID is ''"),
        ({"SLURM_NTASKS_PER_NODE": "2(x3)"}, r"SLURM_NTASKS_PER_NODE is '2\(x3\)'"),
        ({"RANK": "1"}, "only partly set: RANK but not"),
    ],
)
def test_variables_that_are_none_are_named(change, named):
    with pytest.raises(ConfigError, match=rf"{named}.*\n  fix: "):
        read_environment("cpu", SLURM | change)


def test_nothing_that_says_where_to_meet_is_an_error_with_a_fix():
    with pytest.raises(ConfigError, match="fix: start them with srun or torchrun"):
        rendezvous({"SLURM_NTASKS": "2"})


TASK = """
import torch, torch.distributed as dist
from beni.distributed.environment import process_group, read_environment
with process_group(read_environment("cpu")):
    value = torch.ones(1)
    dist.all_reduce(value)
    print(int(value), flush=True)
"""


def test_two_tasks_as_srun_starts_them_meet_without_submitit():
    import os

    common = {k: v for k, v in os.environ.items() if not k.startswith(("SLURM", "SUBMITIT", "MASTER"))}
    common |= {"SLURM_JOB_ID": str(os.getpid()), "SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost"}
    tasks = [
        subprocess.Popen(
            [sys.executable, "-c", TASK],
            env=common | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    assert [task.communicate(timeout=300)[0].strip() for task in tasks] == ["2", "2"]


def test_a_task_that_waits_in_vain_ends_with_a_fix(monkeypatch):
    import torch

    for name, value in (SLURM | {"SLURM_JOB_NODELIST": "localhost", "SLURM_PROCID": "0"}).items():
        monkeypatch.setenv(name, value)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr(environment, "JOIN_S", 1)
    alone = Environment(0, 2, 0, torch.device("cpu"))
    with pytest.raises(ResourceError, match=r"process 0 of 2 did not reach .* localhost:16711(.|\n)*fix: start all"):
        process_group(alone).__enter__()
