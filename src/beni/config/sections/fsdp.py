"""The ``fsdp`` section: how processes share a model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Fsdp:
    """How processes share a model (distributed/fsdp.py).

    Attributes:
        mode: ``none`` (whole replicas, gradients summed after the backward pass), ``ddp`` (the same, summed while it
            runs), ``full`` (FSDP2: each process keeps a part of what trains) or ``hybrid`` (so within a machine, and
            replicas of that on every machine).
        shard_size: processes that share one copy under ``hybrid``; null takes those of one machine.
        frozen: ``replicate`` frozen weights, or ``shard`` them too under ``full`` and ``hybrid``.
        reshard_after_forward: give the whole weights of a unit back after its forward pass, which saves memory and
            costs a second gathering.
        offload: keep what is sharded, its gradients and the optimizer's state in the CPU's memory; GPUs only, in any
            mode but ``none``, for a single process too.
    """

    mode: Literal["none", "ddp", "full", "hybrid"]
    shard_size: int | None
    frozen: Literal["replicate", "shard"]
    reshard_after_forward: bool
    offload: bool


def fsdp_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules about values that only some modes have, as problems with their fixes."""
    fsdp = run["fsdp"]
    size, mode = fsdp["shard_size"], fsdp["mode"]
    if fsdp["offload"] and mode == "none":
        yield (
            "fsdp.offload=true with fsdp.mode=none, which keeps the model where it computes\n"
            "  fix: set fsdp=full, for one process too, or fsdp.offload=false"
        )
    if fsdp["frozen"] == "shard" and mode in ("none", "ddp"):
        yield (
            f"fsdp.frozen=shard with fsdp.mode={mode}, under which every process holds the whole model\n"
            "  fix: set fsdp=full or fsdp=hybrid, or fsdp.frozen=replicate"
        )
    if size is not None and (size < 1 or mode != "hybrid"):
        yield (
            f"fsdp.shard_size={size} with fsdp.mode={mode}, expected null, or under hybrid at least 1\n"
            "  fix: set fsdp.shard_size=null, or choose fsdp=hybrid"
        )
