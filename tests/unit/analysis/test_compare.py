import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from beni import compare
from beni.analysis.comparison import compare_study
from beni.compare import main


@pytest.fixture
def study(make_run):
    for seed in (0, 1):
        make_run("none", seed, right=0.7)
        folder = make_run("perceiver", seed, right=0.9).parent
    return folder


def table(study):
    return list(csv.DictReader((study / "results.csv").read_text().splitlines()))


def arms(study):
    return json.loads((study / "results.json").read_text())["arms"]


def test_a_study_ends_in_a_table_and_four_files(study, capsys):
    assert main([str(study)]) == 0
    shown = capsys.readouterr().out
    assert "resampler=perceiver" in shown
    rows = table(study)
    assert [(row["arm"], row["seed"]) for row in rows] == [
        (f"resampler={name}", seed) for name in ("none", "perceiver") for seed in ("0", "1")
    ]
    assert (rows[2]["paired"], rows[2]["visual_tokens"], rows[2]["eval/accuracy"]) == ("yes", "16.0", "0.9")
    difference = arms(study)[1]["difference"]
    assert difference["per_seed"].keys() == {"0", "1"}
    assert (difference["mean"], difference["pairs"]) == (pytest.approx(0.2), 80)
    assert "| resampler=perceiver | 2/2 | 0.900 ± 0.000 |" in (study / "report.md").read_text()
    assert "</html>" in (study / "report.html").read_text()


def test_the_baseline_can_be_chosen_by_its_label(study, capsys):
    assert main([str(study), "--baseline", "resampler=perceiver"]) == 0
    assert arms(study)[0]["difference"]["mean"] == pytest.approx(-0.2)
    assert [row["paired"] for row in table(study)] == ["yes", "yes", "baseline", "baseline"]


def test_a_failed_arm_is_shown_with_its_reason_beside_the_finished_ones(study, make_run, capsys):
    make_run("qformer", 0, state="failed", status={"error": {"type": "CompositionError", "message": "E-HEADS: 7 | 3"}})
    assert main([str(study)]) == 0
    assert "CompositionError: E-HEADS: 7 | 3" in capsys.readouterr().out
    assert [row["state"] for row in table(study)] == ["finished"] * 4 + ["failed"]
    assert table(study)[4]["eval/accuracy"] == ""
    assert "E-HEADS: 7 \\| 3" in (study / "report.md").read_text()


def test_a_run_whose_process_is_gone_is_lost_with_the_reason(study, make_run, capsys):
    make_run("qformer", 0, state="running")
    assert main([str(study)]) == 0
    assert "resampler=qformer (seed 0): lost at step 120, the process was killed" in " ".join(
        (study / "report.md").read_text().replace("\\", "").split()
    )
    assert "lost" in table(study)[4]["state"]


def test_one_seed_says_so_in_its_first_line(make_run, capsys):
    make_run("none")
    study = make_run("perceiver").parent
    assert main([str(study)]) == 0
    assert capsys.readouterr().out.startswith("One seed per arm")


def test_a_confounded_pair_is_called_so(make_run, capsys):
    make_run("none")
    study = make_run("perceiver", identity={"template_hash": "other"}).parent
    main([str(study)])
    assert "CONFOUNDED: resampler=perceiver" in capsys.readouterr().out


def test_a_study_without_a_finished_run_says_so(make_run, capsys):
    study = make_run("none", state="running").parent
    assert main([str(study)]) == 0
    assert "No run of this study has finished" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--baseline", "resampler=qformer"], "no such arm; expected one of\n  resampler=none"),
        (["--metric", "eval/acuracy"], "--metric eval/acuracy: no finished run has it; expected one of eval/accuracy"),
    ],
)
def test_a_wrong_argument_exits_with_2_and_the_choices(study, capsys, arguments, message):
    assert main([str(study), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (study / "report.md").exists()


def test_a_wrong_path_exits_with_2(tmp_path, capsys):
    assert main([str(tmp_path / "nowhere")]) == 2
    assert "no such folder; expected a study folder" in capsys.readouterr().err


def test_comparing_and_rendering_import_neither_torch_nor_matplotlib(study):
    code = (
        "import sys, beni.compare, beni.analysis.render as r, pathlib\n"
        f"assert beni.compare.main([{str(study)!r}]) == 0\n"
        f"r.render_report(next(p for p in pathlib.Path({str(study)!r}).iterdir() if p.is_dir()))\n"
        "heavy = {'torch', 'transformers', 'matplotlib', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(compare.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_few_seeds_are_told_that_nothing_can_reach_significance(make_run):
    for seed in range(5):
        make_run("none", seed, right=0.5)
        make_run("perceiver", seed, right=0.8 + 0.025 * (seed % 2))
        folder = make_run("avg_pool", seed, right=0.6).parent
    comparison = compare_study(folder)
    assert any("5 paired seeds" in note and "use 6 or more" in note for note in comparison.notes)
    assert [row.difference.supported for row in comparison.rows if row.difference] == [False, False]
    assert comparison.ranking is None
    assert [row.difference.mde for row in comparison.rows if row.difference] == [None, None]
    assert main([str(folder)]) == 0
    report = (folder / "report.md").read_text()
    assert "below 6 seeds there is none, since no p can be 0.05" in report
    rows = [line.split(" | ") for line in report.splitlines() if line.startswith(("| 6 |", "| 24 |"))]
    assert [len(row) for row in rows] == [3, 3]  # seeds, two arms, one arm
    assert all(
        float(few.strip("| ")) > float(many.strip("| ")) > 0 for few, many in zip(*rows, strict=True) if few != "| 6"
    )


def test_six_seeds_suffice_for_several_arms(make_run):
    for seed in range(6):
        make_run("none", seed, right=0.5)
        make_run("perceiver", seed, right=0.8 + 0.025 * (seed % 2))
        folder = make_run("avg_pool", seed, right=0.2 - 0.025 * (seed % 2)).parent
    comparison = compare_study(folder)
    found = [row.difference for row in comparison.rows if row.difference]
    assert [one.p for one in found] == [2 / 64, 2 / 64]
    assert all(one.p_adjusted <= 0.05 and one.supported for one in found)
    assert len(comparison.ranking) == 3


def test_six_seeds_of_two_arms_support_a_ranking(make_run):
    for seed in range(6):
        make_run("none", seed, right=0.5)
        folder = make_run("perceiver", seed, right=0.8 + 0.025 * (seed % 2)).parent
    comparison = compare_study(folder)
    difference = comparison.rows[1].difference
    assert (difference.p, difference.p_adjusted, difference.supported) == (2 / 64, 2 / 64, True)
    assert 0.2 < difference.low < 0.3125 < difference.high < 0.5
    assert 0.1 < difference.mde < 0.2
    assert comparison.ranking == (("resampler=perceiver",), ("resampler=none",))


def test_arms_that_were_dropped_are_told(make_run):
    make_run("none", 0)
    folder = make_run("perceiver", 0, state="dropped").parent
    assert any(note.startswith("DROPPED by study.stop: resampler=perceiver") for note in compare_study(folder).notes)
