"""Who am I among the processes of this run: explicit variables first, then SLURM, then a single process.

A partly set environment is an error (as in DINOv2): guessing the rest trains N copies of a one-process run on one
folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from beni.distributed.collectives import wait_for_ever
from beni.errors import ConfigError, ResourceError

TORCHRUN = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


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


def read_environment(device: str, variables: Mapping[str, str] | None = None) -> Environment:
    """Process identity from environment variables, and the device of ``compute.device``.

    Raises:
        ConfigError: when torchrun's variables are only partly set.
        ResourceError: when ``device=cuda`` and there is none.
    """
    env = os.environ if variables is None else variables
    present = [name for name in TORCHRUN if name in env]
    if present and len(present) < len(TORCHRUN):
        missing = sorted(set(TORCHRUN) - set(present))
        raise ConfigError(
            f"distributed environment is only partly set: {', '.join(present)} but not {', '.join(missing)}\n"
            "  fix: start with torchrun, or unset them for a single process"
        )
    if present:
        rank, world, local = int(env["RANK"]), int(env["WORLD_SIZE"]), int(env["LOCAL_RANK"])
    elif int(env.get("SLURM_NTASKS", 1)) > 1 and "SLURM_PROCID" in env:
        rank, world, local = int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]), int(env["SLURM_LOCALID"])
    else:
        rank, world, local = 0, 1, 0
    here = env.get("LOCAL_WORLD_SIZE") or env.get("SLURM_NTASKS_PER_NODE")
    local_world = min(int(here), world) if here else None  # SLURM tells of its job, which one process may not fill
    return Environment(rank, world, local, _device(device, local), local_world)


@contextmanager
def process_group(environment: Environment, sharded: bool = False) -> Iterator[None]:
    """Joins the process group for the block, or makes one of this process alone where that one is to shard a model."""
    alone = environment.world == 1
    if (alone and not sharded) or dist.is_initialized():
        yield
        return
    if not alone and "MASTER_ADDR" not in os.environ:  # SLURM without torchrun: submitit knows the first node's name
        import submitit

        submitit.helpers.TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
    cuda = environment.device.type == "cuda"
    # gloo beside nccl: offloaded weights, checkpoints and the agreement on them live on the CPU
    own: dict[str, Any] = {}
    if alone:
        own = {"store": dist.HashStore(), "rank": 0, "world_size": 1}  # pyright: ignore[reportPrivateImportUsage]
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if cuda else "gloo", device_id=environment.device if cuda else None, **own
    )
    wait_for_ever()
    try:
        yield
    finally:
        dist.destroy_process_group()


def _device(wanted: str, local_rank: int) -> torch.device:
    if wanted == "cpu" or (wanted == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ResourceError("compute.device=cuda, but torch sees no CUDA device here\n  fix: set compute.device=auto")
    device = torch.device("cuda", local_rank % torch.cuda.device_count())
    torch.cuda.set_device(device)
    return device
