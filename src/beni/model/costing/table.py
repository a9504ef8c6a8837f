"""The spec table: what each stage does to the visual tokens and what it costs, known before any weight exists."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from beni.config.check import check
from beni.config.schema import COMPONENTS
from beni.distributed.fsdp import is_sharded, shards
from beni.errors import ConfigError
from beni.measure import memory
from beni.model.build import build_model
from beni.model.loss import chunk_rows
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import apply_plan, count_parameters
from beni.model.quantized import packed_layers
from beni.model.viewer import placeholders
from beni.types import ImageLayout


@dataclass(frozen=True)
class SpecRow:
    """One stage of one run.

    Attributes:
        tokens: visual tokens of one image after the stage, over all its views; for the llm, positions of a mean sample.
        grid: of each view, where there is one and the same.
        width: of the tokens after the stage.
        parameters: of the stage.
        trained: of these, how many train.
        flops: forward, for one sample with one image.
    """

    stage: str
    option: str
    tokens: int
    width: int
    grid: tuple[int, int] | None
    parameters: int
    trained: int
    flops: int


@dataclass(frozen=True)
class SpecTable:
    """The rows and what follows from them.

    Attributes:
        visual_tokens: of one image, as the llm sees them.
        prefill_flops: forward FLOPs of one sample.
        train_flops_per_sample: forward and backward: x3 where a stage trains, x2 where a frozen stage lies on the
            gradient's way, x1 where it does not. With nested numbers of visual tokens: the sum over those that each
            sample is seen at, or the mean over those that are drawn.
    """

    rows: tuple[SpecRow, ...]
    visual_tokens: int
    prefill_flops: int
    train_flops_per_sample: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def propagate(run: Mapping[str, Any]) -> BeniForConditionalGeneration:
    """Builds the run's model on the meta device, so that an impossible combination fails before any weight is loaded.

    Raises:
        CompositionError: with a code and a fix.
    """
    with torch.device("meta"):
        model = build_model(run, image_token_id=-1, pretrained=False)
    apply_plan(model, run["train"]["plan"])
    return model


def spec_table(
    model: BeniForConditionalGeneration, run: Mapping[str, Any], length: int, label_rows: int, image: ImageLayout
) -> SpecTable:
    """Args:
    model: on the meta device or with weights.
    image: layout of the image that tokens and FLOPs are given for.
    length: positions of a mean sample, visual ones included.
    label_rows: supervised positions of a mean sample.
    """
    counts, specs = count_parameters(model), model.row_specs(image)
    visual_tokens = model.viewer.visual_tokens(image)
    flops = forward_flops(model, image, length, label_rows)
    rows = []
    for stage in COMPONENTS:
        made = specs.get(stage, specs["connector"])
        rows.append(
            SpecRow(
                stage=stage,
                option=run["choices"].get(stage, "custom"),
                tokens={"llm": length, "fusion": visual_tokens}.get(stage, sum(row.n for row in made)),
                width=made[0].dim,
                grid=made[0].grid if stage in specs and len(set(made)) == 1 else None,
                parameters=sum(counts[stage].values()),
                trained=counts[stage]["trained"],
                flops=flops[stage],
            )
        )
    factors = training_factors({stage: counts[stage]["trained"] > 0 for stage in COMPONENTS}, run["train"]["plan"])
    passes = []
    for scale in range(1, model.nested.drawn + 1) if model.nested else (image.scale,):
        seen = replace(image, scale=scale)
        longer = length + placeholders(model.viewer.markup(seen)) - placeholders(model.viewer.markup(image))
        each = flops if seen == image else forward_flops(model, seen, longer, label_rows)
        passes.append(sum(factors[stage] * each[stage] for stage in COMPONENTS))
    return SpecTable(
        rows=tuple(rows),
        visual_tokens=visual_tokens,
        prefill_flops=sum(row.flops for row in rows),
        train_flops_per_sample=sum(passes) if model.nested and model.nested.every else sum(passes) // len(passes),
    )


def forward_flops(
    model: BeniForConditionalGeneration, image: ImageLayout, length: int, label_rows: int
) -> dict[str, int]:
    """Of each stage, for one sample of so many positions with one such image."""
    specs, sizes = model.row_specs(image), Counter(image.views)
    flops = {
        "vision": sum(count * model.vision.flops(size) for size, count in sizes.items()),
        "fusion": 0,
        "llm": model.llm.flops(length, label_rows),
    }
    for before, stage in pairwise(("vision", "views", "selector", "resampler", "connector")):
        flops[stage] = sum(getattr(model, stage).flops(row) for row in specs[before])
    return flops


def training_factors(trains: Mapping[str, bool], plan: Mapping[str, str]) -> dict[str, int]:
    """What a stage's forward FLOPs are multiplied by in training, in the order of the data's way."""
    factors, before = {}, False
    for stage in COMPONENTS:
        factors[stage] = 3 if trains[stage] and plan[stage] == "full" else 2 if before or trains[stage] else 1
        before = before or trains[stage]
    return factors


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
    train, fsdp, local = run["train"], run["fsdp"], local_world or world
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
        precision=train["precision"],
        positions=samples * length,
        layers=len(model.llm.layers()),
        width=model.llm.hidden_size,
        intermediate=model.llm.describe().intermediate_size,
        layers_train=counts["llm"]["trained"] > 0,
        checkpointing=train["activation_checkpointing"],
        budget=train["memory_budget"],
        label_rows=samples * label_rows if train["loss"] == "full" else min(samples * label_rows, piece),
        vocabulary=model.llm.vocab_size,
    )


def _gathered(model: BeniForConditionalGeneration, run: Mapping[str, Any], world: int) -> int:
    """Bytes of weights that a process holds for computing, beside the stored ones: bf16 copies of what trains, or
    the units that are gathered at once: the root, one that computes and one that comes next.
    """
    element, fsdp = 2 if run["train"]["precision"] == "bf16" else 4, run["fsdp"]
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
        "train.loss=chunked": {"train": {"loss": "chunked"}},
        "train.activation_checkpointing=full": {"train": {"activation_checkpointing": "full"}},
        "train.precision=bf16": {"train": {"precision": "bf16"}},
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
