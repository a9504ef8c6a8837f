"""Every selector, resampler and connector option keeps the contract of a stage (``beni.conformance``)."""

from __future__ import annotations

import pytest
import torch

from beni.conformance.properties import PROPERTIES
from beni.conformance.subject import Subject, find_subject, run
from beni.conformance.verdict import Excused, NotMet
from support.options import DIM, node
from support.shrink import shrink_stage
from support.traced import follow, traced

GROUPS = ("selector", "resampler", "connector")


@pytest.fixture
def subject(option) -> Subject:
    return find_subject(option[0], shrink_stage(*option, node(*option)), DIM)


@pytest.mark.parametrize("check", PROPERTIES, ids=lambda check: check.__name__)
def test_it(subject, option, check):
    try:
        check(subject)
    except Excused as reason:
        pytest.skip(str(reason))
    except NotMet as reason:
        pytest.fail(str(reason), pytrace=False)


@torch.no_grad()
def test_a_new_field_comes_out_with_its_tokens_or_they_are_made_anew(subject, option):
    stage = subject.randomised()
    written = ("log_gate",) if stage.spec(subject.spec).gated and not subject.spec.gated else ()
    for prompt in subject.prompts(stage):
        followed = follow(lambda tokens, asked=prompt: run(stage, tokens, asked), traced(subject.tokens(), written))
        assert followed == (option[0] != "resampler" or option[1] == "none")
