"""Several encoders see one canvas, on which they are counted; their runs train, and every component has its cost."""

from __future__ import annotations

import json

import pytest

from beni.model.costing.counts import Costs
from beni.model.costing.table import propagate, spec_table
from beni.run import train

ENCODERS = tuple(
    f"vision.encoders.{name}.{key}={value}"
    for name in ("clip", "dinov2")
    for key, value in {
        "image_size": 24,
        "architecture.hidden_size": 32,
        "architecture.num_hidden_layers": 3,
        "architecture.num_attention_heads": 4,
        "architecture.image_size": 24,
        "architecture.patch_size": 6,
    }.items()
)
SMALL = (*ENCODERS, "vision.encoders.clip.architecture.intermediate_size=64", "vision.weights=random")
COMBINED = {
    "interleave": ("vision=mof",),
    "sequence": ("vision=sequence",),
    "channels": ("vision=mof", "vision.combine=channels"),
    "sources": ("vision=mof", "vision.combine=sources", "resampler=sva", "resampler.side=2"),
}


@pytest.fixture
def several(tiny_values, tmp_path):
    from beni.config.compose import compose

    shared = [value for value in tiny_values if not value.startswith("vision.")]
    return lambda *overrides: compose([*shared, *overrides[:1], *SMALL, *overrides[1:], f"paths.runs={tmp_path}"])


@pytest.mark.parametrize("how", COMBINED)
def test_a_run_with_several_encoders_trains_and_logs_what_they_cost(several, how):
    folder = train(several(*COMBINED[how], "train.plan.vision=full"))
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    logged = [row for row in rows if "train/flops/vision" in row]
    assert len(logged) == 2
    behind = "resampler" if how == "sources" else "connector"
    assert all(min(row["train/flops/vision"], row[f"train/flops/{behind}"]) > 0 for row in logged)


def test_two_encoders_cost_what_each_costs_on_its_own(several):
    both = propagate(several("vision=mof"))
    image = both.views.plan((48, 48))
    total = Costs(both).prefill(image, 40, 4)["vision"]
    alone = []
    for name in ("clip", "dinov2"):
        run = several("vision=mof")
        run["vision"]["encoders"] = {name: run["vision"]["encoders"][name]}
        alone.append(Costs(propagate(run)).prefill(image, 40, 4)["vision"])
    assert total == sum(alone)


def test_the_plan_and_the_ledger_have_one_truth(tiny_run, tiny_model, steps_of):
    run = tiny_run("data.pictures_share=0", "data.text_share=0", "train.batch_size=1")
    model, planned = tiny_model(), propagate(run)
    batch = steps_of(run, model)[0][0]
    table = spec_table(planned, run, batch.num_tokens, batch.num_labels, batch.layouts[0])
    flop_count = Costs(planned, model.config.image_token_id).flop_count(batch)
    assert table.train_flops_per_sample == flop_count.useful
    assert 2 * table.prefill_flops < flop_count.useful < 3 * table.prefill_flops
    assert {row.stage: row.flops for row in table.rows}["fusion"] == 0
