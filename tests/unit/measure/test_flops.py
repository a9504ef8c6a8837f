"""What torch's counter leaves out, or counts otherwise."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from beni.measure.flops import count_flops, count_training_flops

HEADS, LENGTH, WIDTH = 2, 8, 4


def attend(device):
    rows = torch.empty(1, HEADS, LENGTH, WIDTH, device=device)
    return F.scaled_dot_product_attention(rows, rows, rows, is_causal=True)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_causal_attention_counts_in_full(device):
    assert count_flops(lambda: attend(device)) == 2 * 2 * HEADS * WIDTH * LENGTH**2


def test_torch_alone_counts_attention_on_a_cpu_as_nothing():
    with FlopCounterMode(display=False) as counter:
        attend("cpu")
    assert counter.get_total_flops() == 0


@pytest.mark.parametrize("groups", [1, 2, 8])
@pytest.mark.parametrize("kind", [nn.Conv2d, nn.ConvTranspose2d])
def test_each_gradient_of_a_convolution_costs_what_its_forward_pass_does(groups, kind):
    layer = kind(8, 8, 3, padding=1, groups=groups, device="meta")
    x = torch.empty(2, 8, 6, 6, device="meta")
    forward = count_flops(lambda: layer(x))
    assert forward == 2 * 2 * 36 * 8 * (8 // groups) * 9
    assert count_training_flops(lambda: [layer(x)]) == (forward, 2 * forward)
    assert count_training_flops(lambda: [layer(x.requires_grad_())]) == (forward, 3 * forward)


def test_what_wants_no_gradient_has_no_backward_pass():
    layer, x = nn.Linear(4, 6, device="meta").requires_grad_(False), torch.empty(5, 4, device="meta")
    assert count_training_flops(lambda: [layer(x)]) == (count_flops(lambda: layer(x)),) * 2 == (2 * 5 * 4 * 6,) * 2


def test_the_fast_path_of_attention_modules_is_counted_and_left_as_it_was():
    module, x = nn.MultiheadAttention(8, 2, batch_first=True).eval(), torch.zeros(1, LENGTH, 8)
    torch.backends.mha.set_fastpath_enabled(True)
    assert count_flops(lambda: module(x, x, x, need_weights=False)) == 2 * LENGTH * 8 * 4 * 8 + 4 * LENGTH**2 * 8
    assert torch.backends.mha.get_fastpath_enabled()
