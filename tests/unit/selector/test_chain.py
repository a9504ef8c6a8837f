"""Selectors one after another: from the command line, as one stage, and what does not go together."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import pytest
import torch

from beni.config.compose import compose
from beni.errors import CompositionError, ConfigError
from beni.selector.attention import AttendedTokens
from beni.selector.center import CenterTokens
from beni.selector.chain import Chain
from beni.selector.pool import PooledTokens
from beni.selector.tome import TokenMerging
from beni.stage import Sink, StageContext
from beni.types import TokenSpec, VisualTokens
from support.stages import Gated, Rated

SPEC = TokenSpec(n=12, dim=4, grid=(3, 4))


def drawn() -> VisualTokens:
    return VisualTokens.dense(torch.randn(2, 12, 4, generator=torch.Generator().manual_seed(0)), (3, 4))


def test_a_list_of_selectors_is_a_chain_whose_values_are_set_by_name():
    run = compose(["selector=[random,tome]", "selector.stages.tome.keep=3", "selector.stages.random.keep=0.5"])
    stages = run["selector"]["stages"]
    assert [node["_target_"].rpartition(".")[2] for node in stages.values()] == ["RandomTokens", "TokenMerging"]
    assert (stages["random"]["keep"], stages["tome"]["keep"]) == (0.5, 3)
    assert run["choices"]["selector"] == "random+tome"
    assert list(compose(["selector=[random,random]"])["selector"]["stages"]) == ["random", "random_2"]
    assert compose(["selector=[random,tome]", "selector=center"])["choices"]["selector"] == "center"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["selector=[random,tome]", "selector.keep=3"],
            "of which of random, tome.*fix: set selector.stages.random.keep=3",
        ),
        (
            ["selector=[random,tome]", "selector.stages.tomme.keep=3"],
            "tomme is no stage.*fix: did you mean selector.stages.tome",
        ),
        (["selector=[random,tome]", "selector.stages.tome.kep=3"], "selector.stages.tome.kep"),
        (["selector=[random,nope]"], "selector=nope is not an option; expected one of: .*random"),
        (["selector=[random,tome]", "selector.stages.tome.keep=0"], "selector.stages.tome.keep=0"),
        (["selector=chain", "selector.stages=[]"], "selector.stages"),
    ],
)
def test_what_a_chain_cannot_take_is_refused_with_a_fix(overrides, message):
    with pytest.raises(ConfigError, match=f"(?s){message}") as caught:
        compose(overrides)
    assert "  fix: " in str(caught.value)


def test_a_preset_may_list_selectors_too(tmp_path):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /selector: [center, norm]\nselector:\n  stages:\n"
        "    norm: {keep: 2}\n"
    )
    run = compose(["experiment=mine"], config_dir=tmp_path)
    assert list(run["selector"]["stages"]) == ["center", "norm"]
    assert run["selector"]["stages"]["norm"]["keep"] == 2


def test_a_chain_does_what_its_stages_do_one_after_another():
    nodes = {
        "center": partial(CenterTokens, keep=6, positions="preserve"),
        "tome": partial(TokenMerging, keep=2, positions="compact", metric="features", proportional=False),
    }
    chain = Chain(SPEC, 8, stages=nodes)
    first = CenterTokens(SPEC, keep=6, positions="preserve")
    second = TokenMerging(first.spec(SPEC), keep=2, positions="compact", metric="features", proportional=False)
    expected = second(first(drawn(), StageContext()), StageContext())
    out = chain(drawn(), StageContext(stage="selector"))
    assert out.x.equal(expected.x)
    assert chain.spec(SPEC) == second.spec(first.spec(SPEC))


def test_losses_and_metrics_of_a_stage_keep_its_name_and_are_means_over_what_came_to_it():
    chain = Chain(
        SPEC, 8, stages={"center": partial(CenterTokens, keep=3, positions="compact"), "rated": partial(Rated)}
    )
    torch.manual_seed(0)
    chain.init_weights()
    assert chain.auxiliary == {"rated/row": "rows", "rated/token": "tokens"}
    sink = Sink()
    left = chain(drawn(), StageContext(stage="selector", sink=sink))
    scores = left.x @ chain.stages["rated"].direction
    total, count = sink.losses["selector/rated/token"]
    assert count == 24  # of the chain's own tokens, as the step counts them
    torch.testing.assert_close(total / count, scores.sigmoid().mean())
    assert sink.losses["selector/rated/row"][1] == 2
    assert sink.metrics["selector/rated/score"][1] == 6


def test_what_a_stage_needs_must_come_through_those_before_it():
    with pytest.raises(CompositionError, match=r"^E-GATE .*pool"):
        Chain(SPEC, 8, stages={"gated": partial(Gated), "pool": partial(PooledTokens, keep=3)})
    chain = Chain(
        SPEC,
        8,
        stages={
            "pool": partial(PooledTokens, keep=6),
            "attention": partial(AttendedTokens, keep=3, positions="preserve"),
        },
    )
    assert chain.reads == {"attn"}
    with pytest.raises(CompositionError, match=r"^E-SIDE .*attention reads attn.*\n  fix: put attention first"):
        chain.spec(replace(SPEC, attn=True))


def test_a_chain_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"selector\.stages is empty"):
        Chain(SPEC, 8, stages={})


def test_the_weights_of_a_stage_do_not_depend_on_the_others():
    def weights(*names: str) -> torch.Tensor:
        torch.manual_seed(5)
        chain = Chain(SPEC, 8, stages={name: partial(Rated) for name in names})
        chain.init_weights()
        return chain.stages["mine"].direction.detach()

    assert weights("mine").equal(weights("other", "mine"))
