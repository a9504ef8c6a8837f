"""A new field of visual tokens is followed by whatever moves them: nobody names the fields one by one."""

from __future__ import annotations

import ast
import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import beni
from beni.model.mixed_sizes import on_each_grid, on_each_size
from beni.nn.rows import by_grid, constants, images_of, real_tokens, stack, with_line_ends
from beni.stage import StageContext
from beni.types import VisualTokens
from beni.vision import feature_shards
from beni.vision.feature_shards import Form, leaves
from beni.vision.multi import combined, resize_tokens
from support.traced import Traced, marks, traced

SRC = Path(beni.__file__).parent
HOME = SRC / "types" / "visual.py"


def constructions(text: str) -> list[int]:
    """Lines that call the literal constructor."""
    calls = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    return [
        call.lineno
        for call in calls
        if (isinstance(call.func, ast.Name) and call.func.id == "VisualTokens")
        or (isinstance(call.func, ast.Attribute) and call.func.attr == "VisualTokens")
    ]


def test_nobody_builds_visual_tokens_field_by_field():
    assert constructions("a = VisualTokens(x)\nb = types.VisualTokens(x)\nc = VisualTokens.fresh(x)") == [1, 2]
    found = {path.relative_to(SRC): constructions(path.read_text()) for path in SRC.rglob("*.py") if path != HOME}
    assert {path: lines for path, lines in found.items() if lines} == {}


def grid(rows=2, columns=3, images=2, start=0.0) -> Traced:
    """Tokens whose first feature is their mark."""
    tokens = traced(VisualTokens.dense(torch.zeros(images, rows * columns, 4), (rows, columns)))
    return tokens.with_features(tokens.mark[..., None].expand(-1, -1, 4) + start)


def followed(tokens: VisualTokens) -> torch.Tensor:
    """The marks, which must be the features they came with; tokens from elsewhere have none."""
    found = marks(tokens)
    assert found is not None, "the tokens were made anew"
    assert found[found > 0].equal(tokens.x[..., 0][found > 0])
    return found


def narrow(tokens: Traced) -> VisualTokens:
    """The first two tokens of each row, as a grid of their own."""
    return tokens.map(lambda tensor: tensor[:, :2], (1, 2))


MOVES: dict[str, Callable[[Traced], VisualTokens]] = {
    "gather": lambda t: t.gather(torch.tensor([[5, 0, 0], [1, 2, 4]])),
    "select": lambda t: t.select(torch.tensor([1, 1, 0])),
    "repeat": lambda t: t.select(torch.tensor([0])).repeat(3),
    "cat": lambda t: VisualTokens.cat([t, t.gather(torch.tensor([[0], [3]]))]),
    "cat with constants": lambda t: VisualTokens.cat([constants(torch.zeros(2, 4), t).repeat(2), t]),
    "stack": lambda t: VisualTokens.stack([t, t.gather(torch.tensor([[0], [3]]))]),
    "drop": lambda t: t.drop(t.mark % 2 == 0),
    "bounded": lambda t: t.bounded(8),
    "rows.stack": lambda t: stack([t, t.select(torch.tensor([0]))], [torch.tensor([2, 0]), torch.tensor([1])]),
    "by_grid": lambda t: by_grid(VisualTokens.stack([t, narrow(t)]))[1][1],
    "images_of": lambda t: images_of(t, [2], lambda number, rows: real_tokens(rows)),
    "real_tokens": real_tokens,
    "with_line_ends": lambda t: with_line_ends(t, torch.zeros(4)),
    "on_each_grid": lambda t: on_each_grid(
        lambda tokens, context: tokens,
        VisualTokens.stack([t, narrow(t)]),
        StageContext(),
        calls=3,
    ),
    "combined as sequence": lambda t: combined([t, t.gather(torch.tensor([[0], [3]]))], "sequence"),
    "combined in turn": lambda t: combined([t, t], "interleave"),
    "combined as sources": lambda t: combined([t, t], "sources"),
    "one alone": lambda t: combined([t], "interleave"),
}


@pytest.mark.parametrize("move", MOVES)
def test_a_field_that_is_new_goes_with_its_tokens(move):
    tokens = grid()
    out = MOVES[move](tokens)
    assert (followed(out) > 0).any()
    for source in out.sources:
        assert followed(source).equal(tokens.mark)


def test_views_of_several_sizes_keep_their_fields():
    def encode(pixels, keys):
        rows, columns = pixels.shape[2:]
        return grid(rows, columns, len(pixels), start=0.0)

    pixels = [torch.zeros(3, 2, 3), torch.zeros(3, 1, 2), torch.zeros(3, 2, 3)]
    out = on_each_size(encode, pixels, (), calls=3)
    assert followed(out).count_nonzero(1).tolist() == [6, 2, 6]


def test_what_makes_one_token_of_several_begins_anew():
    assert marks(combined([grid(), grid()], "channels")) is None
    assert marks(resize_tokens(grid(2, 2), (1, 1))) is None
    assert resize_tokens(grid(2, 2), (2, 2)).mark is not None


def test_a_feature_bank_keeps_every_field_and_those_of_each_source(monkeypatch):
    monkeypatch.setattr(feature_shards, "VisualTokens", Traced)
    tokens = combined([grid(), grid(1, 2)], "sources")
    form = Form.of(tokens)
    rows = form.pack(tokens, [1, 0])
    again = Form.from_json(json.loads(json.dumps(asdict(form))))
    out = again.tokens(again.unpack(list(rows), torch.device("cpu")))
    assert len(leaves(out)) == len(leaves(tokens))
    assert followed(out).equal(tokens.mark.flip(0))
    for source, before in zip(out.sources, tokens.sources, strict=True):
        assert followed(source).equal(before.mark.flip(0))
