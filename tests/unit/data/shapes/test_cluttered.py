"""A few coloured shapes among grey ones: what is drawn, what is asked, and what a reader without the picture knows."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from beni.data.images import decode
from beni.data.shapes.cluttered import ClutteredShapes
from beni.data.shapes.scenes import COLOUR_NAMES, SHAPES
from beni.errors import DataError

VALUES = {"size": 64, "heldout": 400, "image_size": 72, "cells": 6, "objects": 3, "clutter": 1.0, "questions": 3}


def source(seed: int = 0, **values) -> ClutteredShapes:
    return ClutteredShapes(seed, **VALUES | values)


def test_samples_are_a_function_of_seed_epoch_and_index():
    one, again, other = source(), source(), source(seed=1)
    assert one.train(3, 1).messages[1] == again.train(3, 1).messages[1]
    pictures = [np.asarray(decode(sample.images[0])) for sample in (one.train(3, 1), again.train(3, 1))]
    assert (pictures[0] == pictures[1]).all()
    assert one.train(3, 0).question != one.train(4, 0).question or one.train(3, 0).answer != one.train(4, 0).answer
    held = [sample.answer for sample in one.heldout()]
    assert held == [sample.answer for sample in other.heldout()]


def test_each_question_of_a_conversation_means_another_shape_and_has_one_answer():
    for index in range(20):
        sample = source().train(index, 0)
        asked = [message.content[-1] for message in sample.messages if message.role == "user"]
        answers = [message.content[0] for message in sample.messages if message.role == "assistant"]
        assert len(asked) == 3
        shapes = [a if a in SHAPES else next(s for s in SHAPES if s in q) for q, a in zip(asked, answers, strict=True)]
        colours = [
            a if a in COLOUR_NAMES else next(c for c in COLOUR_NAMES if c in q)
            for q, a in zip(asked, answers, strict=True)
        ]
        assert len(set(shapes)) == len(set(colours)) == 3


def test_without_the_picture_an_answer_is_as_likely_as_any_other():
    answers = {kind: Counter() for kind in ("colour", "shape")}
    for sample in source(heldout=2000).heldout():
        answers[sample.kind][sample.question, sample.answer] += 1
    for kind, choices in (("colour", COLOUR_NAMES), ("shape", SHAPES)):
        for question in {question for question, _ in answers[kind]}:
            counts = [answers[kind][question, choice] for choice in choices]
            mean = sum(counts) / len(counts)
            assert sum((count - mean) ** 2 / mean for count in counts) < 25  # chi-squared, 5 degrees of freedom


@pytest.mark.parametrize(("clutter", "coloured"), [(1.0, 3), (0.0, 3)])
def test_as_many_cells_are_coloured_as_there_are_objects(clutter, coloured):
    pixels = np.asarray(decode(source(clutter=clutter).heldout()[0].images[0])).astype(int)
    cells = pixels.reshape(6, 12, 6, 12, 3).transpose(0, 2, 1, 3, 4).reshape(36, 144, 3)
    vivid = (cells.max(2) - cells.min(2) > 60).mean(1)
    dark = (cells.max(2) < 195).mean(1)
    assert ((vivid > 0.1) | (dark > 0.1)).sum() >= (30 if clutter else 2)
    assert (vivid > 0.1).sum() <= coloured  # a black one is not vivid


@pytest.mark.parametrize("values", [{"objects": 6}, {"objects": 2, "cells": 1}])
def test_more_shapes_than_can_differ_are_refused(values):
    with pytest.raises(DataError, match=r"(?s)data.objects=.*fix: set data.objects to 1..[15]"):
        source(**values)
