import json
import re

import pytest
import yaml

from beni.analysis.budgets import budgets_of
from beni.analysis.changes import between_seeds, changed_answers
from beni.analysis.comparison import compare_study
from beni.analysis.sections import headline, sections
from beni.analysis.study_plots import Point, Whisker, front, pareto, shifts, whiskers
from beni.analysis.tables import write_comparison
from beni.analysis.variants import names, scores
from beni.runs.identity import signature

HOSTILE = "<script>alert('x')</script>"


@pytest.fixture
def study(make_run):
    for seed in (0, 1, 2):
        make_run("none", seed, right=0.6)
        folder = make_run("perceiver", seed, right=0.9).parent
    return folder


def page(study):
    write_comparison(compare_study(study))
    return (study / "report.html").read_text()


def told(study):
    comparison = compare_study(study)
    return headline(comparison, budgets_of([row.arm for row in comparison.rows]))


def declare(study, match, steps=None):
    """Writes ``study.match`` into the configs, and other numbers of steps into the runs of the perceiver."""
    for folder in study.iterdir():
        config = yaml.safe_load((folder / "config.yaml").read_text())
        config["study"]["match"] = match
        if steps and "perceiver" in folder.name:
            status = json.loads((folder / "status.json").read_text())
            (folder / "status.json").write_text(json.dumps(status | {"step": steps}))
        (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
        identity = json.loads((folder / "identity.json").read_text()) | {"signature": signature(config)}
        (folder / "identity.json").write_text(json.dumps(identity))


def test_the_page_tells_all_a_reader_needs_in_both_themes_without_outside_links(study):
    html = page(study)
    titles = ("Arms", "Cost beside quality", "Does it look at the picture?", "By kind of question", "Changed answers")
    at = [html.index(f"<h2>{title}</h2>") for title in (*titles, "Proof of pairing", "Reproduce")]
    assert at == sorted(at)
    assert html.count('class="plot pareto"') == 2
    assert html.count('class="whisker"') == 1
    assert "python -m beni.train resampler=perceiver train.seed=2" in html
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html)
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html


def test_hostile_text_is_escaped_in_the_page_and_in_markdown(make_run):
    make_run("none")
    error = {"type": HOSTILE, "message": HOSTILE}
    make_run("none", 1, state="failed", status={"error": error})
    study = make_run("perceiver", choices__vision=HOSTILE, identity={"command": HOSTILE, "hypothesis": HOSTILE}).parent
    html = page(study)
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 3
    outside_code = re.sub(r"```bash.*?```", "", (study / "report.md").read_text(), flags=re.DOTALL)
    assert not re.search(r"(?<!\\)<script", outside_code)


def test_one_seed_is_told_in_the_first_line_and_gives_no_order(make_run):
    make_run("none")
    study = make_run("perceiver").parent
    assert told(study)[0].startswith("One seed per arm")
    assert " > " not in "".join(told(study))


def test_a_table_whose_arms_do_not_match_is_marked(study):
    declare(study, "steps", steps=660)
    assert "NOT MATCHED: study.match=steps, but steps reach from 600 (resampler=none) to 660" in told(study)[-1]
    assert 'class="reason">NOT MATCHED' in page(study)


def test_arms_that_match_are_said_to(study):
    declare(study, "steps", steps=606)
    assert told(study)[-1] == "Matched: the steps of all arms are within 1.0 % (study.match=steps)."
    assert 'class="reason">NOT MATCHED' not in page(study)


def test_a_match_that_no_run_can_prove_is_not_one(study):
    declare(study, "prefill_flops")
    for folder in study.glob("*perceiver*"):
        spec = json.loads((folder / "spec.json").read_text())
        del spec["prefill_flops"]
        (folder / "spec.json").write_text(json.dumps(spec))
    assert "NOT MATCHED: study.match=prefill_flops cannot be checked for resampler=perceiver" in told(study)[-1]


def test_without_a_match_the_report_says_what_is_equal(study):
    comparison = compare_study(study)
    (note,) = budgets_of([row.arm for row in comparison.rows]).notes
    assert "Equal over arms: positions of the LLM, training FLOPs, prefill FLOPs, steps" in note


def test_every_variant_of_the_scores_is_shown_with_its_gap(study):
    for folder in study.iterdir():
        rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text().splitlines()]
        rows += [row | {"variant": "shuffled", "score": 0} for row in rows if row["variant"] == "true"]
        (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    comparison = compare_study(study)
    arms = [row.arm for row in comparison.rows]
    assert names(arms) == ["blank", "shuffled"]
    shuffled = scores(arms[1], comparison.metric, ["shuffled"])[0]
    assert shuffled.score.mean == 0
    assert shuffled.gap is not None
    assert shuffled.gap.mean == pytest.approx(0.9)
    shown = page(study)
    assert re.search(r"<th[^>]*>shuffled</th>", shown)
    assert "+0.900" in shown


def test_changed_answers_count_which_side_is_right(make_run):
    make_run("none", right=1.0)
    study = make_run("perceiver", right=0.75).parent
    ours, theirs = (row.arm for row in reversed(compare_study(study).rows))
    changes = changed_answers(ours, theirs)
    assert changes is not None
    assert (changes.pairs, changes.changed, changes.worse, changes.better) == (40, 0.0, 0.25, 0.0)
    assert between_seeds(theirs) is None


def test_kinds_show_the_difference_to_the_baseline(study):
    comparison = compare_study(study)
    found = sections(comparison, budgets_of([row.arm for row in comparison.rows]))
    table = next(section for section in found if section.title == "By kind of question")
    assert table.header == ("arm", "color", "count")
    assert ["(" in cell for row in table.rows for cell in row[1:]] == [False, False, True, True]


def test_the_front_holds_what_no_cheaper_arm_beats():
    points = [Point(n, "", cost, score) for n, (cost, score) in enumerate([(1, 0.5), (2, 0.4), (3, 0.7), (3, 0.8)])]
    assert [point.number for point in front(points, higher=True)] == [0, 3]
    assert [point.number for point in front(points, higher=False)] == [0, 1]


def test_a_cost_axis_is_logarithmic_where_it_spans_more_than_ten_times():
    drawn = [
        pareto([Point(1, "a", 1e9, 0.5), Point(2, "b", end, 0.6)], higher=True, cost="c", score="s")
        for end in (5e9, 2e10)
    ]
    assert ["logarithmic" in str(one) for one in drawn] == [False, True]


def test_labels_of_dots_at_one_place_do_not_cover_each_other():
    found = [shift for shift in shifts([(0.5, 0.5)] * 6) if shift is not None]
    assert len(found) >= 4
    apart = [(abs(a[0] - b[0]), abs(a[1] - b[1])) for i, a in enumerate(found) for b in found[:i]]
    assert all(across >= 17 or down >= 15 for across, down in apart)


def test_whiskers_draw_every_seed_and_nothing_without_rows():
    drawn = str(whiskers([Whisker("a", "t", 0.1, 0.0, 0.2, (0.05, 0.1, 0.15))], label="x"))
    assert re.search(r'seed" d="(M[0-9.]+ 12h0){3}"', drawn)
    assert whiskers([], label="x") == ""


def test_an_order_stands_beside_what_is_supported_against_the_baseline(make_run):
    for seed, more in enumerate((0.0, 0.025, -0.025, 0.05, 0.0, -0.1)):
        make_run("none", seed, right=0.5, examples=200)
        make_run("perceiver", seed, right=0.8 + 0.025 * (seed % 2), examples=200)
        study = make_run("avg_pool", seed, right=0.5 + more, examples=200).parent
    assert told(study)[1] == (
        "Supported against the baseline: resampler=perceiver +0.312. Supported order, best first: "
        "resampler=perceiver > resampler=none ≈ resampler=avg_pool (≈: not all of these can be told apart)."
    )


def score_pictures(folder, right):
    """40 questions about 10 pictures, of which the right ones are answered."""
    rows = [
        {"step": 600, "id": f"e{i}", "kind": "color", "cluster": f"p{i // 4}", "variant": "true"}
        | {"score": int(i in right), "loss": 0.3, "prediction": "red", "expected": "blue", "chance": 0.34}
        for i in range(40)
    ]
    (folder / "scores.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_an_order_needs_what_a_supported_difference_needs(make_run):
    for seed in range(6):
        score_pictures(make_run("none", seed), set(range(20)))
        folder = make_run("perceiver", seed)
        score_pictures(folder, {*range(4, 28), 28 + seed % 3})  # better at two pictures, worse at one, under every seed
    comparison = compare_study(folder.parent)
    difference = comparison.rows[1].difference
    assert list(difference.per_seed.values()) == [0.125] * 6
    assert not difference.supported
    assert comparison.ranking is None
    assert told(folder.parent)[1] == (
        "No difference to the baseline is supported: none is clear of the noise. The noise supports no order of all "
        "arms."
    )


def test_arms_that_are_not_proven_to_be_paired_have_no_place_in_an_order(make_run):
    for seed in range(6):
        make_run("none", seed, right=0.5)
        make_run("perceiver", seed, right=0.8 + 0.025 * (seed % 2))
        make_run("avg_pool", seed, right=0.95 + 0.025 * (seed % 2), identity={"data_fingerprint": "other"})
        study = make_run("qformer", seed, right=0.1, identity={"hashes": {}}).parent
    assert told(study)[1] == (
        "Supported against the baseline: resampler=perceiver +0.312; resampler=avg_pool (confounded) +0.463; "
        "resampler=qformer (unknown) -0.400. Supported order, best first: resampler=perceiver > resampler=none. Not "
        "proven to be paired, so without a place in an order: resampler=avg_pool (confounded); resampler=qformer "
        "(unknown)."
    )


def test_p_is_said_to_be_corrected_where_there_are_several_arms(make_run):
    for seed in range(3):
        make_run("none", seed, right=0.5)
        study = make_run("perceiver", seed, right=0.9).parent
    assert "no p is at most 0.05. Intervals by themselves are clear of 0: resampler=perceiver." in told(study)[1]
    assert "corrected" not in page(study).replace("not corrected for many tests", "")
    for seed in range(3):
        make_run("qformer", seed, right=0.9)
    assert "no p, corrected for 2 arms, is at most 0.05." in told(study)[1]
    assert "a t-test over seeds and images, for new ones, corrected for 2 arms. MDE" in page(study)


def test_without_an_order_it_is_said_that_the_noise_supports_none(study):
    assert told(study)[1].startswith("No difference to the baseline is supported")
    assert told(study)[1].endswith(
        "Intervals by themselves are clear of 0: resampler=perceiver. The noise supports no order of all arms."
    )
