"""The processor gives what the run's own renderer and viewer give, whatever form messages and images have."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import AutoModel, AutoProcessor, AutoTokenizer, GenerationConfig

from beni.data.render.template import Renderer
from beni.errors import ConfigError, DataError
from beni.llm.tokenizer import load_tokenizer
from beni.model.processing import BeniProcessor
from beni.model.saving import save
from beni.model.speaking import LONGEST_ANSWER

TEMPLATES = ("chat", "chatml", "llava_v1", "plain")


def picture(mode="RGB", colour=90):
    return PILImage.new("RGB", (24, 24), (colour, 120, 60)).convert(mode)


def asking(*parts):
    content = [
        {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part} for part in parts
    ]
    return [{"role": "user", "content": content}]


@pytest.fixture(scope="module", params=TEMPLATES)
def saved(request, tiny_once, tmp_path_factory):
    """(folder, the run's renderer, the model) with a template."""
    from beni.model.build import build

    run = tiny_once(f"template={request.param}", "llm.architecture.max_position_embeddings=2048")
    model, renderer = build(run).eval(), Renderer(load_tokenizer(run["llm"]), run["template"])
    folder = tmp_path_factory.mktemp(request.param)
    save(model, renderer, folder)
    return folder, renderer, model


@pytest.fixture(scope="module")
def processor(saved):
    return AutoProcessor.from_pretrained(saved[0])


def new_ids(model, batch, **options):
    """The ids behind the prompts."""
    out = model.generate(**batch, **options)
    prompts = batch["input_ids"]
    assert out[:, : prompts.shape[1]].equal(prompts)
    return out[:, prompts.shape[1] :]


def expected_ids(renderer, model, talk, images):
    from beni.data.sample import Message
    from beni.model.processing import as_sample

    sample = as_sample(talk, pictured=True)
    sample = type(sample)(sample.id, (*sample.messages, Message("assistant", ("x",))))
    return renderer.prompt(sample, [model.viewer(image).markup for image in images]).ids.tolist()


def test_auto_classes_read_the_folder(saved, processor):
    folder, renderer, _ = saved
    assert type(processor) is BeniProcessor
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert model.config.template["hash"] == renderer.hash() == processor.renderer.hash()
    assert model.generation_config.eos_token_id == list(renderer.tokens.eos)
    assert model.generation_config.pad_token_id == renderer.tokens.pad
    assert model.generation_config.max_new_tokens == LONGEST_ANSWER
    assert tokenizer.chat_template == processor.chat_template == processor.tokenizer.chat_template


def test_a_prompt_has_the_ids_that_evaluation_gives_the_model(saved, processor):
    _, renderer, model = saved
    red, blue = picture(colour=200), picture(colour=10)
    for talk, images in (
        (asking(red, "what?"), [red]),
        (asking("compare ", red, " and ", blue, "\n\nwhich? "), [red, blue]),
        (asking("no image"), []),
    ):
        expected = expected_ids(renderer, model, talk, images)
        batch = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)
        assert batch["input_ids"].tolist() == [expected]
        text = processor.apply_chat_template(talk, add_generation_prompt=True)
        assert processor(images=images or None, text=text)["input_ids"].tolist() == [expected]
        if images:
            torch.testing.assert_close(
                batch["pixels"], torch.cat([torch.stack(model.viewer(i).pixels) for i in images])
            )
            assert batch["images"].layouts == tuple(model.viewer(i).layout for i in images)
            assert batch["images"].owners.tolist() == [0] * len(images)


def test_a_later_question_is_asked_behind_the_earlier_answers(saved, processor):
    _, renderer, model = saved
    if renderer.settings["name"] == "plain":
        pytest.skip("plain has no turns")
    red = picture(colour=200)
    talk = [*asking(red, "what?"), {"role": "assistant", "content": "red"}, {"role": "user", "content": "sure?"}]
    expected = expected_ids(renderer, model, talk, [red])
    assert processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)["input_ids"].tolist() == [
        expected
    ]


def test_rows_of_a_batch_end_together_and_say_what_each_says_alone(saved, processor):
    model = saved[2]
    talks = [asking(picture(colour=200), "what?"), asking("which one is it, after all?"), asking(picture(), "why? ok")]
    batch = processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True)
    assert batch["attention_mask"][:, -1].all()
    assert batch["images"].owners.tolist() == [0, 2]
    together = new_ids(model, batch, max_new_tokens=4, min_new_tokens=4)
    for row, talk in zip(together, talks, strict=True):
        alone = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)
        assert row.equal(new_ids(model, alone, max_new_tokens=4, min_new_tokens=4)[0])


def test_a_conversation_with_its_answer_has_labels(saved, processor):
    _, renderer, model = saved
    talk = [*asking(picture(), "what?"), {"role": "assistant", "content": "red"}]
    batch = processor.apply_chat_template(talk, tokenize=True)
    supervised = batch["labels"][batch["labels"] != -100]
    assert renderer.decode(supervised) == "red"
    assert supervised[-1] in renderer.tokens.eos
    assert torch.isfinite(model(**batch).loss)


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "L", "LA", "P", "1", "CMYK", "I;16"])
def test_images_of_any_mode_are_seen(mode, tiny_model):
    image = PILImage.new(mode, (24, 24))
    assert tiny_model().viewer(image).pixels[0].shape == (3, 24, 24)


def test_an_image_comes_decoded_as_a_path_or_as_bytes(tiny_model, tmp_path, saved, processor):
    picture("RGBA").save(tmp_path / "image.png")
    path = tmp_path / "image.png"
    batches = []
    with PILImage.open(path) as opened:
        decoded = opened.copy()
    for one in (decoded, path, str(path), path.read_bytes()):
        talk = asking(decoded, "what?")
        talk[0]["content"][0]["image"] = one
        batches.append(processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)["pixels"])
    assert all(pixels.equal(batches[0]) for pixels in batches)


@pytest.mark.parametrize(
    ("talk", "said"),
    [
        ([{"role": "user", "content": "a", "name": "me"}], "nothing reads them"),
        ([{"role": "tool", "content": "a"}], "expected role"),
        ([{"role": "user", "content": [{"type": "video", "video": "x"}]}], "a part of a message is"),
        ([{"role": "user", "content": [{"type": "image"}]}], "a part of a message is"),
        ([{"role": "user", "content": [{"type": "image", "image": "http://x/y.png"}]}], "open it first"),
        ([{"role": "user", "content": [{"type": "image", "image": 3}]}], "an image is int"),
        ([{"role": "user", "content": [{"type": "image", "image": torch.zeros(3, 24, 24)}]}], "an image is Tensor"),
        ([], r"a conversation is \[\]"),
        ([[]], r"a conversation is \[\[\]\]"),
        ("hello", "a conversation is 'hello'"),
        (None, "a conversation is None"),
        (["hello"], "a conversation is"),
        ({"role": "user", "content": "a"}, "a conversation is"),
        ([[{"role": "user", "content": "a"}], []], "a conversation is"),
        ([{"role": "user", "content": None}], "content of a message is None"),
        ([{"role": "user", "content": 3}], "content of a message is 3"),
        ([{"role": "user", "content": {"type": "text", "text": "a"}}], "content of a message is"),
        ([{"role": "user", "content": ["hello"]}], "a part of a message is 'hello'"),
        ([{"role": "user", "content": [{"type": "text", "text": 3}]}], "a part of a message is"),
    ],
)
def test_what_nobody_reads_is_refused(talk, said, processor):
    apply = inspect.unwrap(BeniProcessor.apply_chat_template)  # without the tests' own check of types
    for tokenize in (True, False) if "conversation" in said or "content" in said else (True,):
        with pytest.raises(DataError, match=said):
            apply(processor, talk, add_generation_prompt=True, tokenize=tokenize)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"text": []}, r"text=\[\], expected a text"),
        ({"text": 3}, "text=3, expected a text"),
        ({"text": ["a", 3]}, "expected a text"),
        ({"images": "hi"}, "images='hi'.*\n.*images come first"),
        ({"images": "hi", "text": "<image>"}, "images='hi', and there is no such file\n.*images come first"),
        ({"images": "hi <image>", "text": [picture()]}, "expected a text or a list of texts\n.*images come first"),
        ({"images": torch.zeros(3, 24, 24), "text": "<image>"}, "an image is Tensor"),
        ({"images": np.zeros((24, 24, 3), np.uint8), "text": "<image>"}, "an image is ndarray"),
        ({"images": 3, "text": "<image>"}, "an image is int"),
        ({"images": [None], "text": "<image>"}, "an image is NoneType"),
    ],
)
def test_what_is_no_text_or_image_is_refused(given, said, processor):
    with pytest.raises(DataError, match=said):
        inspect.unwrap(BeniProcessor.__call__)(processor, **given)


def test_an_empty_prompt_is_refused(saved, processor):
    model = saved[2]
    with pytest.raises(DataError, match="a prompt is empty"):
        processor(text=["what?", ""])
    with pytest.raises(DataError, match=r"input_ids, which are \(1, 0\)"):
        model.generate(torch.zeros(1, 0, dtype=torch.long))
    with pytest.raises(DataError, match="input_ids, which are a NoneType"):
        model.generate()
    with pytest.raises(DataError, match="ends with padding"):
        model.generate(torch.ones(1, 2, dtype=torch.long), attention_mask=torch.tensor([[1, 0]]))


def test_images_and_placeholders_that_differ_in_number_are_refused(processor):
    with pytest.raises(DataError, match="2 <image> placeholders for 1 images"):
        processor(images=[picture()], text="<image><image>")
    with pytest.raises(DataError, match="holds <image> 2 times for 1 images"):
        processor.question(picture(), "<image> or <image>?")


def test_an_argument_that_nobody_reads_is_an_error(saved, processor):
    model = saved[2]
    batch = processor.apply_chat_template(asking("hi"), add_generation_prompt=True, tokenize=True)
    with pytest.raises(ConfigError, match=r"temperature=1\.0, expected attention_mask"):
        model(**batch, temperature=1.0)
    with pytest.raises(ValueError, match="not_an_option"):
        model.generate(**batch, not_an_option=1)
    with pytest.raises(DataError, match="colour='red'"):
        processor(text="hi", colour="red")


def test_answer_is_what_generate_says(saved):
    folder, renderer, _ = saved
    model = AutoModel.from_pretrained(folder)
    batch = model.processor.apply_chat_template(asking(picture(), "what?"), add_generation_prompt=True, tokenize=True)
    said = renderer.decode(new_ids(model, batch, max_new_tokens=5)[0])
    model.train()
    assert model.answer(picture(), "what?", max_new_tokens=5) == said
    assert model.answer([picture()], "<image>what?", max_new_tokens=5) == said
    assert model.training


def test_an_answer_ends_at_the_runs_end_token_and_within_the_llms_positions(saved):
    folder = saved[0]
    model = AutoModel.from_pretrained(folder)
    batch = model.processor.apply_chat_template(asking("hi"), add_generation_prompt=True, tokenize=True)
    length = batch["input_ids"].shape[1]
    model.llm.max_positions = length + 3
    assert new_ids(model, batch).shape[1] <= 3
    with torch.no_grad():
        model.llm.output_layer().weight.zero_()
    first = int(new_ids(model, batch, max_new_tokens=1)[0, 0])  # all logits are equal: the lowest id is the greatest
    model.generation_config.eos_token_id = [first]
    assert new_ids(model, batch).tolist() == [[first]]


@pytest.mark.parametrize("given", ["option", "config"])
def test_a_length_counts_the_prompt_and_new_tokens_win_over_it(saved, given):
    model = AutoModel.from_pretrained(saved[0])
    batch = model.processor.apply_chat_template(asking(picture(), "hi"), add_generation_prompt=True, tokenize=True)
    length = batch["input_ids"].shape[1]

    def new(**options):
        told = options if given == "option" else {"generation_config": GenerationConfig(**options)}
        return new_ids(model, batch, **told).shape[1]

    assert new(max_length=length + 2, min_length=length + 2) == 2
    assert new(min_new_tokens=1, max_length=length + 1) == 1
    assert new(min_length=length + 3, max_new_tokens=3) == 3
    assert new(max_length=length + 2, max_new_tokens=4, min_new_tokens=4) == 4
    with pytest.raises(ConfigError, match=f"max_length={length} counts the prompt, which has {length} tokens"):
        new(max_length=length)


@pytest.mark.parametrize("given", ["option", "config"])
@pytest.mark.parametrize("origin", ["saved", "new"])
def test_an_answer_ends_where_the_llm_has_no_position_left_and_says_so(saved, processor, tiny_model, given, origin):
    model = AutoModel.from_pretrained(saved[0]) if origin == "saved" else tiny_model()
    batch = processor.apply_chat_template(asking(picture(), "hi"), add_generation_prompt=True, tokenize=True)
    length = batch["input_ids"].shape[1]
    options: Any = {"max_new_tokens": 9, "min_new_tokens": 2}
    if given == "config":
        options = {"generation_config": GenerationConfig(**options)}
    model.llm.max_positions = length + 2
    with pytest.warns(UserWarning, match="max_new_tokens=9 is more than the 2 for which .* ends after 2"):
        assert new_ids(model, batch, **options).shape[1] == 2
    model.llm.max_positions = length - 1
    with pytest.raises(
        DataError, match=f"the prompt takes {length} positions with its images, the llm has {length - 1}"
    ):
        model.generate(**batch)


def test_transformers_counts_the_scores_of_an_answer(saved):
    model = AutoModel.from_pretrained(saved[0])
    batch = model.processor.apply_chat_template(asking(picture(), "hi"), add_generation_prompt=True, tokenize=True)
    out = model.generate(
        **batch, max_new_tokens=3, min_new_tokens=3, num_beams=2, return_dict_in_generate=True, output_scores=True
    )
    each = model.compute_transition_scores(out.sequences, out.scores, out.beam_indices, normalize_logits=False)
    assert (each.sum(1) / 3).tolist() == pytest.approx(out.sequences_scores.tolist(), rel=1e-5)


def test_a_length_counts_the_prompt_of_a_model_that_no_run_saved(saved, processor, tiny_model):
    batch = processor.apply_chat_template(asking(picture(), "hi"), add_generation_prompt=True, tokenize=True)
    model, length = tiny_model(), batch["input_ids"].shape[1]
    assert model.generate(**batch, max_length=length + 2, eos_token_id=None).shape[1] == length + 2
    config = GenerationConfig(max_length=length + 3, min_length=length + 3)
    assert model.generate(**batch, generation_config=config).shape[1] == length + 3
    assert config.max_length == length + 3


def test_bf16_models_answer(saved):
    model = AutoModel.from_pretrained(saved[0], dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert isinstance(model.answer(picture("RGBA"), "what?", max_new_tokens=3), str)


def test_another_tokenizer_than_the_models_is_refused(saved):
    folder, _, model = saved
    other = AutoTokenizer.from_pretrained(folder)
    other.add_tokens(["<new>"])
    with pytest.raises(ConfigError, match="was trained with"):
        BeniProcessor(other, model.config)


def test_a_model_that_no_run_saved_says_so(tiny_model, tmp_path):
    model = tiny_model()
    with pytest.raises(ConfigError, match="fix: give processor="):
        model.answer(picture(), "what?")
    with pytest.raises(ConfigError, match=r"fix: write it again with python -m beni\.export"):
        BeniProcessor(load_tokenizer({"tokenizer": "embedded", "architecture": None}), model.config)
