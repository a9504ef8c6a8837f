import pytest

from beni.analysis.pairing import prove_pairing
from beni.runs.read import arms, collect_study


@pytest.fixture
def verdict(make_run):
    """verdict(identity=..., ...) -> the pairing of such a perceiver run with a plain one of resampler=none."""

    def prove(**values):
        make_run("none", 0)
        study = make_run("perceiver", 0, **values).parent
        baseline, arm = arms(collect_study(study))
        return prove_pairing(arm, baseline)

    return prove


def test_equal_hashes_prove_the_pair_although_only_one_arm_has_a_resampler(verdict):
    assert str(verdict()) == "yes"


@pytest.mark.parametrize(
    ("identity", "finding"),
    [
        ({"hashes": {"data_order": "other", "init": {"vision": "v0"}}}, "data order differs (other, baseline 0rder0)"),
        ({"hashes": {"data_order": "0rder0", "init": {"vision": "x"}}}, "initial weights of vision differ"),
        ({"git": {"commit": "beef", "dirty": False}}, "code (git commit) differs"),
        ({"versions": {"python": "3.11.2", "torch": "2.12"}}, "version of torch differs (2.12, baseline 2.13.0)"),
        ({"template_hash": "other"}, "template hash differs"),
        ({"data_fingerprint": "other"}, "data fingerprint differs"),
    ],
)
def test_anything_else_that_differs_confounds_the_pair(verdict, identity, finding):
    found = verdict(identity=identity)
    assert found.verdict == "confounded"
    assert finding in str(found)


def test_what_the_arm_itself_changes_is_a_note_not_a_confounder(verdict):
    found = verdict(identity={"template_hash": "other"}, template__system="Be brief.")
    assert found.verdict == "yes"
    assert found.notes == ("template hash differs, because the arm's template does",)


def test_a_component_of_another_size_is_a_note(verdict):
    found = verdict(
        identity={"hashes": {"data_order": "0rder0", "init": {"vision": "v0", "llm": "wider"}}},
        status={"parameters": {"vision": {"trained": 400_000, "frozen": 0}, "llm": {"trained": 7, "frozen": 0}}},
    )
    assert found.verdict == "yes"
    assert "llm has another size" in found.notes[0]


def test_arms_that_start_from_other_runs_have_other_weights_by_intention(verdict):
    hashes = {"data_order": "0rder0", "init": {"vision": "v0", "llm": "aligned"}}
    found = verdict(identity={"hashes": hashes}, train__init_from="runs/align/a")
    assert found.verdict == "yes"
    assert "initial weights of llm differ, because the arm's train.init_from does" in found.notes


OTHER_ORDER = {"hashes": {"data_order": "other", "init": {"vision": "v0"}}}


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"train__steps": 300}, "train.steps does"),
        ({"train__steps": 300, "train__batch_size": 32}, "train.steps and train.batch_size do"),
        ({"schedule__unit": "pack"}, "schedule does"),
    ],
)
def test_arms_that_train_for_other_steps_see_other_batches_by_intention(verdict, values, why):
    found = verdict(identity=OTHER_ORDER, **values)
    assert found.verdict == "yes"
    assert f"batches differ, because the arm's {why}" in found.notes


def test_other_data_confound_arms_of_other_steps_too(verdict):
    other = {"hashes": {"data_order": "other-0rder0", "init": {"vision": "v0"}}}
    assert "data order differs" in str(verdict(identity=other, train__steps=300))


def test_without_hashes_nothing_is_proven(verdict):
    assert str(verdict(identity={"hashes": {}})) == "unknown: data order not recorded; initial weights not recorded"


def test_uncommitted_changes_are_noted(verdict):
    assert "uncommitted" in verdict(identity={"git": {"commit": "c0ffee" * 6, "dirty": True}}).notes[0]
