"""A model whose image tokens leave its llm: trained, asked, saved, billed, and the same where nothing leaves."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from functools import partial

import pytest
import torch

from beni.errors import CompositionError
from beni.llm import segment_attention
from beni.measure.flops import counting
from beni.model.build import build, build_model
from beni.model.costing.counts import Costs
from beni.model.costing.table import propagate, spec_table
from beni.model.modeling import BeniForConditionalGeneration
from beni.place import layout_for
from beni.runs.identity import run_folder, signature
from beni.training.blocks import recompute, recomputing
from beni.training.step import forward_backward

DEEP = ("llm.architecture.num_hidden_layers=4", "vision.architecture.patch_size=4", "train.batch_size=4")
PRUNERS = {
    "fastv": ("pruner=fastv",),
    "pyramiddrop": ("pruner=pyramiddrop",),
    "dart": ("pruner=dart", "pruner.keep=0.4"),
    "sparsevlm": ("pruner=sparsevlm", "pruner.layers=[1,2,3]"),
}
LORA = ("adapter=lora", "train.plan.llm=lora", "adapter.targets=[q_proj,v_proj]")
CPU = torch.device("cpu")


@pytest.fixture
def pruned(tiny_run, steps_of):
    """pruned(*overrides) -> a model with large weights, and its first micro-batch."""

    def make(*overrides):
        run = tiny_run(*DEEP, *overrides)
        model = build(run).eval()
        generator = torch.Generator().manual_seed(3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model, steps_of(run, model)[0][0]

    return make


def step(model, batch):
    """The loss, and the gradient of everything."""
    model.zero_grad()
    loss = model(**batch.model_inputs()).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("layout", ["packed", "padded"])
@pytest.mark.parametrize("override", ["pruner=fastv", "pruner=dart"])
def test_to_keep_all_is_to_have_no_pruner_to_the_bit(pruned, override, layout):
    found, expected = (
        step(*pruned(*overrides, f"compute.layout={layout}")) for overrides in ((override, "pruner.keep=1.0"), ())
    )
    assert len(found) == len(expected)
    assert all(a.equal(b) for a, b in zip(found, expected, strict=True))


@pytest.mark.parametrize("name", PRUNERS)
@torch.no_grad()
def test_no_answer_chooses_what_is_kept(pruned, name):
    """With other answers the logits of each sample's first answer token are the same."""
    model, batch = pruned(*PRUNERS[name])
    labels = batch.labels[0]
    answers = torch.where(labels >= 0, (batch.input_ids[0] + 7) % 100 + 100, batch.input_ids[0])
    other = replace(batch, input_ids=answers[None], labels=torch.where(labels >= 0, answers, labels)[None])
    first, changed = model(**batch.model_inputs()), model(**other.model_inputs())
    firsts = [int((first.samples == sample).nonzero()[0]) for sample in first.samples.unique()]
    assert first.logits[firsts].equal(changed.logits[firsts])
    assert not first.logits.equal(changed.logits)


@pytest.mark.parametrize(
    ("name", "overrides", "mode"),
    [*((name, (), "full") for name in PRUNERS), ("pyramiddrop", LORA, "selective"), ("fastv", LORA, "full")],
    ids=lambda value: "lora" if value == LORA else value or "all",
)
def test_gradients_are_the_same_where_activations_are_computed_again(pruned, name, overrides, mode):
    model, batch = pruned(*PRUNERS[name], *overrides)
    expected = [tensor.clone() for tensor in step(model, batch)]
    recompute(model.layers_with_gradient(), mode)
    found = step(model, batch)
    assert len(found) == len(expected) > 10
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
    assert all(tensor.abs().max() > 0 for tensor in found)


@pytest.mark.parametrize("name", PRUNERS)
@torch.no_grad()
def test_a_saved_model_prunes_and_answers_as_before(pruned, name, tmp_path):
    model, batch = pruned(*PRUNERS[name])
    model.save_pretrained(tmp_path)
    again = BeniForConditionalGeneration.from_pretrained(tmp_path).eval()
    inputs = batch.model_inputs()
    torch.testing.assert_close(again(**inputs).logits, model(**inputs).logits, rtol=1e-5, atol=1e-5)
    again.pruner.pruning = None
    assert (again(**inputs).logits - model(**inputs).logits).abs().max() > 1e-3


@torch.no_grad()
def test_a_model_saved_before_there_were_pruners_has_none(pruned):
    model, batch = pruned()
    config = deepcopy(model.config)
    del config.parts["pruner"]
    before = BeniForConditionalGeneration(config).eval()
    before.load_state_dict(model.state_dict())
    assert before(**batch.model_inputs()).logits.equal(model(**batch.model_inputs()).logits)


def test_a_run_without_a_pruner_keeps_its_name(tiny_run):
    run = tiny_run()
    before = {key: value for key, value in run.items() if key != "pruner"}
    assert signature(run) == signature(before)
    assert build_model(before, image_token_id=-1).pruner.pruning is None
    named = run_folder(tiny_run("pruner=fastv")).name
    assert "-fastv-" in named
    assert signature(tiny_run("pruner=fastv")) != signature(run) != signature(tiny_run("pruner=dart"))


@pytest.mark.parametrize("name", PRUNERS)
@torch.no_grad()
def test_what_is_generated_is_what_the_model_says_without_a_cache(pruned, tiny_run, steps_of, name):
    model, _ = pruned(*PRUNERS[name])
    steps = steps_of(tiny_run(*DEEP, *PRUNERS[name]), model)
    prompts = []
    for sample in steps.source.heldout()[:2]:
        images = [steps.viewer(image.load()) for image in sample.images]
        pixels = torch.stack([view for image in images for view in image.pixels])
        prompts.append((torch.from_numpy(steps.renderer.prompt(sample, [i.markup for i in images]).ids), pixels))
    longest = max(len(ids) for ids, _ in prompts)
    left = torch.stack([torch.nn.functional.pad(ids, (longest - len(ids), 0)) for ids, _ in prompts])
    mask = torch.stack([torch.arange(longest) >= longest - len(ids) for ids, _ in prompts]).long()
    options = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    together = model.generate(left, torch.cat([p for _, p in prompts]), attention_mask=mask, **options)
    for said, (ids, pixels) in zip(together[:, longest:], prompts, strict=True):
        asked = len(ids)
        for _ in range(5):
            labels = torch.full_like(ids, -100)
            labels[asked:] = ids[asked:]
            read = torch.cat([ids, ids[-1:]])  # one more, so that the last is predicted as an answer
            labels = torch.cat([labels, ids[-1:]])
            logits = model(read[None], pixels, labels=labels[None]).logits
            ids = torch.cat([ids, logits[-1:].argmax(-1)])
        assert said.equal(ids[-5:])


STATES = {
    "all": ("train.plan.vision=full",),
    "frozen": ("train.plan.llm=frozen", "train.plan.vision=frozen"),
    "lora": LORA,
}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "state"), [*((name, "all") for name in PRUNERS), ("pyramiddrop", "frozen"), ("pyramiddrop", "lora")]
)
def test_a_bill_is_what_torch_counts(tiny_run, steps_of, monkeypatch, name, state):
    """To the FLOP for one sample and for padded rows, which are billed apart; in a packed row choosing is done on rows
    as long as the longest sample.
    """
    monkeypatch.setattr(segment_attention, "WASTE", 1.0)
    for overrides, within in (("train.batch_size=1",), 1e-9), (("compute.layout=padded",), 1e-9), ((), 0.01):
        run = tiny_run(*DEEP, *PRUNERS[name], *STATES[state], *overrides)
        model = build(run)
        batch = steps_of(run, model)[0][0]
        bill = Costs(propagate(run), model.config.image_token_id).flop_count(batch)
        with counting() as counter:
            forward_backward(model, [batch], 0, CPU, "fp32")
        assert bill.useful + bill.padding == pytest.approx(counter.get_total_flops(), rel=within)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRUNERS)
def test_what_is_computed_again_is_billed_apart(tiny_run, steps_of, name):
    run = tiny_run(*DEEP, *PRUNERS[name], "train.batch_size=1")
    model = build(run)
    batch = steps_of(run, model)[0][0]
    bill = Costs(propagate(run), model.config.image_token_id, partial(recomputing, mode="full")).flop_count(batch)
    recompute(model.layers_with_gradient(), "full")
    with counting() as counter:
        forward_backward(model, [batch], 0, CPU, "fp32")
    assert bill.recomputed > 0
    assert bill.useful + bill.recomputed == pytest.approx(counter.get_total_flops(), rel=1e-9)


def test_a_plan_tells_what_leaves(tiny_run):
    """Half of 36 image tokens leave before the second half of the layers."""
    tables = {}
    for overrides in ((), ("pruner=fastv", "pruner.layer=2"), ("pruner=fastv", "pruner.layer=2", "pruner.keep=1.0")):
        run = tiny_run(*DEEP, *overrides)
        model = propagate(run)
        tables[overrides] = spec_table(model, run, 60, 4, model.views.plan((24, 24)))
    plain, half, all_ = (table.rows[-1].flops for table in tables.values())
    assert plain == all_
    layers = plain - 2 * 4 * 32 * 512  # without the head's four rows
    pairs = 4 * 32 * 2 * (60**2 - 42**2)
    linear = (layers - 4 * 4 * 32 * 60**2) / 60 / 4 * 2 * 18
    assert plain - half == pytest.approx(pairs + linear - 2 * 32 * 60, rel=1e-6)  # and a row of scores more
    assert tables[()].train_flops_per_sample > list(tables.values())[1].train_flops_per_sample


def test_what_does_not_go_together_is_refused(tiny_run, monkeypatch):
    with pytest.raises(CompositionError, match=r"^E-PLACE \[pruner x llm\]: .*the layers 0 to 1.*\n  fix: set pruner"):
        propagate(tiny_run("pruner=fastv"))
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    run = tiny_run(*DEEP, "pruner=fastv")
    run["fusion"] = {"_target_": "support.cross_fusion.CrossFusion"}
    with pytest.raises(CompositionError, match=r"^E-STACK \[pruner x fusion\]: .*nothing .*\n  fix: set pruner=none"):
        propagate(run)
    falcon = {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4}
    run = tiny_run(*DEEP, "pruner=fastv")
    run["llm"] |= {"architecture": falcon | {"vocab_size": 512}, "attn_implementation": "eager"}
    with pytest.raises(CompositionError, match=r"^E-ATTN \[pruner x llm\]: falcon"):
        layout_for(build(run), "packed", print)
