import io

import pytest
from rich.console import Console

from beni.analysis.comparison import compare_study
from beni.analysis.terminal_tables import compare_table, run_table
from beni.runs.read import collect_run


def shown(item, width=80):
    console = Console(width=width, file=io.StringIO())
    console.print(item)
    return console.file.getvalue()


def test_the_end_of_a_run_shows_scores_with_and_without_the_image(make_run):
    text = shown(run_table(collect_run(make_run(right=0.925, blank=0.325))))
    assert "accuracy with the image       0.925" in text
    assert "accuracy with a blank image   0.325" in text
    assert "4 min 32 s" in text


def test_a_failed_run_shows_its_reason_and_no_empty_rows(make_run):
    error = {"type": "DataError", "message": "row [3] has no image"}
    text = shown(run_table(collect_run(make_run(state="failed", status={"error": error}))))
    assert "DataError: row [3] has no image" in text  # brackets are text, not rich's markup
    assert "accuracy" not in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_numbers_stay_whole_at_any_width(make_run, width):
    for seed in (0, 1):
        make_run("none", seed, right=0.7)
        study = make_run("perceiver", seed, right=0.9 + 0.05 * seed).parent
    text = shown(compare_table(compare_study(study)), width)
    for number in ("0.925 ± 0.035", "+0.225 ± 0.025", "4 min 32 s", "1.25 GiB"):
        assert number in text
