"""A prompt as text, and the template that is saved with a model, are what the renderer makes of a conversation."""

from __future__ import annotations

import pytest

from beni.data.images import Image
from beni.data.render.template import Renderer
from beni.data.render.tokens import IMAGE
from beni.data.sample import Message, Sample
from beni.errors import DataError
from beni.model.chat_template import chat_template
from unit.data.render.families import FAMILIES, tokenizer_of_family

PAIRS = [
    *((tokenizer, template) for tokenizer in ("bos", "gpt2", "llama", "smollm2") for template in ("plain", "chatml")),
    *((tokenizer, "llava_v1") for tokenizer in ("bos", "llama", "llama_legacy", "embedded")),
    *((tokenizer, "own") for tokenizer in ("embedded", "smollm2", "llama3")),
]


def conversations(talk, plain):
    yield talk("question", "#\nwhat colour is the star?", "red")
    yield talk("two images", "first # then #,\n\n  which? ", "the second")
    yield talk("text", "what is one plus one?", "two")
    if not plain:
        yield talk("turns", "#\nwhat colour?", "red", "and the shape of #?", "a square", "sure?", "yes.")


def as_parts(sample):
    """The conversation as transformers has it, without its last answer."""
    return [
        {
            "role": m.role,
            "content": [
                {"type": "image"} if isinstance(part, Image) else {"type": "text", "text": part} for part in m.content
            ],
        }
        for m in sample.messages[:-1]
    ]


def holds_for(renderer, sample):
    images = sample.asked_images
    markups = [(2, "\n", 3 + number) for number in range(len(images))]
    text = renderer.prompt_text(sample)
    assert text.count(IMAGE) == len(images)
    ids = renderer.prompt(sample, markups).ids
    assert renderer.prompt_ids(text, images, markups).tolist() == ids.tolist()
    saved = chat_template(renderer.jinja, renderer.settings["system"])
    told = {"chat_template": saved, "tokenize": False}
    assert renderer.tokenizer.apply_chat_template(as_parts(sample), add_generation_prompt=True, **told) == text
    flat = [
        {"role": m.role, "content": "".join(p if isinstance(p, str) else IMAGE for p in m.content)}
        for m in sample.messages
    ]
    whole = renderer.tokenizer.apply_chat_template(flat, **told)
    assert (
        renderer.tokenizer(whole, add_special_tokens=False).input_ids[-3:] == renderer.encode(sample).ids[-3:].tolist()
    )


@pytest.mark.parametrize(("tokenizer", "template"), PAIRS)
def test_text_ids_and_the_saved_template_agree(tokenizer, template, renderer_of, talk):
    renderer = renderer_of(tokenizer, template)
    for sample in conversations(talk, template == "plain"):
        holds_for(renderer, sample)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_they_agree_for_the_published_template_of_each_family(name, settings_of, talk):
    family = FAMILIES[name]
    renderer = Renderer(tokenizer_of_family(name), settings_of(family.template), visual_tokens=3)
    for sample in conversations(talk, family.template == "plain"):
        holds_for(renderer, sample)


def test_the_saved_template_says_the_runs_system_message_where_a_conversation_has_none(renderer_of, talk):
    renderer = renderer_of("embedded", "chatml", system="Say it in one word.")
    sample = talk("one", "which?", "red")
    assert "Say it in one word." in renderer.prompt_text(sample)
    holds_for(renderer, sample)
    own = Sample("own", (Message("system", ("Be brief.",)), *sample.messages))
    assert "one word" not in renderer.prompt_text(own)
    holds_for(renderer, own)


def test_a_text_that_spells_a_control_token_is_refused_as_text_and_kept_as_ids(renderer_of, talk):
    renderer = renderer_of("bos", "chatml")
    sample = talk("spelled", f"what is {renderer.tokenizer.eos_token}?", "an end")
    assert len(renderer.prompt(sample).ids)
    with pytest.raises(DataError, match="spells a control token"):
        renderer.prompt_text(sample)


def test_quotes_line_breaks_and_other_alphabets_in_a_system_message_survive(renderer_of, talk):
    renderer = renderer_of("embedded", "chatml", system='Say "so";\nnot {{ it }} – 赤い \\ end.')
    holds_for(renderer, talk("one", "which?", "red"))


def test_a_saved_template_escapes_no_character_since_llama_cpp_reads_no_such_escape():
    saved = chat_template("{{ messages[0].content }}", "Antworte kurz: \u8d64\u3044, caf\u00e9.")
    assert "\\u" not in saved
    assert "\u8d64\u3044, caf\u00e9" in saved
