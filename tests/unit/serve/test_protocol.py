"""What is wrong with a request is told with its place in it, as OpenAI's API names places."""

from __future__ import annotations

import json

import pytest

from beni.serve.protocol import ChatRequest, parse
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
    (request(stop=["x", "y" * 300], n=2), "stop[1]", "at most 256 characters"),
    (request(n=2, seed="x"), "seed", "valid integer"),
    (request(frequency_penalty=2), "frequency_penalty", "Input should be 0"),
    (request(stream_options={"include": True}), "stream_options.include", "Unknown parameter"),
    (b"[]", None, "Invalid value of the body"),
    (b'{"model": "m", "messages": [}', None, "not valid JSON"),
]


@pytest.mark.parametrize(("body", "param", "says"), WRONG, ids=[f"{param}-{says[:20]}" for _, param, says in WRONG])
def test_a_mistake_is_told_with_its_place(body, param, says):
    with pytest.raises(Refused) as refused:
        parse(ChatRequest, body)
    assert (refused.value.status, refused.value.param) == (400, param)
    assert says in refused.value.message
    assert str(param or "body") in refused.value.message
