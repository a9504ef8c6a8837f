import json
import shutil

import pytest

from beni.errors import BeniError
from beni.runs.read import arms, collect_run, collect_study


def test_seeds_of_one_config_make_one_arm_labelled_by_what_differs(make_run):
    for seed in (0, 1):
        make_run("none", seed)
        study = make_run("perceiver", seed).parent
    groups = arms(collect_study(study))
    assert [arm.label for arm in groups] == ["resampler=none", "resampler=perceiver"]
    assert [sorted(arm.finished) for arm in groups] == [[0, 1], [0, 1]]


def test_a_value_is_in_the_label_only_where_arms_with_the_same_choice_differ_in_it(make_run):
    make_run("none")
    make_run("perceiver")
    study = make_run("perceiver", resampler__depth=4).parent
    labels = [arm.label for arm in arms(collect_study(study))]
    assert labels == [
        "resampler=none",
        "resampler=perceiver resampler.depth=2",
        "resampler=perceiver resampler.depth=4",
    ]


def test_a_value_that_was_chosen_for_a_budget_is_left_out_of_labels_that_differ_without_it(make_run):
    matched = {"study__match": "train_flops", "study__solve": "train.steps"}
    make_run("none", **matched)
    study = make_run("perceiver", train__steps=700, **matched).parent
    assert [arm.label for arm in arms(collect_study(study))] == ["resampler=none", "resampler=perceiver"]
    make_run("perceiver", train__steps=900, **matched)
    assert [arm.label for arm in arms(collect_study(study))] == [
        "resampler=none train.steps=600",
        "resampler=perceiver train.steps=700",
        "resampler=perceiver train.steps=900",
    ]


def test_what_cannot_change_a_result_does_not_split_an_arm(make_run):
    make_run("none", 0)
    study = make_run("none", 1, log__every=50, tracker__mode="online", choices__tracker="wandb").parent
    groups = arms(collect_study(study))
    assert len(groups) == 1
    assert groups[0].label == "tiny_vit-none-tiny_llama"


def test_a_half_written_last_line_is_dropped_and_the_rest_is_read(make_run):
    folder = make_run()
    whole = len(collect_run(folder).metrics)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 610, "train/lo')
    assert len(collect_run(folder).metrics) == whole


def test_of_a_step_written_twice_after_a_resume_the_later_line_counts(make_run):
    folder = make_run()
    with (folder / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 10, "train/loss": 7.5}) + "\n" + '{"step": 20, "train/loss": NaN}\n')
    series = dict(collect_run(folder).series("train/loss"))
    assert series[10] == 7.5
    assert series[20] < 7.5  # the value that is no number is left out, the finite one stays


def test_missing_and_damaged_files_become_problems_not_exceptions(make_run):
    folder = make_run("none", 3)
    (folder / "status.json").write_text('{"state": "fin')
    (folder / "config.yaml").write_text("train: [unclosed")
    (folder / "scores.jsonl").unlink()
    run = collect_run(folder)
    assert len(run.problems) == 2
    assert (run.state, run.seed, run.answers(), dict(run.config)) == ("unknown", 3, None, {})
    assert len(arms(collect_study(folder.parent))) == 1


def test_only_the_last_evaluation_of_a_variant_counts(make_run):
    folder = make_run(examples=4)
    early = {"step": 200, "id": "old", "variant": "true", "score": 0}
    with (folder / "scores.jsonl").open("a") as file:
        file.write(json.dumps(early) + "\n")
    assert sorted(collect_run(folder).examples()) == ["e0", "e1", "e2", "e3"]


def test_a_run_that_was_set_aside_is_no_part_of_the_study(make_run):
    folder = make_run()
    shutil.copytree(folder, folder.with_name(f"{folder.name}.old1"))
    assert [run.folder for run in collect_study(folder.parent)] == [folder]


def test_throughput_falls_back_on_the_logged_lines(make_run):
    folder = make_run(status={"samples_per_s": None})
    rows = [{"step": step, "train/samples_per_s": value} for step, value in enumerate((1.0, 140.0, 150.0))]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert collect_run(folder).samples_per_s() == 140.0


def test_a_wrong_path_is_named_with_what_was_expected(make_run, tmp_path):
    folder = make_run()
    with pytest.raises(BeniError, match=r"nowhere: no such folder; expected a study folder"):
        collect_study(tmp_path / "nowhere")
    with pytest.raises(BeniError, match=rf"is one run.*\n.*fix: python -m beni.compare {folder.parent}"):
        collect_study(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(BeniError, match="holds no run"):
        collect_study(tmp_path / "empty")


def test_a_line_of_the_last_evaluation_that_is_gone_is_a_problem(make_run):
    folder = make_run(status={"scored": {"step": 600, "rows": 80}})
    said = "metrics.jsonl has no line of the last evaluation, at step 600"
    assert said not in collect_run(folder).damage
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:-1]))
    assert said in collect_run(folder).damage


def test_a_run_that_waits_for_its_turn_has_no_identity_yet_and_is_not_damaged(make_run):
    waiting, lost = make_run("none", state="queued"), make_run("none", 1, state="running")
    for folder in (waiting, lost):
        (folder / "identity.json").unlink()
        for name in ("metrics.jsonl", "scores.jsonl"):
            (folder / name).unlink(missing_ok=True)
    assert collect_run(waiting).problems == ()
    assert "identity.json cannot be read" in collect_run(lost).problems[0]


@pytest.mark.parametrize(
    ("told", "shown"),
    [
        ("Question: which? Result (2026-11-30, of then): 0.5. More.", "Question: which?"),
        ("Result (2026-11-30): 0.5", None),
        ("The Result (of all) counts.", "The Result (of all) counts."),
        (None, None),
        (7, None),
    ],
)
def test_the_question_of_a_run_is_shown_without_an_earlier_result(make_run, told, shown):
    assert collect_run(make_run(identity={"hypothesis": told})).hypothesis == shown


def test_arms_are_listed_as_their_sweep_named_them(make_run):
    same = {"created": "2026-01-01T00:00:09+00:00"}
    first = {"launched": "2026-01-01T00:00:05+00:00"}
    make_run("avg_pool", identity=same | first | {"place": 1})
    make_run("none", identity=same | first | {"place": 0})
    make_run("perceiver", identity={"launched": "2026-01-02T00:00:00+00:00", "place": 0})  # of a later sweep
    waits = make_run("qformer", state="queued")
    (waits / "identity.json").unlink()
    (waits / "origin.json").write_text(json.dumps(first | {"place": 2}))
    study = make_run("token_learner", identity={"created": "2025-12-31T00:00:00+00:00"}).parent  # before there were any
    labels = [arm.label.removeprefix("resampler=") for arm in arms(collect_study(study))]
    assert labels == ["token_learner", "none", "avg_pool", "qformer", "perceiver"]
    assert [run.problems for run in collect_study(study)] == [()] * 5
