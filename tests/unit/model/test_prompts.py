"""Whose text reaches which image: the same in both layouts, without answers, image positions and padding."""

from __future__ import annotations

import pytest
import torch

from beni.model.prompts import prompts
from beni.stage import StageContext


def rows(prompt):
    return [row[wanted].tolist() for row, wanted in zip(prompt.embeds[..., 0], prompt.mask, strict=True)]


def test_packed_samples_give_each_image_its_own_samples_text():
    embeds = torch.arange(10.0)[None, :, None]
    asked = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    borders = torch.tensor([0, 4, 6, 10])
    made = prompts(embeds, asked, borders, torch.tensor([0, 2, 2]), 3)
    assert rows(made) == [[0, 1], [6, 7, 8], [6, 7, 8]]


def test_padded_rows_give_what_packed_ones_do():
    embeds = torch.tensor([[0.0, 1, 2, 3], [4, 5, -1, -1]])[..., None]
    asked = torch.tensor([[1, 0, 1, 0], [0, 1, 0, 0]], dtype=torch.bool)
    made = prompts(embeds, asked, None, None, 2)
    assert rows(made) == [[0, 2], [5]]


def test_a_sample_without_text_has_an_empty_prompt():
    made = prompts(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool), None, None, 1)
    assert made.embeds.shape == (1, 0, 3)


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
