"""What the page makes of a talk that it has shown, and of an answer that breaks off."""

from __future__ import annotations

import json

import httpx
import pytest

from beni.serve.client import Client, Failed, messages_of
from beni.serve.examples import INDEX, QUESTION, read_examples, write_examples


def test_what_was_shown_becomes_messages_one_for_each_turn(tmp_path):
    image = tmp_path / "a.png"
    image.write_bytes(b"content")
    history = [
        {"role": "user", "content": [{"type": "file", "file": {"path": str(image)}}]},
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": [{"type": "text", "text": "a cat"}], "metadata": None},
        {"role": "user", "content": [{"type": "text", "text": "sure?"}]},
    ]
    first, second, third = messages_of(history)
    assert [part["type"] for part in first["content"]] == ["image_url", "text"]
    assert first["content"][0]["image_url"]["url"].endswith("Y29udGVudA==")
    assert second == {"role": "assistant", "content": "a cat"}
    assert third == {"role": "user", "content": "sure?"}


def event(text):
    return "data: " + json.dumps({"choices": [{"delta": {"content": text}}]}) + "\n\n"


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (200, event("a") + event("b") + "data: [DONE]\n\n", "ab"),
        (200, event("a"), "The answer breaks off"),
        (200, event("a") + 'data: {"error": {"message": "it failed"}}\n\n', "it failed"),
        (429, '{"error": {"message": "too many"}}', "too many"),
        (502, "<html>", "status 502"),
    ],
)
def test_an_answer_is_whole_or_says_why_it_is_not(status, body, said):
    client = Client("http://gateway", None)
    client._client = httpx.Client(
        base_url="http://gateway", transport=httpx.MockTransport(lambda request: httpx.Response(status, text=body))
    )
    if said == "ab":
        assert "".join(client.answer("m", [])) == said
    else:
        with pytest.raises(Failed, match=said):
            list(client.answer("m", []))


def test_the_examples_of_a_run_are_held_out_images_of_different_kinds_with_their_questions(tiny_run, tmp_path):
    from beni.run import train

    write_examples(train(tiny_run("data.heldout=40")), tmp_path, 4)
    found = read_examples(tmp_path, 3)
    assert len(found) == 3
    assert all(one.image.is_file() for one in found)
    assert all(one.question.strip() for one in found)
    assert len({one.question.split()[0] for one in found}) > 1


def test_a_folder_of_images_without_an_index_is_asked_one_question(tmp_path):
    for name in ("b.png", "a.JPG", "c.txt"):
        (tmp_path / name).write_bytes(b"")
    found = read_examples(tmp_path, 6)
    assert [(one.image.name, one.question) for one in found] == [("a.JPG", QUESTION), ("b.png", QUESTION)]
    (tmp_path / INDEX).write_text("{}\n")
    with pytest.raises(Exception, match="cannot be read"):
        read_examples(tmp_path, 6)
