"""What is put to the test: a stage with its values, on the first of a list of token specs that it accepts.

A stage may refuse a spec (``CompositionError``): pixel shuffle cannot halve three rows, an aggregator of several
encoders needs several. The list goes from the plainest tokens to those, so that most stages meet the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any

import torch
from torch import Tensor

from beni.config.build import build_stage
from beni.conformance.verdict import NotMet
from beni.errors import CompositionError, ConfigError
from beni.nn.gates import openness
from beni.nn.streams import derive, torch_stream
from beni.stage import PROMPTS, Stage, StageContext
from beni.types import Prompt, TokenSpec, VisualTokens

GRIDS = ((3, 4), (4, 4), (4, 8), (8, 8), (12, 12))
IMAGES = 3
KEYS = 8
"""Width of an encoder's keys."""

WORDS = ("what", "is", "to", "the", "left", "of", "her", "hat")
PROMPT_LENGTHS = (5, 3, 4)
"""Real positions of the prompt of each image; one is shorter, so that prompts are padded too."""


def encoders(dim: int) -> tuple[TokenSpec, ...]:
    """Specs of two encoders that look at one picture."""
    return tuple(TokenSpec(n=side**2, dim=dim, grid=(side, side)) for side in (4, 8))


def on_grids(dim: int, *grids: tuple[int, int]) -> tuple[TokenSpec, ...]:
    """Specs of dense grids, ``dim`` wide: plain, with further levels, and with the tokens of two encoders."""
    plain = tuple(TokenSpec(n=rows * columns, dim=dim, grid=(rows, columns)) for rows, columns in grids)
    return (
        *plain,
        *(replace(spec, levels=3 * dim) for spec in plain),
        *(replace(spec, sources=encoders(dim)) for spec in plain),
    )


def without_grid(spec: TokenSpec) -> TokenSpec:
    """``spec`` where tokens form no grid, those of each encoder neither."""
    return replace(spec, grid=None, sources=tuple(without_grid(source) for source in spec.sources))


@dataclass(frozen=True)
class Subject:
    """A stage to test.

    Attributes:
        group: ``selector``, ``resampler``, ``connector`` or ``views``.
        node: its YAML: ``_target_`` and values.
        spec: of the tokens it is given.
        dim_out: width of the llm it is built for.
    """

    group: str
    node: Mapping[str, Any]
    spec: TokenSpec
    dim_out: int

    def make(self, seed: int = 0, spec: TokenSpec | None = None) -> Stage:
        """The stage in evaluation mode, its weights drawn from a stream of their own.

        Raises:
            CompositionError: when it refuses ``spec``.
        """
        with torch_stream(seed, "init", self.group):
            stage = self.built(spec)
            stage.init_weights()
        return stage.eval()

    def randomised(self, spec: TokenSpec | None = None) -> Stage:
        """The stage with N(0, 0.2) everywhere: initial weights may hide what it does, such as a layer of zeros."""
        stage = self.make(spec=spec)
        generator = torch.Generator().manual_seed(derive(0, "randomised"))
        with torch.no_grad():
            for parameter in stage.parameters():
                parameter.normal_(0, 0.2, generator=generator)
        return stage

    def built(self, spec: TokenSpec | None = None) -> Stage:
        """The stage as its constructor leaves it.

        Raises:
            CompositionError: when it refuses ``spec``.
            ConfigError: when it is no stage.
        """
        spec = spec or self.spec
        stage = build_stage(dict(self.node), tokens=spec, dim_out=self.dim_out)
        if not isinstance(stage, Stage):
            raise ConfigError(
                f"{self.node['_target_']} makes a {type(stage).__name__}, expected a stage\n"
                "  fix: derive the class from beni.stage.Stage"
            )
        stage.spec(spec)
        return stage

    def refuses(self, spec: TokenSpec) -> CompositionError | None:
        """What it says against such tokens; None when it takes them. Costs no weights."""
        try:
            with torch.device("meta"):
                self.built(spec)
        except CompositionError as error:
            return error
        return None

    def leaves(self) -> int:
        """How many tokens it makes of its spec."""
        with torch.device("meta"):
            return self.built().spec(self.spec).n

    def with_channels(self, spec: TokenSpec) -> TokenSpec:
        """``spec`` with the side channels of an encoder that the stage reads."""
        with torch.device("meta"):
            reads = self.built(spec).reads
        return replace(spec, attn="attn" in reads, keys=KEYS if "keys" in reads else 0)

    def tokens(self, images: int = IMAGES, seed: int = 0, spec: TokenSpec | None = None) -> VisualTokens:
        """Random tokens of the spec."""
        generator = torch.Generator().manual_seed(derive(seed, "tokens"))
        return VisualTokens.drawn(spec or self.spec, images, partial(torch.randn, generator=generator))

    def gates(self, tokens: VisualTokens, seed: int = 0) -> VisualTokens:
        """The tokens, those of each encoder too, with random gates between 1/8 and 8."""
        generator = torch.Generator().manual_seed(derive(seed, "gates"))

        def drawn(mask: Tensor) -> Tensor:
            return (torch.rand(mask.shape, generator=generator, dtype=torch.float64) * 2 - 1) * math.log(8)

        return gated(tokens, drawn)

    def prompt(self, seed: int = 0) -> Prompt:
        """A random prompt for each of ``IMAGES`` images in all forms, of different lengths, zeros behind its end."""
        generator = torch.Generator().manual_seed(derive(seed, "prompt"))
        real = torch.arange(max(PROMPT_LENGTHS)) < torch.tensor(PROMPT_LENGTHS)[:, None]
        embeds, hidden = (torch.randn(*real.shape, self.dim_out, generator=generator) for _ in range(2))
        texts = tuple(
            " ".join(WORDS[(seed + i + place) % len(WORDS)] for place in range(n)) for i, n in enumerate(PROMPT_LENGTHS)
        )
        return Prompt(embeds * real[..., None], real, hidden * real[..., None], texts)

    def prompts(self, stage: Stage) -> tuple[Prompt | None, ...]:
        """What the stage is run with, one run each: no text, and a prompt where it reads one."""
        return (None, self.prompt()) if stage.reads & PROMPTS else (None,)


def run(stage: Stage, tokens: VisualTokens, prompt: Prompt | None = None) -> VisualTokens:
    """Tokens through the stage."""
    return stage(tokens, StageContext(prompt=prompt))


def seen(tokens: VisualTokens) -> Tensor:
    """What is seen of tokens behind a stage, ``(i, n, d + 2)``: features, openness, and whether each is real."""
    opened = torch.ones_like(tokens.size) if tokens.log_gate is None else openness(tokens.log_gate)
    marks = torch.stack([opened, tokens.mask], -1).to(tokens.x.dtype)
    return torch.cat([tokens.x, marks], -1)


def find_subject(group: str, node: Mapping[str, Any], dim: int = 32, dim_out: int | None = None) -> Subject:
    """The stage on the first tokens it accepts; those of which it leaves more than one come first.

    Args:
        dim_out: width of the llm; None tries twice ``dim`` (equal widths would hide one taken for the other), then
            ``dim``.

    Raises:
        NotMet: with every refusal when it accepts none.
    """
    widths = (2 * dim, dim) if dim_out is None else (dim_out,)
    refusals = []
    fallback = None
    for spec, width in product(on_grids(dim, *GRIDS), widths):
        subject = Subject(group, node, spec, width)
        refusal = subject.refuses(spec)
        if refusal is not None:
            refusals.append(str(refusal))
            continue
        subject = replace(subject, spec=subject.with_channels(spec))
        if subject.leaves() > 1:
            return subject
        else:
            fallback = fallback or subject
    if fallback is not None:
        return fallback
    raise NotMet("it accepts no tokens:\n" + "\n".join(dict.fromkeys(refusals)))


def cast(tokens: VisualTokens, dtype: torch.dtype) -> VisualTokens:
    """The tokens with features of another type."""
    return replace(
        tokens,
        x=tokens.x.to(dtype),
        **{name: made.to(dtype) for name, made in tokens.per_token().items() if name in ("levels", "deep", "keys")},
        sources=tuple(cast(source, dtype) for source in tokens.sources),
    )


def gated(tokens: VisualTokens, gates: Callable[[Tensor], Tensor]) -> VisualTokens:
    """The tokens, those of each encoder too, with the gates that are made for such a mask."""
    return replace(
        tokens, log_gate=gates(tokens.mask), sources=tuple(gated(source, gates) for source in tokens.sources)
    )


def with_gates(spec: TokenSpec, gated: bool = True) -> TokenSpec:
    """``spec`` with gates or without any, for the tokens of each encoder too."""
    return replace(spec, gated=gated, sources=tuple(with_gates(source, gated) for source in spec.sources))


def padded(tokens: VisualTokens, extra: int, rubbish: float = 1e3) -> VisualTokens:
    """No grid any more: ``extra`` more positions in each row and the last two of the second row are no tokens.

    Args:
        rubbish: size of the random numbers that stand there.
    """
    images, n = tokens.mask.shape
    generator = torch.Generator().manual_seed(derive(0, "rubbish"))
    mask = torch.cat([tokens.mask, torch.zeros(images, extra, dtype=torch.bool)], 1)
    mask[1, n - 2 :] = False

    def longer(values: Tensor) -> Tensor:
        shape = (images, n + extra, *values.shape[2:])
        noise = rubbish * torch.randn(shape, generator=generator, dtype=values.dtype)
        noise[:, :n][mask[:, :n]] = values[mask[:, :n]]
        return noise

    long = tokens.map(lambda tensor: longer(tensor) if tensor.is_floating_point() else mask)
    sources = tuple(padded(source, extra, rubbish) for source in tokens.sources)
    return replace(long, mask=mask, yx=long.yx.clamp(0, 1), size=long.size.abs(), sources=sources)
