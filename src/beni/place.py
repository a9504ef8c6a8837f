"""A run's model gets its weights, and its place: device, precision, layers that recompute or are compiled, shards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from beni.config.build import build
from beni.distributed.broadcast_weights import broadcast_weights, tensors_of
from beni.distributed.environment import Environment
from beni.distributed.fsdp import is_sharded, shard
from beni.llm.layout import Layout, layout_of
from beni.llm.probes import require_embeddings
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import apply_plan
from beni.nn.precision import autocast
from beni.training.blocks import prepare_blocks
from beni.training.initial import load_initial
from beni.training.trainable import store_frozen_in_bf16
from beni.types import Batch
from beni.views.two_looks import TwoLooks
from beni.vision.feature_bank import FeatureBank, describe

Tell = Callable[[str], None]


def build_model(
    run: Mapping[str, Any], image_token: int, environment: Environment, tell: Tell
) -> BeniForConditionalGeneration:
    """The model under its plan, on the CPU. Where it will be sharded only the first process reads weights.

    Args:
        image_token: id of the placeholder of a visual token.
        tell: is told where first weights came from.

    Raises:
        BeniError: when weights cannot be had, or nothing would train.
    """
    with_weights = environment.is_main or not is_sharded(environment.world, run["fsdp"])
    model: BeniForConditionalGeneration = build(run["model"], run, image_token, with_weights)
    if run["train"]["init_from"] is not None and with_weights:
        tell(load_initial(model, Path(run["train"]["init_from"])).describe())
    apply_plan(model, run["train"]["plan"])
    return model


def layout_for(model: BeniForConditionalGeneration, wanted: Layout, tell: Tell) -> Layout:
    """``padded`` where the llm cannot keep packed samples apart; asked where the weights are.

    Raises:
        CompositionError: when the llm takes no embeddings, or cannot do what fusion, gates or the pruner ask of it.
    """
    require_embeddings(model.llm)
    said = model.llm.describe()
    if model.llm.capabilities.varying_positions:
        tell(
            f"rope_type={said.rope_type}: a sample of more positions than this llm was first made for changes what the "
            "others of its micro-batch get, as it does in transformers"
        )
    gated = model.specs["llm"].gated and not model.fusion.reads_gates
    layout = layout_of(
        model.llm,
        wanted,
        looks_ahead=model.fusion.looks_ahead,
        gated=gated,
        reads_along=model.fusion.reads_along,
        pruning=model.pruner.pruning,
    )
    if layout != wanted:
        tell(
            f"{said.kind} does not pass beni's segment attention on, so packed samples would see each other: "
            "this run uses compute.layout=padded"
        )
    return layout


def place(
    model: BeniForConditionalGeneration,
    run: Mapping[str, Any],
    environment: Environment,
    first_pictures: Callable[[], Batch],
) -> None:
    """Puts a model where it trains: stored as ``compute.precision`` wants, calibrated, its layers as ``compute`` has
    them, and sharded as ``fsdp`` has it. Called by all ranks.

    Args:
        first_pictures: samples that the connector's scale is calibrated on.
    """
    compute, plan, sharded = run["compute"], run["train"]["plan"], is_sharded(environment.world, run["fsdp"])
    if compute["precision"] == "bf16":
        store_frozen_in_bf16(model, plan)
    if not sharded:
        torch.nn.Module.to(model, environment.device)
    if model.fusion.calibrates and run["train"]["init_from"] is None and (environment.is_main or not sharded):
        device = torch.device("cpu") if sharded else environment.device
        with autocast(device, compute["precision"]):
            model.eval().calibrate(first_pictures().to(device))
    prepare_blocks(model, compute)  # before sharding, whose hooks go around
    weights = tensors_of(model) if environment.is_main else {}
    shard(model, model.sharding_units(), environment, run["fsdp"], compute["precision"])
    if sharded:
        broadcast_weights(model, weights, environment, run["fsdp"]["offload"])


@contextmanager
def feature_bank(
    model: BeniForConditionalGeneration, compute: Mapping[str, Any], tell: Tell
) -> Iterator[FeatureBank | None]:
    """Inside the block the model has the bank of its encoder as it is now: loaded, on its device, in its precision."""
    if compute["feature_bank"] is None:
        yield None
        return
    description = describe(model.vision, model.config.parts["vision"], compute["precision"])
    bank = FeatureBank(Path(compute["feature_bank"]).expanduser(), description, tell)
    tell(f"feature bank: {bank.path} holds {len(bank)} views of this vision encoder")
    if isinstance(model.views, TwoLooks):
        tell("feature bank: whole pictures only; which patches a finer look sees may differ each time")
    model.feature_bank = bank
    try:
        yield bank
    finally:
        bank.close()
