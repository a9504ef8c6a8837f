"""Whose text reaches which image: the same in both layouts, without answers, image positions and padding."""

from __future__ import annotations

import pytest
import torch

from beni.model.context import owners_of, prompts, rows_of
from beni.stage import StageContext
from beni.types import ImageLayout, Sequence


def rows(prompt):
    return [row[wanted].tolist() for row, wanted in zip(prompt.embeds[..., 0], prompt.mask, strict=True)]


def text(embeds, asked, **values):
    """A sequence in which everything that is not asked is supervised."""
    labels = torch.where(asked, -100, 7)
    return Sequence(embeds, torch.zeros_like(labels), torch.full_like(labels, -1), labels, **values)


def test_packed_samples_give_each_image_its_own_samples_text():
    embeds = torch.arange(10.0)[None, :, None]
    asked = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    made = prompts(text(embeds, asked, cu_seqlens=torch.tensor([0, 4, 6, 10])), [0, 2, 2])
    assert rows(made) == [[0, 1], [6, 7, 8], [6, 7, 8]]


def test_padded_rows_give_what_packed_ones_do():
    embeds = torch.tensor([[0.0, 1, 2, 3], [4, 5, -1, -1]])[..., None]
    asked = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    made = prompts(text(embeds, asked, mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])), owners_of(None, 2, 2))
    assert rows(made) == [[0, 2], [5]]


def test_a_sample_without_text_has_an_empty_prompt():
    made = prompts(text(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool)), [0])
    assert made.embeds.shape == (1, 0, 3)


def test_without_owners_every_sample_has_as_many_images():
    assert owners_of(None, 6, 3) == [0, 0, 1, 1, 2, 2]
    assert owners_of(torch.tensor([2, 2, 0]), 3, 3) == [2, 2, 0]


def test_a_row_is_named_by_its_sample_and_not_by_its_place_in_the_micro_batch():
    layouts = tuple(ImageLayout((4, 4), ((4, 4),) * views) for views in (2, 1, 2))
    names = rows_of(layouts, [0, 1, 1], ("a", "b"), lambda layout: len(layout.views))
    assert [(row.image, row.sample) for row in names] == [(0, 0), (0, 0), (1, 1), (2, 1), (2, 1)]
    assert len({row.key for row in names}) == 5
    alone = rows_of(layouts[1:], [0, 0], ("b",), lambda layout: len(layout.views))
    assert [row.key for row in alone] == [row.key for row in names[2:]]


INSTRUCT = ("resampler=qformer_instruct", "resampler.hidden_size=16", "resampler.depth=2", "resampler.num_heads=2")


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_the_question_and_not_the_answer_reaches_a_stage_that_asks_for_it(tiny_run, tiny_model, steps_of, layout):
    overrides = (*INSTRUCT, "resampler.intermediate_size=32", "resampler.num_queries=3", f"train.layout={layout}")
    run, model = tiny_run(*overrides), tiny_model(*overrides)
    batch = steps_of(run, model)[0][0]
    seen: list[StageContext] = []
    model.resampler.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[1]))
    with torch.no_grad():
        model(**batch.model_inputs())
    (context,) = seen
    assert context.prompt is not None
    supervised = int((batch.labels != -100).sum())
    image = int((batch.input_ids == model.config.image_token_id).sum())
    firsts = batch.num_tokens - supervised - image
    assert abs(int(context.prompt.mask.sum()) - firsts) <= len(batch.ids)  # the first position is never a label
    assert len(context.prompt.mask) == len(batch.pixels)
