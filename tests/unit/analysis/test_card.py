"""The card of an exported folder says what is in the run folder, and nothing of it is markup."""

import hashlib
import json
import re

import pytest
import yaml

from beni.analysis.card import Exported, write_card
from support.run_folders import lines


def exported(step=600, **fields):
    told = {
        "form": "native",
        "what": "a folder",
        "step": step,
        "kind": "weights",
        "scored": True,
        "architecture": "LlavaForConditionalGeneration",
        "compared": [("largest difference of a logit", "1e-06")],
        "notes": ["Put text between images."],
    }
    return Exported(**told | fields)


@pytest.fixture
def written(make_run, tmp_path):
    def write(what=None, /, **fields):
        folder = make_run(resampler="perceiver", seed=0, **fields)
        out = tmp_path / "out"
        out.mkdir(exist_ok=True)
        (out / "model.safetensors").write_bytes(b"weights")
        return folder, write_card(folder, out, what or exported()).read_text()

    return write


def rows(card, heading):
    section = card.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = ([cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    return {row[0]: row[1:] for row in cells if row[0]}


def test_scores_are_those_of_the_run_with_intervals_around_them(written):
    folder, card = written()
    score, between, examples = rows(card, "Scores")["accuracy, with the image"]
    told = json.loads((folder / "status.json").read_text())["eval/accuracy"]
    assert float(score) == pytest.approx(told, abs=1e-3)
    low, high = map(float, between.split(" to "))
    assert low < told < high
    assert int(examples.replace(",", "")) > 10
    assert "Put text between images." in card
    assert rows(card, "Compared with the run") == {"largest difference of a logit": ["1e-06"]}


def test_a_step_that_was_not_scored_has_no_scores_and_the_last_evaluation_is_named(written):
    card = written(exported(step=599))[1]
    assert "The run has not scored step 599; its last evaluation is of step 600." in card
    assert rows(card, "Scores") == {}


def test_weights_that_the_run_does_not_score_have_no_scores(written):
    card = written(exported(scored=False, kind="EMA weights"))[1]
    assert "The run scores weights, so it has no scores of these." in card
    assert rows(card, "Scores") == {}


def test_the_head_is_yaml_without_a_licence_and_names_pretrained_models(written):
    head = yaml.safe_load(written()[1].split("---")[1])
    assert head == {"library_name": "transformers", "pipeline_tag": "image-text-to-text", "tags": ["beni"]}
    card = written(
        llm__name="org/llm", llm__weights="pretrained", vision__name="/models/x", vision__weights="pretrained"
    )
    assert yaml.safe_load(card[1].split("---")[1])["base_model"] == ["org/llm"]
    assert "# license: fill in" in card[1]


def test_every_file_has_its_hash(written):
    card = written()[1]
    assert f"`{hashlib.sha256(b'weights').hexdigest()}`" in card
    assert rows(card, "Hashes")["model.safetensors"][0] == "7"


def test_what_a_run_wrote_is_no_markup_and_secrets_are_hidden(written):
    value = "a|b\n# big <img src=x onerror=alert(1)> [x](javascript:y) https://u:hunter2@h/x"
    card = written(data__root=value, template__system=value)[1]
    assert "\n# big" not in card
    assert "<img" not in card
    assert "hunter2" not in card
    assert "\\[x\\](javascript" in card
    assert "a\\|b" in rows(card, "Data")["data.root"][0]


def test_a_run_folder_with_damage_still_has_a_card_that_says_so(make_run, tmp_path):
    folder = make_run(resampler="none", seed=0)
    (folder / "identity.json").unlink()
    lines(folder / "scores.jsonl", [])
    out = tmp_path / "out"
    out.mkdir()
    card = write_card(folder, out, exported()).read_text()
    assert "## Not readable in the run folder" in card
    assert "identity.json cannot be read" in card
