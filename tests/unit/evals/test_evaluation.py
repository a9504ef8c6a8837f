"""An evaluation as the run asks for it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from beni.data.images import Image
from beni.data.metric import ExactAnswer
from beni.data.source import SingleSource
from beni.errors import DataError
from beni.evals.ablations import FURTHER
from beni.evals.evaluation import Evaluation


class Held(SingleSource):
    metric = ExactAnswer()
    varies = False

    def __init__(self, samples):
        self.samples = samples

    def __len__(self):
        return 1

    def train(self, index, epoch):
        return self.samples[0]

    def heldout(self):
        return self.samples

    def fingerprint(self):
        return "held"


class Heard:
    def __init__(self):
        self.notices, self.scores = [], []

    def notice(self, text):
        self.notices.append(text)

    def scored(self, step, scores):
        self.scores.append((step, scores))


@pytest.fixture
def evaluation_of(subject_of, fetcher):
    def make(samples, heard, **fields):
        settings = {"places": range(len(samples)), "shown": 3, "attention": 0, "ahead": 2}
        settings |= {"ablations": list(FURTHER), "last": 100}
        return Evaluation(subject_of(), Held(samples), fetcher, heard, **settings | fields)

    return make


def unreadable(sample):
    def broken():
        raise OSError("truncated")

    first, *others = sample.messages
    return replace(sample, messages=(replace(first, content=(Image(broken, "b"), "?")), *others))


def test_true_and_blank_pictures_are_scored_of_every_sample_and_the_listener_is_told(evaluation_of, mixed):
    heard = Heard()
    evaluation = evaluation_of(mixed, heard)
    values = evaluation.score(12)
    ((step, scores),) = heard.scores
    assert (step, scores.values, heard.notices) == (12, values, [])
    assert [row["id"] for row in scores.rows] == [sample.id for sample in mixed] * 2
    assert [row["variant"] for row in scores.rows] == ["true"] * 7 + ["blank"] * 7
    assert sorted(values) == ["eval/accuracy", "eval/accuracy_blank", "eval/loss", "eval/loss_blank"]


def test_the_last_evaluation_scores_every_ablation_the_same_each_time(evaluation_of, mixed):
    heard = Heard()
    for _ in range(2):
        evaluation_of(mixed, heard, last=12).score(12)
    (_, first), (_, second) = heard.scores
    assert first == second
    assert heard.notices == []
    names = ["true", "blank", *FURTHER]
    assert [row["variant"] for row in first.rows] == [name for name in names for _ in mixed]
    loss = {(row["variant"], row["id"]): row["loss"] for row in first.rows}
    for sample in mixed:
        differ = {loss[name, sample.id] for name in names}
        assert len(differ) == (len(names) if sample.images else 1)
    assert {f"eval/{what}_{name}" for what in ("loss", "accuracy") for name in names[1:]} < set(first.values)


def test_ablations_that_were_not_asked_for_are_not_scored(evaluation_of, mixed):
    heard = Heard()
    evaluation_of(mixed, heard, last=12, ablations=["noise"]).score(12)
    assert {row["variant"] for row in heard.scores[0][1].rows} == {"true", "blank", "noise"}


def test_what_cannot_be_ablated_is_told(evaluation_of, mixed, make_sample, monkeypatch):
    heard = Heard()
    evaluation_of([mixed[1], mixed[6]], heard, last=1).score(1)
    assert heard.notices == ["no ablations of pictures: no held-out sample has one"]
    assert len(heard.scores[0][1].rows) == 4
    heard = Heard()
    values = evaluation_of([make_sample(0, [(24, 24)])], heard, last=1, ablations=["swapped"]).score(1)
    assert heard.notices == ["1 held-out samples are not scored swapped: there is no other picture to show"]
    assert "eval/loss_swapped" not in values
    heard = Heard()
    evaluation = evaluation_of(mixed, heard, last=1, ablations=["dropped", "noise"])
    monkeypatch.setattr(type(evaluation.subject.model.fusion), "reads_beside", frozenset({"sources"}))
    evaluation.score(1)
    assert heard.notices == ["held-out samples are not scored dropped: this fusion reads the encoders' features too"]
    assert {row["variant"] for row in heard.scores[0][1].rows} == {"true", "blank", "noise"}


def test_a_picture_that_cannot_be_read_is_shown_to_no_other_sample(evaluation_of, mixed):
    heard = Heard()
    evaluation_of([unreadable(mixed[0]), *mixed[2:5]], heard, last=1, ablations=["swapped"]).score(1)
    assert len(heard.scores[0][1].rows) == 9
    assert heard.notices == ["1 held-out samples are left out: their images cannot be read"]


def test_the_gallery_is_of_the_samples_that_were_scored(evaluation_of, mixed):
    heard = Heard()
    evaluation = evaluation_of(mixed, heard, places=[0, 2, 5])
    assert evaluation.gallery() == []  # nothing has been
    evaluation.score(1)
    scored = {row["id"] for row in heard.scores[0][1].rows}
    assert scored == {"s0", "s2", "s5"}
    pictured = {sample.id for sample in mixed if sample.images}
    assert {one.line["id"] for one in evaluation.gallery()} == scored & pictured != set()


def test_samples_whose_pictures_cannot_be_read_are_left_out_and_told(evaluation_of, mixed):
    heard = Heard()
    evaluation_of([unreadable(mixed[0]), *mixed[1:3]], heard).score(1)
    assert heard.notices == ["1 held-out samples are left out: their images cannot be read"]
    assert len(heard.scores[0][1].rows) == 4


def test_where_no_picture_can_be_read_that_is_an_error(evaluation_of, mixed):
    with pytest.raises(DataError, match=r"no held-out sample has readable images\n  fix"):
        evaluation_of([unreadable(mixed[0])], Heard()).score(1)


def test_an_llm_that_does_not_generate_from_embeddings_has_no_gallery(evaluation_of, mixed, monkeypatch):
    heard = Heard()
    evaluation = evaluation_of(mixed, heard)
    evaluation.score(1)
    monkeypatch.setattr(type(evaluation.subject.model.llm.capabilities), "generates", False)
    assert evaluation.gallery() == []
    assert heard.notices == ["no gallery: transformers cannot generate from embeddings with this llm"]
