"""Rows of scores.jsonl, and the keys of metrics.jsonl that sum them up."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
import torch

from beni.data.batch.collate import collate
from beni.data.batch.loader import item
from beni.data.images import Image, decode
from beni.data.metric import BestChoice, ExactAnswer, LossOnly, Reading
from beni.errors import DataError
from beni.evals.ablations import ALWAYS, BLANK, TRUE, Ablation
from beni.evals.scores import score, summarise
from beni.evals.subject import Subject

FIELDS = ["id", "kind", "cluster", "variant", "score", "loss", "prediction", "expected", "chance"]


def rows_of(subject, metric, samples, ablation=TRUE):
    return list(score(subject, metric, samples, ablation))


def test_a_row_tells_of_sample_ablation_score_and_loss(subject_of, make_sample):
    one = make_sample(0, [(24, 24)], kind="colour", cluster="c", choices=("red", "blue", "green"))
    for metric in (ExactAnswer(), BestChoice(), LossOnly()):
        (row,) = rows_of(subject_of(), metric, [one], BLANK)
        assert list(row) == FIELDS
        assert {name: row[name] for name in ("id", "kind", "cluster", "variant", "expected", "chance")} == {
            "id": "s0",
            "kind": "colour",
            "cluster": "c",
            "variant": "blank",
            "expected": "red",
            "chance": 1 / 3,
        }
        assert row["loss"] > 0
        assert (row["score"] is None) == (row["prediction"] is None) == (metric == LossOnly())


def test_scores_and_losses_do_not_depend_on_the_batch(subject_of, make_sample):
    samples = [
        make_sample(i, [(24, 24)] * (i % 3), answer=text, choices=("red", "blue", "a green one")[: 2 + i % 2])
        for i, text in enumerate(["red", "blue", "red", "blue", "red"])
    ]
    for metric in (ExactAnswer(), BestChoice()):
        expected = rows_of(subject_of(batch_size=1), metric, samples)
        for row, own in zip(rows_of(subject_of(batch_size=5), metric, samples), expected, strict=True):
            assert row.pop("loss") == pytest.approx(own.pop("loss"), rel=1e-4)
            assert row == own


def test_choices_that_training_would_cut_to_the_same_tokens_are_not_scored_but_an_error(subject_of, make_sample):
    same = "the answer to this question that was asked here is "
    one = make_sample(0, answer=f"{same}B", choices=(f"{same}A", f"{same}B"), where="rows.jsonl, record 3")
    cut = subject_of("template.overlong=truncate", "template.max_length=20")
    with pytest.raises(DataError, match=r"record 3.*never cut\n  fix: set template.max_length=(\d+)") as raised:
        rows_of(cut, BestChoice(), [one])
    enough = re.search(r"max_length=(\d+)", str(raised.value))[1]
    long = subject_of("template.overlong=truncate", f"template.max_length={enough}")
    assert len(rows_of(long, BestChoice(), [one])) == 1


def test_a_forward_pass_reads_at_most_batch_size_texts_or_those_of_one_sample(subject_of, make_sample, monkeypatch):
    read, begun = [], []
    given = Subject.read
    monkeypatch.setattr(Subject, "read", lambda self, items: read.append(len(items)) or given(self, items))
    texts = ("red", "blue", "green", "grey", "white", "black", "pink")
    samples = [make_sample(i, choices=texts[:count]) for i, count in enumerate((2, 2, 3, 7, 1, 3))]
    subject = replace(subject_of(batch_size=4), between=lambda: begun.append(len(read)))
    assert [row["id"] for row in score(subject, BestChoice(), samples, TRUE)] == [sample.id for sample in samples]
    assert read == [4, 3, 7, 4]
    assert begun == [0, 1, 2, 3]


def test_any_reference_counts_as_right_and_the_loss_is_that_of_the_expected_answer(
    subject_of, make_sample, monkeypatch
):
    texts = []

    def read(self, items):
        for one in items:
            texts.append(self.renderer.decode(one.encoded.ids[one.encoded.labels != -100]))
        return [Reading(-len(text), text == "couch", text) for text in texts[-len(items) :]]

    monkeypatch.setattr(Subject, "read", read)
    (row,) = rows_of(subject_of(), ExactAnswer(), [make_sample(0, answer="sofa", references=("sofa", "couch", "sofa"))])
    assert texts == ["sofa", "couch"]
    assert (row["score"], row["prediction"], row["expected"], row["loss"]) == (1.0, "couch", "sofa", len("sofa"))


def test_a_sample_whose_picture_cannot_be_read_has_no_row(subject_of, make_sample):
    def broken():
        raise OSError("truncated")

    good, bad = make_sample(0, [(24, 24)]), make_sample(1)
    user = replace(bad.messages[0], content=(Image(broken, "b"), *bad.messages[0].content))
    bad = replace(bad, messages=(user, bad.messages[1]))
    for batch_size in (1, 4):
        assert [row["id"] for row in rows_of(subject_of(batch_size=batch_size), LossOnly(), [bad, good])] == ["s0"]


def test_an_ablation_is_what_the_model_is_shown(subject_of, make_sample):
    subject, one = subject_of(), make_sample(0, [(24, 24)])
    losses = {a.name: rows_of(subject, LossOnly(), [one], a)[0]["loss"] for a in ALWAYS}
    assert losses["true"] != losses["blank"]
    turned = Ablation("turned", lambda picture, place: picture.rotate(180))
    twice = Ablation("twice", lambda picture, place: picture.rotate(180).rotate(180))
    assert rows_of(subject, LossOnly(), [one], turned)[0]["loss"] not in losses.values()
    assert rows_of(subject, LossOnly(), [one], twice)[0]["loss"] == losses["true"]


def test_blank_pictures_hide_everything_but_the_size(subject_of, make_sample):
    subject = subject_of()
    first, second = (make_sample(i, [(24, 30)]) for i in (0, 6))  # the same question about two pictures
    assert first.question == second.question
    blank = [rows_of(subject, LossOnly(), [one], BLANK)[0]["loss"] for one in (first, second)]
    true = [rows_of(subject, LossOnly(), [one], TRUE)[0]["loss"] for one in (first, second)]
    assert blank[0] == blank[1]
    assert true[0] != true[1]


def row(variant, score, loss, kind="", chance=None):
    return {"variant": variant, "score": score, "loss": loss, "kind": kind, "chance": chance}


def test_a_summary_has_loss_accuracy_chance_and_accuracy_by_kind():
    rows = [row("true", 1.0, 1.0, "a", 0.5), row("true", 0.0, 2.0, "b", 0.25), row("blank", 0.0, 4.0, "a", 0.5)]
    assert summarise(rows, TRUE) == {
        "eval/loss": 1.5,
        "eval/accuracy": 0.5,
        "eval/chance": 0.375,
        "eval/accuracy/a": 1.0,
        "eval/accuracy/b": 0.0,
    }
    assert summarise(rows, BLANK) == {"eval/loss_blank": 4.0, "eval/accuracy_blank": 0.0, "eval/accuracy_blank/a": 0.0}


def test_where_nothing_is_scored_a_summary_is_the_loss():
    assert summarise([row("true", None, 3.0, "a")], TRUE) == {"eval/loss": 3.0}
    assert "eval/chance" not in summarise([row("true", 1.0, 1.0), row("true", 1.0, 1.0, chance=0.5)], TRUE)


@torch.no_grad()
def test_the_loss_of_a_row_is_that_of_training(subject_of, make_sample):
    subject, one = subject_of(), make_sample(2, [(24, 24), (24, 24)])
    drawn = item(one, subject.renderer, [subject.viewer(decode(image)) for image in one.images])
    loss = subject.model(**collate([drawn], "packed", 0).model_inputs()).loss
    assert rows_of(subject, LossOnly(), [one])[0]["loss"] == pytest.approx(float(loss), rel=1e-5)
