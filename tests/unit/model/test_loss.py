"""The loss is the same however head and cross-entropy are computed, for heads of every kind, and takes less memory."""

from __future__ import annotations

import weakref

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from beni.errors import CompositionError, ConfigError
from beni.llm.hf import HFLlm
from beni.model import loss as module
from beni.model.loss import chunk_rows, resolve, token_loss
from beni.types import Sequence

NEW_TORCH = pytest.mark.skipif(not hasattr(F, "linear_cross_entropy"), reason="torch before 2.13")
VOCABULARY = 97
SMALL = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": VOCABULARY, "max_position_embeddings": 64},
}
LINEAR = {
    "llama": SMALL | {"tie_word_embeddings": False},
    "qwen3": SMALL | {"head_dim": 8, "tie_word_embeddings": True},
    "phi": SMALL,  # its head has a bias
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": VOCABULARY, "n_positions": 64},
    "opt": SMALL | {"word_embed_proj_dim": 16, "ffn_dim": 64},  # projects back before its head
    "mixtral": SMALL | {"num_local_experts": 2, "num_experts_per_tok": 1},
}
SCALED = {
    "gemma2": SMALL | {"head_dim": 8, "final_logit_softcapping": 3.0},
    "granite": SMALL | {"logits_scaling": 8.0},
    "cohere": SMALL | {"logit_scale": 0.25},
    "roberta": SMALL | {"is_decoder": True},  # a transform of its own before its head
}
FAMILIES = LINEAR | SCALED


def make(family):
    torch.manual_seed(0)
    llm = HFLlm(
        name=None,
        weights="random",
        architecture={"model_type": family, **FAMILIES[family]},
        attn_implementation="eager",
        tokenizer="embedded",
    ).eval()
    for parameter in llm.parameters():  # no bias of zero, and logits that a cap bends
        nn.init.normal_(parameter, std=0.3)
    return llm


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * VOCABULARY * 5)
    assert chunk_rows(VOCABULARY) == 5


def computed(llm, how, precision="fp32", rows=13):
    """Loss, logits, and the gradient of every tensor, inputs included, of ``rows`` labels."""
    draw = torch.Generator().manual_seed(1)
    embeds = torch.randn(2, 9, llm.hidden_size, generator=draw).requires_grad_()
    places = torch.arange(18)[:rows].div(9, rounding_mode="floor"), torch.arange(18)[:rows] % 9
    targets = torch.randint(VOCABULARY, (rows,), generator=draw)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        total, logits = token_loss(llm, Sequence.plain(embeds), places, targets, how)
    (total / 7).backward()
    gradients = {name: p.grad for name, p in llm.named_parameters() if p.grad is not None}
    llm.zero_grad(set_to_none=True)
    return total.detach(), logits, gradients | {"embeds": embeds.grad}


def compare(ours, theirs, tolerance):
    assert abs(ours[0] - theirs[0]) <= tolerance * abs(theirs[0])
    assert ours[2].keys() == theirs[2].keys()
    # a key's bias has a gradient of rounding errors only, so a tensor is measured by the others, too
    floor = 0.01 * max(gradient.norm() for gradient in theirs[2].values())
    for name, gradient in theirs[2].items():
        assert (ours[2][name] - gradient).norm() <= tolerance * gradient.norm().clamp(min=floor), name


@pytest.mark.parametrize("family", FAMILIES)
def test_pieces_give_the_loss_and_every_gradient_of_the_whole(family):
    llm = make(family)
    assert llm.capabilities.splits_head
    full = computed(llm, "full")
    ours = computed(llm, "chunked")
    assert full[1].shape == (13, VOCABULARY)
    assert ours[1] is None
    compare(ours, full, 1e-6)


@NEW_TORCH
@pytest.mark.parametrize("family", LINEAR)
def test_torchs_own_gives_the_loss_and_every_gradient_of_the_whole(family):
    llm = make(family)
    assert resolve(llm, "fused") == "fused"
    compare(computed(llm, "fused"), computed(llm, "full"), 2e-6)


@pytest.mark.parametrize("how", ["chunked", pytest.param("fused", marks=NEW_TORCH)])
def test_in_bf16_they_are_as_near_to_fp32_as_the_whole_is(how):
    llm = make("qwen3")
    exact, full, ours = computed(llm, "full"), computed(llm, "full", "bf16"), computed(llm, how, "bf16")

    def off(other):
        return torch.cat([(other[2][name] - gradient).flatten() for name, gradient in exact[2].items()]).norm()

    assert 0 < off(ours) <= 1.5 * off(full)
    assert abs(ours[0] - exact[0]) <= 5e-3 * exact[0]


@pytest.mark.parametrize("how", ["chunked", pytest.param("fused", marks=NEW_TORCH)])
def test_a_frozen_head_and_adapters_on_it(how):
    from peft import LoraConfig, inject_adapter_in_model

    llm = make("llama")
    llm.model.requires_grad_(False)
    if how == "chunked":  # torch's own wants a plain matrix
        llm.model = inject_adapter_in_model(LoraConfig(r=2, target_modules=["lm_head"]), llm.model)
        nn.init.normal_(llm.model.lm_head.lora_B["default"].weight)
        with pytest.raises(CompositionError, match="llama scales, caps or adapts them"):
            resolve(llm, "fused")
    full = computed(llm, "full")
    assert len(full[2]) == (3 if how == "chunked" else 1)
    compare(computed(llm, how), full, 1e-6)


def test_a_batch_without_labels_and_one_without_gradients_have_a_loss():
    llm = make("llama")
    assert computed(llm, "chunked", rows=0)[0] == 0
    with torch.no_grad():
        hidden, targets = torch.randn(8, 32), torch.arange(8)
        expected = F.cross_entropy(llm.head(hidden), targets, reduction="sum")
        torch.testing.assert_close(module.chunked(llm, hidden, targets), expected)


def test_auto_keeps_the_logits_of_one_piece_and_no_more():
    llm = make("llama")
    assert computed(llm, "auto", rows=5)[1].shape == (5, VOCABULARY)
    assert computed(llm, "auto", rows=6)[1] is None


class Held:
    """Bytes of tensors that autograd keeps, now and at most."""

    def __init__(self):
        self.now = self.most = 0

    def pack(self, tensor):
        kept = [tensor]
        size = tensor.numel() * tensor.element_size()
        self.now += size
        self.most = max(self.most, self.now)
        holder = lambda: kept[0]  # noqa: E731
        weakref.finalize(holder, self.release, size)
        return holder

    def release(self, size):
        self.now -= size


def test_pieces_hold_the_logits_of_one_piece(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * VOCABULARY * 32)
    llm = make("llama").requires_grad_(False)
    hidden, targets = torch.randn(640, 32, requires_grad=True), torch.arange(640) % VOCABULARY

    def most(how):
        held = Held()
        with torch.autograd.graph.saved_tensors_hooks(held.pack, lambda holder: holder()):
            loss = F.cross_entropy(llm.head(hidden), targets, reduction="sum") if how == "full" else None
            loss = module.chunked(llm, hidden, targets) if loss is None else loss
        loss.backward()
        return held.most

    every = 640 * VOCABULARY * 4
    assert most("full") >= every
    assert most("chunked") <= hidden.nbytes + 3 * every / 20 <= every / 2  # the rows' gradients, and a piece


def test_what_an_llm_or_torch_cannot_do_is_refused_by_name(monkeypatch):
    for family in SCALED:
        with pytest.raises(CompositionError, match=f"one matrix product, and {family} scales"):
            resolve(make(family), "fused")
        assert not make(family).capabilities.linear_head
    llm = make("llama")
    monkeypatch.setattr(HFLlm, "head", lambda self, hidden: self.model.lm_head(hidden) * 1.01)
    assert resolve(llm, "auto") == "full"
    refused = r"compute\.loss=chunked computes the head by itself, and llama does not"
    with pytest.raises(CompositionError, match=refused):
        resolve(llm, "chunked")
    monkeypatch.delattr(F, "linear_cross_entropy", raising=False)
    with pytest.raises(ConfigError, match=r"needs torch 2\.13 or newer, this is .*\n  fix: set compute\.loss=chunked"):
        resolve(llm, "fused")
