"""The kit knows stages that no option of beni is: readers of an encoder's attention and of text, and liars."""

from __future__ import annotations

from dataclasses import replace

import pytest

from beni.conformance.behaviour import (
    keeps_the_images_of_a_batch_apart,
    passes_gradients_to_every_parameter_and_token,
    reads_the_prompt_it_asks_for,
)
from beni.conformance.noise import (
    does_in_evaluation_what_no_step_changes,
    draws_what_belongs_to_the_sample_and_the_step,
)
from beni.conformance.properties import PROPERTIES
from beni.conformance.structure import carries_what_its_spec_says, leaves_the_auxiliary_losses_it_declares
from beni.conformance.subject import find_subject
from beni.conformance.verdict import Excused, NotMet
from beni.types import VisualTokens
from support import stages
from support.options import node


@pytest.fixture
def subject_of(monkeypatch):
    """subject_of(name): a stage of ``support.stages`` under test, as a selector."""
    monkeypatch.setenv("BENI_TRUSTED", "support.")
    return lambda name: find_subject("selector", {"_target_": f"support.stages.{name}"})


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("name", ["Attended", "Listener", "Shaken"])
def test_a_stage_that_reads_more_than_features_keeps_the_contract(subject_of, name, check):
    try:
        check(subject_of(name))
    except Excused as reason:
        pytest.skip(str(reason))


GATES = {
    "drop by threshold": {"phase": "drop"},
    "drop to a budget": {"phase": "drop", "keep": 0.25},
    "drop and compact": {"phase": "drop", "keep": 0.25, "positions": "compact"},
    "cooling": {"distribution": "hard_concrete", "temperature": 2.0, "cooling": "linear"},
    "straight through": {"distribution": "straight_through", "scorer": "mlp"},
    "without a prompt": {
        "scorer": "dynamicvit",
        "prior": "beta_binomial",
        "prior_values": [1.0, 3.0],
        "prior_weight": 0.1,
    },
}
"""Values of a gate that no option of beni has."""


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
@pytest.mark.parametrize("values", GATES.values(), ids=GATES)
def test_a_gate_with_other_values_keeps_the_contract(values, check):
    try:
        check(find_subject("selector", node("selector", "gate_gumbel") | {"hidden": 48} | values))
    except Excused as reason:
        pytest.skip(str(reason))


def test_a_stage_is_given_the_side_channels_that_it_reads_and_no_others(subject_of):
    spec = subject_of("Attended").spec
    assert (spec.attn, spec.keys) == (True, 8)
    spec = subject_of("Listener").spec
    assert (spec.attn, spec.keys) == (False, 0)


@pytest.mark.parametrize(
    ("lies", "told"),
    [
        ({"attn": True, "keys": 4}, r"spec\(\) says (attn=True|keys=4), the tokens carry"),
        ({"gated": True}, r"spec\(\) says gated=True, the tokens carry False"),
        ({"deep": 3}, r"spec\(\) says deep=3, the tokens carry 0"),
        ({"levels": 5}, r"spec\(\) says levels=5, the tokens carry 96"),
    ],
)
def test_a_spec_that_tells_of_what_does_not_come_is_found(subject_of, monkeypatch, lies, told):
    monkeypatch.setattr(stages.Listener, "spec", lambda self, tokens: replace(tokens, **lies))
    with pytest.raises(NotMet, match=told):
        carries_what_its_spec_says(subject_of("Listener"))


def test_a_stage_that_says_it_keeps_all_and_drops_some_is_found(subject_of, monkeypatch):
    monkeypatch.setattr(
        stages.KeepBright, "spec", lambda self, tokens: replace(tokens, fixed=True, grid=None, sources=())
    )
    with pytest.raises(NotMet, match=r"spec\(\) says fixed=True and n=12, the rows have"):
        carries_what_its_spec_says(subject_of("KeepBright"))


def test_a_stage_that_reads_another_form_of_the_prompt_than_it_says_is_found(subject_of, monkeypatch):
    monkeypatch.setattr(stages.Listener, "reads", frozenset({"prompt_text"}))
    with pytest.raises(NotMet, match=r"it reads Prompt.hidden, which it is given only with 'prompt_hidden'"):
        reads_the_prompt_it_asks_for(subject_of("Listener"))


def test_a_stage_that_does_not_read_what_it_names_is_found(subject_of, monkeypatch):
    def deaf(self, tokens: VisualTokens, context) -> VisualTokens:
        words = 0 if context.prompt is None else sum(map(len, context.prompt.texts))
        return tokens.with_features(tokens.x + 0.01 * words)

    monkeypatch.setattr(stages.Listener, "forward", deaf)
    with pytest.raises(NotMet, match=r"its reads name prompt_hidden, but Prompt.hidden changes nothing"):
        reads_the_prompt_it_asks_for(subject_of("Listener"))


def test_a_stage_that_draws_by_place_instead_of_by_sample_is_found(subject_of, monkeypatch):
    told = draws_what_belongs_to_the_sample_and_the_step(subject_of("Shaken"))
    assert told == "the same alone and in another order, another in another step"
    monkeypatch.setattr(stages.Shaken, "draws", "places")
    with pytest.raises(NotMet, match=r"row 1 alone differs by .*; draw with StageContext.noise"):
        draws_what_belongs_to_the_sample_and_the_step(subject_of("Shaken"))


def test_a_stage_without_noise_is_excused_from_it(subject_of):
    with pytest.raises(Excused, match="it draws nothing"):
        draws_what_belongs_to_the_sample_and_the_step(subject_of("Gated"))


def test_a_stage_that_draws_in_evaluation_is_found(subject_of, monkeypatch):
    assert does_in_evaluation_what_no_step_changes(subject_of("Shaken")) == "equal bits"
    monkeypatch.setattr(stages.Shaken, "forgets", "mode")
    with pytest.raises(NotMet, match="evaluation at step 1 differs by"):
        does_in_evaluation_what_no_step_changes(subject_of("Shaken"))


@pytest.mark.parametrize(
    ("forgets", "told"),
    [("loss", r"auxiliary says {'/size': 3}, forward\(\) leaves {}"), ("count", r"forward\(\) leaves {'/size': 15}")],
)
def test_a_stage_that_leaves_other_losses_than_it_declares_is_found(subject_of, monkeypatch, forgets, told):
    assert leaves_the_auxiliary_losses_it_declares(subject_of("Shaken")) == "size"
    monkeypatch.setattr(stages.Shaken, "forgets", forgets)
    with pytest.raises(NotMet, match=told):
        leaves_the_auxiliary_losses_it_declares(subject_of("Shaken"))


def test_gates_are_seen_by_the_properties_that_speak_of_what_comes_out(subject_of, monkeypatch):
    forward = stages.Gated.forward

    def mixing(self, tokens, context):
        made = forward(self, tokens, context)
        return replace(made, log_gate=made.log_gate - tokens.x.mean().sigmoid())

    def blind(self, tokens, context):
        made = forward(self, tokens, context)
        return replace(made, log_gate=made.log_gate.detach())

    monkeypatch.setattr(stages.Gated, "forward", mixing)
    with pytest.raises(NotMet, match="row 0 changes by"):
        keeps_the_images_of_a_batch_apart(subject_of("Gated"))
    monkeypatch.setattr(stages.Gated, "forward", blind)
    with pytest.raises(NotMet, match="no gradient reaches direction"):
        passes_gradients_to_every_parameter_and_token(subject_of("Gated"))
