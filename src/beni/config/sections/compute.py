"""The ``compute`` section: how a run is computed, on what, in which precision, and what it gives up for memory."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from beni.config.ranges import AtLeast, AtMost, Example


@dataclass(frozen=True)
class Compute:
    """How the numbers of a run come about (place.py, assemble.py).

    Attributes:
        device: ``auto`` (cuda if there is one), ``cpu`` or ``cuda``.
        precision: ``bf16`` (autocast; frozen parts stored in bf16) or ``fp32``.
        layout: ``packed`` (one row, samples isolated) or ``padded`` (one row a sample).
        loss: how head and loss are computed (model/loss.py): ``full`` keeps the logits of all label rows, ``chunked``
            those of one piece at a time, ``fused`` is torch's ``linear_cross_entropy`` (torch 2.13 or newer, meant for
            GPUs), ``auto`` is ``chunked`` for micro-batches that have more than one piece, else ``full``.
        compile: compile each layer of the llm and of the vision encoder.
        activation_checkpointing: what the layers give up and compute again: ``none``, ``full`` (all but their inputs),
            ``selective`` (all but attention and every second matrix product) or ``memory_budget`` (the compiler's
            choice).
        memory_budget: share of the memory of all activations that ``memory_budget`` may keep.
        feature_bank: folder that keeps the features of a frozen vision encoder for later epochs and runs, else null.
        threads: CPU threads of the main process; 0 takes all cores. CPU runs repeat bit for bit at one value only.
        workers: loader processes.
    """

    device: Literal["auto", "cpu", "cuda"]
    precision: Literal["bf16", "fp32"]
    layout: Literal["packed", "padded"]
    loss: Literal["auto", "full", "chunked", "fused"]
    compile: bool
    activation_checkpointing: Literal["none", "full", "selective", "memory_budget"]
    memory_budget: Annotated[float, AtLeast(0), AtMost(1), Example("0.5")]
    feature_bank: str | None
    threads: Annotated[int, AtLeast(0)]
    workers: Annotated[int, AtLeast(0)]


def compute_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules that no type expresses, as problems with their fixes."""
    compute = run["compute"]
    if compute["activation_checkpointing"] == "memory_budget" and not compute["compile"]:
        yield (
            "compute.activation_checkpointing=memory_budget is done by the compiler, but compute.compile=false\n"
            "  fix: set compute.compile=true or compute.activation_checkpointing=selective"
        )
    bank, vision = compute["feature_bank"], run["train"]["plan"]["vision"]
    if bank is not None and not bank.strip():
        yield "compute.feature_bank is empty, expected a folder or null\n  fix: set compute.feature_bank=null"
    elif bank is not None and vision != "frozen":
        yield (
            f"compute.feature_bank={bank} caches features of a frozen encoder, but train.plan.vision={vision}\n"
            "  fix: set train.plan.vision=frozen or compute.feature_bank=null"
        )
    if bank is not None and run["fsdp"]["frozen"] == "shard":
        yield (
            "fsdp.frozen=shard makes all processes encode together, but compute.feature_bank lets each skip cached "
            "views\n  fix: set fsdp.frozen=replicate or compute.feature_bank=null"
        )
