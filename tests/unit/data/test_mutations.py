"""Files of records that are damaged at random: each is an error that names its file, is told, or changes nothing.

``BENI_MUTATIONS=500 python -m pytest tests/unit/data/test_mutations.py`` draws so many cases.
"""

from __future__ import annotations

import copy
import json
import os
import random
from collections.abc import Iterator
from typing import Any

import pytest

from beni.config.build import build
from beni.config.compose import compose
from beni.data.batch.check import Check
from beni.data.render.template import Renderer
from beni.data.sample import at_hand
from beni.errors import DataError
from beni.types import ImageLayout
from support.hostile import encoded, noise

CASES = int(os.environ.get("BENI_MUTATIONS", "60"))
NONSENSE: tuple[Any, ...] = (
    *(None, "", " ", 0, -1, 3.5, True, [], {}, ["x"], [None], {"a": 1}, 10**20, "\x00", "<image>", "<|im_end|>"),
    *(["a.png", "b.png"], "../../etc/passwd", "http://[", "a" * 5000, [[["x"]]], {"bytes": None, "path": None}),
)
SAID = [{"from": "human", "value": "<image>\nwhat?"}, {"from": "gpt", "value": "that"}]
TURNS = [{"role": "user", "content": "<image>what?"}, {"role": "assistant", "content": "that"}]
RECORDS: dict[str, dict[str, Any]] = {
    "llava_instruct": {"id": "7", "image": "0.png", "conversations": SAID},
    "chat": {"messages": TURNS, "images": ["0.png"]},
    "cauldron": {"images": ["0.png"], "texts": [{"user": "what?", "assistant": "that"}]},
    "vqa": {"image": "0.png", "question": "what?", "answer": "that"},
    "captions": {"image": "0.png", "text": "that"},
    "text_rows": {"text": "that"},
}


def places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where a record has a value."""
    if path:
        yield path
    for key, value in node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ():
        yield from places(value, (*path, key))


def changed(record: dict[str, Any], rng: random.Random) -> tuple[dict[str, Any], str]:
    """The record with another value, without a value, or with a key of another name; and what was done."""
    record = copy.deepcopy(record)
    path = rng.choice(list(places(record)))
    node: Any = record
    for key in path[:-1]:
        node = node[key]
    last, shown = path[-1], ".".join(map(str, path))
    how = rng.choice(("another value", "another value", "no value", "another name"))
    if how == "another value":
        node[last] = rng.choice(NONSENSE)
        return record, f"{shown} = {node[last]!r:.40}"
    value = node.pop(last)
    if how == "another name" and isinstance(last, str):
        node[name := rng.choice((last.upper(), last + "s", last[:-1], last[1:] + last[0]))] = value
        return record, f"{shown} is called {name}"
    return record, f"{shown} is gone"


def spoilt(content: bytes, rng: random.Random) -> tuple[bytes, str]:
    """The file with another byte, a piece less, or nothing in it; and what was done."""
    how = rng.choice(("cut", "a byte", "a piece less", "empty", "utf-16", "a list of lists", "a number"))
    place = rng.randrange(1, len(content) - 1)
    if how == "cut":
        return content[:place], f"cut at {place}"
    if how == "a byte":
        return content[:place] + bytes([rng.choice((0, 0xFF, 0x5C, 0x22))]) + content[place + 1 :], f"a byte at {place}"
    if how == "a piece less":
        return content[:place] + content[place + rng.randrange(1, 40) :], f"a piece less at {place}"
    whole = {"empty": b"", "utf-16": content.decode().encode("utf-16"), "a list of lists": b"[[1]]", "a number": b"7"}
    return whole[how], how


class Plan:
    """What a model would make of an image: three tokens."""

    sized = False

    def plan(self, size):
        return ImageLayout(size, (size,))

    def markup(self, layout):
        return (3,)


def begun(option: str, path: str, root: str, renderer: Renderer) -> tuple[list[str], tuple[str, ...]]:
    """All samples and notices of a file, as a run begins: everything is rendered.

    Raises:
        BeniError: when a run would not begin.
    """
    more = ["data.subset=null"] if option == "cauldron" else []
    more += [] if option == "text_rows" else [f"data.images={root}"]
    source = build(compose([f"data={option}", f"data.path={path}", "data.heldout=3", *more])["data"], 0)
    check, held = Check(renderer, Plan(), at_hand, None), source.heldout()
    check.heldout(held, range(len(held)), source.metric)
    check.training(source)
    samples = [*(source.train(i, 0) for i in range(len(source))), *held]
    shown = [(s.messages, s.choices, s.references, [image.key for image in s.images]) for s in samples]
    return sorted(repr(one) for one in shown), source.notices


def harmless(option: str, how: str) -> bool:
    """Changes that nobody has to be told of: an id, another text, an image that is missing when its turn comes, a
    record of several images, or without any where a format has such.
    """
    key, _, value = how.partition(" = ")
    if key.startswith("id"):
        return True
    if value.startswith(("'", "['x']", "['a.png'")):
        return True
    return how in ("images.0 is gone", "images = []", "image = []", "image = None", "image = ''", "images = None")


def test_a_damaged_file_is_an_error_is_told_or_changes_what_stands_in_it(tmp_path, monkeypatch, renderer_of):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    for i in range(12):
        (tmp_path / f"{i}.png").write_bytes(encoded(noise(i)))
    renderers = {option: renderer_of("bos", "plain" if option == "text_rows" else "chatml") for option in RECORDS}
    wrong = []
    for case in range(CASES):
        rng = random.Random(case)
        option = rng.choice(list(RECORDS))
        text = json.dumps(RECORDS[option])
        rows = [json.loads(text.replace("0.png", f"{i}.png").replace("what?", f"what {i}?")) for i in range(12)]
        file = tmp_path / f"{case}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        sound, before = begun(option, str(file), str(tmp_path), renderers[option])
        if rng.random() < 0.7:
            which = rng.randrange(12)
            rows[which], how = changed(rows[which], rng)
            file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        else:
            whole = file.read_bytes()
            content, how = spoilt(whole, rng)
            if content == whole:
                continue
            file.write_bytes(content)
        try:
            samples, notices = begun(option, str(file), str(tmp_path), renderers[option])
        except DataError as error:
            said = str(error)
            if file.name not in said or "fix: " not in said or len(said) > 3000:
                wrong.append((case, option, how, said))
        except Exception as error:
            wrong.append((case, option, how, f"{type(error).__name__}: {error}"))
        else:
            fewer = how.startswith("a piece") and set(samples) < set(sound)  # whole lines, as luck would have it
            if notices == before and not fewer and not harmless(option, how):
                wrong.append((case, option, how, str(set(samples) ^ set(sound))[:200] or "in silence"))
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize("name", ["é.jsonl", "a b.jsonl", "[a].jsonl", "a;b.jsonl"])
def test_a_file_may_have_any_name(name, tmp_path, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    (tmp_path / name).write_text("".join(json.dumps({"text": f"text {i}"}) + "\n" for i in range(12)))
    node = compose(["data=text_rows", "data.path=x", "data.heldout=3"])["data"]
    assert len(build(node | {"path": f"{tmp_path}/{name}"}, 0)) == 9
