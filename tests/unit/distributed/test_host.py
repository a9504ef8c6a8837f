"""Freed memory stays with a process that computes on its CPU, unless the user has said otherwise; cores are shared."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest
import torch

from beni.distributed import host
from beni.distributed.environment import Environment, read_environment
from beni.distributed.host import GLIBC_VARIABLES

COUNT = """
import resource
import torch
from beni.distributed.environment import Environment
from beni.distributed.host import use_host

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    blocks = [torch.ones(2**20 if i % 2 else 2**24) for i in range(16)]
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

use_host(Environment(0, 1, 0, torch.device("cpu")), 1)
faults()
print(faults())
"""
PAGES = 8 * (2**26 + 2**22) // 4096


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
@pytest.mark.parametrize("variables", [{}, {"GLIBC_TUNABLES": "glibc.malloc.trim_threshold=131072"}])
def test_blocks_that_were_freed_are_taken_again_without_a_page_fault(variables: dict[str, str]) -> None:
    environment = {name: value for name, value in os.environ.items() if name not in GLIBC_VARIABLES} | variables
    ended = subprocess.run([sys.executable, "-c", COUNT], capture_output=True, text=True, check=True, env=environment)
    assert (int(ended.stdout) > PAGES / 2) == bool(variables), f"{ended.stdout} of {PAGES} pages"


@pytest.mark.parametrize(
    ("world", "local", "expected"), [(64, 8, 4), (64, None, 1), (1, None, 32), (64, 64, 1)], ids=str
)
def test_cores_are_divided_among_the_processes_of_this_machine(monkeypatch, world, local, expected):
    monkeypatch.setattr(host, "_cores", lambda: 32)
    monkeypatch.setattr(host, "keep_freed_memory", lambda: None)
    set_to = []
    monkeypatch.setattr(torch, "set_num_threads", set_to.append)
    host.use_host(Environment(0, world, 0, torch.device("cpu"), local), 0)
    assert set_to == [expected]


def test_one_process_in_a_larger_allocation_is_alone_on_its_machine():
    assert read_environment("cpu", {"SLURM_NTASKS_PER_NODE": "8"}).local_world == 1
    tasks = {"SLURM_NTASKS_PER_NODE": "8", "SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1"}
    environment = read_environment("cpu", tasks)
    assert (environment.local_world, environment.on_first_machine) == (8, False)
