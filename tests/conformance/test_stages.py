"""Every selector, resampler and connector option keeps the contract of a stage (``beni.conformance``)."""

from __future__ import annotations

import pytest
import torch

from beni.conformance.properties import PROPERTIES
from beni.conformance.subject import Subject, find_subject, run
from beni.conformance.verdict import Excused, NotMet
from support.options import DIM, node
from support.shrink import shrink_stage
from support.traced import follow, marks, traced

GROUPS = ("selector", "resampler", "connector")
ANEW = ("resampler", "selector=pool", "selector=router")
"""Groups and options that make tokens of tokens."""
MERGING = ("selector=chain", "selector=prumerge", "selector=tome", "selector=visionzip")
"""Those whose tokens stay, with others in them."""


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
    stage, name = subject.randomised(), "=".join(option)
    written = ("log_gate",) if stage.spec(subject.spec).gated and not subject.spec.gated else ()
    written = ("log_gate",) if name in MERGING else written  # merged by a rule of their own
    anew = (option[0] in ANEW or name in ANEW) and option[1] != "none"
    for prompt in subject.prompts(stage):
        tokens = traced(subject.tokens(), written)
        if name in MERGING:
            assert marks(run(stage, tokens, prompt)) is not None
            continue
        followed = follow(lambda tokens, asked=prompt: run(stage, tokens, asked), tokens)
        assert followed != anew
