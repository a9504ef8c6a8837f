"""How this process uses the machine that it runs on: threads, and the memory that it has freed."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from beni.distributed.environment import Environment

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h
NEVER = 2**31 - 1  # bytes free at the heap's end before they are given back
GLIBC_VARIABLES = ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_")


def use_host(environment: Environment, threads: int) -> None:
    """Sets torch's threads, and has a process that computes on its CPU keep freed memory.

    Args:
        threads: 0 takes the cores that SLURM gives each of its tasks; elsewhere those of this machine, divided
            among the processes on it, or, where nobody tells how many these are, among all of the run.
    """
    torch.set_num_threads(threads or _of_task() or max(1, _cores() // (environment.local_world or environment.world)))
    if environment.device.type == "cpu":
        keep_freed_memory()


def keep_freed_memory() -> None:
    """Has glibc keep what is freed instead of giving it back to the system.

    A training step frees and takes back its activations and gradients, and the system clears each page anew: up to
    890,000 page faults a step of 2,000 positions of a 135M llm, and an eighth of the time of eight such steps. The
    most that a run needs stays about the same, but it is not given back before the process ends.

    Left alone where the user has set glibc's own variables, and without glibc.
    """
    if not sys.platform.startswith("linux") or any(os.environ.get(name) for name in GLIBC_VARIABLES):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, NEVER)


def _of_task() -> int:
    """Cores of a task of SLURM's, which does not keep it to them everywhere; 0 outside one."""
    told = os.environ.get("SLURM_CPUS_PER_TASK", "") if "SLURM_PROCID" in os.environ else ""
    return int(told) if told.isdecimal() else 0


def _cores() -> int:
    """Cores that this process may use; macOS does not tell, and has them all."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
