"""What is wrong with a request is told with its place in it, as OpenAI's API names places."""

from __future__ import annotations

import json
from typing import get_type_hints

import pytest
from openai.types.chat import (
    ChatCompletionAssistantMessageParam,
    ChatCompletionContentPartImageParam,
    ChatCompletionContentPartTextParam,
    ChatCompletionDeveloperMessageParam,
    ChatCompletionSystemMessageParam,
    ChatCompletionUserMessageParam,
)
from openai.types.chat.completion_create_params import CompletionCreateParamsNonStreaming

from beni.serve.protocol import ChatRequest, Unread, parse
from beni.serve.refused import Refused

PICTURE = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}


def request(*messages, **more) -> bytes:
    return json.dumps({"model": "m", "messages": messages or [{"role": "user", "content": "x"}], **more}).encode()


def asked(*parts) -> bytes:
    return request({"role": "user", "content": parts})


def seen(detail: str) -> dict:
    return {"type": "image_url", "image_url": PICTURE["image_url"] | {"detail": detail}}


@pytest.mark.parametrize("detail", ["auto", "high"])
def test_an_image_is_seen_as_finely_as_the_model_can(detail):
    assert parse(ChatRequest, asked(seen(detail))).images[0].detail == detail


WRONG = [
    (asked(PICTURE, seen("low")), "messages[0].content[1].image_url.detail", "Input should be 'auto' or 'high'"),
    (asked({"type": "text", "text": 5}), "messages[0].content[0].text", "valid string"),
    (asked({"type": "text"}), "messages[0].content[0].text", "Missing parameter"),
    (asked({"type": "video"}), "messages[0].content[0]", "'text', 'image_url'"),
    (asked(), "messages[0].content", "valid string; or: List should have at least 1 item"),
    (request({"role": "user", "content": 5}), "messages[0].content", "valid string; or: Input should be a valid array"),
    (request({"role": "user", "content": "x"}, {"role": "user"}), "messages[1].content", "Missing parameter"),
    (request({"content": "x"}), "messages[0].role", "Missing parameter"),
    (request({"role": "tool", "content": "x"}), "messages[0]", "'assistant'"),
    (request(stop=["x", "y" * 300], stream=2), "stop[1]", "at most 256 characters"),
    (request(stream=2, seed="x"), "seed", "valid integer"),
    (request(frequency_penalty=2), "frequency_penalty", "Input should be 0"),
    (request(stream_options={"include": True}), "stream_options.include", "Unknown parameter"),
    (request(tool_choice="required"), "tool_choice", "Input should be 'none' or 'auto'. Nothing here reads it"),
    (request(logit_bias={"1": 2}), "logit_bias", "at most 0 items"),
    (request(modalities=["audio"]), "modalities[0]", "Input should be 'text'"),
    (request(store=True), "store", "Input should be False"),
    (request(metadata={"a": "b"}), "metadata", "leave it out"),
    (request(top_logprobs=3), "top_logprobs", "Input should be 0"),
    (request(user="x" * 300), "user", "at most 256 characters"),
    (request(user=7), "user", "valid string"),
    (request(web_search_options={}), "web_search_options", "Input should be null. Nothing here reads it"),
    (request({"role": "user", "content": "x", "name": "ann"}), "messages[0].name", "Nothing here reads it"),
    (request({"role": "assistant", "content": "x", "tool_calls": [{}]}), "messages[0].tool_calls", "at most 0 items"),
    (b"[]", None, "Invalid value of the body"),
    (b'{"model": "m", "messages": [}', None, "not valid JSON"),
]


NEUTRAL = {
    "frequency_penalty": 0,
    "function_call": "none",
    "functions": [],
    "logit_bias": {},
    "logprobs": False,
    "metadata": {},
    "modalities": ["text"],
    "n": 1,
    "parallel_tool_calls": True,
    "presence_penalty": 0.0,
    "prompt_cache_key": "a",
    "prompt_cache_options": {"mode": "implicit", "ttl": "30m"},
    "prompt_cache_retention": "in_memory",
    "reasoning_effort": "none",
    "response_format": {"type": "text"},
    "safety_identifier": "b",
    "service_tier": "default",
    "store": False,
    "tool_choice": "auto",
    "tools": [],
    "top_logprobs": 0,
    "user": "ann",
    "verbosity": "medium",
}
OF_OPENAI = sorted(get_type_hints(CompletionCreateParamsNonStreaming))


@pytest.mark.parametrize("name", OF_OPENAI)
def test_each_parameter_of_openai_is_taken_with_its_neutral_value_and_with_null(name):
    assert name in ChatRequest.model_fields
    if name in ("model", "messages"):
        return
    assert getattr(parse(ChatRequest, request(**{name: None})), name) is None
    if name in NEUTRAL:
        assert name in Unread.model_fields
        parse(ChatRequest, request(**{name: NEUTRAL[name]}))


def test_what_nothing_reads_is_of_openai_and_has_a_neutral_value_or_only_null():
    null_only = {"audio", "moderation", "prediction", "web_search_options"}
    assert set(Unread.model_fields) == set(NEUTRAL) | null_only
    assert set(ChatRequest.model_fields) == set(OF_OPENAI)


KINDS = {
    "system": ChatCompletionSystemMessageParam,
    "developer": ChatCompletionDeveloperMessageParam,
    "user": ChatCompletionUserMessageParam,
    "assistant": ChatCompletionAssistantMessageParam,
}
PARTS = (ChatCompletionContentPartTextParam, ChatCompletionContentPartImageParam)


@pytest.mark.parametrize("role", KINDS)
def test_a_message_is_taken_with_null_for_each_field_of_openai_that_may_be_left_out(role):
    null = dict.fromkeys(get_type_hints(KINDS[role]))
    parse(ChatRequest, request({**null, "role": role, "content": "x"}))


def test_an_image_and_a_text_are_taken_with_null_for_each_field_that_may_be_left_out():
    text, image = (dict.fromkeys(get_type_hints(part)) for part in PARTS)
    where = {"url": "https://example.com/a.png", "detail": None}
    body = asked({**text, "type": "text", "text": "x"}, {**image, "type": "image_url", "image_url": where})
    assert parse(ChatRequest, body).characters == 1


@pytest.mark.parametrize("options", [{"include_usage": None, "include_obfuscation": None}, {}])
def test_options_of_a_stream_may_be_null(options):
    parse(ChatRequest, request(stream=True, stream_options=options | {"include_obfuscation": False}))


@pytest.mark.parametrize(("body", "param", "says"), WRONG, ids=[f"{param}-{says[:20]}" for _, param, says in WRONG])
def test_a_mistake_is_told_with_its_place(body, param, says):
    with pytest.raises(Refused) as refused:
        parse(ChatRequest, body)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert says in refused.value.message
    assert str(param or "body") in refused.value.message
