"""In loops that others wrote the model trains as in beni's own: one loss a step, however it is cut."""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import Trainer, TrainingArguments

from beni.errors import ConfigError
from beni.model.inputs import StepInputs

STEPS, RATE = 3, 0.05


class MicroBatches(IterableDataset):
    """The micro-batches of beni's loader, one after another."""

    def __init__(self, steps):
        self.batches = [batch for step in range(STEPS) for batch in steps[step]]

    def __iter__(self):
        return iter(self.batches)


def gradients(model, batches, **options):
    model.train()
    model.zero_grad()
    total = sum(batch.num_labels for batch in batches)
    losses = []
    for batch in batches:
        loss = model(**batch.model_inputs(), num_items_in_batch=torch.tensor(total), **options).loss
        loss.backward()
        losses.append(float(loss.detach()))
    return sum(losses), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def own_loop(model, steps):
    """beni's own rule: summed token losses over the labels of the step."""
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    losses = []
    for step in range(STEPS):
        batches = steps[step]
        how = StepInputs(num_items=sum(batch.num_labels for batch in batches))
        losses.append(0.0)
        for batch in batches:
            loss = model(**batch.model_inputs(), how=how).loss
            loss.backward()
            losses[-1] += float(loss.detach())
        optimizer.step()
        optimizer.zero_grad()
    return losses


@pytest.fixture
def accumulating(tiny_run, tiny_model, steps_of):
    """(model, steps) with so many micro-batches a step."""

    def make(count):
        model = tiny_model()
        return model, steps_of(tiny_run(f"train.accumulation={count}"), model)

    return make


def test_a_step_has_one_gradient_however_it_is_cut(accumulating):
    model, whole = accumulating(1)
    _, halves = accumulating(2)
    assert len(whole[0]) == 1
    assert len(halves[0]) == 2
    loss, expected = gradients(model, whole[0])
    other, found = gradients(model, halves[0])
    assert other == pytest.approx(loss, abs=1e-6)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-6, msg=name)


def test_transformers_trainer_with_accumulation_trains_as_beni_does(accumulating, tmp_path):
    model, steps = accumulating(4)
    theirs, ours = deepcopy(model).train(), deepcopy(model).train()
    losses = own_loop(ours, steps)
    optimizer = torch.optim.SGD(theirs.parameters(), lr=RATE)
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=STEPS,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=4,
        max_grad_norm=0.0,
        logging_steps=1,
        remove_unused_columns=False,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
        accelerator_config={"dispatch_batches": False},  # which cuts images to the number of rows
    )
    trainer = Trainer(
        theirs,
        arguments,
        train_dataset=MicroBatches(steps),
        data_collator=lambda rows: rows[0].model_inputs(),
        optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)),
    )
    trainer.train()
    logged = [row["loss"] for row in trainer.state.log_history if "loss" in row]
    assert logged == pytest.approx(losses, abs=1e-3)
    for (name, found), expected in zip(theirs.named_parameters(), ours.parameters(), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("frozen", [(), ("train.plan.llm=frozen",)], ids=["full", "frozen-llm"])
def test_gradient_checkpointing_by_transformers_name_computes_layers_again_and_changes_no_gradient(
    tiny_run, tiny_model, steps_of, frozen
):
    model = tiny_model(*frozen)
    batches = steps_of(tiny_run(*frozen), model)[0]
    _, expected = gradients(model, batches)
    calls = []
    for layer in model.llm.layers():
        layer.input_layernorm.register_forward_hook(lambda *_: calls.append(1))
    gradients(model, batches)
    once = len(calls)
    model.activation_checkpointing_enable()
    calls.clear()
    _, found = gradients(model, batches)
    assert len(calls) == 2 * once
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-7, msg=name)
    model.activation_checkpointing_disable()
    calls.clear()
    gradients(model, batches)
    assert len(calls) == once
    with pytest.raises(ConfigError, match="fix: set gradient_checkpointing_kwargs"):
        model.activation_checkpointing_enable({"use_reentrant": True})
