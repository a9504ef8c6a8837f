"""Published selectors, each against its rule written out token by token in double precision."""

from __future__ import annotations

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from beni.errors import ConfigError
from beni.selector.cdpruner import most_diverse
from beni.selector.holov import HoloV
from beni.selector.prumerge import PruMerge
from beni.selector.tome import TokenMerging
from beni.selector.visionzip import VisionZip
from beni.stage import StageContext
from beni.types import TokenSpec, VisualTokens

N, DIM, KEYS = 30, 12, 6
SPEC = TokenSpec(n=N, dim=DIM, grid=(5, 6), attn=True, keys=KEYS)


@pytest.fixture
def tokens() -> VisualTokens:
    generator = torch.Generator().manual_seed(0)
    made = VisualTokens.dense(torch.randn(3, N, DIM, generator=generator, dtype=torch.float64), (5, 6))
    return replace(
        made,
        attn=torch.rand(3, N, generator=generator, dtype=torch.float64).softmax(1),
        keys=torch.randn(3, N, KEYS, generator=generator, dtype=torch.float64),
    )


def kept(out: VisualTokens, row: int) -> list[int]:
    return out.mask[row].nonzero()[:, 0].tolist()


def cosines(x: torch.Tensor) -> torch.Tensor:
    return F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).T


def test_visionzip_adds_the_mean_of_the_rest_to_every_so_many_th_of_them(tokens):
    out = VisionZip(SPEC, keep=8, positions="preserve", contextual=0.375)(tokens, StageContext())
    for row in range(3):
        order = sorted(range(N), key=lambda i: -float(tokens.attn[row, i]))
        dominant, rest = order[:5], sorted(order[5:])
        targets = rest[:: len(rest) // 3][:3]
        alike = cosines(tokens.keys[row])
        goes = {i: max(targets, key=lambda t: float(alike[i, t])) for i in rest if i not in targets}
        assert kept(out, row) == sorted(dominant + targets)
        for i in dominant:
            assert out.x[row, i].equal(tokens.x[row, i])
        for t in targets:
            own = [i for i, target in goes.items() if target == t]
            expected = tokens.x[row, t] + (tokens.x[row][own].mean(0) if own else 0)
            torch.testing.assert_close(out.x[row, t], expected, rtol=1e-10, atol=1e-10)
            assert float(out.size[row, t]) == 1 + len(own)
        assert float((out.size * out.mask)[row].sum()) == N


def outstanding(tokens: VisualTokens) -> VisualTokens:
    """Some tokens, another number in each row, are attended to far more than others."""
    attn = tokens.attn.clone()
    for row in range(3):
        attn[row, row :: 12 // (row + 1)] += 1 + 0.1 * row
    return replace(tokens, attn=attn / attn.sum(1, keepdim=True))


@pytest.mark.parametrize("keep", [6, "adaptive"])
def test_prumerge_adds_what_is_like_a_kept_token_and_one_token_for_the_rest(tokens, keep):
    tokens = outstanding(tokens)
    out = PruMerge(SPEC, keep=keep, positions="preserve", neighbours=4, plus=False)(tokens, StageContext())
    counts = set()
    for row in range(3):
        attn = tokens.attn[row]
        order = sorted(range(N), key=lambda i: -float(attn[i]))
        if keep == "adaptive":
            low, high = np.percentile(attn, [25, 75])
            chosen = [i for i in order if float(attn[i]) > high + 1.5 * (high - low)]
            assert 0 < len(chosen) < N
        else:
            chosen = order[: keep - 1]
        rest = [i for i in range(N) if i not in chosen]
        extra = max(rest, key=lambda i: float(attn[i]))
        alike = cosines(tokens.keys[row])
        assert kept(out, row) == sorted([*chosen, extra])
        for i in chosen:
            near = sorted((j for j in range(N) if j != i), key=lambda j: -float(alike[i, j]))[:4]
            expected = tokens.x[row, i] + sum(attn[j] * tokens.x[row, j] for j in near)
            torch.testing.assert_close(out.x[row, i], expected, rtol=1e-10, atol=1e-10)
        expected = sum(attn[j] * tokens.x[row, j] for j in rest)
        torch.testing.assert_close(out.x[row, extra], expected, rtol=1e-10, atol=1e-10)
        assert float((out.size * out.mask)[row].sum()) == N
        counts.add(len(chosen))
    assert keep != "adaptive" or len(counts) > 1


def test_prumerge_plus_keeps_tokens_at_even_distances_too(tokens):
    tokens = outstanding(tokens)
    few, more = (
        PruMerge(SPEC, keep="adaptive", positions="preserve", neighbours=4, plus=plus)(tokens, StageContext())
        for plus in (False, True)
    )
    for row in range(3):
        outliers = len(kept(few, row)) - 1
        step = max(1, N // outliers // 3)
        assert set(range(0, N, step)) <= set(kept(more, row))


def merge_by_hand(x: list, size: list, keys: list, k: int) -> tuple[list, list]:
    """Bipartite soft matching, a list of tokens at a time; what is left stays in reading order."""
    place = list(range(len(x)))
    while len(x) > k:
        a, b = range(0, len(x), 2), range(1, len(x), 2)
        alike = cosines(torch.stack(keys))
        best = {i: max(b, key=lambda j: float(alike[i, j])) for i in a}
        r = min(len(x) - k, len(x) // 2)
        gone = sorted(a, key=lambda i: -float(alike[i, best[i]]))[:r]
        weighted = [v * s for v, s in zip(x, size, strict=True)]
        weighted_keys = [v * s for v, s in zip(keys, size, strict=True)]
        total = list(size)
        for i in gone:
            weighted[best[i]] = weighted[best[i]] + weighted[i]
            weighted_keys[best[i]] = weighted_keys[best[i]] + weighted_keys[i]
            total[best[i]] += total[i]
        left = [i for i in range(len(x)) if i not in gone]
        x, keys = [weighted[i] / total[i] for i in left], [weighted_keys[i] / total[i] for i in left]
        size, place = [total[i] for i in left], [place[i] for i in left]
    return x, place


@pytest.mark.parametrize("keep", [16, 5, 1])
def test_tome_merges_the_most_similar_pairs_round_by_round(tokens, keep):
    out = TokenMerging(SPEC, keep=keep, positions="compact", metric="keys", proportional=False)(tokens, StageContext())
    for row in range(3):
        x, place = merge_by_hand(list(tokens.x[row]), [1.0] * N, list(tokens.keys[row]), keep)
        torch.testing.assert_close(out.x[row], torch.stack(x), rtol=1e-10, atol=1e-10)
        assert len(place) == keep
    assert out.size.sum(1).tolist() == [N] * 3
    torch.testing.assert_close((out.x * out.size[..., None]).sum(1), tokens.x.sum(1), rtol=1e-10, atol=1e-10)


def test_the_variety_of_holov_s_release_cancels_from_what_it_weighs_crops_by(tokens):
    """Scaled to the mean attention of its own crop, its mean is that attention."""
    from beni.nn.choose import unit
    from beni.selector.holov import crop_numbers

    own = (crop_numbers(N, 4, torch.device("cpu")) == torch.arange(4)[:, None]).double()
    attn = tokens.attn
    means = [
        HoloV(SPEC, keep=8, positions="preserve", crops=4, diversity=diversity)._scores(unit(tokens.x), attn, own)
        @ own.T
        / own.sum(1)
        for diversity in (0.0, 0.09, 5.0)
    ]
    for mean in means[1:]:
        shares = [m / m.sum(1, keepdim=True) for m in (means[0], mean)]
        torch.testing.assert_close(shares[0], shares[1], rtol=1e-4, atol=1e-4)
    kept_by = {
        diversity: HoloV(SPEC, keep=8, positions="preserve", crops=4, diversity=diversity)(tokens, StageContext()).mask
        for diversity in (0.0, 5.0)
    }
    assert not kept_by[0.0].equal(kept_by[5.0])  # here it says which tokens of a crop stay


def test_proportional_attention_to_merged_tokens_is_that_to_the_tokens_they_were():
    """Exactly, where those that are merged are alike."""
    from beni.nn.attention import attend

    generator = torch.Generator().manual_seed(0)
    different = torch.randn(1, 6, DIM, generator=generator, dtype=torch.float64)
    x = different.repeat_interleave(2, 1)  # neighbours are alike, and so one of each set
    out = TokenMerging(TokenSpec(n=12, dim=DIM), keep=6, positions="compact", metric="features", proportional=True)(
        VisualTokens.dense(x, (3, 4)), StageContext()
    )
    query = torch.randn(1, 2, 3, DIM, generator=generator, dtype=torch.float64)

    def read(tokens: torch.Tensor, gate: torch.Tensor | None) -> torch.Tensor:
        keys = tokens[:, None].expand(-1, 2, -1, -1)
        return attend(query, keys, keys, log_gate=gate)

    torch.testing.assert_close(read(out.x, out.log_gate), read(x, None), rtol=1e-12, atol=1e-12)


def test_cdpruner_makes_the_determinant_larger_by_as_much_as_one_token_can():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(8, 5, generator=generator, dtype=torch.float64)
    relevance = torch.rand(8, generator=generator, dtype=torch.float64)
    kernel = relevance[:, None] * cosines(x) * relevance
    chosen: list[int] = []
    while len(chosen) < 4:
        rest = [i for i in range(8) if i not in chosen]
        chosen.append(max(rest, key=lambda i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))))
    assert most_diverse(kernel[None], 4)[0].tolist() == chosen
    greedy = float(torch.linalg.det(kernel[chosen][:, chosen]))
    best = max(float(torch.linalg.det(kernel[list(s)][:, list(s)])) for s in combinations(range(8), 4))
    assert 0.5 * best <= greedy <= best * (1 + 1e-9)


def test_prumerge_plus_and_a_budget_are_refused():
    with pytest.raises(ConfigError, match=r"selector.plus=true .*\n  fix: set selector.keep=adaptive"):
        PruMerge(SPEC, keep=6, positions="preserve", neighbours=4, plus=True)


@pytest.mark.parametrize("metric", ["keys", "features"])
def test_tome_merges_gates_as_it_merges_tokens(tokens, metric):
    """A closed token takes part in nothing; a merged one is as open as its tokens are on average."""
    gates = torch.rand(3, N, generator=torch.Generator().manual_seed(3), dtype=torch.float64).log()
    gates[:, ::5] = -torch.inf
    gated = replace(tokens, log_gate=gates)
    spec = replace(SPEC, gated=True)
    stage = TokenMerging(spec, keep=8, positions="compact", metric=metric, proportional=False)
    out = stage(gated, StageContext())
    assert stage.spec(spec).gated
    opened = (gates.exp() * tokens.size).sum(1)
    torch.testing.assert_close((out.log_gate.exp() * out.size).sum(1), opened, rtol=1e-9, atol=1e-9)
    weighed = (gates.exp()[..., None] * tokens.x).sum(1)
    torch.testing.assert_close(
        ((out.log_gate.exp() * out.size)[..., None] * out.x).sum(1), weighed, rtol=1e-9, atol=1e-9
    )
