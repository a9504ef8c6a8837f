"""Visual tokens change places as a whole; what stands for padding, for dropped tokens and for nothing is told apart."""

from __future__ import annotations

import pytest
import torch

from beni.types import Prompt, TokenSpec, VisualTokens
from beni.types.visual import centres


def tokens(images=2, rows=2, columns=3, start=0.0):
    x = torch.arange(images * rows * columns, dtype=torch.float32).view(images, -1, 1) + start
    return VisualTokens.dense(x, (rows, columns))


def firsts(made):
    return made.x[..., 0].tolist()


def test_dense_tokens_stand_in_the_middle_of_their_cells_in_reading_order():
    made = tokens()
    assert made.yx[0].tolist() == [
        [y, x] for y in (0.25, 0.75) for x in (pytest.approx(1 / 6), 0.5, pytest.approx(5 / 6))
    ]
    assert made.size.sum(1).tolist() == [6, 6]
    assert centres((2, 3)).equal(made.yx[:1])
    with pytest.raises(ValueError, match="6 tokens cannot fill a grid of 2x2"):
        VisualTokens.dense(torch.zeros(1, 6, 1), (2, 2))


def test_gathered_tokens_come_in_the_order_asked_for_and_lie_on_no_grid():
    made = tokens().gather(torch.tensor([[5, 0], [1, 1]]))
    assert firsts(made) == [[5, 0], [7, 7]]
    assert made.yx[0, 1].equal(tokens().yx[0, 0])
    assert made.grid is None


def test_rows_are_selected_with_grids_and_sources():
    whole = VisualTokens.stack([tokens(1), tokens(1, 1, 2, start=10)])
    assert whole.grids == ((2, 3), (1, 2))
    assert whole.grid is None
    made = whole.select(torch.tensor([1, 0, 1]))
    assert made.grids == ((1, 2), (2, 3), (1, 2))
    assert firsts(made)[0] == [10, 11, 0, 0, 0, 0]
    assert made.mask.sum(1).tolist() == [2, 6, 2]


def test_rows_of_one_grid_stay_on_it_when_they_are_stacked():
    made = VisualTokens.stack([tokens(1), tokens(2)])
    assert (made.grid, made.grids, len(made.x)) == ((2, 3), (), 3)


def test_where_a_field_is_missing_the_others_zeros_stand():
    gated = VisualTokens.drawn(TokenSpec(n=2, dim=1, gated=True), 2, torch.ones)
    made = VisualTokens.cat([tokens(), gated])
    assert made.log_gate[:, :6].count_nonzero() == 0
    assert (made.log_gate[:, 6:] < 0).all()
    assert made.grid is None


def test_dropped_tokens_keep_their_places_in_the_text_and_padding_has_none():
    padded = VisualTokens.stack([tokens(1), tokens(1, 1, 2)])
    made = padded.drop(padded.x[..., 0] % 2 == 0)
    assert made.mask.sum(1).tolist() == [3, 1]
    assert made.laid.sum(1).tolist() == [6, 2]
    assert made.drop(torch.zeros_like(made.mask)).laid.sum(1).tolist() == [6, 2]
    joined = VisualTokens.cat([made, tokens()])
    assert joined.laid.sum(1).tolist() == [12, 8]
    assert joined.dropped.sum(1).tolist() == [3, 1]


def test_a_row_that_is_bounded_has_a_place_for_every_token_there_might_be():
    few = tokens().drop(torch.tensor([[1, 0, 1, 1, 0, 0]] * 2).bool())
    assert few.bounded(6).laid.all()
    longer = few.bounded(8)
    assert longer.laid.sum(1).tolist() == [8, 8]
    assert longer.mask.sum(1).tolist() == [3, 3]
    with pytest.raises(ValueError, match="rows of 6 tokens do not fit a text that is laid out for 5"):
        few.bounded(5)


def test_tokens_are_drawn_as_their_spec_tells():
    source = TokenSpec(n=4, dim=2, grid=(2, 2), attn=True)
    spec = TokenSpec(6, 3, (2, 3), levels=5, sources=(source,), gated=True, deep=7, attn=True, keys=2)
    made = VisualTokens.drawn(spec, 2, torch.randn)
    shapes = {name: tuple(tensor.shape[1:]) for name, tensor in made.per_token().items()}
    assert shapes == {
        **{"x": (6, 3), "mask": (6,), "yx": (6, 2), "size": (6,), "levels": (6, 5), "log_gate": (6,), "deep": (6, 7)},
        **{"attn": (6,), "keys": (6, 2)},
    }
    assert made.sources[0].attn.shape == (2, 4)
    assert (made.log_gate < 0).all()
    torch.testing.assert_close(made.attn.sum(1), torch.ones(2))
    assert VisualTokens.drawn(TokenSpec(n=3, dim=2), 1, torch.zeros).per_token().keys() == {"x", "mask", "yx", "size"}


def test_what_was_written_field_by_field_is_read_again():
    made = VisualTokens.drawn(TokenSpec(4, 2, (2, 2), deep=3, attn=True), 2, torch.randn)
    again = VisualTokens.of(made.per_token(), made.grid, ())
    assert again.grid == (2, 2)
    for name, tensor in made.per_token().items():
        assert getattr(again, name).equal(tensor)


def test_features_are_all_that_a_later_part_may_compute_with():
    spec = TokenSpec(4, 2, (2, 2), levels=3, sources=(TokenSpec(1, 5, (1, 1)),))
    assert [x.shape[2] for x in VisualTokens.drawn(spec, 1, torch.zeros).features()] == [2, 3, 5]


def test_prompts_are_selected_by_rows():
    prompt = Prompt(torch.arange(6.0).view(2, 3, 1), torch.tensor([[1, 1, 0], [1, 1, 1]]).bool())
    some = prompt.select(torch.tensor([1, 1, 0]))
    assert some.embeds[..., 0].tolist() == [[3, 4, 5], [3, 4, 5], [0, 1, 2]]
    assert some.mask.sum(1).tolist() == [3, 3, 2]
