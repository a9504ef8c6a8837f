"""A saved model is used by transformers' own means: pipeline, streamers, stopping criteria, sampling, beams."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from threading import Thread

import pytest
import torch
from PIL import Image as PILImage
from transformers import StoppingCriteria, TextIteratorStreamer, pipeline

from beni.data.render.template import Renderer
from beni.errors import DataError
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


def test_a_pipeline_says_what_the_model_says(pipe, batch, caplog):
    said = pipe.processor.decode(pipe.model.generate(**batch, max_new_tokens=8)[0])
    assert pipe(text=[ASKED], max_new_tokens=8)[0]["generated_text"] == [ASKED, {"role": "assistant", "content": said}]
    several = pipe(text=[[ASKED], [ASKED]], max_new_tokens=8, return_full_text=False)
    assert [one[0]["generated_text"] for one in several] == [said, said]
    told = pipe(images=RED, text="<image>what is it?", max_new_tokens=8)[0]
    assert told["generated_text"].startswith("<image>what is it?")
    assert len(pipe(text=[ASKED], return_tensors=True, generate_kwargs=ENOUGH)[0]["generated_token_ids"]) == 8
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
    ids = pipe.model.generate(**batch, **ENOUGH)[0]
    model, begun = pipe.model, [ASKED, {"role": "assistant", "content": [{"type": "text", "text": "a star that"}]}]
    prompt = pipe.processor.apply_chat_template(begun, tokenize=True, continue_final_message=True)
    assert "labels" not in prompt
    tokenizer = pipe.processor.tokenizer
    text = "a star that"
    assert tokenizer.decode(prompt["input_ids"][0]).endswith(text)
    whole = pipe.processor.apply_chat_template(begun, tokenize=True)["input_ids"]
    assert whole[0, : prompt["input_ids"].shape[1]].equal(prompt["input_ids"][0])
    said = pipe.processor.decode(model.generate(**prompt, **ENOUGH)[0])
    full = pipe(text=begun, generate_kwargs=ENOUGH)[0]["generated_text"][-1]["content"][0]["text"]
    assert full == text + said != text
    assert not torch.equal(ids, model.generate(**prompt, **ENOUGH)[0])


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
    assert "".join(pieces).strip() == pipe.processor.decode(pipe.model.generate(**batch, **ENOUGH)[0])


class _AfterThree(StoppingCriteria):
    def __call__(self, input_ids, scores, **kwargs):
        return torch.full((len(input_ids),), input_ids.shape[1] >= 3)


def test_stopping_criteria_and_stop_strings_end_an_answer(pipe, batch):
    model, tokenizer = pipe.model, pipe.processor.tokenizer
    assert model.generate(**batch, max_new_tokens=8, stopping_criteria=[_AfterThree()]).shape[1] == 3
    whole = model.generate(**batch, max_new_tokens=8)[0]
    token = tokenizer.decode(whole[2:3])
    assert token.isascii()
    cut = model.generate(**batch, max_new_tokens=8, stop_strings=[token], tokenizer=tokenizer)[0]
    assert len(cut) < len(whole)


def test_sampling_draws_and_a_seed_repeats_it(pipe, batch):
    def drawn(seed, **options):
        torch.manual_seed(seed)
        return tuple(pipe.model.generate(**batch, **ENOUGH, do_sample=True, **options)[0].tolist())

    assert drawn(1) == drawn(1)
    assert len({drawn(seed) for seed in range(4)}) > 1
    greedy = tuple(pipe.model.generate(**batch, **ENOUGH)[0].tolist())
    assert drawn(1, top_k=1) == drawn(2, top_p=1e-9) == greedy


def test_several_answers_beams_and_scores_are_returned(pipe, batch):
    model = pipe.model
    assert model.generate(**batch, **ENOUGH, do_sample=True, num_return_sequences=3).shape == (3, 8)
    beams = model.generate(
        **batch, **ENOUGH, num_beams=3, num_return_sequences=2, return_dict_in_generate=True, output_scores=True
    )
    assert beams.sequences.shape == (2, 8)
    assert beams.sequences_scores[0] >= beams.sequences_scores[1]


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
    ):
        with pytest.raises(DataError):
            pipe.processor.apply_chat_template([ASKED], **{"tokenize": True, **options})
    with pytest.raises(DataError, match="padding=False"):
        pipe.processor(text="what?", padding=False)
