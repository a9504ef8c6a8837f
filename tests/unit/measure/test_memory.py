"""A run that cannot fit says by how much, and what to change, before anything is allocated."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import ResourceError
from beni.measure import memory
from beni.types import Sequence

CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)
SIZES = {
    "frozen": 10**9,
    "trained": 10**6,
    "positions": 1000,
    "layers": 22,
    "width": 2048,
    "intermediate": 5632,
    "label_rows": 100,
    "vocabulary": 32000,
}


def test_weights_gradients_and_moments_are_counted_exactly():
    half, full = memory.estimate(precision="bf16", **SIZES), memory.estimate(precision="fp32", **SIZES)
    assert half.weights == 2 * 10**9 + 4 * 10**6
    assert full.weights == 4 * (10**9 + 10**6)
    assert half.optimizer == full.optimizer == 12 * 10**6
    assert half.activations < full.activations


def test_moments_and_averages_are_counted_by_optimizer(tiny_run, tiny_model):
    from beni.model.costing.memory import estimate_memory
    from beni.model.plan import count_parameters

    model = tiny_model()
    trained = sum(count["trained"] for count in count_parameters(model).values())

    def each(*overrides, world=1):
        return estimate_memory(model, tiny_run(*overrides), world, 64, 8).optimizer / trained

    assert each() == 4 + 8
    assert each("optim=lion") == 4 + 4
    assert each("optim=adafactor", "train.ema=0.9") == 4 + 4
    assert each("fsdp=full", world=4) == 3
    assert each("optim=muon", "fsdp=full", world=4) == 1 + 4  # every process keeps the whole moment


def test_logits_are_counted_as_the_loss_keeps_them(tiny_run, tiny_model, monkeypatch):
    from beni.model import loss
    from beni.model.costing.memory import estimate_memory

    model = tiny_model()
    monkeypatch.setattr(loss, "CHUNK_BYTES", 4 * model.llm.vocab_size * 10)

    def activations(how):
        return estimate_memory(model, tiny_run(f"compute.loss={how}"), 1, 64, 8).activations

    lacking = (8 * 8 - 10) * model.llm.vocab_size * 12
    assert activations("full") - activations("chunked") == lacking
    assert activations("auto") == activations("fused") == activations("chunked")


def test_lacking_memory_is_an_error_with_the_figures_and_the_settings(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 2 * memory.GIB)
    need = memory.Memory(weights=3 * memory.GIB, loading=0, optimizer=memory.GIB, activations=memory.GIB)
    with pytest.raises(ResourceError) as caught:
        memory.require(need, CPU, lambda: {"some=other": replace(need, activations=0), "no=help": need})
    text = str(caught.value)
    assert "needs about 5.0 GiB (weights 3.0, gradients and moments 1.0, activations 1.0)" in text
    assert "cpu has 2.0 GiB free: 3.0 GiB too little" in text
    assert text.endswith("fix: set some=other (then 4.0 GiB)")


def test_what_lacks_no_more_than_the_estimate_may_be_off_by_is_told_and_tried(monkeypatch):
    need = memory.Memory(weights=2 * memory.GIB, loading=0, optimizer=0, activations=13 * memory.GIB)
    monkeypatch.setattr(memory, "available", lambda device: int(12.1 * memory.GIB))
    (told,) = memory.require(need, CPU, lambda: {"some=other": replace(need, activations=0)})
    assert "cpu has 12.1 GiB free: 2.9 GiB too little; activations are an estimate" in told
    assert told.endswith("fix: set some=other (then 2.0 GiB)")
    monkeypatch.setattr(memory, "available", lambda device: int(11.9 * memory.GIB))
    with pytest.raises(ResourceError, match=r"3\.1 GiB too little\n"):
        memory.require(need, CPU)
    monkeypatch.setattr(memory, "available", lambda device: 15 * memory.GIB)
    assert memory.require(need, CPU) == []


def test_loading_in_fp32_counts_where_it_is_the_peak(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 2 * memory.GIB)
    with pytest.raises(ResourceError, match=r"needs about 3\.0 GiB"):
        memory.require(memory.Memory(weights=0, loading=3 * memory.GIB, optimizer=0, activations=0), CPU)


def test_what_is_built_in_the_memory_of_the_machine_needs_no_room_on_a_gpu(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: (79 if device.type == "cuda" else 200) * memory.GIB)
    sizes = SIZES | {"precision": "bf16"}
    sharded = memory.estimate(**sizes | {"frozen": 0, "trained": 34 * 10**9, "shards": 64})
    packed = {"packed": 33 * 10**9, "packed_bytes": 17 * 10**9}
    quantized = memory.estimate(**sizes | {"frozen": 34 * 10**9, "trained": 5 * 10**7}, **packed)
    for need in (sharded, quantized):
        assert need.loading > 100 * memory.GIB
        memory.require(need, GPU)
    monkeypatch.setattr(memory, "available", lambda device: 79 * memory.GIB)
    with pytest.raises(ResourceError, match=r"CPU memory while building 126\.8\), cpu has 79\.0 GiB free"):
        memory.require(quantized, GPU)


def test_processes_of_a_machine_share_its_memory(monkeypatch):
    monkeypatch.setattr(memory, "available", lambda device: 5 * memory.GIB)
    need = memory.Memory(weights=3 * memory.GIB, loading=0, optimizer=0, activations=0)
    memory.require(need, CPU)
    with pytest.raises(ResourceError, match=r"needs about 6\.0 GiB .*per process, 2 processes per machine"):
        memory.require(replace(need, processes=2), CPU)
    memory.require(replace(need, processes=2), GPU)
    away = replace(need, weights=0, offloaded=3 * memory.GIB, processes=2)
    with pytest.raises(ResourceError, match=r"needs about 6\.0 GiB .*offloaded per process 3\.0"):
        memory.require(away, GPU)


def test_what_is_offloaded_moves_to_the_memory_of_the_machine(tiny_run, tiny_model):
    from beni.model.costing.memory import estimate_memory

    model = tiny_model("train.plan.vision=frozen")

    def need(*overrides):
        return estimate_memory(model, tiny_run(*overrides), 2, 64, 8)

    plain, away = need("fsdp=full"), need("fsdp=full", "fsdp.offload=true")
    both = need("fsdp=full", "fsdp.offload=true", "fsdp.frozen=shard")
    trained = plain.optimizer // (4 + 8) * 4
    assert (plain.offloaded, away.optimizer) == (0, 0)
    assert away.offloaded == trained + plain.optimizer
    assert away.weights == plain.weights - trained
    assert both.offloaded > away.offloaded
    assert both.peak < away.peak < plain.peak


def test_processes_that_are_handed_weights_build_only_what_is_drawn(tiny_run, tiny_model):
    from beni.model.costing.memory import estimate_memory
    from beni.model.plan import count_parameters

    model = tiny_model()
    counts = {stage: 4 * sum(count.values()) for stage, count in count_parameters(model).items()}
    whole, drawn = sum(counts.values()), sum(counts.values()) - counts["vision"] - counts["llm"]

    def loading(*overrides, first=True):
        run = tiny_run(*overrides)
        run["vision"]["weights"] = run["llm"]["weights"] = "pretrained"
        return estimate_memory(model, run, 8, 64, 8, 4, first).loading

    assert loading() == 4 * whole
    assert loading("fsdp=full") == whole + 3 * drawn
    assert loading("fsdp=full", first=False) == 4 * drawn


def test_hybrid_shares_what_trains_within_a_machine_alone(tiny_run, tiny_model):
    from beni.model.costing.memory import estimate_memory

    model, run = tiny_model(), tiny_run("fsdp=hybrid")
    many, few = (estimate_memory(model, run, 8, 64, 8, local).optimizer for local in (8, 2))
    assert few == 4 * many


def kept_for_the_backward_pass(monkeypatch, model, mode, precision, positions):
    """Bytes, weights apart, of the layers of an llm."""
    from torch.utils import checkpoint
    from torch.utils._pytree import tree_leaves

    from beni.nn.precision import autocast
    from beni.training import blocks

    borders = torch.tensor([0, positions // 2, positions])
    llm, kept, stores = model.llm, {}, []

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    def contexts(policy):  # what a policy has chosen to save is kept beside autograd
        made = checkpoint.create_selective_checkpoint_contexts(policy)
        stores.append(made[0].storage)
        return made

    monkeypatch.setattr(blocks, "create_selective_checkpoint_contexts", contexts)
    blocks.recompute(llm.layers(), mode)
    embeds = torch.randn(1, positions, llm.hidden_size, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), autocast(CPU, precision):
        inputs = llm._inputs(replace(Sequence.plain(embeds), mask=None, cu_seqlens=borders))
        hidden = llm.model.get_decoder()(**inputs).last_hidden_state
    for entry in tree_leaves([list(calls.values()) for store in stores for calls in store.values()]):
        if isinstance(getattr(entry, "val", None), torch.Tensor):
            keep(entry.val)
    weights = {p.untyped_storage().data_ptr() for p in llm.parameters()}
    del hidden
    return sum(size for place, size in kept.items() if place not in weights)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("plan", ["full", "frozen"])
@pytest.mark.parametrize("mode", ["none", "selective", "full"])
def test_activations_are_estimated_as_layers_keep_them(tiny_run, tiny_model, monkeypatch, mode, plan, precision):
    from beni.model.costing.memory import estimate_memory
    from beni.training.trainable import store_frozen_in_bf16

    overrides = [f"compute.activation_checkpointing={mode}", f"train.plan.llm={plan}", "train.batch_size=1"]
    overrides += ["llm.architecture.num_hidden_layers=8", f"compute.precision={precision}"]
    model, run = tiny_model(*overrides), tiny_run(*overrides)
    if precision == "bf16":
        store_frozen_in_bf16(model, run["train"]["plan"])
    estimated = estimate_memory(model, run, 1, 256, 0).activations
    again = 0 if mode == "none" else estimate_memory(model, tiny_run(*overrides[1:]), 1, 256, 0).activations / 8
    counted = kept_for_the_backward_pass(monkeypatch, model, mode, precision, 256)
    assert estimated - again == pytest.approx(counted, rel=0.3)


def test_activation_checkpointing_lessens_what_is_estimated(tiny_run, tiny_model):
    from beni.model.costing.memory import estimate_memory

    model = tiny_model()

    def activations(mode, *further):
        overrides = (f"compute.activation_checkpointing={mode}", "compute.precision=bf16", *further)
        return estimate_memory(model, tiny_run("compute.compile=true", *overrides), 1, 64, 8).activations

    budgets = [activations("memory_budget", f"compute.memory_budget={share}") for share in (0, 0.5, 1)]
    assert activations("full") == budgets[0] < activations("selective") < activations("none") <= budgets[2]
    assert budgets == sorted(budgets)


def test_the_fix_names_what_would_help_this_run_and_what_it_may_have(tiny_run, tiny_model):
    from beni.model.costing.memory import estimate_memory, remedies

    model = tiny_model("train.plan.vision=frozen")

    def helpful(device, world, *overrides):
        run = tiny_run(*overrides)
        sizes = (world, 64, 8)
        need = estimate_memory(model, run, *sizes).peak
        found = remedies(model, run, device, *sizes).items()
        return {name for name, other in found if other.peak < need}

    saved = {"compute.activation_checkpointing=full", "train.accumulation=2", "compute.precision=bf16"}
    assert helpful(CPU, 1) == saved
    assert helpful(GPU, 1) == saved | {"fsdp=full fsdp.offload=true"}
    shared = {"fsdp=full", "fsdp=full fsdp.frozen=shard", "fsdp=full fsdp.offload=true"}
    assert helpful(GPU, 2) == saved | shared
    assert helpful(CPU, 2, "optim=adafactor") == saved
    assert helpful(GPU, 2, "fsdp=full") == saved | {"fsdp.frozen=shard", "fsdp.offload=true"}


def test_a_run_that_fits_is_let_through():
    memory.require(memory.Memory(weights=1, loading=1, optimizer=1, activations=1), CPU)
    assert memory.available(CPU) > 0
    assert memory.peak_gib(CPU) > 0.01
