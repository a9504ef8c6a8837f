"""What log lines say about speed, and where the time of a run went."""

from __future__ import annotations

import pytest
import torch

from beni.config.sections.log import steps_between_lines
from beni.measure.goodput import PARTS, Goodput
from beni.measure.peak import Peak
from beni.model.costing.counts import Costs
from beni.model.costing.table import propagate
from beni.training.throughput import Meter, ThroughputWindow

CPU = torch.device("cpu")
PEAK = Peak("a device", 1e12, 8e11, "log.peak_tflops")


@pytest.fixture
def lines(fit, tiny_run, tmp_path_factory):
    """lines(*overrides) -> (log lines by step, the run's meter)."""

    def train(*overrides, peak=PEAK, recomputes=True):
        run = tiny_run(*overrides)
        told, log = {}, fit.log()
        log.train = lambda step, values: told.__setitem__(step, values)
        meter = Meter(Costs(propagate(run), 3), peak, recomputes)
        fit(run, tmp_path_factory.mktemp("checkpoints"), log=log, meter=meter)
        return told, meter

    return train


def test_utilisation_is_useful_flops_over_what_the_peak_allows(lines):
    told, _ = lines("train.steps=3")
    for values in told.values():
        assert values["mfu"] * PEAK.rate / 1e12 == pytest.approx(values["tflops_per_s"])
        assert values["hfu"] == values["mfu"] > values["mfu_causal"] > 0
        parts = sum(values.get(f"flops/{name}", 0) for name in ("vision", "connector", "llm"))
        assert values["flops/useful"] == parts > values["flops/causal"]
        assert values["flops/padding"] == 0


def test_the_gradient_norm_is_made_of_those_of_the_components(lines):
    told, _ = lines("train.plan.vision=frozen")
    parts = [value for key, value in told[2].items() if key.startswith("grad_norm/")]
    assert "grad_norm/connector" in told[2]
    assert "grad_norm/vision" not in told[2]
    assert sum(part**2 for part in parts) == pytest.approx(told[2]["grad_norm"] ** 2, rel=1e-4)


def test_a_line_is_about_the_steps_since_the_last_one(lines):
    every, _ = lines("train.steps=4", "train.batch_size=4")
    flops = [every[step]["flops/useful"] for step in (1, 2, 3, 4)]
    some, _ = lines("train.steps=4", "train.batch_size=4", "log.every=4")
    assert some[4]["flops/useful"] == pytest.approx(sum(flops[1:]) / 3)


def test_what_the_compiler_computes_again_is_not_known(lines):
    told, _ = lines(recomputes=False)
    assert "hfu" not in told[2]
    assert "flops/recomputed" not in told[2]


def test_shares_of_wall_time_sum_to_one(lines):
    told, _ = lines("train.steps=3", "checkpoint.every=1")
    for values in told.values():
        shares = {part: values[f"goodput/{part}"] for part in PARTS}
        assert sum(shares.values()) == pytest.approx(1.0)
        assert shares["compute"] > 0
        assert values["memory/peak_gib"] >= values["memory/rss_gib"] * 0.9 > 0
    assert shares["checkpoint"] > 0


def test_a_component_that_begins_to_train_costs_more(lines):
    told, _ = lines("train.steps=4", "train.batch_size=8", "train.thaw.llm=0.5", "train.plan.llm=full")
    assert told[3]["flops/llm"] > 1.2 * told[2]["flops/llm"]


def test_features_from_a_bank_are_not_billed(tiny_run, steps_of, tiny_model):
    class Bank:
        hits = misses = encoded = 0

    bank, model = Bank(), tiny_model()
    run = tiny_run()
    window = ThroughputWindow(CPU, Goodput(CPU), bank, Meter(Costs(propagate(run), model.config.image_token_id), PEAK))
    batches = steps_of(run, model)[0]
    window.step_done(batches)
    whole = window.flop_count.components["vision"]
    bank.hits, bank.misses, bank.encoded = 6, 2, 2
    values = window.line()
    assert values["flops/vision"] == whole / 4
    assert values["feature_bank_hits"] == 0.75


@pytest.mark.parametrize(
    ("steps", "every", "apart"), [(9, "auto", 1), (100, "auto", 10), (2800, "auto", 25), (8, 6, 6)]
)
def test_a_short_run_has_ten_lines_and_a_number_is_obeyed(steps, every, apart):
    assert steps_between_lines({"log": {"every": every}, "train": {"steps": steps}}) == apart
