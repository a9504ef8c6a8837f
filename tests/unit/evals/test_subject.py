"""What a model says in company is what it says alone, and what it reads is what it would say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from beni.data.batch.collate import Item, collate, content
from beni.data.batch.loader import item
from beni.data.images import decode
from beni.data.render.template import Encoded
from beni.evals.subject import Asked, Subject, left_padded
from beni.evals.tradeoff import Stopwatch
from beni.types import IGNORE

ANYRES = ("views=anyres", "views.canvases=[[1,2],[2,1],[2,2]]", "template.max_length=2048")
INSTRUCT = (
    *("resampler=qformer_instruct", "resampler.hidden_size=32", "resampler.depth=2", "resampler.num_queries=3"),
    *("resampler.num_heads=4", "resampler.intermediate_size=64"),
)
SMALL = {"vocab_size": 512, "hidden_size": 32, "num_hidden_layers": 2}
LLMS = {
    "gpt2": {"vocab_size": 512, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512},
    "mamba": SMALL | {"state_size": 4},
    "rwkv": SMALL | {"attention_hidden_size": 32, "context_length": 512},
}
READS_PADDING = ("rwkv",)
MODELS = {
    "tiles": ANYRES,
    "joined tiles": (
        *ANYRES,
        "views.join=true",
        "views.newline=false",
        "resampler=perceiver",
        "resampler.num_latents=3",
    ),
    "sees ahead": (*ANYRES, "fusion.image_attention=prefix"),
    "asks for the prompt": INSTRUCT,
}


def asked(samples):
    return [Asked(sample, [decode(image) for image in sample.images]) for sample in samples]


RANDOM = ("selector=random", "selector.keep=0.5", "vision.architecture.patch_size=4")


@pytest.mark.parametrize("overrides", [RANDOM, ("pruner=fastv", "pruner.layer=1"), MODELS["sees ahead"]])
def test_a_stopwatch_hears_of_each_new_token_and_not_of_the_prompt(subject_of, mixed, overrides):
    subject, watch = subject_of(*overrides), Stopwatch()
    prompt = subject.prompt(next(one for one in asked(mixed) if one.pictures))
    subject.generate([prompt], most=5, least=5, streamer=watch)
    assert len(watch.times) == 5
    assert watch.first > 0
    assert watch.each * 4 == pytest.approx(watch.times[4] - watch.times[0])


def test_what_is_drawn_for_a_picture_in_evaluation_depends_on_the_picture_alone(subject_of, mixed):
    subject = subject_of(*RANDOM)
    pictured = [sample for sample in mixed if len(sample.images) == 1]
    items = [item(s, subject.renderer, [subject.viewer(decode(image)) for image in s.images]) for s in pictured]
    together, alone = subject.read(items), [subject.read([one])[0] for one in items]
    assert [one.loglik for one in together] == pytest.approx([one.loglik for one in alone], rel=1e-4)
    said = [subject.answer([one])[0] for one in asked(pictured)]
    assert replace(subject, batch_size=3).answer(asked(pictured)) == said
    for one, ids in zip(asked(pictured), subject.say(asked(pictured)), strict=True):
        prompt = subject.renderer.prompt(one.sample, [subject.viewer(p).markup for p in one.pictures]).ids
        labels = np.array([*np.full(len(prompt), IGNORE), *ids])
        images = [subject.viewer(picture) for picture in one.pictures]
        (reading,) = subject.read([Item("other", Encoded(np.array([*prompt, *ids]), labels), images)])
        assert reading.exact  # scoring sees the tokens that the answer was given to


@pytest.mark.parametrize("name", MODELS)
def test_answers_in_batches_are_those_that_each_question_gets_alone(subject_of, mixed, name):
    subject = subject_of(*MODELS[name])
    alone = [subject.answer([one])[0] for one in asked(mixed)]
    assert len(set(alone)) > len(mixed) // 2
    for batch_size in (2, 3, len(mixed)):
        assert replace(subject, batch_size=batch_size).answer(asked(mixed)) == alone


def test_each_batch_is_one_generation_of_as_many_rows(subject_of, mixed, monkeypatch):
    subject, rows, begun = subject_of(*ANYRES), [], []
    generate = subject.model.generate
    monkeypatch.setattr(
        subject.model,
        "generate",
        lambda ids, *rest, **options: rows.append(len(ids)) or generate(ids, *rest, **options),
    )
    replace(subject, between=lambda: begun.append(len(rows))).answer(asked(mixed))
    assert rows == [4, 3]
    assert begun == [0, 1]  # a run that is asked to end does so before the next batch


def test_stages_are_told_which_sample_each_row_is_and_what_is_asked(subject_of, mixed, monkeypatch):
    subject, told = subject_of(), []
    generate = subject.model.generate

    def heard(*rest, images, samples, **options):
        told.append((images.owners.tolist(), samples.ids, samples.prompts))
        return generate(*rest, images=images, samples=samples, **options)

    monkeypatch.setattr(subject.model, "generate", heard)
    subject.answer(asked(mixed[:4]))
    seen = [[subject.viewer(picture) for picture in one.pictures] for one in asked(mixed[:4])]
    names = tuple(content(images) if images else sample.id for images, sample in zip(seen, mixed, strict=False))
    assert told == [([0, 2, 2, 3], names, tuple(sample.question for sample in mixed[:4]))]


def test_no_question_gets_no_answer(subject_of):
    assert subject_of().answer([]) == []


@pytest.mark.parametrize("family", LLMS)
def test_an_llm_that_reads_padding_is_asked_one_by_one(subject_of, mixed, family, monkeypatch):
    subject, rows = subject_of(llm={"model_type": family, **LLMS[family]}, batch_size=8), []
    alone = [subject.answer([one])[0] for one in asked(mixed)]
    generate = Subject.generate
    monkeypatch.setattr(
        Subject, "generate", lambda self, some, most: rows.append(len(some)) or generate(self, some, most)
    )
    assert subject.answer(asked(mixed)) == alone
    assert len(set(alone)) > 1
    assert rows == ([1] * len(mixed) if family in READS_PADDING else [len(mixed)])


def test_an_answer_that_is_read_as_exact_is_the_one_that_is_said(subject_of, mixed):
    subject = subject_of()
    for one in asked(mixed):
        images = [subject.viewer(picture) for picture in one.pictures]
        prompt = subject.renderer.prompt(one.sample, [image.markup for image in images]).ids
        inputs = collate([Item("", Encoded(prompt, prompt), images)], "padded", 0).model_inputs()
        said = subject.model.generate(
            inputs["input_ids"], inputs["pixels"], images=inputs["images"], max_new_tokens=6, do_sample=False
        )[0, len(prompt) :].numpy()
        for last, exact in ((said[-1], True), ((said[-1] + 1) % 512, False)):
            answer = [*said[:-1], last]
            labels = np.array([*np.full(len(prompt), IGNORE), *answer])
            (reading,) = subject.read([Item("", Encoded(np.array([*prompt, *answer]), labels), images)])
            assert reading.exact == exact
            assert reading.greedy == subject.renderer.decode(said)


def test_a_reading_does_not_depend_on_layout_or_company(subject_of, mixed):
    subject = subject_of(*ANYRES)
    items = [item(s, subject.renderer, [subject.viewer(decode(image)) for image in s.images]) for s in mixed]
    alone = [subject.read([one])[0] for one in items]
    for layout in ("packed", "padded"):
        for reading, own in zip(replace(subject, layout=layout).read(items), alone, strict=True):
            assert reading.loglik == pytest.approx(own.loglik, rel=1e-4)
            assert (reading.exact, reading.greedy) == (own.exact, own.greedy)


def test_a_picture_that_several_questions_share_is_encoded_once(subject_of, make_sample, monkeypatch):
    subject, encoded = subject_of(), []
    encode = subject.model.encode_images
    monkeypatch.setattr(
        subject.model, "encode_images", lambda pixels, context: encoded.append(len(pixels)) or encode(pixels, context)
    )
    one = make_sample(0, [(24, 24), (24, 30)])
    items = [
        item(one.with_answer(text), subject.renderer, [subject.viewer(decode(image)) for image in one.images])
        for text in ("a", "b", "c")
    ]
    subject.read(items)
    assert encoded == [2]


def test_rows_of_different_length_end_together():
    ids, mask = left_padded([torch.tensor([1, 2, 3]), torch.tensor([4])], pad=9)
    assert ids.tolist() == [[1, 2, 3], [9, 9, 4]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
