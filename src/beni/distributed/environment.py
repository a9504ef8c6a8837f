"""Who am I among the processes of this run, and where do they meet: explicit variables first, then SLURM's, then a
single process.

A partly set environment is an error (as in DINOv2): guessing the rest trains N copies of a one-process run on one
folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from beni.distributed.collectives import wait_for_ever
from beni.errors import ConfigError, ResourceError

MASTER = ("MASTER_ADDR", "MASTER_PORT")
TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", *MASTER)
NODE_LISTS = ("SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
"""SLURM's variables with the machines of a process, the narrowest first."""
FIRST_PORT, PORTS = 12_000, 20_000  # below those that systems give to outgoing connections
DEVICES = ("auto", "cpu", "cuda")
JOIN_S = 600
"""Seconds within which all processes must have come."""


@dataclass(frozen=True)
class Environment:
    """Attributes:
    rank: of this process among all.
    world: number of processes.
    local_rank: of this process on its machine; chooses the GPU.
    device: where this process computes.
    local_world: processes on its machine; None where that is not known.
    """

    rank: int
    world: int
    local_rank: int
    device: torch.device
    local_world: int | None = None

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    @property
    def on_first_machine(self) -> bool:
        """Whether the first process is on this machine; launchers number machine by machine."""
        return self.rank == self.local_rank


def read_environment(
    device: str, variables: Mapping[str, str] | None = None, setting: str = "compute.device="
) -> Environment:
    """Process identity from environment variables, and the device of ``compute.device``.

    Args:
        device: one of ``DEVICES``.
        setting: what a user writes in front of the device, for errors.

    Raises:
        ConfigError: when torchrun's or SLURM's variables are only partly set, or are no numbers, or there is no such
            device.
        ResourceError: when ``device=cuda`` and there is none.
    """
    env = os.environ if variables is None else variables
    slurm = _is_slurm(env)
    present = [name for name in TORCHRUN if name in env]
    ranks = [name for name in present if name not in MASTER]
    if present and len(present) < len(TORCHRUN) and (ranks or not slurm):  # SLURM tells ranks: MASTER_* alone will do
        missing = sorted(set(TORCHRUN) - set(present))
        raise ConfigError(
            f"distributed environment is only partly set: {', '.join(present)} but not {', '.join(missing)}\n"
            "  fix: start with torchrun, or unset them for a single process"
        )
    if ranks:
        rank, world, local = _number(env, "RANK"), _number(env, "WORLD_SIZE"), _number(env, "LOCAL_RANK")
    elif slurm:
        rank, world, local = (_number(env, f"SLURM_{name}") for name in ("PROCID", "NTASKS", "LOCALID"))
    else:
        rank, world, local = 0, 1, 0
    here = next((name for name in ("LOCAL_WORLD_SIZE", "SLURM_NTASKS_PER_NODE") if env.get(name)), None)
    local_world = min(_number(env, here), world) if here else None  # of SLURM's job, which one process may not fill
    return Environment(rank, world, local, _device(device, local, setting), local_world)


def rendezvous(variables: Mapping[str, str]) -> dict[str, str]:
    """``MASTER_ADDR`` and ``MASTER_PORT``, where the processes of a SLURM step meet; those that are set stay.

    The first process is on the first machine of the step. The port is a function of job and step, so that all
    processes know it, and two jobs on one machine take different ones.

    Raises:
        ConfigError: when they are not set, and SLURM names no machines.
    """
    own = {name: variables[name] for name in MASTER if name in variables}
    nodes = next((variables[name] for name in NODE_LISTS if variables.get(name)), None)
    if nodes is None and "MASTER_ADDR" not in own:
        raise ConfigError(
            f"several processes, and neither MASTER_ADDR nor {' nor '.join(NODE_LISTS)} names the rendezvous machine\n"
            "  fix: start them with srun or torchrun, or set MASTER_ADDR to the machine of the first one"
        )
    job, step = (_number(variables, name, 0) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = FIRST_PORT + (job + 4999 * step) % PORTS
    return {"MASTER_ADDR": first_host(nodes) if nodes else "", "MASTER_PORT": str(port)} | own


def first_host(nodes: str) -> str:
    """The first machine of a list as SLURM writes it: ``gpu[01-03,7],login`` -> ``gpu01``.

    Raises:
        ConfigError: when it is no such list.
    """
    first = re.fullmatch(r"((?:[^,\[\]\s]|\[\w[^\[\]]*\])+)(?:,.*)?", nodes)
    host = re.sub(r"\[(\w+)[^\[\]]*\]", r"\1", first[1]) if first else ""
    if not host:
        raise ConfigError(
            f"{nodes} is no list of machines as SLURM writes it, expected for instance gpu[01-03,7]\n"
            "  fix: set MASTER_ADDR to the machine of the first process"
        )
    return host


def _is_slurm(env: Mapping[str, str]) -> bool:
    """Whether SLURM has started this process together with others."""
    return "SLURM_PROCID" in env and _number(env, "SLURM_NTASKS", 1) > 1


def _number(env: Mapping[str, str], name: str, default: int | None = None) -> int:
    value = env.get(name)
    if value is None and default is not None:
        return default
    if value is None or not value.isdecimal():
        told = "is not set" if value is None else f"is {value!r}"
        raise ConfigError(
            f"{name} {told}, expected a whole number\n  fix: start with srun or torchrun, or unset its variables"
        )
    return int(value)


@contextmanager
def process_group(environment: Environment, sharded: bool = False) -> Iterator[None]:
    """Joins the process group for the block, or makes one of this process alone where that one is to shard a model.

    Raises:
        ResourceError: when the processes do not find each other.
    """
    alone = environment.world == 1
    if (alone and not sharded) or dist.is_initialized():
        yield
        return
    if not alone:
        told = {"RANK": environment.rank, "WORLD_SIZE": environment.world, "LOCAL_RANK": environment.local_rank}
        os.environ.update({name: str(value) for name, value in told.items()})  # torch asks them in several places
        os.environ.update(rendezvous(os.environ))
    cuda = environment.device.type == "cuda"
    # gloo beside nccl: offloaded weights, checkpoints and the agreement on them live on the CPU
    own: dict[str, Any] = {}
    if alone:
        own = {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # pyright: ignore[reportPrivateImportUsage]
    try:
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if cuda else "gloo",
            device_id=environment.device if cuda else None,
            timeout=timedelta(seconds=JOIN_S),
            **own,
        )
    except dist.DistError as error:
        raise ResourceError(
            f"process {environment.rank} of {environment.world} did not reach the others at "
            f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']} within {JOIN_S} s: {str(error).splitlines()[0]}\n"
            "  fix: start all of them (srun python -m beni.train ..., or torchrun), set MASTER_ADDR to a name that "
            "every machine resolves to the first one, or MASTER_PORT to a port that is free there"
        ) from error
    wait_for_ever()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _device(wanted: str, local_rank: int, setting: str) -> torch.device:
    if wanted not in DEVICES:
        raise ConfigError(
            f"{setting}{wanted}, expected one of {', '.join(DEVICES)}; CUDA_VISIBLE_DEVICES chooses among several\n"
            f"  fix: set {setting}auto"
        )
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError(f"{setting}{wanted}, but torch sees no CUDA device here\n  fix: set {setting}auto")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
