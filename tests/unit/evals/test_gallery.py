"""The gallery: what is shown of a sample, and that it is what the model says to that sample alone."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from PIL import Image as PILImage

from beni.data.images import Image
from beni.evals.gallery import THUMBNAIL, draw_gallery, write_gallery
from beni.evals.subject import Subject

FIELDS = ["id", "kind", "question", "expected", "prediction", "prediction_blank", "choice", "images", "correct"]
FIELDS += ["attention", "drawings"]


def rows(samples, **fields):
    return [{"id": sample.id, "variant": variant, **fields} for sample in samples for variant in ("true", "blank")]


def test_a_gallery_drawn_in_batches_is_the_one_drawn_sample_by_sample(subject_of, mixed):
    subject = subject_of("views=anyres", "views.canvases=[[1,2],[2,1],[2,2]]", "template.max_length=2048")
    alone = draw_gallery(replace(subject, batch_size=1), mixed, [])
    assert [one.line["id"] for one in alone] == [sample.id for sample in mixed if sample.images]
    assert len({one.line["prediction"] for one in alone}) > 2
    assert any(one.line["prediction"] != one.line["prediction_blank"] for one in alone)
    for batch_size in (2, 8):
        together = draw_gallery(replace(subject, batch_size=batch_size), mixed, [])
        assert [one.line for one in together] == [one.line for one in alone]
        assert [one.pictures for one in together] == [one.pictures for one in alone]


@pytest.fixture
def says(monkeypatch):
    """The model says this, whatever it is asked; what it is asked is kept."""
    asked = []

    def make(text):
        def say(self, some):
            asked.append([replace(one, pictures=[picture.copy() for picture in one.pictures]) for one in some])
            ids = self.renderer.tokenizer.encode(text, add_special_tokens=False)
            return [[*ids, self.renderer.tokens.eos[0]]] * len(some)

        monkeypatch.setattr(Subject, "say", say)
        return asked

    return make


def test_a_line_tells_of_the_sample_and_of_what_is_said(subject_of, make_sample, says):
    asked = says("red")
    one = make_sample(0, [(20, 900), (24, 24)], kind="colour")
    (shown,) = draw_gallery(subject_of(), [one], [])
    assert list(shown.line) == FIELDS
    assert shown.line | {"images": 2} == dict(
        zip(FIELDS, ["s0", "colour", one.question, "red", "red", "red", None, 2, True, None, []], strict=True)
    )
    assert list(shown.pictures) == shown.line["images"]
    assert [max(picture.size) for picture in shown.pictures.values()] == [THUMBNAIL, 24]
    true, blank = ([picture.size for picture in some[0].pictures] for some in asked)
    assert true == blank == [(900, 20), (24, 24)]  # the model sees the pictures, not their thumbnails
    assert asked[1][0].pictures[0].getcolors() == [(900 * 20, (128, 128, 128))]


def test_right_is_what_scores_say_and_else_any_reference(subject_of, make_sample, says):
    says("couch")
    one = make_sample(0, [(4, 4)], answer="sofa")
    subject = subject_of()
    assert not draw_gallery(subject, [one], [])[0].line["correct"]
    assert draw_gallery(subject, [replace(one, references=("couch", "sofa"))], [])[0].line["correct"]
    assert draw_gallery(subject, [one], rows([one], score=1.0, prediction="sofa"))[0].line["correct"]
    assert not draw_gallery(subject, [one], rows([one], score=None, prediction=None))[0].line["correct"]


def test_a_choice_is_told_where_it_is_not_what_is_said(subject_of, make_sample, says):
    says("sofa")
    one = make_sample(0, [(4, 4)], answer="sofa", choices=("sofa", "chair"))
    for chosen, told in (("chair", "chair"), ("sofa", None)):
        (shown,) = draw_gallery(subject_of(), [one], rows([one], score=float(chosen == "sofa"), prediction=chosen))
        assert shown.line["choice"] == told


def test_what_cannot_be_read_and_what_has_no_picture_is_not_shown(subject_of, make_sample, says):
    says("red")

    def broken():
        raise OSError("truncated")

    bad = make_sample(1)
    bad = replace(bad, messages=(replace(bad.messages[0], content=(Image(broken, "b"), "?")), bad.messages[1]))
    gallery = draw_gallery(subject_of(), [bad, make_sample(2), make_sample(3, [(4, 4)])], [])
    assert [one.line["id"] for one in gallery] == ["s3"]


def test_a_written_gallery_is_lines_and_pictures(subject_of, make_sample, says, tmp_path):
    says("ja – 赤")
    gallery = draw_gallery(subject_of(), [make_sample(0, [(4, 6), (8, 8)])], [])
    write_gallery(tmp_path, gallery)
    (line,) = map(json.loads, (tmp_path / "gallery.jsonl").read_text(encoding="utf-8").splitlines())
    assert line == gallery[0].line
    sizes = []
    for name in line["images"]:
        with PILImage.open(tmp_path / name) as picture:
            sizes.append(picture.size)
    assert sizes == [(6, 4), (8, 8)]
