"""In what two runs differ, as ``beni.diff`` tells it."""

import pytest
import yaml

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


FILES = {"_target_": "beni.data.formats.captions.Captions", "path": "data/captions.jsonl"}
SHAPES = {"_target_": "beni.data.shapes.source.Shapes", "size": 64}


@pytest.mark.parametrize(
    ("data", "code", "sentence"),
    [
        (
            SHAPES,
            0,
            "notes:\n  batches and initial weights differ, because the seeds do\n  data fingerprint differs, because",
        ),
        ({"_target_": "x.Mixture", "sources": {"a": SHAPES, "b": SHAPES}}, 0, "differ in their settings alone\n"),
        (
            {"_target_": "x.Mixture", "sources": {"a": SHAPES, "b": FILES}},
            0,
            "not proven:\n  data fingerprint differs, as",
        ),
        (FILES | {"split": "seed"}, 0, "because the seeds do, from which the samples are drawn"),
        (FILES, 1, "besides:\n  data fingerprint differs (eeee"),
        ({"_target_": "x.Mixture", "sources": {"b": FILES}}, 1, "besides:\n  data fingerprint differs (eeee"),
    ],
)
def test_another_seed_explains_data_that_are_drawn_and_not_files(make_run, capsys, data, code, sentence):
    runs = []
    for seed, fingerprint in ((0, "e" * 16), (1, "f" * 16)):
        folder = make_run(seed=seed, identity={"data_fingerprint": fingerprint})
        config = yaml.safe_load((folder / "config.yaml").read_text())
        (folder / "config.yaml").write_text(yaml.safe_dump(config | {"data": data}))
        runs.append(folder)
    found, printed = said(capsys, *runs)
    assert found == code
    assert sentence in printed.out


def test_a_damaged_config_is_refused_with_what_is_wrong(make_run, capsys):
    damaged = make_run()
    (damaged / "config.yaml").write_text("train: [unclosed")
    code, printed = said(capsys, make_run(), damaged)
    assert code == 2
    assert f"{damaged}: config.yaml is not complete YAML\n  fix: restore config.yaml from a copy" in printed.err


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
