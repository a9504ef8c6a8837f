"""In what two runs differ, as ``beni.diff`` tells it."""

import pytest

from beni.diff import main


def said(capsys, *folders):
    code = main([str(folder) for folder in folders])
    return code, capsys.readouterr()


def test_runs_that_differ_in_an_option_differ_in_their_settings_alone(make_run, capsys):
    code, printed = said(capsys, make_run("none"), make_run("perceiver"))
    assert code == 0
    assert "  choices.resampler: none -> perceiver" in printed.out
    assert printed.out.splitlines()[-1] == "they differ in their settings alone"


def test_another_seed_explains_batches_and_weights(make_run, capsys):
    code, printed = said(capsys, make_run(seed=0), make_run(seed=1))
    assert code == 0
    assert "  train.seed: 0 -> 1" in printed.out
    assert "  batches and initial weights differ, because the seeds do" in printed.out


@pytest.mark.parametrize(
    ("identity", "sentence"),
    [
        ({"code": "b" * 12}, "code differs"),
        ({"versions": {"python": "3.11.2", "torch": "2.12.0"}}, "version of torch differs (2.13.0, baseline 2.12.0)"),
        ({"data_fingerprint": "e" * 16}, "data fingerprint differs"),
        (
            {"other_code": [{"time": "now", "after_step": 3, "code": "c" * 12, "versions": {}}]},
            "was resumed with other code",
        ),
        ({"hashes": {"data_order": "other", "init": {"vision": "v0", "llm": "l0"}}}, "data order differs"),
        (
            {"hashes": {"data_order": "0rder0", "init": {"vision": "?", "llm": "l0"}}},
            "initial weights of vision differ",
        ),
    ],
)
def test_what_differs_besides_is_confounded(make_run, capsys, identity, sentence):
    code, printed = said(
        capsys, make_run(identity={"code": "a" * 12}), make_run(identity={"code": "a" * 12} | identity)
    )
    assert code == 1
    assert sentence in printed.out
    assert printed.out.splitlines()[-1].startswith("confounded")


def test_what_is_not_recorded_is_not_proven(make_run, capsys):
    code, printed = said(capsys, make_run(), make_run(identity={"hashes": {}}))
    assert code == 0
    assert "not proven:\n  data order not recorded" in printed.out
    assert printed.out.splitlines()[-1] == "they differ in no setting, as far as they tell"


def test_a_damaged_run_is_named(make_run, capsys):
    damaged = make_run()
    (damaged / "identity.json").write_text("{")
    assert f"damaged: {damaged}:" in said(capsys, make_run(), damaged)[1].out


def test_a_folder_that_is_no_run_is_refused(make_run, tmp_path, capsys):
    code, printed = said(capsys, make_run(), tmp_path)
    assert code == 2
    assert f"{tmp_path} is no run folder" in printed.err
