"""Whose text reaches which image: the same in both layouts, without answers, image positions and padding."""

from __future__ import annotations

import pytest
import torch

from beni.data.batch.collate import collate
from beni.data.metric import ExactAnswer
from beni.data.sample import Message, Sample
from beni.evals.ablations import TRUE
from beni.evals.gallery import draw_gallery
from beni.evals.scores import score
from beni.evals.subject import Subject
from beni.model.build import build
from beni.model.context import owners_of, prompt_states, prompts, rows_of
from beni.stage import StageContext
from beni.training.blocks import recompute
from beni.types import ImageLayout, SampleInputs, Sequence


def rows(prompt):
    return [row[wanted].tolist() for row, wanted in zip(prompt.embeds[..., 0], prompt.mask, strict=True)]


def text(embeds, asked, **values):
    """A sequence in which everything that is not asked is supervised."""
    labels = torch.where(asked, -100, 7)
    return Sequence(embeds, torch.zeros_like(labels), torch.full_like(labels, -1), labels, **values)


def test_packed_samples_give_each_image_its_own_samples_text():
    embeds = torch.arange(10.0)[None, :, None]
    asked = torch.tensor([[1, 1, 0, 0, 1, 0, 1, 1, 1, 0]], dtype=torch.bool)
    made = prompts(text(embeds, asked, cu_seqlens=torch.tensor([0, 4, 6, 10])))
    assert rows(made) == [[0, 1], [4], [6, 7, 8]]
    assert rows(made.select(torch.tensor([0, 2, 2]))) == [[0, 1], [6, 7, 8], [6, 7, 8]]


def test_padded_rows_give_what_packed_ones_do():
    embeds = torch.tensor([[0.0, 1, 2, 3], [4, 5, -1, -1]])[..., None]
    asked = torch.tensor([[1, 0, 1, 0], [0, 1, 1, 1]], dtype=torch.bool)
    made = prompts(text(embeds, asked, mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])))
    assert rows(made) == [[0, 2], [5]]


def test_a_sample_without_text_has_an_empty_prompt():
    made = prompts(text(torch.ones(1, 2, 3), torch.zeros(1, 2, dtype=torch.bool)))
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
    overrides = (*INSTRUCT, "resampler.intermediate_size=32", "resampler.num_queries=3", f"compute.layout={layout}")
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


@pytest.fixture
def listening(tiny_run, steps_of, monkeypatch):
    """listening(*overrides) -> (a model whose selector reads the prompt as text and as the llm's states, its steps)."""
    monkeypatch.setenv("BENI_TRUSTED", "support.")

    def make(*overrides):
        run = tiny_run("data.pictures_share=0.4", "data.text_share=0.3", *overrides)
        run["selector"] = {"_target_": "support.stages.Listener"}
        model = build(run).eval()
        return model, steps_of(run, model)

    return make


def one_of_each(steps, count=6):
    """Items of samples with no, one and two pictures."""
    items = [steps.items(0, index)[0][0] for index in range(16)]
    by_images = {len(item.images): item for item in items}
    assert set(by_images) == {0, 1, 2}
    return [*by_images.values(), *items[:count]]


@torch.no_grad()
@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_stage_is_told_what_the_user_says_and_what_the_llm_makes_of_it(listening, layout):
    model, steps = listening()
    items = one_of_each(steps)
    model(**collate(items, layout, 0).model_inputs())
    (told,) = model.selector.told
    own = [item for item in items for _ in item.images]
    assert told.texts == tuple(item.asked for item in own)
    assert all(text and "<image>" not in text for text in told.texts)
    for row, item in enumerate(own):
        ids = torch.from_numpy(item.encoded.ids)
        asked = (torch.from_numpy(item.encoded.labels) == -100) & (ids != model.config.image_token_id)
        alone = model.llm.hidden(Sequence.plain(model.llm.embed(ids[asked][None])))[0]
        torch.testing.assert_close(told.hidden[row][told.mask[row]], alone, rtol=1e-5, atol=1e-5)
        assert not told.hidden[row][~told.mask[row]].any()


@torch.no_grad()
def test_a_sample_is_predicted_alike_packed_padded_and_alone(listening):
    model, steps = listening()
    items = one_of_each(steps)

    def logits(chosen, layout):
        return model(**collate(chosen, layout, 0).model_inputs()).logits

    alone = torch.cat([logits([one], "packed") for one in items])
    for layout in ("packed", "padded"):
        torch.testing.assert_close(logits(items, layout), alone, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_no_gradient_goes_through_the_states_also_where_layers_are_computed_again(listening, layout):
    def gradients(mode):
        model, steps = listening("train.plan.llm=full")
        model.train()
        recompute(model.llm.layers(), mode)
        model(**collate(one_of_each(steps), layout, 0).model_inputs()).loss.backward()
        (told,) = model.selector.told
        assert not told.hidden.requires_grad
        assert model.llm.training
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients("none"), gradients("full")
    assert plain["selector.proj.weight"].any()
    assert plain.keys() == again.keys()
    for name, expected in plain.items():
        torch.testing.assert_close(again[name], expected, rtol=1e-5, atol=1e-7)


@torch.no_grad()
def test_states_are_read_without_dropout_and_modes_are_put_back(tiny_model):
    llm = tiny_model("+llm.architecture.attention_dropout=0.5").llm.train()
    frozen = next(iter(llm.layers())).eval()
    text = Sequence.plain(torch.randn(2, 5, llm.hidden_size))
    mask = torch.tensor([[1, 1, 1, 0, 0], [0, 0, 0, 0, 0]]).bool()
    one, two = (prompt_states(llm, text, text.embeds, mask) for _ in range(2))
    assert one.equal(two)
    assert one.isfinite().all()
    assert not one[1].any()  # nothing was asked
    assert llm.training
    assert not frozen.training
    assert prompt_states(llm, text, text.embeds[:, :0], mask[:, :0]).shape == (2, 0, llm.hidden_size)


@torch.no_grad()
def test_texts_that_are_read_must_be_given(listening):
    model, steps = listening()
    item = next(item for item in one_of_each(steps) if item.images)
    inputs = collate([item], "padded", 0).model_inputs()
    with pytest.raises(ValueError, match="reads prompt_text, and 0 texts were given for 1 samples"):
        model(**inputs | {"samples": SampleInputs()})
    options = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False, "pad_token_id": 0}
    given = {key: inputs[key] for key in ("input_ids", "pixels", "attention_mask", "images")}
    with pytest.raises(ValueError, match="reads prompt_text"):
        model.generate(**given, **options)
    assert model.generate(**given, **options, samples=SampleInputs(prompts=("Is it red?",))).shape == (
        1,
        given["input_ids"].shape[1] + 3,
    )
    assert set(model.selector.told[-1].texts) == {"Is it red?"}


def test_evaluation_and_galleries_tell_the_text(listening):
    model, steps = listening()
    subject = Subject(model, steps.renderer, steps.viewer, "packed", "fp32", 4, torch.device("cpu"))
    samples = [sample for sample in steps.source.heldout() if sample.images][:2]
    assert len(list(score(subject, ExactAnswer(), samples, TRUE))) == 2
    said = {text for told in model.selector.told if told is not None for text in told.texts}
    assert said == {sample.asked for sample in samples}
    model.selector.told.clear()
    draw_gallery(subject, samples[:1], [])
    assert {told.texts for told in model.selector.told} == {(samples[0].asked,) * len(samples[0].images)}


def test_what_the_user_says_is_all_of_it_without_pictures_and_answers():
    sample = Sample(
        "a",
        (
            Message("system", ("Be brief.",)),
            Message("user", (" What is it? ",)),
            Message("assistant", ("A hat.",)),
            Message("user", ("And ", "this?")),
            Message("user", ("learned",), train=True),
        ),
    )
    assert sample.asked == "What is it?\nAnd this?"


def test_a_stage_reads_only_the_forms_that_it_names(tiny_model):
    model = tiny_model(*INSTRUCT, "resampler.intermediate_size=32")
    assert model.prompt_reads == {"prompt"}
    assert model.uses_prompt
    assert not tiny_model().uses_prompt
