"""lmms-eval itself, where ``make lmms`` has made its environment, gives the scores of ``beni.evaluate``."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest
import yaml
from datasets import Dataset, Features, Image, List, Value

from beni.config.build import build
from beni.data.images import decode
from beni.evaluate import main
from beni.model.speaking import Sampling
from beni.paths import PACKAGE
from beni.trained import Trained
from support.evaluations import HELD_OUT, varied_run

LMMS = PACKAGE.parent.parent / ".venv-lmms" / "bin" / "python"
NEW = 12
TASK = {"test_split": "test", "doc_to_visual": "image", "doc_to_text": "question"}
SAID = {
    "output_type": "generate_until",
    "doc_to_target": "answer",
    "generation_kwargs": {"until": [], "max_new_tokens": NEW, "temperature": 0, "do_sample": False, "num_beams": 1},
    "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
}
CHOSEN = {
    "output_type": "multiple_choice",
    "doc_to_target": "choice",
    "doc_to_choice": "choices",
    "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
}


@pytest.fixture(scope="module")
def folder(tiny_once, tmp_path_factory):
    """The folder of a run whose weights are so large that its answers vary."""
    return varied_run(tiny_once, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def rows(folder):
    """The run's held-out images and questions: the model's own answer is right for every other one, and so is one of
    three choices.
    """
    trained = Trained.load(folder)
    samples = build(trained.run["data"], trained.run["train"]["seed"]).heldout()
    pictures = [decode(sample.images[0]) for sample in samples]
    asked = zip(pictures, samples, strict=True)
    talks = [[trained.processor.question(picture, sample.question)] for picture, sample in asked]
    answers = [answer.text.strip() for answer in trained.say(talks, Sampling(max_new_tokens=NEW))]
    assert len(set(answers)) > HELD_OUT / 2
    choices = [[said, sample.answer, "none of these"] for said, sample in zip(answers, samples, strict=True)]
    return [
        {
            "image": picture,
            "question": sample.question,
            "answer": said if i % 2 else sample.answer,
            "choices": own,
            "choice": own[i % 3],
        }
        for i, (picture, sample, said, own) in enumerate(zip(pictures, samples, answers, choices, strict=True))
    ]


@pytest.fixture(scope="module")
def tasks(rows, tmp_path_factory):
    """The rows as a file that lmms-eval's tasks read, and those tasks."""
    root = tmp_path_factory.mktemp("tasks")
    text = Value("string")
    kinds = {"image": Image(), "question": text, "answer": text, "choices": List(text), "choice": text}
    columns = {name: [row[name] for row in rows] for name in kinds}
    Dataset.from_dict(columns, Features(kinds)).to_parquet(str(root / "heldout.parquet"))
    data = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"test": str(root / "heldout.parquet")}}}
    for name, more in (("said", SAID), ("chosen", CHOSEN)):
        (root / f"{name}.yaml").write_text(yaml.safe_dump({"task": name, **data, **TASK, **more}))
    return root


@pytest.fixture(scope="module")
def data(rows, tmp_path_factory):
    """data(column): words of a command of beni that name the rows with this column as the right answer."""
    root = tmp_path_factory.mktemp("data")
    for i, row in enumerate(rows):
        row["image"].save(root / f"{i}.png")

    def words(column):
        told = [
            {"image": f"{i}.png", "question": row["question"], "answer": row[column], "choices": row["choices"]}
            for i, row in enumerate(rows)
        ]
        path = root / f"{column}.json"
        path.write_text(json.dumps(told))
        named = ["data=vqa", f"data.path={path}", f"data.images={root}", "data.columns.choices=choices"]
        return [*named, "data.heldout=2", "--split=all"]

    return words


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
    """The values of ``beni.evaluate``, and its lines of samples in the order of the rows."""
    assert main([str(folder), *words, "--ablations=none", "--json"]) == 0
    summary = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    lines = (Path(summary["folder"]) / "scores.jsonl").read_text().splitlines()
    return summary["values"], sorted(map(json.loads, lines), key=lambda row: int(row["id"].rpartition("/")[2]))


@pytest.fixture(autouse=True)
def environment(absent):
    if not LMMS.is_file():
        absent("make lmms has not made .venv-lmms")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "processes"),
    [((), 1), (("--force_simple",), 1), ((), 2)],
    ids=["conversations", "texts", "two processes"],
)
def test_what_the_model_says_has_the_score_of_beni(words, processes, folder, tasks, data, tmp_path, capsys):
    values, scored = by_beni(folder, capsys, "task=exact", f"task.new_tokens={NEW}", "--batch-size=8", *data("answer"))
    scores, samples = by_lmms(folder, tasks, "said", tmp_path, "--batch_size=8", *words, processes=processes)
    assert 0.4 < values["exact_match"] < 0.6
    assert scores["exact_match,none"] == pytest.approx(values["exact_match"], abs=1e-12)
    assert [sample["filtered_resps"].strip() for sample in samples] == [row["prediction"].strip() for row in scored]
    assert [sample["exact_match"] for sample in samples] == [row["score"] for row in scored]


@pytest.mark.slow
def test_what_the_model_chooses_has_the_score_of_beni(folder, tasks, data, tmp_path, capsys):
    values, scored = by_beni(folder, capsys, "task=choice", *data("choice"))
    scores, samples = by_lmms(folder, tasks, "chosen", tmp_path, "--batch_size=16", "--force_simple")
    assert 0.1 < values["accuracy"] < 0.9
    assert scores["acc,none"] == pytest.approx(values["accuracy"], abs=1e-12)
    assert [sample["acc"] for sample in samples] == [row["score"] for row in scored]
    losses = [float(sample["filtered_resps"][i % 3][0]) for i, sample in enumerate(samples)]
    assert losses == pytest.approx([row["loss"] for row in scored], rel=1e-5)


@pytest.mark.slow
def test_lmms_eval_shows_what_an_argument_should_have_been(folder, tasks):
    words = ["--model", "beni", "--model_args", f"pretrained={folder}", "--tasks", "said", "--include_path", str(tasks)]
    done = subprocess.run([str(LMMS), "-m", "lmms_eval", *words], capture_output=True, text=True)
    assert f"pretrained={folder}, and the model beni has run, checkpoint" in done.stdout + done.stderr
