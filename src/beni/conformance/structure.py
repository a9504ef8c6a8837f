"""What comes out of a stage, and what it is made of."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from beni.conformance.subject import GRIDS, Subject, encoders, run, seen, with_gates
from beni.conformance.verdict import Excused, expect, largest, some
from beni.nn.streams import torch_stream
from beni.stage import Sink, StageContext
from beni.types import TokenSpec, VisualTokens


@torch.no_grad()
def makes_what_its_spec_says(subject: Subject) -> str:
    """Shape, width, grid and space of the result, for each way it is called."""
    stage = subject.make()
    made = stage.spec(subject.spec)
    expect(stage.spec(subject.spec) == made, "two calls of spec() with the same tokens differ")
    in_llm = made.space == "llm"
    expect(in_llm or subject.group != "connector", "a connector ends in the llm's space; spec() must set space='llm'")
    expect(not in_llm or made.dim == subject.dim_out, f"space='llm' at width {made.dim}, the llm has {subject.dim_out}")
    for prompt in subject.prompts(stage):
        _agree(made, run(stage, subject.tokens(), prompt))
    return f"{subject.spec.n}x{subject.spec.dim} -> {made.n}x{made.dim}"


@torch.no_grad()
def keeps_mask_places_and_sizes_in_order(subject: Subject) -> str:
    """Padding at row ends, places in [0, 1] and in reading order on a grid, sizes that are numbers of patches."""
    stage = subject.make()
    for prompt in subject.prompts(stage):
        out = run(stage, subject.tokens(), prompt)
        real = out.mask
        expect(bool(real.any(1).all()), "a row without a real token")
        laid = out.laid  # a dropped token keeps its place among the others
        expect(bool((laid[:, 1:] <= laid[:, :-1]).all()), "padding must stand at the end of a row")
        expect(bool(((out.yx >= 0) & (out.yx <= 1))[real].all()), "yx lies outside [0, 1]")
        expect(bool((out.size.isfinite() & (out.size >= 0))[real].all()), "size is negative or no number")
        if out.grid is not None:
            expect(bool(real.all()), "tokens on a grid are all real")
            y, x = out.yx.unflatten(1, out.grid).unbind(-1)  # (i, rows, columns)
            expect(_ascends(y, 1) and _ascends(x, 2), f"yx is not in reading order on the grid {_shape(out.grid)}")
    return f"grid {_shape(stage.spec(subject.spec).grid)}"


@torch.no_grad()
def conserves_the_patches_its_tokens_stand_for(subject: Subject) -> str:
    """The sizes of the real tokens of a row add up to what came in."""
    if subject.group == "selector":
        raise Excused("a selector drops patches")
    stage, tokens = subject.make(), subject.tokens()
    before, after = ((t.size * t.mask).sum(1) for t in (tokens, run(stage, tokens)))
    expect(torch.allclose(before, after, rtol=1e-5), f"{before[0]:.3f} patches went in, {after[0]:.3f} came out")
    return f"{after[0]:g} patches"


@torch.no_grad()
def carries_what_its_spec_says(subject: Subject) -> str:
    """A later stage, and the llm, rely on the spec to know what comes along, and how many tokens there may be."""
    spec, taken, codes = subject.spec, [], set()
    facts: dict[str, TokenSpec] = {
        "levels": replace(spec, levels=3 * spec.dim),
        "sources": replace(spec, sources=encoders(spec.dim)),
        "gates": with_gates(spec),
        "deep": replace(spec, deep=2 * subject.dim_out),
        "attention": replace(spec, attn=True),
        "keys": replace(spec, keys=8),
        "fewer": replace(spec, fixed=False, grid=None, sources=()),
    }
    for fact, rich in facts.items():
        if refusal := subject.refuses(rich):
            codes.add(refusal.code)
            continue
        stage, tokens = subject.make(spec=rich), subject.tokens(spec=rich)
        if not rich.fixed:
            tokens = tokens.drop(torch.arange(rich.n) % 3 != torch.arange(len(tokens.x))[:, None])
        made, out = stage.spec(rich), run(stage, tokens)
        _carries(made, out)
        taken.append(fact)
    if not taken:
        raise Excused(f"it refuses each: {', '.join(sorted(codes))}")
    return ", ".join(taken)


def takes_a_grid_that_is_not_square(subject: Subject) -> str:
    """Rows and columns must not be taken for each other, nor the grid guessed from the number of tokens."""
    if subject.spec.grid is None:
        raise Excused("its tokens form no grid")
    taken, codes = [], set()
    for rows, columns in (grid for grid in GRIDS if grid[0] != grid[1]):
        for grid in ((rows, columns), (columns, rows)):
            spec = replace(subject.spec, grid=grid, n=rows * columns)
            if refusal := subject.refuses(spec):
                codes.add(refusal.code)
                continue
            stage = subject.make(spec=spec)
            with torch.no_grad():
                out = run(stage, subject.tokens(spec=spec))
            _agree(stage.spec(spec), out)
            taken.append(_shape(grid))
    if not taken:
        raise Excused(f"it refuses each: {', '.join(sorted(codes))}")
    return ", ".join(taken)


def is_counted_without_weights(subject: Subject) -> str:
    """The spec table is made on the meta device: the same parameters must be there, of the same shapes."""
    with torch.device("meta"):
        planned = {name: p.shape for name, p in subject.built().named_parameters()}
    real = {name: p.shape for name, p in subject.make().named_parameters()}
    different = sorted(name for name in planned.keys() | real.keys() if planned.get(name) != real.get(name))
    expect(not different, f"parameters differ between the meta device and real weights: {some(different)}")
    return f"{sum(shape.numel() for shape in real.values()):,} parameters"


def draws_every_parameter(subject: Subject) -> str:
    """``init_weights`` leaves nothing to torch's own initial values, which a model on the meta device never had."""
    stage = subject.make()
    with torch.no_grad():
        for parameter in stage.parameters():
            parameter.fill_(float("nan"))
    with torch_stream(0, "init", subject.group):
        stage.init_weights()
    left = [name for name, p in stage.named_parameters() if not p.isfinite().all()]
    expect(not left, f"init_weights() does not draw {some(left)}")
    return f"{len(list(stage.parameters()))} tensors"


@torch.no_grad()
def leaves_the_auxiliary_losses_it_declares(subject: Subject) -> str:
    """Each auxiliary loss is a sum over what ``Stage.auxiliary`` says, in evaluation and in training: how many rows or
    tokens a step has must be known before its first backward pass.
    """
    stage, tokens = subject.make(), subject.tokens()
    images, n = tokens.mask.shape
    declared = {f"/{name}": images * (n if unit == "tokens" else 1) for name, unit in stage.auxiliary.items()}
    for prompt in subject.prompts(stage):
        for training in (False, True):
            sink = Sink()
            with torch_stream(0, "pass"):
                stage.train(training)(tokens, StageContext(prompt=prompt, sink=sink))
            left = {name: count for name, (_, count) in sink.losses.items()}
            expect(left == declared, f"auxiliary says {declared}, forward() leaves {left} (name: rows or tokens)")
            wild = [name for name, (total, _) in sink.losses.items() if not total.isfinite()]
            expect(not wild, f"{some(wild)} is not finite")
    if not declared:
        raise Excused("it has none")
    return ", ".join(stage.auxiliary)


@torch.no_grad()
def saves_parameters_only_and_loads_again(subject: Subject) -> str:
    """A buffer must be non-persistent: what a file does not hold cannot differ from the code that reads it."""
    ours, other = subject.make(), subject.make(seed=1)
    state, parameters = ours.state_dict(), dict(ours.named_parameters())
    extra = [name for name in state if name not in parameters]
    expect(not extra, f"state_dict() holds {some(extra)}; use register_buffer(..., persistent=False)")
    other.load_state_dict(state)
    for prompt in subject.prompts(ours):
        a, b = (seen(run(stage, subject.tokens(), prompt)) for stage in (ours, other))
        expect(a.equal(b), f"the result differs by {largest(a, b):.1e} after loading its state elsewhere")
    return f"{len(state)} tensors"


def _agree(made: TokenSpec, out: VisualTokens) -> None:
    shape = tuple(out.x.shape[1:])
    expect(shape == (made.n, made.dim), f"spec() says {made.n} tokens of {made.dim}, forward() makes {shape}")
    expect(out.grid == made.grid, f"spec() says grid {_shape(made.grid)}, forward() makes {_shape(out.grid)}")
    for name, tensor in (("mask", out.mask), ("yx", out.yx), ("size", out.size)):
        expect(tensor.shape[:2] == out.x.shape[:2], f"{name} is {tuple(tensor.shape)} for x {tuple(out.x.shape)}")
    expect(out.grid is None or out.grid[0] * out.grid[1] == made.n, f"{made.n} tokens on a grid {_shape(out.grid)}")


def _carries(made: TokenSpec, out: VisualTokens) -> None:
    """What comes out has the optional fields that its spec tells of, and no others."""
    there = {
        "levels": 0 if out.levels is None else out.levels.shape[-1],
        "gated": out.log_gate is not None,
        "deep": 0 if out.deep is None else out.deep.shape[-1],
        "attn": out.attn is not None,
        "keys": 0 if out.keys is None else out.keys.shape[-1],
        "sources": tuple((source.x.shape[1], source.x.shape[2]) for source in out.sources),
    }
    said = {name: getattr(made, name) for name in there} | {"sources": tuple((s.n, s.dim) for s in made.sources)}
    for name, found in there.items():
        expect(found == said[name], f"spec() says {name}={said[name]}, the tokens carry {found}")
    laid, real = out.laid.sum(1).tolist(), out.mask.sum(1).tolist()
    expect(laid == [made.n] * len(laid), f"spec() says n={made.n}, the text is laid out for {laid}")
    expect(real == laid or not made.fixed, f"spec() says fixed=True and n={made.n}, the rows have {real} real tokens")


def _ascends(places: Tensor, axis: int) -> bool:
    return bool((places.diff(dim=axis) > 0).all())


def _shape(grid: tuple[int, int] | None) -> str:
    return "none" if grid is None else f"{grid[0]}x{grid[1]}"
