"""Captions of real pictures: the split holds texts apart, whatever their spelling, and the choices are fair."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image as PILImage

from beni.config.build import build
from beni.config.compose import compose
from beni.data.images import Image, decode
from beni.data.stamps import Stamps, caption_key, clean_caption, draw
from beni.errors import DataError

INSTALLED = Path("/usr/share/tuxpaint/stamps")


def stamps(root: Path, **changed) -> Stamps:
    values = {"heldout": 4, "split": 0, "choices": 3, "language": "en", "openings": ["a", "an"], "max_words": 5}
    values |= {"kinds": 0.0, "kind_prompt": "Kind:"}
    return Stamps(0, root=str(root), prompts=["A photo of"], augment={}, **(values | changed))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    captions = [f"A thing{i}. It is long." for i in range(10)] + [
        "a  Thing0!",
        "Gimel stands for gants.",
        "A one two three 4 5 6.",
    ]
    (tmp_path / "symbols").mkdir()
    for i, caption in enumerate(captions):
        PILImage.new("RGBA", (8, 8), (i, 0, 0, 128)).save(tmp_path / f"{i:02d}.png")
        (tmp_path / f"{i:02d}.txt").write_text(f"{caption}\nde.utf8=Ein Ding.\n")
    PILImage.new("RGB", (8, 8)).save(tmp_path / "symbols" / "letter.png")
    (tmp_path / "symbols" / "letter.txt").write_text("A letter.\n")
    PILImage.new("RGB", (8, 8)).save(tmp_path / "without_text.png")
    return tmp_path


@pytest.mark.parametrize(
    ("line", "caption"),
    [
        ("A dumper. It carries its load in front.", "a dumper."),
        ("An “odd” bird (male).", "an odd bird."),
        ("Our moon.", "our moon."),
        ("Pluto", "Pluto."),
        ("", ""),
    ],
)
def test_a_caption_is_the_first_sentence_without_asides(line: str, caption: str):
    assert clean_caption(line) == caption


def test_captions_that_differ_in_articles_case_and_marks_say_the_same():
    assert caption_key("A Red-headed  cep!") == caption_key("the red headed cep") == "red headed cep"


def test_no_held_out_text_stands_in_training_and_signs_are_left_out(folder: Path):
    source = stamps(folder)
    held = {caption_key(sample.answer) for sample in source.heldout()}
    trained = {caption_key(source.train(i, 0).answer) for i in range(len(source))}
    assert len(held) == 4
    assert not held & trained
    assert held | trained == {f"thing{i}" for i in range(10)}


def test_the_split_depends_on_its_number_and_not_on_the_seed(folder: Path):
    def held(seed: int, split: int | Literal["seed"]) -> list[str]:
        values = {
            "heldout": 4,
            "choices": 3,
            "language": "en",
            "openings": [],
            "max_words": 9,
            "prompts": ["p"],
            "augment": {},
            "kinds": 0.0,
            "kind_prompt": "k",
        }
        return [s.answer for s in Stamps(seed, root=str(folder), split=split, **values).heldout()]

    assert held(0, 0) == held(1, 0)
    assert held(0, 0) != held(0, 1)
    assert held(1, "seed") == held(0, 1)
    assert held(0, "seed") == held(1, 0)


def test_every_held_out_picture_is_offered_its_caption_once_among_other_held_out_ones(folder: Path):
    samples = stamps(folder).heldout()
    answers = {sample.answer for sample in samples}
    for sample in samples:
        assert len(sample.choices) == len(set(sample.choices)) == 3
        assert sample.choices.count(sample.answer) == 1
        assert set(sample.choices) <= answers


def test_a_missing_folder_is_answered_with_the_command_that_installs_it(tmp_path: Path):
    with pytest.raises(DataError, match="apt-get install tuxpaint-stamps-default"):
        stamps(tmp_path / "nowhere")


def test_debians_stamps_read_as_some_four_hundred_pictures(absent):
    if not INSTALLED.is_dir():
        absent("Debian's package tuxpaint-stamps-default is not installed")
    source = build(compose(["data=stamps"])["data"], 0)
    assert 250 < len(source) < 700
    assert len(source.heldout()) == 100
    assert all(len(sample.choices) == 10 for sample in source.heldout())


def test_a_share_of_the_samples_asks_for_the_folders_without_telling_a_held_out_word(tmp_path: Path):
    for i, name in enumerate(["fox", "oak", "hen", "cat", "dog", "elm"]):
        place = tmp_path / "nature" / ("foxes" if i % 2 else "birds") / "cartoon"
        place.mkdir(parents=True, exist_ok=True)
        PILImage.new("RGB", (8, 8)).save(place / f"{name}.png")
        (place / f"{name}.txt").write_text(f"A {name}.\n")
    for split in range(8):
        source = stamps(tmp_path, kinds=0.5, heldout=3, split=split)
        held = {caption_key(sample.answer) for sample in source.heldout()}
        drawn = [source.train(i, epoch) for i in range(len(source)) for epoch in range(20)]
        kinds = {sample.answer for sample in drawn if sample.question == "Kind:"}
        assert (
            kinds == ({"nature, birds.", "nature."} if "fox" in held else {"nature, birds.", "nature, foxes."}) & kinds
        )
        assert 0.3 < sum(sample.question == "Kind:" for sample in drawn) / len(drawn) < 0.7
        assert {sample.question for sample in source.heldout()} == {"A photo of"}


def test_drawings_are_read_at_their_natural_size_and_replace_the_pixels_of_the_same_name(folder: Path, absent):
    if find_spec("resvg_py") is None:
        absent("resvg-py is not installed")
    svg = '<svg xmlns="http://www.w3.org/2000/svg" width="9pt" height="6pt"><rect width="9" height="6"/></svg>'
    before = len(stamps(folder))
    (folder / "03.svg").write_text(svg)
    source = stamps(folder)
    everything = [*source.heldout(), *(source.train(i, 0) for i in range(len(source)))]
    assert len(source) == before
    (drawn,) = (s for s in everything if s.images[0].key.endswith("03.svg"))
    assert decode(drawn.images[0]).size == (12, 8)  # 96 dots an inch, 72 points


def test_a_broken_drawing_is_an_error_that_names_the_file(folder: Path):
    (folder / "03.svg").write_text("<svg")
    with pytest.raises(DataError, match=r"03\.svg"):
        decode(Image(partial(draw, folder / "03.svg"), "key"))


@pytest.fixture
def many(tmp_path: Path) -> Path:
    """Twelve things; in German things 0 and 1 have one name, and thing 11 has none."""
    for i in range(12):
        PILImage.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"{i:02d}.png")
        german = f"de.utf8=Ding {max(i, 1)} (männlich).\n" if i < 11 else ""
        (tmp_path / f"{i:02d}.txt").write_text(f"A thing{i}.\nfr.utf8=\n{german}", encoding="utf-8")
    return tmp_path


def test_captions_come_in_another_language_with_the_same_pictures_held_out(many: Path):
    english, german = stamps(many), stamps(many, language="de")
    held = {s.cluster for s in german.heldout()}
    assert held <= {s.cluster for s in english.heldout()}
    for sample in german.heldout():
        number = int(sample.cluster[:2])
        assert sample.answer == f"Ding {max(number, 1)}."
        assert len(set(sample.choices)) == 3
    trained = {german.train(i, 0).answer for i in range(len(german))}
    assert not trained & {s.answer for s in german.heldout()}
    assert "11.png" not in held | {german.train(i, 0).cluster for i in range(len(german))}


def test_a_language_that_nothing_is_in_is_told_with_those_there_are(many: Path):
    with pytest.raises(
        DataError, match=r"data.language=dee: the captions below .* are in de, en\n  fix: .*language=de"
    ):
        stamps(many, language="dee")
