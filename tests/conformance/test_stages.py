"""What every views, selector, resampler and connector option must do, whatever it is."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from beni.errors import CompositionError
from beni.measure.flops import count_flops
from beni.stage import StageContext, TokenSpec
from beni.types import VisualTokens

GROUPS = ("views", "selector", "resampler", "connector")
SPEC = TokenSpec(n=12, dim=32, grid=(3, 4))


@pytest.fixture
def stage(make, option):
    return make(option, SPEC)


def tokens(images=3, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return VisualTokens.dense(torch.randn(images, SPEC.n, SPEC.dim, generator=generator).to(dtype), SPEC.grid)


def padded(visual, extra):
    """Each row with ``extra`` more positions of rubbish that are no tokens."""
    images, _, dim = visual.x.shape
    rubbish = 1e3 * torch.randn(images, extra, dim)
    return VisualTokens(
        x=torch.cat([visual.x, rubbish], 1),
        mask=torch.cat([visual.mask, torch.zeros(images, extra, dtype=torch.bool)], 1),
        yx=torch.cat([visual.yx, torch.rand(images, extra, 2)], 1),
        size=torch.cat([visual.size, torch.ones(images, extra)], 1),
    )


def randomise(stage):
    """Initial values may hide what a stage does: a layer that starts at zero passes nothing on."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.normal_(0, 0.2, generator=generator)


def test_it_makes_what_its_spec_says(stage, option):
    spec, out = stage.spec(SPEC), stage(tokens(), StageContext())
    assert out.x.shape == (3, spec.n, spec.dim)
    assert out.grid == spec.grid
    assert out.mask.shape == out.size.shape == out.yx.shape[:2] == (3, spec.n)
    if option[0] == "connector" and option[1] != "identity":
        assert spec.space == "llm"
    assert stage.spec(SPEC) == spec


def test_it_conserves_the_patches_its_tokens_stand_for(stage, option):
    if option[0] == "selector":
        pytest.skip("a selector drops patches")
    out = stage(tokens(), StageContext())
    torch.testing.assert_close((out.size * out.mask).sum(1), torch.full((3,), float(SPEC.n)))


def test_all_that_it_saves_is_parameters_and_it_loads_again(stage, make, option):
    state = stage.state_dict()
    assert sum(t.numel() for t in state.values()) == sum(p.numel() for p in stage.parameters())
    other = make(option, SPEC, seed=1)
    other.load_state_dict(state)
    assert other(tokens(), StageContext()).x.equal(stage(tokens(), StageContext()).x)


def test_its_flops_are_those_that_torch_counts(stage, option):
    stage.requires_grad_(False)  # torch's counter trips over a view of a parameter under no_grad
    counted = count_flops(lambda: stage(tokens(images=1), StageContext()))
    assert stage.flops(SPEC) == pytest.approx(counted, rel=0.01)


def test_padding_never_reaches_a_real_token(stage, option, make):
    if _needs_a_grid(make, option):  # a dense grid has no padding; a row that has some is refused
        with pytest.raises(ValueError, match="grid"):
            stage(padded(tokens(), 5), StageContext())
        return
    clean, dirty = stage(tokens(), StageContext()), stage(padded(tokens(), 5), StageContext())
    torch.testing.assert_close(dirty.x[dirty.mask], clean.x[clean.mask], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close((dirty.size * dirty.mask).sum(1), (clean.size * clean.mask).sum(1))


def _needs_a_grid(make, option) -> bool:
    try:
        make(option, replace(SPEC, grid=None))
    except CompositionError as error:
        return error.code == "E-GRID"
    return False


def test_an_image_does_not_see_the_others_of_its_batch(stage, option):
    randomise(stage)
    ours, changed = tokens(), tokens()
    changed.x[1] *= -1
    before, after = stage(ours, StageContext()), stage(changed, StageContext())
    assert before.x[0].equal(after.x[0])
    assert before.x[2].equal(after.x[2])
    assert not before.x[1].equal(after.x[1])


def test_one_stream_gives_one_module_and_another_another(make, option):
    ours, again, other = (make(option, SPEC, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(ours[name].equal(again[name]) for name in ours)
    assert not ours or any(not ours[name].equal(other[name]) for name in ours)


def test_bf16_is_near_fp32(stage, option):
    expected = stage(tokens(), StageContext()).x
    half = stage.to(torch.bfloat16)(tokens(dtype=torch.bfloat16), StageContext()).x
    assert half.dtype == torch.bfloat16
    assert (half.float() - expected).norm() <= 2e-2 * expected.norm()


def test_a_gradient_reaches_every_parameter_and_the_tokens(stage, option):
    randomise(stage)
    visual = replace(tokens(), x=tokens().x.requires_grad_())
    out = stage.train()(visual, StageContext()).x
    (out * torch.randn(out.shape, generator=torch.Generator().manual_seed(1))).sum().backward()
    assert visual.x.grad.abs().max() > 0
    for name, parameter in stage.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


def test_distinct_tokens_stay_distinct_at_the_start(stage, option):
    (image,) = stage(tokens(images=1), StageContext()).x.double()
    assert torch.linalg.matrix_rank(image) > 1
