"""What a run will need in memory, from its model without weights, and which overrides would lessen it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from beni.config.check import check
from beni.distributed.fsdp import is_sharded, shards
from beni.errors import ConfigError
from beni.measure import memory
from beni.model.loss import chunk_rows
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import count_parameters
from beni.model.quantized import packed_layers


def estimate_memory(
    model: BeniForConditionalGeneration,
    run: Mapping[str, Any],
    world: int,
    length: int,
    label_rows: int,
    local_world: int | None = None,
    first: bool = True,
) -> memory.Memory:
    """What each of ``world`` processes will need, for samples of ``length`` positions and ``label_rows`` labels.

    Args:
        local_world: processes of a machine; all when None.
        first: the machine is that of the first process, which may be the one that reads weights.
    """
    counts = count_parameters(model)
    train, compute, fsdp, local = run["train"], run["compute"], run["fsdp"], local_world or world
    samples = -(-train["batch_size"] // (train["accumulation"] * world))
    if run["schedule"]["unit"] == "pack":
        full = run["schedule"]["tokens"]
        length, label_rows = full, label_rows * full // length
    elif model.nested and model.nested.every:
        samples *= model.nested.drawn
    optimizer, share = run["optim"]["optimizer"], shards(fsdp, world, local)
    moments = memory.MOMENTS[optimizer] * (share if optimizer == "muon" else 1)  # muon's are whole on every process
    managed = ("trained", "frozen") if fsdp["frozen"] == "shard" else ("trained",)
    piece = chunk_rows(model.llm.vocab_size)
    packed = [layer for _, layer in packed_layers(model)]
    return memory.estimate(
        frozen=sum(c["frozen"] for c in counts.values()),
        trained=sum(c["trained"] for c in counts.values()),
        packed=sum(math.prod(layer.shape) for layer in packed),
        packed_bytes=sum(t.numel() * t.element_size() for layer in packed for t in layer.packed().values()),
        shards=share,
        frozen_shards=share if "frozen" in managed else 1,
        offloaded=managed if fsdp["offload"] else (),
        gathered=_gathered(model, run, world),
        loading=_loading(run, counts, world, local, first),
        processes=local,
        kept=moments + (4 if train["ema"] else 0),
        precision=compute["precision"],
        positions=samples * length,
        layers=len(model.llm.layers()),
        width=model.llm.hidden_size,
        intermediate=model.llm.describe().intermediate_size,
        layers_train=counts["llm"]["trained"] > 0,
        checkpointing=compute["activation_checkpointing"],
        budget=compute["memory_budget"],
        label_rows=samples * label_rows if compute["loss"] == "full" else min(samples * label_rows, piece),
        vocabulary=model.llm.vocab_size,
    )


def _gathered(model: BeniForConditionalGeneration, run: Mapping[str, Any], world: int) -> int:
    """Bytes of weights that a process holds for computing, beside the stored ones: bf16 copies of what trains, or
    the units that are gathered at once: the root, one that computes and one that comes next.
    """
    element, fsdp = 2 if run["compute"]["precision"] == "bf16" else 4, run["fsdp"]
    sharded = is_sharded(world, fsdp)

    def size(module: nn.Module) -> int:
        shared = sharded and fsdp["frozen"] == "shard"
        return sum(p.numel() for p in module.parameters() if p.requires_grad or shared)

    if not sharded:
        return size(model) * element if element == 2 else 0
    units = sorted(size(unit) for unit in model.sharding_units())
    return element * (size(model) - (sum(units[:-2]) if fsdp["reshard_after_forward"] else 0))


def _loading(
    run: Mapping[str, Any], counts: Mapping[str, Mapping[str, int]], world: int, local: int, first: bool
) -> int:
    """Bytes that the processes of a machine hold while they build, in fp32: each the whole model, or, where the first
    process hands it out, all others only what is drawn.
    """
    sizes = {stage: 4 * sum(count.values()) for stage, count in counts.items()}
    whole = sum(sizes.values())
    if not is_sharded(world, run["fsdp"]):
        return local * whole
    drawn = sum(size for stage, size in sizes.items() if run[stage].get("weights") != "pretrained")
    return (whole if first else drawn) + (local - 1) * drawn


def remedies(
    model: BeniForConditionalGeneration,
    run: Mapping[str, Any],
    device: torch.device,
    world: int,
    *sizes: Any,
) -> dict[str, memory.Memory]:
    """Overrides that may lessen the memory of a run, and what it would need then; such as the run cannot have are left
    out. ``sizes`` are the further arguments of ``estimate_memory``.
    """
    train, sharded = run["train"], run["fsdp"]["mode"] != "none"
    full = {"mode": "full", "reshard_after_forward": True}
    more = 2 * train["accumulation"]
    changes: dict[str, dict[str, dict[str, Any]]] = {
        "compute.loss=chunked": {"compute": {"loss": "chunked"}},
        "compute.activation_checkpointing=full": {"compute": {"activation_checkpointing": "full"}},
        "compute.precision=bf16": {"compute": {"precision": "bf16"}},
    }
    if more * world <= train["batch_size"]:
        changes = {f"train.accumulation={more}": {"train": {"accumulation": more}}} | changes
    if world > 1:
        changes["fsdp=full"] = {"fsdp": full}
        name = "fsdp.frozen=shard" if sharded else "fsdp=full fsdp.frozen=shard"
        changes[name] = {"fsdp": ({} if sharded else full) | {"frozen": "shard"}}
    if device.type != "cpu":
        name = "fsdp.offload=true" if sharded else "fsdp=full fsdp.offload=true"
        changes[name] = {"fsdp": ({} if sharded else full) | {"offload": True}}
    found = {}
    for name, change in changes.items():
        other = {**run, **{section: {**run[section], **values} for section, values in change.items()}}
        try:
            check(other)
        except ConfigError:
            continue
        found[name] = estimate_memory(model, other, world, *sizes)
    return found
