"""What in a stage is drawn anew in every step of training, such as gates."""

from __future__ import annotations

import torch
from torch import Tensor

from beni.conformance.subject import IMAGES, Subject, seen
from beni.conformance.verdict import Excused, expect, largest
from beni.nn.streams import torch_stream
from beni.stage import Row, Stage, StageContext
from beni.types import Prompt


@torch.no_grad()
def draws_what_belongs_to_the_sample_and_the_step(subject: Subject) -> str:
    """In training a row is drawn the same in whatever order and company, and otherwise in another step."""
    stage = subject.randomised().train()
    drawn = 0
    for prompt in subject.prompts(stage):
        together = _pass(stage, subject, prompt, range(IMAGES))
        if together.equal(_pass(stage, subject, prompt, range(IMAGES), stream=1)):
            drawn += not together.equal(_pass(stage, subject, prompt, range(IMAGES), step=1))
            for row in range(IMAGES):
                alone = _pass(stage, subject, prompt, [row])[0]
                gap = largest(together[row], alone)
                expect(gap <= 1e-5, f"row {row} alone differs by {gap:.1e}; draw with StageContext.noise")
            turned = _pass(stage, subject, prompt, range(IMAGES)[::-1]).flip(0)
            gap = largest(together, turned)
            expect(gap <= 1e-5, f"rows in another order differ by {gap:.1e}; draw with StageContext.noise")
        else:
            raise Excused("it draws from torch's generator, as dropout does")
    if not drawn:
        raise Excused("it draws nothing")
    return "the same alone and in another order, another in another step"


@torch.no_grad()
def does_in_evaluation_what_no_step_changes(subject: Subject) -> str:
    """Which step it is, or how many there are, is nothing to evaluation: a score must not depend on when it is asked
    for.
    """
    stage = subject.randomised()
    for prompt in subject.prompts(stage):
        first = _pass(stage, subject, prompt, range(IMAGES))
        for step in (1, 7):
            later = _pass(stage, subject, prompt, range(IMAGES), step=step)
            expect(first.equal(later), f"evaluation at step {step} differs by {largest(first, later):.1e}")
    return "equal bits"


def _pass(
    stage: Stage, subject: Subject, prompt: Prompt | None, rows: range | list[int], step: int = 0, stream: int = 0
) -> Tensor:
    """What is seen of some rows behind the stage."""
    chosen = torch.tensor(list(rows))
    owners = tuple(Row(i, i, f"sample {i}") for i in range(IMAGES))
    context = StageContext(step=step, steps=10, rows=owners, prompt=prompt).of_rows(chosen)
    with torch_stream(stream, "pass"):
        return seen(stage(subject.tokens().select(chosen), context))
