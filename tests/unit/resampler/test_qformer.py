from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import CompositionError
from beni.stage import StageContext
from beni.types import Prompt, TokenSpec
from reference.harness import grid_tokens, scramble
from support.counting import flops_of

SPEC = TokenSpec(n=12, dim=20, grid=(3, 4))
DIM = 28
KEYS = {"hidden_size": 24, "depth": 3, "num_queries": 5, "num_heads": 4, "intermediate_size": 36}


def visual(dtype=torch.float64):
    return grid_tokens((3, 4), SPEC.dim, torch.Generator().manual_seed(0), dtype)


def prompt(length, seed=1):
    embeds = torch.randn(2, length, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return Prompt(embeds, torch.ones(2, length, dtype=torch.bool))


@pytest.fixture
def instructed(resampler):
    stage = resampler("qformer_instruct", SPEC, DIM, **KEYS, max_prompt=6).double()
    scramble(stage, 0)
    return stage


def read(stage, asked=None):
    return stage(visual(), StageContext(prompt=asked)).x


def test_blip2s_q_former_has_105137664_parameters_and_costs_12748_megaflops(resampler, parameters):
    eva = TokenSpec(n=257, dim=1408)
    stage = resampler("qformer", eva, 2560, device="meta")
    assert parameters(stage.encoder) == 105_137_664
    assert parameters(stage) == 105_137_664 + 32 * 768 + 768 * 2560 + 2560
    assert flops_of(stage, eva) - 2 * 32 * 768 * 2560 == pytest.approx(12.748e9, rel=1e-4)


@pytest.mark.parametrize("every", [1, 2, 3])
def test_parameters_and_flops_follow_the_formula(resampler, parameters, every):
    L, D, F, E, N, layers = 5, 24, 36, 20, 12, 3
    stage = resampler("qformer", SPEC, DIM, **KEYS, cross_attention_every=every)
    looks = {1: 3, 2: 2, 3: 1}[every]
    layer = 4 * (D**2 + D) + 2 * D + D * F + F + F * D + D + 2 * D
    cross = 2 * (D**2 + D) + 2 * (E * D + D) + 2 * D
    assert parameters(stage.encoder) == layers * layer + looks * cross + 2 * D
    flops = layers * (8 * L * D**2 + 4 * L**2 * D + 4 * L * D * F) + looks * (
        4 * L * D**2 + 4 * N * E * D + 4 * L * N * D
    )
    assert flops_of(stage, SPEC) == flops + 2 * L * D * DIM


@pytest.mark.parametrize("option", ["qformer", "qformer_instruct"])
def test_heads_that_do_not_divide_the_width_are_refused(resampler, option):
    with pytest.raises(
        CompositionError, match=rf"E-HEADS.*resampler={option}: num_heads=5 does not divide the width 24"
    ):
        resampler(option, SPEC, DIM, **KEYS | {"num_heads": 5})


@pytest.mark.parametrize("option", ["qformer", "qformer_instruct"])
def test_a_look_at_the_image_every_zero_layers_is_refused(resampler, option):
    with pytest.raises(CompositionError, match=r"E-PLACE.*cross_attention_every=0"):
        resampler(option, SPEC, DIM, **KEYS, cross_attention_every=0)


def test_it_ends_at_the_llms_width_with_queries_that_differ(resampler):
    stage = resampler("qformer", SPEC, DIM, **KEYS)
    assert stage.spec(SPEC) == TokenSpec(n=5, dim=DIM, space="llm")
    out = stage(visual(torch.float32), StageContext())
    assert torch.pdist(out.x[0]).min() > 1e-2
    assert out.size.allclose(torch.full((2, 5), 12 / 5))


def test_dropout_works_in_training_only(resampler):
    stage = resampler("qformer", SPEC, DIM, **KEYS)
    assert stage(visual(torch.float32), StageContext()).x.equal(stage(visual(torch.float32), StageContext()).x)
    stage.train()
    torch.manual_seed(0)
    assert not stage(visual(torch.float32), StageContext()).x.equal(stage(visual(torch.float32), StageContext()).x)


def test_the_model_is_told_that_only_the_instructed_one_reads_the_prompt(resampler, instructed):
    assert "prompt" in instructed.reads
    assert "prompt" not in resampler("qformer", SPEC, DIM, **KEYS).reads


@torch.no_grad()
def test_without_a_prompt_it_is_blip2s(resampler, instructed):
    plain = resampler("qformer", SPEC, DIM, **KEYS).double()
    state = instructed.state_dict()
    plain.load_state_dict({name: state[name] for name in plain.state_dict()})
    expected = plain(visual(), StageContext(prompt=prompt(4))).x
    nobody = replace(prompt(4), mask=torch.zeros(2, 4, dtype=torch.bool))
    for asked in (None, prompt(0), nobody):
        assert (read(instructed, asked) - expected).abs().max() <= 1e-10


@torch.no_grad()
def test_what_is_asked_about_an_image_changes_its_tokens_only(instructed):
    asked, other = prompt(4), prompt(4)
    other.embeds[1] *= -1
    assert read(instructed, asked)[0].equal(read(instructed, other)[0])
    assert (read(instructed, asked)[1] - read(instructed, other)[1]).abs().max() > 1e-6
    assert (read(instructed, asked) - read(instructed)).abs().max() > 1e-6


@torch.no_grad()
def test_a_words_place_counts(instructed):
    asked = prompt(4)
    backwards = replace(asked, embeds=asked.embeds.flip(1))
    assert (read(instructed, asked) - read(instructed, backwards)).abs().max() > 1e-6


@torch.no_grad()
def test_padding_of_the_prompt_changes_nothing_wherever_it_stands(instructed):
    expected, asked = read(instructed, prompt(4)), prompt(4)
    rubbish, none = 1e3 * prompt(2, seed=3).embeds, torch.zeros(2, 2, dtype=torch.bool)
    for order in ([asked.embeds, rubbish], [rubbish, asked.embeds]):
        where = [none if part is rubbish else asked.mask for part in order]
        padded = Prompt(torch.cat(order, 1), torch.cat(where, 1))
        assert (read(instructed, padded) - expected).abs().max() <= 1e-10


@torch.no_grad()
def test_a_long_prompt_is_cut(instructed):
    long = prompt(9)
    cut = Prompt(long.embeds[:, :6], long.mask[:, :6])
    assert (read(instructed, long) - read(instructed, cut)).abs().max() <= 1e-10


def test_a_gradient_reaches_every_parameter_and_the_prompt(instructed):
    asked = prompt(6)
    asked.embeds.requires_grad_()
    out = read(instructed, asked)
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)).sum().backward()
    assert asked.embeds.grad.abs().max() > 0
    assert [name for name, p in instructed.named_parameters() if p.grad is None or not p.grad.abs().max()] == []


def test_without_a_prompt_every_parameter_has_a_gradient_to_reduce(instructed):
    read(instructed).sum().backward()
    assert [name for name, p in instructed.named_parameters() if p.grad is None] == []


@torch.no_grad()
@pytest.mark.parametrize("option", ["qformer", "qformer_instruct"])
def test_in_a_model_a_later_word_of_the_question_changes_an_earlier_image_of_the_instructed_one_only(
    tiny_model, option
):
    keys = [f"resampler.{name}={value}" for name, value in KEYS.items()]
    model = tiny_model(f"resampler={option}", *keys)
    image, m = model.config.image_token_id, KEYS["num_queries"]
    ids = image + 1 + torch.randint(40, (2, 8 + m), generator=torch.Generator().manual_seed(0))
    ids[:, 2 : 2 + m] = image
    other = ids.clone()
    other[:, -1] += 1
    pixels = torch.randn(2, 3, 24, 24, generator=torch.Generator().manual_seed(1))
    before, after = (model(text, pixels).logits[:, : 7 + m] for text in (ids, other))
    assert before.equal(after) == (option == "qformer")
