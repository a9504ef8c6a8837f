import base64
import json
import re

import pytest
from PIL import Image

from beni.analysis.render import render_report

HOSTILE = "<script>alert('x')</script>"


def test_a_finished_run_shows_scores_picture_config_and_command(make_run):
    html = render_report(make_run("perceiver", right=0.925)).read_text()
    assert "0.925" in html
    assert html.count("data:image/png;base64,") == 6  # one a picture, although two questions were asked about each
    assert html.count("✗ wrong") == 1
    assert html.count("✓ right") == 11
    for expected in (
        "What colour is the square?",
        "8×8",
        "python -m beni.train resampler=perceiver",
        "num_latents: 16",
    ):
        assert expected in html


def test_scores_of_averaged_weights_are_said_to_be_that(make_run):
    assert "EMA weights" not in render_report(make_run(train__ema=0.0)).read_text()
    assert "EMA weights (train.ema=0.999)" in render_report(make_run(train__ema=0.999)).read_text()


def test_settings_are_shown_by_the_keys_that_set_them_with_what_the_run_decided(make_run):
    folder = make_run()
    told = {"step": 0, "time": "2026-01-01", "text": "this run uses compute.layout=padded"}
    (folder / "notices.jsonl").write_text(json.dumps(told) + "\n")
    html = render_report(folder).read_text()
    for words in ("train.steps", "log.every", "<summary>Notices", told["text"]):
        assert words in html
    assert "<summary>Notices" not in render_report(make_run(seed=1)).read_text()


def test_a_stage_whose_number_of_tokens_is_a_bound_says_so_with_the_mean_where_it_is_known(make_run):
    folder = make_run()
    spec = json.loads((folder / "spec.json").read_text())
    spec["rows"][0] |= {"fixed": False, "mean": 20.25}
    spec["rows"][1] |= {"fixed": False, "mean": None}
    (folder / "spec.json").write_text(json.dumps(spec))
    html = render_report(folder).read_text()
    assert "≤ 64, mean 20.2" in html
    assert "≤ 16<" in html
    assert "≤ 80" not in html


def test_nothing_is_loaded_from_outside_and_no_script_runs(make_run):
    html = render_report(make_run()).read_text()
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", html)
    assert not re.search(r"<(script|link|iframe|object)\b|@import|url\(", html)
    assert "prefers-color-scheme: dark" in html
    assert "width=device-width" in html


def test_hostile_text_is_escaped_everywhere(make_run):
    folder = make_run(
        identity={"command": HOSTILE, "versions": {HOSTILE: HOSTILE}},
        status={"state": HOSTILE, "error": {"type": HOSTILE, "message": HOSTILE, "traceback": HOSTILE}},
        template__system=HOSTILE,
        choices__vision=HOSTILE,
    )
    answer = {"id": HOSTILE, "images": [f"gallery/{HOSTILE}.png"], "correct": False}
    answer |= dict.fromkeys(("question", "expected", "prediction", "prediction_blank"), HOSTILE)
    (folder / "gallery.jsonl").write_text(json.dumps(answer))
    (folder / "scores.jsonl").write_text(
        json.dumps({"step": 1, "id": "a", "kind": HOSTILE, "variant": "true", "score": 1})
    )
    html = render_report(folder).read_text()
    assert "<script" not in html
    assert html.count("&lt;script&gt;") >= 12


def test_a_failed_run_shows_its_error_and_traceback(make_run):
    error = {"type": "DataError", "message": "row 3 has no image", "traceback": "Traceback: line 7"}
    html = render_report(make_run(state="failed", status={"error": error})).read_text()
    assert "DataError: row 3 has no image" in html
    assert "Traceback: line 7" in html
    assert "No held-out score was written." in html


@pytest.mark.parametrize(
    "name",
    ["config.yaml", "identity.json", "status.json", "metrics.jsonl", "scores.jsonl", "gallery.jsonl", "spec.json"],
)
def test_a_report_renders_without_any_one_file(make_run, name):
    folder = make_run()
    (folder / name).unlink()
    assert "</html>" in render_report(folder).read_text()


def test_an_empty_folder_renders_and_says_what_is_missing(tmp_path):
    assert "status.json cannot be read" in render_report(tmp_path).read_text()


def test_a_picture_outside_the_run_folder_is_not_read(make_run):
    folder = make_run()
    secret = folder.parent / "secret.png"
    secret.write_bytes((folder / "gallery" / "p0.png").read_bytes())
    (folder / "gallery.jsonl").write_text(
        json.dumps(
            {
                "id": "a",
                "question": "?",
                "expected": "1",
                "prediction": "1",
                "correct": True,
                "images": ["../secret.png"],
            }
        )
    )
    html = render_report(folder).read_text()
    assert "base64" not in html
    assert "image ../secret.png is missing" in html


def test_of_a_choice_the_picked_text_is_judged_and_the_free_one_shown_beside(make_run):
    folder = make_run()
    row = {
        "id": "a",
        "question": "?",
        "expected": "a lion",
        "prediction": "a bird",
        "choice": "a lion",
        "correct": True,
    }
    (folder / "gallery.jsonl").write_text(json.dumps(row))
    html = render_report(folder).read_text()
    assert re.search(r"✓ right</b> <span class=\"given\">a lion</span>", html)
    assert "free generation: a bird" in html


def test_data_errors_are_listed(make_run):
    html = render_report(make_run(status={"data_errors": ["row 7: no such file"]})).read_text()
    assert "row 7: no such file" in html


def test_one_evaluation_at_the_end_makes_no_accuracy_curve(make_run):
    folder = make_run()
    assert "Held-out accuracy over training steps" in render_report(folder).read_text()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    (folder / "metrics.jsonl").write_text("\n".join(line for line in lines if '"eval/' not in line or " 600," in line))
    html = render_report(folder).read_text()
    assert "Held-out accuracy over training steps" not in html
    assert "Evaluations as a table" not in html
    assert "Loss over training steps" in html


def test_what_stages_leave_while_training_is_drawn_as_curves(make_run):
    plain = render_report(make_run()).read_text()
    assert "<h2>Stages" not in plain
    folder = make_run(seed=1)
    left = {"train/selector/open": 0.5, "train/aux/selector/kl": 0.1, "train/flops/vision": 3.0}
    left |= {"train/resampler/norm": 2.0}
    with (folder / "metrics.jsonl").open("a") as file:
        for step in (610, 620, 630):
            file.write(json.dumps({"step": step} | {name: value * step for name, value in left.items()}) + "\n")
    html = render_report(folder).read_text()
    stages = html.partition("<h2>Stages")[2].partition("</section>")[0]
    names = re.findall(r'aria-label="(\S+) over training steps"', stages)
    assert names == ["resampler/norm", "selector/kl", "selector/open"]
    assert stages.count('<path class="c1 line"') == 6  # each and its legend


@pytest.fixture
def drawn(make_run):
    """A run with drawings over the picture of its first two questions."""
    folder = make_run()
    rows = [json.loads(line) for line in (folder / "gallery.jsonl").read_text().splitlines()]
    for name, level in (("kept", 90), ("heat", 200), ("other", 30)):
        Image.new("L", (64, 64), level).save(folder / f"gallery/{name}.png")
    kept = {"image": 0, "name": "selector/kept", "part": "", "note": "5 of 16 tokens", "file": "gallery/kept.png"}
    heat = {"image": 0, "name": "attention", "part": "", "note": HOSTILE, "file": "gallery/heat.png"}
    rows[0] |= {"attention": 0.4567, "drawings": [kept, heat]}
    rows[1] |= {"attention": 0.125, "drawings": [kept, heat | {"file": "gallery/other.png"}]}
    (folder / "gallery.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_drawings_lie_over_their_picture_and_the_same_one_is_shown_once(drawn):
    html = render_report(drawn).read_text()
    card = html.partition('<div class="gallery">')[2].partition("</article>")[0]
    (thumbnail,) = re.findall(r'<article style="--picture-0: url\((data:image/png;base64,[^)]*)\); ">', card)
    assert f'<img src="{thumbnail}" alt="held-out image"' in card
    over = re.findall(r'<figure><img src="([^"]*)" style="background-image: var\(--picture-0\)"', card)
    files = [drawn / "gallery" / f"{name}.png" for name in ("kept", "heat", "other")]
    assert over == [f"data:image/png;base64,{base64.b64encode(file.read_bytes()).decode()}" for file in files]
    assert "attention on the image: 45.7 %" in card
    assert "attention on the image: 12.5 %" in card
    assert "selector/kept, 5 of 16 tokens" in card
    assert HOSTILE not in html
    assert set(re.findall(r"url\((.....)", html)) == {"data:"}


def test_a_legend_says_what_the_drawings_are_and_only_those(drawn, make_run):
    html = render_report(drawn).read_text()
    assert "<b>selector/kept</b>: patches that the selector does not leave are dark" in html
    assert "<b>attention</b>: how much the tokens of the answer attend" in html
    rows = [json.loads(line) for line in (drawn / "gallery.jsonl").read_text().splitlines()]
    rows[0]["drawings"][0]["name"] = rows[1]["drawings"][0]["name"] = "selector/score"
    (drawn / "gallery.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    html = render_report(drawn).read_text()
    assert "<b>selector/score</b>: from 0" in html
    assert "<b>selector/kept</b>" not in html
    assert "<b>attention</b>" not in render_report(make_run(seed=2)).read_text()


def test_a_drawing_that_is_not_there_is_left_out(drawn):
    (drawn / "gallery/kept.png").unlink()
    html = render_report(drawn).read_text()
    assert "selector/kept, 5 of 16 tokens" not in html
    assert "attention on the image: 45.7 %" in html
