"""What in a stage reaches what, and whether its numbers repeat."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatch
from itertools import product

import torch
from torch import Tensor

from beni.conformance.subject import Subject, cast, padded, run, seen, without_grid
from beni.conformance.verdict import Excused, NotMet, expect, largest, some
from beni.nn.streams import torch_stream
from beni.stage import PROMPTS, Sink, Stage, StageContext
from beni.types import Prompt, VisualTokens


@torch.no_grad()
def ignores_padding(subject: Subject) -> str:
    """Rubbish behind the end of a row changes no real token; a stage that needs a grid refuses such rows."""
    tokens = subject.tokens()
    refusal = subject.refuses(without_grid(subject.spec))
    if refusal is not None and refusal.code == "E-GRID":  # a dense grid has no padding
        try:
            run(subject.make(), padded(tokens, 5))
        except ValueError as error:
            expect("grid" in str(error), f"tokens without a grid end in ValueError: {error}; expected 'grid' in it")
            return "refuses tokens without a grid"
        raise NotMet("it needs a grid, but takes tokens that have none; raise ValueError when tokens.grid is None")
    stage = subject.randomised(None if refusal else without_grid(subject.spec)).double()
    worst = 0.0
    for prompt in subject.prompts(stage):
        before = run(stage, cast(padded(tokens, 0, rubbish=0), torch.float64), prompt)
        after = run(stage, cast(padded(tokens, 5), torch.float64), prompt)
        expect(
            after.mask.sum(1).equal(before.mask.sum(1)),
            f"{int(before.mask.sum())} real tokens without padding, {int(after.mask.sum())} with it",
        )
        a, b = seen(before)[before.mask], seen(after)[after.mask]
        worst = max(worst, largest(a, b) / max(1.0, float(a.abs().max())))
        expect(worst <= 1e-5, f"padding changes a real token by {worst:.1e}")
        a, b = ((out.size * out.mask).sum(1) for out in (before, after))
        expect(torch.allclose(a, b), f"padding changes the sum of the sizes by {largest(a, b):.1e}")
    return f"largest change {worst:.1e}"


@torch.no_grad()
def keeps_the_images_of_a_batch_apart(subject: Subject) -> str:
    """Another picture, or another question, in the middle row changes not one bit of the others."""
    stage = subject.randomised()
    ours, mixed = subject.tokens(), subject.tokens()
    for x, other in zip(mixed.features(), subject.tokens(seed=1).features(), strict=True):
        x[1] = other[1]
    for prompt in subject.prompts(stage):
        asked = prompt
        if prompt is not None:
            other, turned = subject.prompt(seed=1), torch.tensor([1.0, -1.0, 1.0])[:, None, None]
            asked = Prompt(
                prompt.embeds * turned,
                prompt.mask,
                None if prompt.hidden is None else prompt.hidden * turned,
                (prompt.texts[0], other.texts[1], *prompt.texts[2:]),
            )
        before, after = seen(run(stage, ours, prompt)), seen(run(stage, mixed, asked))
        for row in (0, 2):
            expect(before[row].equal(after[row]), f"row {row} changes by {largest(before[row], after[row]):.1e}")
        expect(not before[1].equal(after[1]), "the row that was changed gives the same tokens: is its input read?")
    return "equal bits"


@torch.no_grad()
def reads_the_prompt_it_asks_for(subject: Subject) -> str:
    """A stage whose ``reads`` name a form of the prompt reads that, its real positions only, and no other form."""
    stage, tokens, prompt = subject.randomised(), subject.tokens(), subject.prompt()
    other, worst = subject.prompt(seed=1), 0.0
    bare, asked = (_in_both_modes(stage, tokens, given) for given in (None, prompt))
    if not stage.reads & PROMPTS:
        expect(bare.equal(asked), "it reads StageContext.prompt, which it is given only with 'prompt' in its reads")
        return "reads none"
    expect(
        asked.shape != bare.shape or not asked.equal(bare), "its reads name the prompt, but the prompt changes nothing"
    )
    for form, field in (("prompt", "embeds"), ("prompt_hidden", "hidden"), ("prompt_text", "texts")):
        changed = _in_both_modes(stage, tokens, replace(prompt, **{field: getattr(other, field)}))
        if form not in stage.reads:
            expect(changed.equal(asked), f"it reads Prompt.{field}, which it is given only with {form!r} in its reads")
            continue
        expect(not changed.equal(asked), f"its reads name {form}, but Prompt.{field} changes nothing")
        if form != "prompt_text":
            rubbish = _with_rubbish(getattr(prompt, field), prompt.mask)
            dirty = _in_both_modes(stage, tokens, replace(prompt, **{field: rubbish}))
            worst = max(worst, largest(asked, dirty) / max(1.0, float(asked.abs().max())))
    expect(worst <= 1e-5, f"padding of the prompt changes a token by {worst:.1e}")
    return f"{', '.join(sorted(stage.reads & PROMPTS))}; its padding changes {worst:.1e}"


@torch.no_grad()
def repeats_under_its_stream(subject: Subject) -> str:
    """A stream gives the same weights and the same pass in training; evaluation draws nothing."""
    ours, again, other = (subject.make(seed=seed) for seed in (0, 0, 1))
    state, same, different = (stage.state_dict() for stage in (ours, again, other))
    unlike = [name for name, tensor in state.items() if not tensor.equal(same[name])]
    expect(not unlike, f"the same stream draws other weights for {some(unlike)}")
    drawn = [name for name, tensor in state.items() if (tensor != tensor.flatten()[0]).any()]  # not ones throughout
    moved = any(not state[name].equal(different[name]) for name in drawn)
    expect(moved or not drawn, "another stream draws the same weights: init_weights() must use torch's generator")
    for prompt in subject.prompts(ours):
        generator = torch.get_rng_state()
        a, b = (seen(run(ours, subject.tokens(), prompt)) for _ in range(2))
        expect(torch.get_rng_state().equal(generator), "evaluation draws random numbers")
        expect(a.equal(b), f"two passes in evaluation differ by {largest(a, b):.1e}")
        passes = []
        for stage in (ours.train(), again.train()):
            with torch_stream(0, "pass"):
                passes.append(seen(run(stage, subject.tokens(), prompt)))
        expect(passes[0].equal(passes[1]), "two passes in training differ under the same stream")
        ours.eval()
    return f"{len(drawn)} tensors drawn"


@torch.no_grad()
def is_near_itself_in_bf16(subject: Subject) -> str:
    """The relative distance of the results, 2e-2 at most."""
    stage = subject.make()
    if getattr(stage, "zero_at_start", False):  # zeros are equal in any precision
        stage = subject.randomised()
    tokens, worst = subject.tokens(), 0.0
    inputs = [tokens, subject.gates(tokens)] if "log_gate" in stage.reads else [tokens]
    calls = list(product(inputs, subject.prompts(stage)))
    exact = [run(stage, given, prompt).x for given, prompt in calls]
    half = stage.to(torch.bfloat16)
    for expected, (given, prompt) in zip(exact, calls, strict=True):
        out = run(half, cast(given, torch.bfloat16), prompt).x
        expect(out.dtype == torch.bfloat16, f"bf16 tokens come out as {out.dtype}")
        worst = max(worst, float((out.float() - expected).norm() / expected.norm()))
        expect(worst <= 2e-2, f"bf16 is {worst:.1e} away, relative to fp32; expected 2e-2 at most")
    return f"{worst:.1e} away"


def passes_gradients_to_every_parameter_and_token(subject: Subject) -> str:
    """Weights are random, and the prompt is there where one is read, so that nothing hides behind an initial zero."""
    stage = subject.randomised().train()
    parameters = dict(_trainable(stage))
    for prompt in subject.prompts(stage):
        stage.zero_grad(set_to_none=True)
        tokens = _leaves(subject.tokens())
        _objective(stage, tokens, prompt).backward()
        absent = [name for name, p in parameters.items() if p.grad is None]
        expect(not absent, f"no gradient reaches {some(absent)}")
        # where no text is, zeros will do; but they must be there for ranks to add up
        silent = [] if prompt is None and stage.reads & PROMPTS else _silent(stage)
        expect(not silent, f"the gradient of {some(silent)} is zero")
        # who reads the encoders one by one need not read the first one's tokens once more
        read = list(tokens.features())[1 if tokens.sources else 0 :]
        expect(all(x.grad is not None and bool(x.grad.any()) for x in read), "no gradient reaches its tokens")
    return f"{len(parameters)} tensors of parameters"


def trains_from_its_initial_weights(subject: Subject) -> str:
    """Every parameter has a gradient in the first step, or in the second where ``silent_at_start`` names it."""
    stage = subject.make().train()
    if not list(_trainable(stage)):
        raise Excused("it has no parameters")
    prompt, documented = subject.prompts(stage)[-1], getattr(stage, "silent_at_start", ())
    late = _silent_after(stage, subject, 0, prompt)
    unknown = [name for name in late if not any(fnmatch(name, pattern) for pattern in documented)]
    expect(
        not unknown,
        f"no gradient reaches {some(unknown)} in the first step; if that is meant, name it in silent_at_start",
    )
    silent = _silent_after(stage, subject, 1, prompt)
    expect(not silent, f"no gradient reaches {some(silent)} in the second step either")
    return f"{len(late)} tensors start in the second step" if late else "from the first step on"


@torch.no_grad()
def keeps_distinct_tokens_distinct_at_the_start(subject: Subject) -> str:
    """Initial weights that make all tokens of an image alike (latents of ones) leave the llm one token to look at."""
    stage = subject.make().double()
    if getattr(stage, "zero_at_start", False):
        raise Excused("zero_at_start: its published initial weights make every token zero")
    if subject.leaves() == 1:
        raise Excused("it leaves one token")
    ranks = []
    for prompt in subject.prompts(stage):
        out = run(stage, cast(subject.tokens(), torch.float64), prompt)
        image = out.x[0][out.mask[0]]
        ranks.append(int(torch.linalg.matrix_rank(image, rtol=1e-6)))
        expect(ranks[-1] > 1, f"all {len(image)} tokens of an image are alike (rank {ranks[-1]})")
    return f"rank {min(ranks)} of {subject.leaves()} tokens"


def _in_both_modes(stage: Stage, tokens: VisualTokens, prompt: Prompt | None) -> Tensor:
    """What is seen behind the stage in evaluation and in training, side by side."""
    made = [seen(run(stage, tokens, prompt))]
    with torch_stream(0, "pass"):
        made.append(seen(run(stage.train(), tokens, prompt)))
    stage.eval()
    return torch.cat(made, -1)


def _with_rubbish(states: Tensor, mask: Tensor) -> Tensor:
    noise = 1e3 * torch.randn(states.shape, generator=torch.Generator().manual_seed(0))
    return torch.where(mask[..., None], states, noise)


def _trainable(stage: Stage) -> Iterator[tuple[str, Tensor]]:
    return ((name, p) for name, p in stage.named_parameters() if p.requires_grad)


def _silent(stage: Stage) -> list[str]:
    return [name for name, p in _trainable(stage) if p.grad is None or not p.grad.any()]


def _silent_after(stage: Stage, subject: Subject, step: int, prompt: Prompt | None) -> list[str]:
    """Trains a step, each tensor by a tenth of its gradient's direction; names those that got no gradient."""
    stage.zero_grad(set_to_none=True)
    with torch_stream(0, "step", step):
        _objective(stage, subject.tokens(seed=step), prompt).backward()
    with torch.no_grad():
        for _, parameter in _trainable(stage):
            if parameter.grad is not None:
                parameter -= 0.1 * parameter.grad / (parameter.grad.norm() + 1e-12)
    return _silent(stage)


def _leaves(tokens: VisualTokens) -> VisualTokens:
    for x in tokens.features():
        x.requires_grad_()
    return tokens


def _objective(stage: Stage, tokens: VisualTokens, prompt: Prompt | None) -> Tensor:
    """A random projection of features and openness, and the auxiliary losses: a plain sum has no gradient through a
    final norm.
    """
    sink = Sink()
    made = stage(tokens, StageContext(prompt=prompt, sink=sink))
    visible = made.x if made.log_gate is None else seen(made)
    generator = torch.Generator().manual_seed(1)
    projected = (visible * torch.randn(visible.shape, generator=generator)).sum()
    return sum((total for total, _ in sink.losses.values()), projected)
