import json
import math

import numpy as np
import pytest

from beni.analysis.stats import metric_value, paired_difference, summarize, variant_metric
from beni.runs.read import arms, collect_study


def write_scores(folder, scores):
    rows = [
        {"step": 1, "id": key, "cluster": key[0], "variant": "true", "score": value} for key, value in scores.items()
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def two_arms(make_run):
    """two_arms([scores of baseline by seed], [scores of the other arm by seed]) -> (arm, baseline)."""

    def make(ours, theirs):
        for resampler, seeds in (("none", theirs), ("perceiver", ours)):
            for seed, scores in enumerate(seeds):
                folder = make_run(resampler, seed)
                write_scores(folder, scores)
        baseline, arm = arms(collect_study(folder.parent))
        return arm, baseline

    return make


def test_mean_and_standard_deviation_are_over_seeds(make_run):
    for seed, right in enumerate((0.8, 0.9, 1.0)):
        study = make_run("none", seed, right=right).parent
    summary = summarize(arms(collect_study(study))[0], "eval/accuracy")
    assert summary.values == {0: 0.8, 1: 0.9, 2: 1.0}
    assert summary.mean == pytest.approx(0.9)
    assert summary.sd == pytest.approx(0.1)


def test_only_shared_ids_are_paired(two_arms):
    arm, baseline = two_arms([{"a1": 1, "a2": 1, "b1": 1, "z": 0}], [{"a1": 0, "a2": 1, "b1": 1, "y": 1}])
    difference = paired_difference(arm, baseline, "eval/accuracy")
    assert difference.mean == pytest.approx(1 / 3)
    assert (difference.pairs, difference.examples, difference.clusters) == (3, 3, 2)


def test_one_seed_has_no_standard_error_and_says_so(two_arms):
    arm, baseline = two_arms([{"a": 1, "b": 0}], [{"a": 0, "b": 0}])
    difference = paired_difference(arm, baseline, "eval/accuracy")
    assert difference.se is None
    assert difference.describe().startswith("1 seed: variation between seeds unknown; 2 pairs")


def test_with_equal_counts_the_clustered_error_is_that_of_the_seed_means(two_arms):
    ours = [{"a": 1, "b": 1, "c": 1}, {"a": 1, "b": 0, "c": 1}, {"a": 0, "b": 0, "c": 1}]
    arm, baseline = two_arms(ours, [{"a": 0, "b": 0, "c": 1}] * 3)
    difference = paired_difference(arm, baseline, "eval/accuracy")
    means = [2 / 3, 1 / 3, 0]
    assert list(difference.per_seed.values()) == pytest.approx(means)
    assert difference.se == pytest.approx(np.std(means, ddof=1) / math.sqrt(3))
    assert difference.sd_seeds == pytest.approx(np.std(means, ddof=1))


def test_a_seed_without_a_partner_is_left_out_and_named(two_arms):
    arm, baseline = two_arms([{"a": 1}, {"a": 0}], [{"a": 1}])
    difference = paired_difference(arm, baseline, "eval/accuracy")
    assert difference.mean == 0
    assert difference.unpaired == (1,)
    assert "unpaired seed 1" in difference.describe()


def test_arms_without_a_common_seed_have_no_difference(make_run):
    make_run("none", 0)
    study = make_run("perceiver", 1).parent
    baseline, arm = arms(collect_study(study))
    assert paired_difference(arm, baseline, "eval/accuracy") is None


def test_a_metric_without_example_rows_pairs_whole_runs(make_run):
    for seed in (0, 1):
        make_run("none", seed, status={"eval/wer": 0.2})
        study = make_run("perceiver", seed, status={"eval/wer": 0.3 + seed}).parent
    baseline, arm = arms(collect_study(study))
    difference = paired_difference(arm, baseline, "eval/wer")
    assert difference.pairs == 0
    assert difference.mean == pytest.approx(0.6)
    assert difference.se == pytest.approx(0.5)


def test_a_kind_is_scored_on_its_own_examples(make_run):
    run = collect_study(make_run(right=1.0).parent)[0]
    assert metric_value(run, "eval/accuracy/color") == 1.0
    assert metric_value(run, "eval/accuracy/weather") is None
    assert variant_metric("eval/accuracy/color", "blank") == "eval/accuracy_blank/color"
