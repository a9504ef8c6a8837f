"""A saved model is used by transformers' own means: pipeline, streamers, stopping criteria, sampling, beams."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from dataclasses import replace
from threading import Thread

import numpy as np
import pytest
import torch
from PIL import Image as PILImage
from transformers import (
    AutoModel,
    GenerationConfig,
    LogitsProcessorList,
    MaxLengthCriteria,
    StoppingCriteria,
    TextIteratorStreamer,
    pipeline,
)
from transformers.generation.logits_process import ForcedEOSTokenLogitsProcessor

from beni.data.render.template import Renderer
from beni.errors import ConfigError, DataError
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build
from beni.model.processing import BeniProcessor
from beni.model.saving import save

RED = PILImage.new("RGB", (24, 24), "red")
ASKED = {"role": "user", "content": [{"type": "image", "image": RED}, {"type": "text", "text": "what is it?"}]}
ENOUGH = {"max_new_tokens": 8, "min_new_tokens": 8}


@pytest.fixture(scope="module")
def folder(tiny_once, tmp_path_factory):
    """A saved model with weights so large that its answers vary."""
    run = tiny_once("views=anyres", "views.canvases=[[1,2],[2,1]]", "llm.architecture.max_position_embeddings=2048")
    model = build(run).eval()
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn_like(parameter) * 0.3)
    path = tmp_path_factory.mktemp("saved")
    save(model, Renderer(load_tokenizer(run["llm"]), run["template"]), path)
    return path


@pytest.fixture(scope="module")
def pipe(folder):
    return pipeline("image-text-to-text", model=str(folder), device="cpu")


@pytest.fixture(scope="module")
def batch(pipe):
    return pipe.processor.apply_chat_template([ASKED], add_generation_prompt=True, tokenize=True)


def new_ids(model, batch, **options):
    """The ids behind the prompts."""
    return model.generate(**batch, **options)[:, batch["input_ids"].shape[1] :]


def test_a_pipeline_says_what_the_model_says(pipe, batch, caplog):
    said = pipe.processor.decode(new_ids(pipe.model, batch, max_new_tokens=8)[0])
    assert pipe(text=[ASKED], max_new_tokens=8)[0]["generated_text"] == [ASKED, {"role": "assistant", "content": said}]
    several = pipe(text=[[ASKED], [ASKED]], max_new_tokens=8, return_full_text=False)
    assert [one[0]["generated_text"] for one in several] == [said, said]
    told = pipe(images=RED, text="<image>what is it?", max_new_tokens=8)[0]
    assert told["generated_text"].startswith("<image>what is it?")
    assert (
        len(pipe(text=[ASKED], return_tensors=True, generate_kwargs=ENOUGH)[0]["generated_token_ids"])
        == batch["input_ids"].shape[1] + 8
    )
    assert "is not supported" not in caplog.text


@pytest.mark.parametrize(
    "asked",
    [
        [(RED,), (RED.resize((60, 20)), "is it?"), (RED.resize((20, 70)), RED.rotate(45), "which one? or both?")],
        [("what?",), ("what is two and two, and what is three?",), ("",)],
    ],
    ids=["images", "texts"],
)
def test_a_pipeline_says_in_batches_what_it_says_one_by_one(pipe, asked):
    talks = [
        [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": part} if isinstance(part, str) else {"type": "image", "image": part}
                    for part in parts
                ],
            }
        ]
        for parts in asked
    ]
    alone = [pipe(text=talk, generate_kwargs=ENOUGH)[0]["generated_text"][-1]["content"] for talk in talks]
    together = pipe(text=talks, batch_size=2, generate_kwargs=ENOUGH)
    assert [one[0]["generated_text"][-1]["content"] for one in together] == alone
    assert len(set(alone)) == len(alone)


def test_inputs_of_other_rows_than_the_batch_has_are_refused(pipe, batch):
    with pytest.raises(DataError, match="samples is a list of 2 for 1 rows"):
        pipe.model.generate(**{**batch, "samples": [batch["samples"]] * 2})


def test_a_pipeline_goes_on_with_the_beginning_of_an_answer(pipe, batch):
    ids = new_ids(pipe.model, batch, **ENOUGH)[0]
    model, begun = pipe.model, [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "a star that"}]}]
    prompt = pipe.processor.apply_chat_template(begun, tokenize=True, continue_final_message=True)
    assert "labels" not in prompt
    tokenizer = pipe.processor.tokenizer
    text = "a star that"
    assert tokenizer.decode(prompt["input_ids"][0]).endswith(text)
    whole = pipe.processor.apply_chat_template(begun, tokenize=True)["input_ids"]
    assert whole[0, : prompt["input_ids"].shape[1]].equal(prompt["input_ids"][0])
    said = pipe.processor.tokenizer.decode(new_ids(model, prompt, **ENOUGH)[0])
    full = pipe(text=begun, generate_kwargs=ENOUGH)[0]["generated_text"][-1]["content"][0]["text"]
    assert full == text + said != text
    assert not torch.equal(ids, new_ids(model, prompt, **ENOUGH)[0])


def test_importing_beni_is_enough_for_a_pipeline(folder):
    code = (
        "import beni, transformers, PIL.Image as I; "
        f"pipe = transformers.pipeline('image-text-to-text', model={str(folder)!r}); "
        "asked = [{'role': 'user', 'content': [{'type': 'image', 'image': I.new('RGB', (24, 24))}, "
        "{'type': 'text', 'text': 'what?'}]}]; "
        "print(pipe(text=asked, max_new_tokens=4)[0]['generated_text'][-1]['role'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "assistant", done.stderr
    assert "not supported" not in done.stderr


def test_a_streamer_is_given_the_text_as_it_comes(pipe, batch):
    streamer = TextIteratorStreamer(pipe.processor.tokenizer, skip_special_tokens=True)
    worker = Thread(target=pipe.model.generate, kwargs={**batch, **ENOUGH, "streamer": streamer})
    worker.start()
    pieces = list(streamer)
    worker.join()
    assert "".join(pieces).strip() == pipe.processor.decode(new_ids(pipe.model, batch, **ENOUGH)[0])


class _AfterThree(StoppingCriteria):
    def __init__(self, prompts):
        self.prompts = prompts

    def __call__(self, input_ids, scores, **kwargs):
        length = self.prompts.shape[1]
        assert input_ids[:, :length].equal(self.prompts.repeat_interleave(len(input_ids) // len(self.prompts), 0))
        return torch.full((len(input_ids),), input_ids.shape[1] >= length + 3)


def test_stopping_criteria_and_stop_strings_end_an_answer(pipe, batch):
    model, tokenizer = pipe.model, pipe.processor.tokenizer
    criterion = _AfterThree(batch["input_ids"])
    for criteria in ([criterion], criterion, [MaxLengthCriteria(batch["input_ids"].shape[1] + 3)]):
        assert new_ids(model, batch, max_new_tokens=8, stopping_criteria=criteria).shape == (1, 3)
    whole = new_ids(model, batch, max_new_tokens=8)[0]
    token = tokenizer.decode(whole[2:3])
    assert token.isascii()
    cut = new_ids(model, batch, max_new_tokens=8, stop_strings=[token], tokenizer=tokenizer)[0]
    assert len(cut) < len(whole)


def test_functions_of_the_caller_are_told_of_the_prompt(pipe, batch):
    talks = [[ASKED], [{"role": "user", "content": "what is two and two, and what is three?"}]]
    both = pipe.processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True)
    prompts, seen = both["input_ids"], []

    def allowed(row, ids):
        seen.append((row, ids[: prompts.shape[1]].equal(prompts[row])))
        return [40 + row]

    said = new_ids(pipe.model, both, max_new_tokens=3, prefix_allowed_tokens_fn=allowed)
    assert said.tolist() == [[40] * 3, [41] * 3]
    assert set(seen) == {(0, True), (1, True)}
    greedy = new_ids(pipe.model, batch, **ENOUGH)
    asked = batch["input_ids"].shape[1]
    processor = ForcedEOSTokenLogitsProcessor(asked + 2, 7)  # of the last of so many positions
    forced = new_ids(pipe.model, batch, **ENOUGH, logits_processor=LogitsProcessorList([processor]))
    assert forced[0, :2].tolist() == [int(greedy[0, 0]), 7]


def test_sampling_draws_and_a_seed_repeats_it(pipe, batch):
    def drawn(seed, **options):
        torch.manual_seed(seed)
        return tuple(new_ids(pipe.model, batch, **ENOUGH, do_sample=True, **options)[0].tolist())

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1
    greedy = tuple(new_ids(pipe.model, batch, **ENOUGH)[0].tolist())
    assert drawn(1, top_k=1) == drawn(2, top_p=1e-9) == greedy


def test_several_answers_beams_and_scores_are_returned(pipe, batch):
    model, prompt = pipe.model, batch["input_ids"][0]
    talks = [[ASKED], [{"role": "user", "content": "what is two and two, and what is three?"}]]
    both = pipe.processor.apply_chat_template(talks, add_generation_prompt=True, tokenize=True)
    drawn = model.generate(**both, **ENOUGH, do_sample=True, num_return_sequences=3)
    length = both["input_ids"].shape[1]
    assert drawn.shape == (6, length + 8)
    assert drawn[:, :length].equal(both["input_ids"].repeat_interleave(3, 0))
    beams = model.generate(
        **batch, **ENOUGH, num_beams=3, num_return_sequences=2, return_dict_in_generate=True, output_scores=True
    )
    assert beams.sequences.shape == (2, len(prompt) + 8)
    assert beams.sequences[:, : len(prompt)].equal(prompt.expand(2, -1))
    assert beams.sequences_scores[0] >= beams.sequences_scores[1]
    told = model.llm.model.compute_transition_scores(beams.sequences, beams.scores, beams.beam_indices)
    torch.testing.assert_close(told.sum(1) / 8, beams.sequences_scores)


def test_the_usual_ways_to_read_an_answer_read_it(pipe, batch):
    model, processor, asked = pipe.model, pipe.processor, batch["input_ids"].shape[1]
    out = model.generate(**batch, **ENOUGH)
    said = model.answer(RED, "what is it?", **ENOUGH)
    assert len(said) > 1
    assert said == model.answer(RED, "what is it?", **ENOUGH, return_dict_in_generate=True)
    assert processor.batch_decode(out[:, asked:], skip_special_tokens=True) == [said]
    assert processor.decode(out[0, asked:], skip_special_tokens=True, clean_up_tokenization_spaces=False) == said
    assert processor.decode(out[:, asked:]) == [said]
    assert processor.batch_decode(out)[0] == f"what is it?{said}"
    whole = processor.batch_decode(out, skip_special_tokens=False)[0]
    assert whole.startswith(processor.tokenizer.decode(batch["input_ids"][0]))
    end = processor.renderer.tokens.eos[-1]
    assert processor.decode([*out[0, asked:].tolist(), end, end]) == said


def test_an_unknown_option_is_refused(pipe, batch):
    with pytest.raises(ValueError, match="new_tokens"):
        pipe.model.generate(**batch, new_tokens=8)


@pytest.mark.parametrize("size", [(24, 24), (24, 60), (70, 20), (300, 400)])
def test_the_number_of_tokens_of_an_image_is_known_from_its_size(folder, size):
    processor = BeniProcessor.from_pretrained(folder)
    told = processor._get_num_multimodal_tokens([size, (24, 24)])
    picture = PILImage.new("RGB", size[::-1])
    talk = [{"role": "user", "content": [{"type": "image", "image": picture}]}]
    ids = processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)
    assert told.num_image_tokens[0] == int((ids["input_ids"] == processor.config.image_token_id).sum())
    assert told.num_image_patches[0] == len(ids["images"].layouts[0].views)
    assert len(told.num_image_tokens) == 2
    with pytest.raises(DataError, match="crop_size"):
        processor._get_num_multimodal_tokens([size], crop_size=3)


def test_an_image_comes_as_data_too(pipe):
    file = io.BytesIO()
    RED.save(file, "PNG")
    address = f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
    for part in ({"type": "image", "image": address}, {"type": "image", "url": address}):
        talk = [{"role": "user", "content": [part]}]
        mine = pipe.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)
        talk = [{"role": "user", "content": [{"type": "image", "image": RED}]}]
        theirs = pipe.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)
        assert torch.equal(mine["pixels"], theirs["pixels"])
    talk = [{"role": "user", "content": [{"type": "image", "url": "data:image/png;base64,%%%"}]}]
    with pytest.raises(DataError, match="no base64"):
        pipe.processor.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)


def test_options_that_nothing_would_read_are_refused(pipe):
    for options in (
        {"processor_kwargs": {"size": 3}},
        {"continue_final_message": True, "add_generation_prompt": True},
        {"continue_final_message": True, "tokenize": False},
        {"chat_template": "{{ messages }}"},
        {"tools": [{"name": "look"}]},
        {"enable_thinking": False},
        {"padding_side": "right"},
        {"return_tensors": "tf"},
        {"truncation": "first"},
        {"padding": "max_length"},
        {"max_length": 0},
    ):
        with pytest.raises(DataError, match="fix: "):
            pipe.processor.apply_chat_template([ASKED], **{"tokenize": True, "add_generation_prompt": True, **options})
    for options, said in (
        ({"padding": False}, "padding=False for rows of"),
        ({"truncation": True, "max_length": 2}, "max_length=2, and no prompt is cut"),
        ({"do_resize": False}, "do_resize=False"),
    ):
        with pytest.raises(DataError, match=said):
            pipe.processor(text=["what?", "and what is two and two?"], **options)


def test_options_that_ask_for_nothing_are_accepted(pipe, batch):
    processor, talk = pipe.processor, {"add_generation_prompt": True, "tokenize": True}
    for options in (
        {"padding": True, "padding_side": "left", "truncation": False},
        {"padding": "longest", "tools": [], "documents": None, "return_assistant_tokens_mask": False},
        {"chat_template": processor.chat_template},
        {"padding": False, "truncation": True, "max_length": batch["input_ids"].shape[1]},
        {"processor_kwargs": {"padding": True, "return_tensors": "pt", "text_kwargs": {}}, "return_tensors": "auto"},
    ):
        made = processor.apply_chat_template([ASKED], **talk, **options)
        assert made.keys() == batch.keys()
        assert made["input_ids"].equal(batch["input_ids"])
    text = processor.apply_chat_template([ASKED], add_generation_prompt=True)
    assert processor(images=RED, text=text, add_special_tokens=False)["input_ids"].equal(batch["input_ids"])


def test_a_batch_is_padded_and_given_as_it_is_asked_for(pipe, batch):
    processor, talk = pipe.processor, {"add_generation_prompt": True, "tokenize": True}
    length, ids = batch["input_ids"].shape[1], batch["input_ids"][0].tolist()
    fixed = processor.apply_chat_template([ASKED], **talk, padding="max_length", max_length=length + 3)
    assert fixed["input_ids"].tolist() == [[processor.renderer.tokens.pad] * 3 + ids]
    assert fixed["attention_mask"].tolist() == [[0] * 3 + [1] * length]
    assert new_ids(pipe.model, fixed, **ENOUGH).equal(new_ids(pipe.model, batch, **ENOUGH))
    wide = processor.apply_chat_template([ASKED], **talk, pad_to_multiple_of=64)["input_ids"]
    assert wide.shape[1] % 64 == 0
    assert wide.shape[1] - length < 64
    arrays = processor.apply_chat_template([ASKED], **talk, return_tensors="np")
    assert isinstance(arrays["input_ids"], np.ndarray)
    assert np.array_equal(arrays["pixels"], batch["pixels"].numpy())
    lists = processor.apply_chat_template([ASKED], **talk, return_tensors=None)
    assert lists["input_ids"] == [ids]
    assert [view.shape for view in lists["pixels"]] == [view.shape for view in batch["pixels"]]


def test_a_prompt_without_the_token_that_training_had_in_front_is_refused(pipe, monkeypatch):
    tokens = pipe.processor.renderer.tokens
    monkeypatch.setattr(pipe.processor.renderer, "tokens", replace(tokens, bos=5))
    with pytest.raises(DataError, match="add_special_tokens=False, and the prompt 'what"):
        pipe.processor(text="what?", add_special_tokens=False)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"position_ids": torch.arange(3)[None]}, r"position_ids=a tensor of \(1, 3\)"),
        ({"inputs_embeds": torch.zeros(1, 3, 32)}, r"inputs_embeds=a tensor of \(1, 3, 32\)"),
        ({"assistant_model": torch.nn.Linear(1, 1)}, "assistant_model=a Linear"),
        ({"guidance_scale": 1.5}, "guidance_scale=1.5"),
        ({"generation_config": GenerationConfig(guidance_scale=1.5)}, "guidance_scale=1.5"),
        ({"past_key_values": object()}, "past_key_values="),
    ],
)
def test_options_of_generate_that_cannot_be_obeyed_are_refused(pipe, batch, options, said):
    with pytest.raises(ConfigError, match=f"generate was given {said}(?s:.*)fix: "):
        pipe.model.generate(**batch, **options)


def test_generate_takes_what_asks_for_nothing(pipe, batch):
    rest = {name: value for name, value in batch.items() if name != "input_ids"}
    nothing = {"position_ids": None, "assistant_model": None, "past_key_values": None, "guidance_scale": 1.0}
    said = pipe.model.generate(inputs=batch["input_ids"], **rest, **ENOUGH, **nothing)
    assert said.equal(pipe.model.generate(**batch, **ENOUGH))


def test_forward_is_called_as_that_of_other_models(pipe, batch):
    model = pipe.model
    whole = model(**batch, return_dict=True, output_hidden_states=False, output_attentions=None, use_cache=False)
    told = model(**batch, return_dict=False)
    assert isinstance(told, tuple)
    assert told[0].equal(whole.logits)
    for name, value in (("output_hidden_states", True), ("output_attentions", True), ("inputs_embeds", torch.ones(1))):
        with pytest.raises(ConfigError, match=f"{name}=(?s:.*)fix: "):
            model(**batch, **{name: value})


def test_a_table_of_another_size_is_refused_before_anything_changes(folder, tmp_path):
    model = AutoModel.from_pretrained(folder)
    table = model.get_input_embeddings()
    rows = len(table.weight)
    for arguments in ((rows + 88,), (None, 100), (rows, 100)):
        with pytest.raises(ConfigError, match=f"a saved model is read with the {rows} of its llm"):
            model.resize_token_embeddings(*arguments)
    assert model.resize_token_embeddings() is model.resize_token_embeddings(rows) is table
    assert len(table.weight) == rows
    model.save_pretrained(tmp_path / "again")
    assert AutoModel.from_pretrained(tmp_path / "again").get_input_embeddings().weight.equal(table.weight)
