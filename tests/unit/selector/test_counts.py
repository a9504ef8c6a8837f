"""A selector keeps as many tokens as its budget says, however many there are."""

from __future__ import annotations

import pytest
import torch

from beni.selector.uniform import UniformTokens
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens


@pytest.mark.parametrize("keep", range(1, 17))
@pytest.mark.parametrize("padding", [0, 3])
def test_evenly_spaced_tokens_are_as_many_as_the_budget_keeps(keep, padding):
    tokens = VisualTokens.dense(torch.rand(1, 16, 4), (4, 4))
    tokens = tokens.drop((torch.arange(16) < 16 - padding)[None])
    stage = UniformTokens(TokenSpec(16, 4, (4, 4)), keep=keep, positions="preserve")
    assert int(stage(tokens, StageContext()).mask.sum()) == min(keep, 16 - padding)
