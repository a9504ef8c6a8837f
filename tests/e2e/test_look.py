"""``python -m beni.look``: the page says what the model sees, and a browser shows it."""

from __future__ import annotations

import base64
import io
import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image

from beni.config.compose import compose
from beni.look import main
from beni.run import train

TRAINED, PICTURE = (0x2E, 0x9E, 0x5B), (0x8B, 0x5C, 0xF6)


@pytest.fixture(scope="module")
def page(tiny_values, tmp_path_factory):
    path = tmp_path_factory.mktemp("look") / "look.html"
    assert main([*tiny_values, "schedule=packs", "schedule.tokens=600", "train.batch_size=2", "--out", str(path)]) == 0
    return path


def test_the_page_shows_crops_mask_packs_lengths_and_no_outside_link(page):
    text = page.read_text()
    assert text.count('<img src="data:image/png;base64,') > 4
    assert re.search(r'class="text trained"[^>]*>[^<]*\w', text)
    assert '<div class="pack"' in text
    assert text.count('class="column"') > 3
    assert re.search(r"fill</dt><dd>\d+\.\d+%", text)
    assert not re.search(r"https?://|<script|src=\"(?!data:)", text)


def test_what_data_says_is_shown_as_text(tmp_path, tiny_values):
    (tmp_path / "text.txt").write_text("<script>alert('x')</script> & <b>bold</b> words " * 40)
    kept = [value for value in tiny_values if not value.startswith("data.")]
    path = tmp_path / "look.html"
    options = ("data=text", f"data.path={tmp_path}/text.txt", "data.piece=64", "template=plain")
    assert main([*kept, *options, "--out", str(path)]) == 0
    text = path.read_text()
    assert "<script>" not in text
    assert "&lt;script&gt;" in text


def test_in_a_terminal_supervised_text_is_marked(tiny_values, capsys):
    assert main([*tiny_values, "--terminal", "--steps", "2"]) == 0
    said = capsys.readouterr().out
    assert re.search(r"«[^»]*\w[^»]*»", said)
    assert "step 2, micro-batch 1" in said


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--world", "2", "--rank", "2"), "--rank=2, expected 0 to 1"),
        (("--steps", "0"), "--steps, --first and --world, expected numbers of at least 1"),
        (("data.sise=3",), "data.sise"),
        (("--world", "9"), "train.batch_size to at least 9"),
    ],
)
def test_a_wrong_argument_is_told_with_exit_code_2(arguments, says, tiny_values, capsys):
    assert main([*tiny_values, *arguments]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.browser
def test_a_browser_shows_the_page_without_complaint(page, absent, tmp_path):
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        absent("no Chromium here")
    shot = tmp_path / "page.png"
    done = subprocess.run(
        [
            browser,
            *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"),
            *("--enable-logging=stderr", f"--user-data-dir={tmp_path}/profile", "--window-size=1000,2400"),
            f"--screenshot={shot}",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert shot.is_file(), done.stderr
    assert "CONSOLE" not in done.stderr
    pixels = np.asarray(Image.open(shot).convert("RGB")).reshape(-1, 3)
    for colour in (TRAINED, PICTURE):
        assert (np.abs(pixels.astype(int) - colour).max(1) <= 2).sum() > 200


@pytest.fixture(scope="module")
def trained(tiny_values, tmp_path_factory):
    """The folder of a run that keeps 5 of 16 patches of its pictures."""
    root = tmp_path_factory.mktemp("trained")
    kept = ("vision.architecture.patch_size=6", "selector=random", "selector.keep=5", f"paths.runs={root}")
    train(compose([*tiny_values, *kept]))
    (file,) = root.glob("*/*/config.yaml")
    return file.parent


def test_with_the_folder_of_a_run_its_page_shows_what_its_weights_keep(trained, tmp_path, capsys):
    path = tmp_path / "look.html"
    assert main(["--run", str(trained), "--out", str(path)]) == 0
    text = path.read_text()
    assert f"of {trained} after step 2" in text
    figures = re.findall(
        r'<figure><img src="data:image/png;base64,([^"]*)" style="background-image: url\(data:image/png;base64,[^)]*\)"'
        r' alt="selector/kept, 5 of 16 tokens">',
        text,
    )
    assert len(figures) == 8  # a picture a sample of the first step
    for figure in figures:
        with Image.open(io.BytesIO(base64.b64decode(figure))) as drawing:
            alpha = np.asarray(drawing.convert("RGBA"))[..., 3]
        dark = alpha.reshape(4, 48, 4, 48)
        assert (dark == dark[:, :1, :, :1]).all()
        assert (dark[:, 0, :, 0] > 0).sum() == 11
    assert main(["--run", str(trained), "--terminal"]) == 0
    assert capsys.readouterr().out.count("view 1: selector/kept, 5 of 16 tokens") == 8


def test_without_weights_nothing_is_drawn(page):
    assert "background-image" not in page.read_text()


def test_crops_are_outlined_over_the_whole_picture_before_there_is_a_model(tiny_values, tmp_path, capsys):
    options = ("views=regions_saliency", "views.regions=2", "template.max_length=2048")
    assert main([*tiny_values, *options, "--terminal"]) == 0
    said = capsys.readouterr().out
    assert said.count("view 1: views/crops, 2 crops") == said.count("views 24x24, 24x24, 24x24;") > 0


def test_the_folder_of_a_run_and_overrides_are_not_mixed(trained, tmp_path, capsys):
    assert main(["--run", str(trained), "selector=none"]) == 2
    assert "leave out --run, or the overrides" in capsys.readouterr().err
    assert main(["--run", str(tmp_path)]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
