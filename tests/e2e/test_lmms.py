"""lmms-eval itself, where ``make lmms`` has made its environment, gives the scores of ``beni.evaluate``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, Features, Image, Sequence, Value

from beni.config.build import build
from beni.data.images import decode
from beni.evaluate import main
from beni.paths import PACKAGE
from beni.run import train
from beni.trained import Trained

LMMS = PACKAGE.parent.parent / ".venv-lmms" / "bin" / "python"
HELD_OUT = 48
TASK = {"test_split": "test", "doc_to_visual": "image", "doc_to_text": "question"}
SAID = {
    "output_type": "generate_until",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": [], "max_new_tokens": 32, "temperature": 0, "do_sample": False, "num_beams": 1},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CHOSEN = {
    "output_type": "multiple_choice",
    "doc_to_target": "answer",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def folder(tiny_once, tmp_path_factory):
    """The folder of a run that has learned some of its questions."""
    overrides = ("train.steps=150", "train.batch_size=32", "data.size=2048", "optim.lr=3e-3")
    run = tiny_once(*overrides, f"data.heldout={HELD_OUT}", "llm.architecture.max_position_embeddings=512")
    run["paths"]["runs"] = str(tmp_path_factory.mktemp("runs"))
    return train(run)


@pytest.fixture(scope="module")
def tasks(folder, tmp_path_factory):
    """The run's held-out samples as a file of lmms-eval's, and a folder for each task that reads it."""
    root = tmp_path_factory.mktemp("tasks")
    run = Trained.load(folder).run
    samples = build(run["data"], run["train"]["seed"]).heldout()
    columns = {
        "image": [decode(sample.images[0]) for sample in samples],
        "question": [sample.question for sample in samples],
        "answer": [sample.answer for sample in samples],
        "choices": [list(sample.choices) for sample in samples],
    }
    kinds = {"image": Image(), "question": Value("string"), "answer": Value("string")}
    rows = Dataset.from_dict(columns, Features(kinds | {"choices": Sequence(Value("string"))}))
    rows.to_parquet(str(root / "heldout.parquet"))
    data = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"test": str(root / "heldout.parquet")}}}
    for name, more in (("said", SAID), ("chosen", CHOSEN)):
        (root / name).mkdir()
        (root / name / "task.yaml").write_text(yaml.safe_dump({"task": name, **data, **TASK, **more}))
    return root


def by_lmms(folder, tasks, name, out, *words, processes=1):
    """Scores of lmms-eval's summary, and the lines that it keeps of samples, in their order."""
    variables = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tasks / "cache"), "TOKENIZERS_PARALLELISM": "false"}
    start = ["-m"] if processes == 1 else ["-m", "torch.distributed.run", f"--nproc-per-node={processes}", "-m"]
    command = [LMMS, *start, "lmms_eval", "--model", "beni", "--model_args", f"run={folder},checkpoint=last"]
    kept = ["--tasks", name, "--include_path", tasks, "--output_path", out, "--log_samples"]
    done = subprocess.run(list(map(str, [*command, *kept, *words])), capture_output=True, text=True, env=variables)
    assert done.returncode == 0, done.stderr
    found = sorted(out.rglob("*_results.json"))
    assert found, done.stderr[-4000:]
    (samples,) = out.rglob(f"*_samples_{name}.jsonl")
    rows = sorted(map(json.loads, samples.read_text().splitlines()), key=lambda row: row["doc_id"])
    return json.loads(found[0].read_text())["results"][name], rows


def by_beni(folder, capsys, *words):
    """The values of ``beni.evaluate``, and its lines of samples as they are."""
    assert main([str(folder), *words, "--ablations=none", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    lines = (Path(summary["folder"]) / "scores.jsonl").read_text().splitlines()
    return summary["values"], [json.loads(line) for line in lines]


@pytest.fixture(autouse=True)
def environment(absent):
    if not LMMS.is_file():
        absent("make lmms has not made .venv-lmms")


@pytest.mark.slow
@pytest.mark.parametrize("words", [(), ("--force_simple",)], ids=["conversations", "texts"])
def test_what_the_model_says_has_the_score_of_beni(words, folder, tasks, tmp_path, capsys):
    values, rows = by_beni(folder, capsys, "task=exact", "--batch-size=8")
    scores, samples = by_lmms(folder, tasks, "said", tmp_path, "--batch_size=8", *words)
    assert 0.1 < values["exact_match"] < 0.9
    assert scores["exact_match,none"] == pytest.approx(values["exact_match"], abs=1e-12)
    said = [row["prediction"].strip() for row in rows]
    assert len(set(said)) > 3
    assert [sample["filtered_resps"][0].strip() for sample in samples] == said
    assert [sample["exact_match"] for sample in samples] == [row["score"] for row in rows]


@pytest.mark.slow
def test_what_the_model_chooses_has_the_score_of_beni(folder, tasks, tmp_path, capsys):
    values, rows = by_beni(folder, capsys, "task=choice")
    scores, samples = by_lmms(folder, tasks, "chosen", tmp_path, "--batch_size=16", "--force_simple")
    assert 0.1 < values["accuracy"] < 0.9
    assert scores["acc,none"] == pytest.approx(values["accuracy"], abs=1e-12)
    assert [sample["acc"] for sample in samples] == [row["score"] for row in rows]


@pytest.mark.slow
def test_two_processes_give_the_score_of_one(folder, tasks, tmp_path, capsys):
    values, _ = by_beni(folder, capsys, "task=exact", "--batch-size=8")
    scores, samples = by_lmms(folder, tasks, "said", tmp_path, "--batch_size=8", processes=2)
    assert len(samples) == HELD_OUT
    assert scores["exact_match,none"] == pytest.approx(values["exact_match"], abs=1e-12)


@pytest.mark.slow
def test_lmms_eval_shows_what_an_argument_should_have_been(folder, tasks, tmp_path):
    words = [
        "--model",
        "beni",
        "--model_args",
        f"pretrained={folder}",
        "--tasks",
        tasks / "said",
        "--output_path",
        tmp_path,
    ]
    done = subprocess.run(list(map(str, [LMMS, "-m", "lmms_eval", *words])), capture_output=True, text=True)
    assert "pretrained=" in done.stdout + done.stderr
    assert "and the model beni has run, checkpoint" in done.stdout + done.stderr
