"""Gates in the channels of queries and keys are gates added to logits, in every precision and for grouped heads."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from beni.nn.attention import GroupedQueryAttention, attend
from beni.nn.gates import CLOSED, is_open, open_mean, openness, widened

INF = float("inf")


def written_down(q, k, v, log_gate, scale, mask=None):
    groups = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(groups, 1), v.repeat_interleave(groups, 1)
    logits = torch.einsum("bhqd,bhkd->bhqk", q, k) * scale + log_gate[:, None, None]
    if mask is not None:
        logits = logits.masked_fill(~mask[:, None, None], -INF)
    return torch.einsum("bhqk,bhkd->bhqd", logits.softmax(-1), v)


def drawn(heads, kv_heads, width, width_v, dtype=torch.float64, seed=0):
    torch.manual_seed(seed)
    q = torch.randn(2, heads, 5, width, dtype=dtype)
    k, v = (torch.randn(2, kv_heads, 7, w, dtype=dtype) for w in (width, width_v))
    gates = torch.randn(2, 7, dtype=torch.float64) * 3
    gates[0, 2] = gates[1, 5] = -INF
    return q, k, v, gates


@pytest.mark.parametrize("scale", [1.0, 0.125, 0.3, 1 / 128])
@pytest.mark.parametrize(("heads", "kv_heads", "width", "width_v"), [(4, 4, 8, 8), (4, 2, 20, 20), (4, 1, 24, 16)])
def test_plain_attention_of_widened_heads_is_the_dense_formula_with_its_gradients(
    scale, heads, kv_heads, width, width_v
):
    results = []
    for ours in (False, True):
        q, k, v, gates = (x.requires_grad_() for x in drawn(heads, kv_heads, width, width_v))
        if ours:
            wide = widened(q, k, v, gates[:, None], scale)
            assert {x.shape[-1] for x in wide} == {math.ceil((width + 1) / 8) * 8}
            read = F.scaled_dot_product_attention(*wide, scale=scale, enable_gqa=True)[..., :width_v]
        else:
            read = written_down(q, k, v, gates, scale)
        (read * torch.linspace(-1, 1, read.numel(), dtype=read.dtype).view(read.shape)).sum().backward()
        results.append([read, *(x.grad for x in (q, k, v, gates))])
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_keeps_gates_as_fp32_has_them(dtype):
    torch.manual_seed(0)
    k, gates = torch.zeros(1, 1, 7, 16, dtype=dtype), torch.tensor([0.0, 1e-3, -5.3333, 20.7, -90.1, CLOSED, -INF])
    scale = 0.2
    q, wide, _ = widened(k, k, k, gates, scale)
    assert q.dtype == wide.dtype == dtype
    logits = (q[0, 0, 0].double() * wide[0, 0].double()).sum(-1) * scale
    torch.testing.assert_close(logits, gates.clamp(min=CLOSED).double(), rtol=1e-6, atol=1e-6)


def test_the_gradient_of_half_precision_is_counted_once():
    gates = torch.tensor([[0.3, -1.7, 2.2]], requires_grad=True)
    k = torch.zeros(1, 2, 3, 8, dtype=torch.bfloat16)
    _, wide, _ = widened(k, k, k, gates[:, None], 0.25)
    wide[..., 8].float().sum().backward()
    torch.testing.assert_close(gates.grad, torch.full((1, 3), 2.0))  # two heads, four times a scale of a quarter


def test_under_autocast_gates_keep_their_digits():
    q, k, v, gates = (x.float() for x in drawn(4, 2, 16, 16))
    expected = written_down(q, k, v, gates, 0.25)
    with torch.autocast("cpu", torch.bfloat16):
        wide = widened(q, k, v, gates[:, None], 0.25)
        assert wide[1].shape[-1] == 24
        read = F.scaled_dot_product_attention(*wide, scale=0.25, enable_gqa=True)[..., :16]
    assert (read.float() - expected).norm() <= 1e-2 * expected.norm()


@pytest.mark.parametrize("masked", [False, True])
def test_attention_with_gates_and_a_mask_is_the_dense_formula(masked):
    q, k, v, gates = drawn(4, 2, 8, 8)
    mask = torch.arange(7)[None] < torch.tensor([7, 4])[:, None] if masked else None
    out = attend(q, k, v, mask, gates)
    torch.testing.assert_close(out, written_down(q, k, v, gates, 8**-0.5, mask), rtol=1e-9, atol=1e-9)


def test_where_all_that_may_be_read_is_closed_nothing_is_read():
    q, k, v, gates = (x.requires_grad_() for x in drawn(4, 2, 8, 8))
    mask = torch.arange(7)[None] < torch.tensor([7, 2])[:, None]
    shut = torch.where(torch.tensor([False, True])[:, None] & mask, -INF, gates)
    out = attend(q, k, v, mask, shut)
    assert not out[1].any()
    assert out[0].any()
    out.sum().backward()
    for x in (q, k, v, gates):
        assert x.grad.isfinite().all()
        assert not x.grad[1].any()


def test_without_gates_attention_is_what_it_was(monkeypatch):
    asked = []
    plain = F.scaled_dot_product_attention
    monkeypatch.setattr(
        F, "scaled_dot_product_attention", lambda q, k, v, **o: asked.append((q, k, v)) or plain(q, k, v, **o)
    )
    q, k, v, _ = drawn(4, 2, 8, 8)
    attend(q, k, v)
    assert all(a is b for a, b in zip(asked[0], (q, k, v), strict=True))


def test_grouped_attention_hands_gates_to_its_keys():
    torch.manual_seed(0)
    attention = GroupedQueryAttention(12, 4, 2, 6, dim_context=10).double()
    queries, context = torch.randn(2, 3, 12).double(), torch.randn(2, 5, 10).double()
    times = torch.tensor([1, 2, 1, 3, 1])
    gated = attention(queries, context, log_gate=times.double().log().expand(2, 5))
    torch.testing.assert_close(gated, attention(queries, context.repeat_interleave(times, 1)))


def test_openness_is_exact_at_both_ends_and_has_no_nan_in_its_gradient():
    gates = torch.tensor([0.0, math.log(0.5), CLOSED, -INF], requires_grad=True)
    assert openness(gates).tolist() == [1.0, 0.5, 0.0, 0.0]
    assert is_open(gates).tolist() == [True, True, False, False]
    openness(gates).sum().backward()
    assert gates.grad.tolist() == [1.0, 0.5, 0.0, 0.0]


def test_a_mean_counts_tokens_as_far_as_they_are_open():
    x = torch.tensor([[[2.0], [4.0], [9.0]], [[1.0], [1.0], [1.0]]])
    gates = torch.tensor([[0.0, math.log(3), -INF], [-INF] * 3])
    means = open_mean(x, gates, lambda values: values.mean(1))
    torch.testing.assert_close(means, torch.tensor([[3.5], [0.0]]))
