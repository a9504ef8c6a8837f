"""A run's signature covers what can change its result, and nothing else."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beni.config.compose import compose
from beni.config.foreign import DROPPED
from beni.runs.identity import IRRELEVANT, difference, provenance, relevant, run_folder, signature

Runs = Callable[..., dict[str, Any]]


READING = ["data=vqa", "data.path=x.jsonl", "train.guard.spike=skip"]
"""A run that reads values of pictures that are fetched, and of the guard."""


@pytest.mark.parametrize(
    "override",
    [
        "tracker=tensorboard",
        "launcher=slurm_1gpu",
        "study.name=other",
        "study.match=tokens",
        "study.match=tokens study.budget=1000",
        "paths.runs=elsewhere",
        "checkpoint.every=7",
        "checkpoint.resume=never",
        "checkpoint.on_error=halt",
        "log.watchdog_s=0",
        "eval.gallery=3",
        "eval.batch_size=1",
        "eval.ablations=[noise]",
        "log.every=3",
        "compute.workers=3",
        "images.max_bad=0.5",
        "images.retries=9",
        "images.timeout=3",
        "images.idle_timeout=3",
        "train.guard.nonfinite=skip train.guard.most=3",
        "eval.every=7",
        "template.max_length=4000",
        "checkpoint.resume=changed_data",
    ],
)
def test_what_cannot_change_the_result_leaves_the_signature_alone(override: str) -> None:
    *before, changed = override.split()
    assert signature(compose([*READING, *before, changed])) == signature(compose([*READING, *before]))


@pytest.mark.parametrize(
    "override",
    [
        "optim.lr=2e-4",
        "train.seed=1",
        "train.steps=601",
        "compute.precision=bf16",
        "compute.layout=padded",
        "compute.threads=1",
        "train.plan.vision=frozen",
        "resampler=perceiver",
        "connector=linear",
        "data.rows=100",
        "template=chatml",
        "llm.architecture.num_hidden_layers=5",
        "eval.examples=10",
        "fsdp=full",
        "images.on_bad=fail",
        "images.max_pixels=1000",
        "train.guard.spike=skip train.guard.threshold=3",
        "template.overlong=truncate",
    ],
)
def test_what_can_change_the_result_changes_the_signature(override: str) -> None:
    *before, changed = override.split()
    assert signature(compose([*READING, *before, changed])) != signature(compose([*READING, *before]))


def test_a_value_said_aloud_is_the_same_run_as_its_default() -> None:
    said = compose(["resampler=none", "train.seed=0", "optim.lr=1e-3", "train.plan.llm=full"])
    assert signature(said) == signature(compose([]))
    assert run_folder(said) == run_folder(compose([]))


def test_a_length_at_which_samples_are_cut_is_a_part_of_a_run() -> None:
    cut = [signature(compose(["template.overlong=truncate", f"template.max_length={n}"])) for n in (100, 200)]
    assert cut[0] != cut[1]


@pytest.mark.parametrize("key", ["path", "images"])
def test_a_path_spelt_otherwise_is_the_same_run_and_another_path_is_not(
    key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def of(path: str) -> str:
        return signature(compose(["data=vqa", "data.path=x.jsonl", f"data.{key}='{path}'"]))

    monkeypatch.chdir(tmp_path)
    spellings = ["a/b.jsonl", "./a/b.jsonl", "a//b.jsonl", "a/c/../b.jsonl", str(tmp_path / "a/b.jsonl")]
    assert len({of(path) for path in spellings}) == 1
    monkeypatch.setenv("HOME", str(tmp_path / "a"))
    assert of("~/b.jsonl") == of("a/b.jsonl")
    assert len({of(path) for path in ("b.jsonl", "../b.jsonl", "/b.jsonl", "hf://datasets/a/b.jsonl")}) == 4


def test_paths_of_the_sources_of_a_mixture_may_be_spelt_otherwise_too() -> None:
    one, other = compose([]), compose([])
    for run, path in ((one, "a.jsonl"), (other, "./a.jsonl")):
        run["data"]["sources"] = {"chat": {"path": path}}
    assert signature(one) == signature(other)


def test_the_order_of_keys_is_no_part_of_a_run() -> None:
    run = compose([])
    turned = dict(reversed(list(run.items())))
    assert signature(turned) == signature(run)


def test_every_irrelevant_key_exists() -> None:
    run = compose([])
    for path in (path for path in IRRELEVANT if path != DROPPED):  # which a run has where something was dropped
        node: Any = run
        for name in path.split("."):
            assert name in node, path
            node = node[name]


def test_looking_at_a_run_does_not_change_it() -> None:
    run = compose([])
    before = copy.deepcopy(run)
    relevant(run), signature(run), run_folder(run)
    assert run == before


def test_the_run_folder_says_what_was_chosen_and_lies_in_its_study(tmp_path: Path) -> None:
    run = compose(["resampler=perceiver", "train.seed=7", "study.name=mine", f"paths.runs={tmp_path}"])
    folder = run_folder(run)
    assert folder.parent == tmp_path / "mine"
    assert folder.name == f"tiny_vit-perceiver-tiny_llama-shapes-s7-{signature(run)}"


def test_an_option_in_a_subfolder_makes_no_subfolder_of_runs() -> None:
    run = compose([])
    run["choices"]["resampler"] = "mine/wide"
    assert "-mine_wide-" in run_folder(run).name


def test_a_difference_names_the_key_and_both_values() -> None:
    ours, theirs = compose(["train.seed=1"]), compose(["resampler=perceiver"])
    lines = difference(relevant(ours), relevant(theirs))
    assert "train.seed: 1 -> 0" in lines
    assert any(line.startswith("resampler._target_: ") for line in lines)
    assert "resampler.depth: None -> 1" in lines
    assert difference(ours, ours) == []


def test_provenance_names_code_and_versions(tiny_run: Runs) -> None:
    found = provenance(tiny_run())
    assert found["signature"] in found["name"]
    assert found["versions"]["torch"]
    assert set(found["git"]) == {"commit", "dirty"}
    assert found["command"] == "beni.train(run)"


def test_the_question_of_an_experiment_is_told_without_its_commands() -> None:
    told = provenance(compose(["experiment=selectors_base", "train.seed=0"]))["hypothesis"]
    assert told.startswith("The models that experiment=selectors")
    assert "python -m" not in told
