"""``beni.evaluate``: the scores of training to the last digit, tasks on other data, evaluations that were killed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import pytest
import torch
import yaml

from beni.distributed.environment import DEVICES
from beni.evaluate import main
from beni.run import train
from beni.runs import code
from beni.trained import Trained
from support.evaluations import SHORT, draw_pictures, questions, varied_run

pytestmark = pytest.mark.slow

STAMPS = Path("/usr/share/tuxpaint/stamps")


def evaluated(capsys, *words, code=0):
    """The summary of an evaluation, with its ``folder``; the error where it cannot be."""
    assert main([*map(str, words), "--json"]) == code
    out, err = capsys.readouterr()
    return json.loads(out.strip().splitlines()[-1]) if code == 0 else err


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "scores.jsonl").read_text().splitlines()]


@pytest.mark.parametrize(
    "overrides",
    [
        ("train.ema=0.5", "optim.lr=1e-2"),
        ("data=stamps", "data.heldout=10", "data.choices=3", "optim.lr=1e-2"),
        ("compute.precision=bf16", "compute.layout=padded", "eval.batch_size=3", "checkpoint.export=true"),
        ("fusion=flamingo", "eval.examples=3", "optim.lr=1e-2"),
        ("adapter=lora", "train.plan.llm=lora", "selector=random", "selector.keep=2", "optim.lr=1e-2"),
    ],
    ids=["shapes with EMA", "stamps", "bf16 and padded", "flamingo", "LoRA and a selector"],
)
def test_the_final_scores_of_training_are_reproduced_exactly(overrides, tiny_run, tiny_values, capsys, absent):
    if "data=stamps" in overrides:
        if not STAMPS.is_dir():
            absent("needs tuxpaint-stamps-default")
        from beni.config.compose import compose

        shapes = ("data.size", "data.questions", "data.image_size", "data.heldout")
        values = [value for value in tiny_values if value.partition("=")[0] not in shapes]
        run = compose([*values, *overrides, f"paths.runs={tiny_run()['paths']['runs']}"])
    else:
        run = tiny_run("data.heldout=12", *overrides)
    folder = train(run)
    summary = evaluated(capsys, folder)
    assert (Path(summary["folder"]) / "scores.jsonl").read_bytes() == (folder / "scores.jsonl").read_bytes()
    logged: dict[str, float] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        logged |= json.loads(line)
    kept = {key: value for key, value in logged.items() if key.startswith("eval/") and key != "eval/ema"}
    assert summary["values"] == kept
    assert {f"eval/loss_{name}" for name in ("blank", "shuffled", "swapped", "noise", "dropped")} <= kept.keys()


@pytest.fixture(scope="module")
def folder(tiny_once, tmp_path_factory):
    """The folder of a run whose weights are so large that its answers vary."""
    return varied_run(tiny_once, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """data(answer_of, **columns): words of a command that name ten questions with these answers and columns."""
    root = tmp_path_factory.mktemp("data")
    draw_pictures(root)
    return lambda answer_of, **columns: questions(root, answer_of, **columns)


@pytest.fixture(scope="module")
def said(folder, data):
    """What the model says to the ten questions, by question number."""
    words = [*data(lambda i: "x"), "task=exact", SHORT, "--ablations=none", f"--out={folder.parent / 'said'}"]
    assert main([str(folder), *words]) == 0
    answers = {int(row["id"].rpartition("/")[2]): row["prediction"] for row in lines(folder.parent / "said")}
    assert len(set(answers.values())) > 3
    assert len(answers) == 10
    return answers


def test_what_the_model_says_is_right_where_the_data_say_so(folder, data, said, capsys):
    words = data(lambda i: [said[i]] * 5 + ["x"] * 5 if i % 2 else ["x"] * 10)
    summary = evaluated(capsys, folder, *words, "task=exact", SHORT, "--attention=1")
    assert summary["values"]["exact_match"] == 0.5
    assert summary["values"]["exact_match_blank"] < 0.5
    low, high = summary["intervals"]["exact_match"]
    assert low < 0.5 < high
    rows = lines(summary["folder"])
    assert len(rows) == 20
    assert all(0 < row["attention"] < 1 for row in rows if row["variant"] == "true")
    assert all("attention" not in row for row in rows if row["variant"] == "blank")
    shares = [row["attention"] for row in rows if row["variant"] == "true"]
    assert summary["values"]["attention_on_images"] == pytest.approx(sum(shares) / 10)


def test_the_answers_are_those_of_chat(folder, data, said):
    trained = Trained.load(folder)
    from beni.model.speaking import Sampling

    root = Path(next(word for word in data(lambda i: "x") if word.startswith("data.images=")).partition("=")[2])
    talks = [[trained.processor.question(root / f"{i}.png", f"what is it, number {i}?")] for i in range(10)]
    answers = trained.say(talks, Sampling(max_new_tokens=6))
    assert [answer.text for answer in answers] == [said[i] for i in range(10)]


def likeliest(folder, words, choices):
    """Of the choices of each question the one with the lowest loss as an answer, asked one by one."""
    trained = Trained.load(folder)
    root = Path(next(word for word in words if word.startswith("data.images=")).partition("=")[2])
    found = []
    for i, own in enumerate(choices):
        asked = trained.processor.question(root / f"{i}.png", f"what is it, number {i}?")
        losses = []
        for choice in own:
            talk = [asked, {"role": "assistant", "content": choice}]
            with torch.no_grad():
                losses.append(trained.model(**trained.processor.apply_chat_template(talk, tokenize=True)).loss)
        found.append(own[int(torch.stack(losses).argmin())])
    return found


def test_choices_are_told_by_likelihood_and_by_what_is_said(folder, data, said, capsys):
    words = data(lambda i: said[i], choices=lambda i: ["never said", said[i], "nor this"])
    by_text = evaluated(capsys, folder, *words, "task=choice_said", SHORT, "--ablations=none")
    assert by_text["values"] == {"accuracy": 1.0, "chance": pytest.approx(1 / 3)}
    by_likelihood = evaluated(capsys, folder, *words, "task=choice", "--ablations=noise")
    expected = likeliest(folder, words, [["never said", said[i], "nor this"] for i in range(10)])
    chosen = {row["id"].rpartition("/")[2]: row["prediction"] for row in lines(by_likelihood["folder"])[:10]}
    assert chosen == {str(i): choice for i, choice in enumerate(expected)}
    assert len(set(expected)) > 1
    assert {"accuracy_sum", "accuracy_noise", "accuracy_sum_noise", "chance"} < by_likelihood["values"].keys()
    lettered = evaluated(capsys, folder, *words, "task=choice_said", "task.letters=true", SHORT, "--ablations=none")
    texts = [row["prediction"] for row in lines(lettered["folder"])]
    assert texts != [row["prediction"] for row in lines(by_text["folder"])]


def test_a_saved_model_is_scored_on_named_data_only(folder, data, capsys):
    words = data(lambda i: "red")
    of_run = evaluated(capsys, folder, *words, "task=perplexity", "--batch-size=4", "--ablations=swapped,dropped")
    saved = evaluated(capsys, folder / "model", *words, "task=perplexity", "--batch-size=4", "--ablations=none")
    assert saved["values"]["perplexity"] == pytest.approx(of_run["values"]["perplexity"], rel=1e-5)
    assert {"perplexity_swapped", "perplexity_dropped"} <= of_run["values"].keys()
    assert "which knows no data" in evaluated(capsys, folder / "model", code=2)


def test_one_value_of_the_data_leaves_the_others_as_the_run_was_trained(folder, capsys):
    own = yaml.safe_load((folder / "config.yaml").read_text())["data"]
    few = evaluated(capsys, folder, "data.heldout=3", "--ablations=none")
    assert few["settings"]["data"] == own | {"heldout": 3}
    whole = evaluated(capsys, folder, "--ablations=none")
    assert [row["expected"] for row in lines(few["folder"])] == [row["expected"] for row in lines(whole["folder"])][:3]
    assert "which knows no data" in evaluated(capsys, folder / "model", "data.heldout=3", code=2)


def test_another_code_scores_again(folder, capsys, monkeypatch):
    words = ("data.heldout=2", "--ablations=none")
    before = evaluated(capsys, folder, *words)
    assert before["settings"]["code"] == code.running_code()
    assert evaluated(capsys, folder, *words)["folder"] == before["folder"]
    monkeypatch.setattr(code, "running_code", lambda: "0123456789ab")
    after = evaluated(capsys, folder, *words)
    assert after["folder"] != before["folder"]
    assert after["settings"]["code"] == "0123456789ab"


@pytest.mark.parametrize("count", [1, 6])
def test_a_small_file_is_scored_whole(count, folder, data, tmp_path, capsys):
    words = [word for word in data(lambda i: "red") if not word.startswith("data.heldout=")]
    path = next(word for word in words if word.startswith("data.path=")).partition("=")[2]
    (tmp_path / "few.json").write_text(json.dumps(json.loads(Path(path).read_text())[:count]))
    few = evaluated(capsys, folder, *words, f"data.path={tmp_path / 'few.json'}", "task=perplexity", "--ablations=none")
    assert few["samples"] == len(lines(few["folder"])) == count


def test_answers_end_with_the_positions_of_the_llm(folder, data, capsys, monkeypatch):
    """Batches whose questions leave positions enough are answered as batches, the others one by one."""
    from beni.evals.subject import Subject

    asked, generate = [], Subject.generate

    def noted(self, prompts, most):
        asked.append((len(prompts), most + max(len(prompt.encoded.ids) for prompt in prompts)))
        return generate(self, prompts, most, most)  # no answer ends by itself

    monkeypatch.setattr(Subject, "generate", noted)
    words = [*data(lambda i: "red"), "task=exact", "--ablations=none", "--examples=2"]
    assert main([str(folder), *words, "task.new_tokens=500"]) == 0
    assert "2 of 2 answers end before task.new_tokens=500: the llm has 512 positions" in capsys.readouterr().err
    assert asked == [(1, 512)] * 2
    found = lines(sorted((folder / "evaluations").glob("exact-*"), key=lambda one: one.stat().st_mtime)[-1])
    assert all(400 < row["cut"] < 500 and not row["ended"] for row in found)
    error = evaluated(capsys, folder, *words, "task.new_tokens=512", code=2)
    assert "task.new_tokens=512, expected less than the 512 positions of the llm" in error
    assert "fix: set task.new_tokens=32" in error


def test_few_examples_are_some_of_all(folder, data, capsys):
    words = [*data(lambda i: "red"), "task=perplexity", "--ablations=none"]
    few, whole = evaluated(capsys, folder, *words, "--examples=3"), evaluated(capsys, folder, *words)
    assert (few["samples"], whole["samples"]) == (3, 10)
    assert {row["id"] for row in lines(few["folder"])} < {row["id"] for row in lines(whole["folder"])}


def test_what_is_done_is_not_done_again(folder, data, capsys, monkeypatch):
    words = [*data(lambda i: "red"), "task=exact", SHORT, "--ablations=none"]
    first = evaluated(capsys, folder, *words)
    from beni.evals.subject import Subject

    monkeypatch.setattr(Subject, "generate", None)
    assert evaluated(capsys, folder, *words) == first


def test_an_evaluation_that_was_killed_gives_the_same_file(folder, data, tmp_path, capsys):
    """A process is killed between its groups, and its journal is torn; the same command goes on."""
    words = [str(folder), *data(lambda i: "red"), "task=exact", SHORT, "--batch-size=1", "--ablations=blank,shuffled"]
    evaluated(capsys, *words, f"--out={tmp_path / 'whole'}")
    cut = tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-m", "beni.evaluate", *words, f"--out={cut}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    done = 0
    until = time.monotonic() + 300
    while done < 12 and process.poll() is None and time.monotonic() < until:
        if (cut / "journal.jsonl").exists():
            done = (cut / "journal.jsonl").read_bytes().count(b"\n") - 1
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not (cut / "summary.json").exists()
    with (cut / "journal.jsonl").open("a") as file:
        file.write('{"group": 12, "rows": [{"id": "torn"')
    summary = evaluated(capsys, *words, f"--out={cut}")
    assert (cut / "scores.jsonl").read_bytes() == (tmp_path / "whole" / "scores.jsonl").read_bytes()
    assert (cut / "summary.json").read_bytes() == (tmp_path / "whole" / "summary.json").read_bytes()
    assert summary["samples"] == 10


def test_an_evaluation_goes_on_with_the_batch_that_comes_next(folder, data, tmp_path, capsys, monkeypatch):
    from beni.evals.subject import Subject

    words = [folder, *data(lambda i: "red"), "task=exact", SHORT, "--batch-size=2", "--ablations=none"]
    asked, generate = [], Subject.generate

    def three_times(self, prompts, *rest):
        asked.append(len(prompts))
        if len(asked) == 4:
            raise KeyboardInterrupt
        return generate(self, prompts, *rest)

    monkeypatch.setattr(Subject, "generate", three_times)
    with pytest.raises(KeyboardInterrupt):
        evaluated(capsys, *words, f"--out={tmp_path / 'cut'}")
    evaluated(capsys, *words, f"--out={tmp_path / 'cut'}")
    assert asked == [2] * 6  # three, one that was broken off, and the two that were left


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["task=nothing"], "task=nothing, expected one of run"),
        (["llm=tiny_llama"], "llm=tiny_llama cannot be set here, expected data=..."),
        (["--ablations=blurred"], "ablation blurred, expected some of blank"),
        (["--attention=3"], "--attention=3, expected at most 2, the layers of the llm"),
        (["--examples=0"], "--examples=0, expected at least 1"),
        (["--split=all"], "--split=all asks for training samples"),
        (["task=vqa"], "samples do not fit the task"),
        (["template=chatml"], "the prompt as given"),
        (["--checkpoint=7"], "has no checkpoint"),
        (["data=vqa", "data.path=/nowhere.json"], "data.path=/nowhere.json does not exist"),
    ],
)
def test_what_cannot_be_is_refused(folder, words, error, capsys):
    assert error in evaluated(capsys, folder, *words, code=2)


@pytest.mark.parametrize(
    ("command", "words"), [("evaluate", []), ("chat", []), ("serve.__main__", ["worker"]), ("serve.__main__", ["demo"])]
)
def test_commands_take_the_devices_that_there_are(command, words, capsys):
    parser = import_module(f"beni.{command}").parser()
    assert [parser.parse_args([*words, "RUN", "--device", name]).device for name in DEVICES] == [*DEVICES]
    for other in ("tpu", "cuda:1"):
        with pytest.raises(SystemExit) as ended:
            parser.parse_args([*words, "RUN", "--device", other])
        assert ended.value.code == 2
        assert f"invalid choice: '{other}'" in capsys.readouterr().err


@pytest.mark.parametrize("below", ["file", "file/out"])
def test_a_folder_that_cannot_be_made_is_named_with_its_option(below, folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    error = evaluated(capsys, folder, f"--out={tmp_path / below}", code=2)
    assert error.endswith("fix: free disk space, or name another folder with --out\n")
    assert f"{tmp_path / below} could not be written" in error


def test_a_folder_in_which_somebody_works_is_left_alone(folder, data, tmp_path, capsys):
    from beni.runs.lock import lock_of

    with lock_of(tmp_path / "out"):
        words = [*data(lambda i: "red"), "task=perplexity", f"--out={tmp_path / 'out'}"]
        assert "another process evaluates into it" in evaluated(capsys, folder, *words, code=2)


def test_a_run_whose_template_was_edited_is_refused_and_both_prompts_are_shown(tiny_run, capsys):
    folder = train(tiny_run())
    config = yaml.safe_load((folder / "config.yaml").read_text())
    config["template"]["system"] = "Be brief."
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    error = evaluated(capsys, folder, code=2)
    assert "the model was trained with" in error
    assert "Be brief." in error.split("the prompt as given")[1]


def test_the_table_shows_values_and_intervals(folder, data, capsys):
    words = [*data(lambda i: "red"), "task=perplexity", "--ablations=none"]
    assert main([str(folder), *words]) == 0
    out = capsys.readouterr().out
    assert "task=perplexity, 10 samples" in out
    assert "perplexity" in out
    assert "written: " in out
