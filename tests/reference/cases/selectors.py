"""Selectors without a part of their own in transformers, each against its published rule, written out token by token.

A rule is given the features of one row, the encoder's attention and keys, and how many tokens to leave; it says which
are left and what their features are. Dropped tokens are zeros in both results.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from beni.config.build import build_stage
from beni.stage import StageContext
from beni.types import Prompt, TokenSpec
from reference.harness import ReferenceCase, grid_tokens
from support.options import node

KEYS = 6
# (grid, width, tokens that are left)
SHAPES = (((5, 6), 12, 8), ((4, 4), 10, 5), ((3, 8), 16, 6))


def cosines(x):
    return F.normalize(x, dim=-1) @ F.normalize(x, dim=-1).T


def best(scores, k):
    """Places of the highest scores, of equal ones the first."""
    return sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))[:k]


def as_they_are(x, places):
    return {i: x[i] for i in places}


def center(x, grid, attn, keys, k):
    rows, columns = grid
    distance = [
        ((i // columns + 0.5) / rows - 0.5) ** 2 + ((i % columns + 0.5) / columns - 0.5) ** 2 for i in range(len(x))
    ]
    return as_they_are(x, best([-np.float32(d) for d in distance], k))


def norm(x, grid, attn, keys, k):
    return as_they_are(x, best(x.detach().float().norm(dim=-1), k))


def attention(x, grid, attn, keys, k):
    return as_they_are(x, best(attn, k))


def uniform(x, grid, attn, keys, k):
    return as_they_are(x, [int((j + 0.5) * len(x) / k) for j in range(k)])


def divprune(x, grid, attn, keys, k):
    distance, n = 1 - cosines(x.detach()), len(x)
    chosen = best([min(float(distance[i, j]) for j in range(n) if j != i) for i in range(n)], 1)
    while len(chosen) < k:
        rest = [i for i in range(n) if i not in chosen]
        chosen.append(max(rest, key=lambda i: min(float(distance[i, j]) for j in chosen)))
    return as_they_are(x, chosen)


def vispruner(x, grid, attn, keys, k):
    order = best(attn, len(x))
    important, rest = order[: k // 2], order[k // 2 :]
    alike = cosines(x.detach())
    while (r := min(8, len(rest) - (k - k // 2))) > 0:
        a, b = rest[::2], rest[1::2]
        nearest = {i: max(float(alike[i, j]) for j in b) for i in a}
        rest = sorted(a, key=lambda i: -nearest[i])[min(r, len(rest) // 2) :] + b
    return as_they_are(x, important + rest)


def holov(x, grid, attn, keys, k, crops=3, alpha=0.09):
    n, means, members = len(x), [], []
    sizes = [n // crops + (c < n % crops) for c in range(crops)]
    for a, b in pairwise(np.cumsum([0, *sizes])):
        own = list(range(a, b))
        alike = cosines(x[own].detach()).float() * (1 - torch.eye(len(own)))
        variance = ((alike - alike.sum(1, keepdim=True) / (len(own) - 1)) ** 2).sum(1) / (len(own) - 1)
        level = attn[own].float().mean() / (variance.mean() + 1e-6)
        scores = attn[own].float() + alpha * variance * level
        means.append(float(scores.mean()))
        members.append((own, scores))
    share = np.array(means) / sum(means)
    granted = np.floor(share * k).astype(int)
    for c in np.argsort(-share)[: k - granted.sum()]:
        granted[c] += 1
    assert all(g <= len(own) for g, (own, _) in zip(granted, members, strict=True)), (
        "the released rule fills with zeros"
    )
    return as_they_are(x, [own[i] for g, (own, scores) in zip(granted, members, strict=True) for i in best(scores, g)])


def visionzip(x, grid, attn, keys, k):
    contextual = int(0.15 * k + 0.5)
    order = best(attn, len(x))
    dominant, rest = order[: k - contextual], sorted(order[k - contextual :])
    targets = rest[:: max(1, len(rest) // contextual)][:contextual]
    alike = cosines(keys)
    goes = {i: max(targets, key=lambda t: float(alike[i, t])) for i in rest if i not in targets}
    out = as_they_are(x, dominant)
    for t in targets:
        own = [i for i, target in goes.items() if target == t]
        out[t] = x[t] + (sum(x[i] for i in own) / len(own) if own else 0)
    return out


def prumerge(x, grid, attn, keys, k):
    order = best(attn, len(x))
    chosen, rest = order[: k - 1], order[k - 1 :]
    alike = cosines(keys)
    out = {}
    for i in chosen:
        near = best([alike[i, j] if j != i else -2.0 for j in range(len(x))], min(32, len(x) - 1))
        out[i] = x[i] + sum(attn[j] * x[j] for j in near)
    out[rest[0]] = sum(attn[j] * x[j] for j in rest)
    return out


def tome(x, grid, attn, keys, k):
    size, place = [1.0] * len(x), list(range(len(x)))
    x, keys = list(x), list(keys)
    while len(x) > k:
        a, b = range(0, len(x), 2), range(1, len(x), 2)
        alike = cosines(torch.stack(keys))
        goes = {i: max(b, key=lambda j: float(alike[i, j])) for i in a}
        r = min(len(x) - k, len(x) // 2)
        gone = sorted(a, key=lambda i: -float(alike[i, goes[i]]))[:r]
        groups = {i: [i, *(j for j in gone if goes[j] == i)] for i in range(len(x)) if i not in gone}
        total = {i: sum(size[j] for j in own) for i, own in groups.items()}
        x = [sum(size[j] * x[j] for j in own) / total[i] for i, own in groups.items()]
        keys = [sum(size[j] * keys[j] for j in own) / total[i] for i, own in groups.items()]
        size, place = list(total.values()), [place[i] for i in groups]
    return dict(zip(place, x, strict=True))


RULES = {
    "center": (center, "", "distances, token by token"),
    "norm": (norm, "arXiv 2309.16588", "norms, token by token"),
    "attention": (attention, "arXiv 2412.01818", "attention, sorted"),
    "uniform": (uniform, "", "its formula"),
    "divprune": (divprune, "arXiv 2503.02175", "DivPrune, token by token"),
    "vispruner": (vispruner, "arXiv 2412.01818", "encode_images, token by token"),
    "holov": (holov, "arXiv 2510.02912", "HoloV, token by token"),
    "visionzip": (visionzip, "arXiv 2412.04467", "CLIPVisionTower_VisionZip, token by token"),
    "prumerge": (prumerge, "arXiv 2403.15388", "token_prune_merge_advanced, token by token"),
    "tome": (tome, "arXiv 2210.09461", "bipartite_soft_matching, token by token"),
}


def ours(option):
    def build(shape):
        grid, dim, keep = shape
        values = node("selector", option)
        values |= {"keep": keep} if "keep" in values else {}
        values |= {"crops": 3} if option == "holov" else {}
        spec = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid, attn=True, keys=KEYS)
        return build_stage(values, tokens=spec, dim_out=2 * dim)

    return build


def inputs(shape, generator, dtype):
    grid, dim, _ = shape
    tokens = grid_tokens(grid, dim, generator, dtype)
    attn = torch.rand(tokens.mask.shape, generator=generator, dtype=torch.float64).softmax(1)
    keys = torch.randn(*tokens.mask.shape, KEYS, generator=generator, dtype=torch.float64)
    return replace(tokens, attn=attn.to(dtype), keys=keys.to(dtype))


class Rule(nn.Module):
    def __init__(self, rule, shape):
        super().__init__()
        self.rule, (self.grid, _, self.keep) = rule, shape

    def forward(self, tokens):
        rows = []
        for x, attn, keys in zip(tokens.x, tokens.attn, tokens.keys, strict=True):
            left = self.rule(x, self.grid, attn, keys, self.keep)
            rows.append(torch.stack([left.get(i, torch.zeros_like(x[0])) for i in range(len(x))]))
        return torch.stack(rows)


def without_dropped(stage, tokens):
    out = stage(tokens, StageContext())
    return out.x * out.mask[..., None]


def pooled(tokens, shape):
    """Each cell of the coarser grid: the mean of the cells under it, row by row and column by column."""
    (rows, columns), _, keep = shape
    r, c = max(
        ((r, min(columns, keep // r)) for r in range(1, min(rows, keep) + 1)),
        key=lambda rc: (-max(rc[1] / rc[0] / (columns / rows), rc[0] / rc[1] * columns / rows), rc[0] * rc[1]),
    )

    def under(i, out, side):
        return range(i * side // out, -(-(i + 1) * side // out))

    cells = []
    for x in tokens.x:
        for i in range(r):
            for j in range(c):
                own = [x[a * columns + b] for a in under(i, r, rows) for b in under(j, c, columns)]
                cells.append(sum(own) / len(own))
    return torch.stack(cells).unflatten(0, (len(tokens.x), -1))


class Pooled(nn.Module):
    def __init__(self, shape):
        super().__init__()
        self.shape = shape

    def forward(self, tokens):
        return pooled(tokens, self.shape)


def prompt(tokens, width):
    """Three words for the first row, two for the second."""
    embeds = torch.linspace(-1, 1, 6 * width, dtype=tokens.x.dtype).sin().view(2, 3, width)
    return Prompt(embeds, torch.tensor([[True, True, True], [True, True, False]]))


class ByPrompt(nn.Module):
    """Cosines of centred tokens with the mean embedding of the words, token by token, and what each option leaves."""

    def __init__(self, option, shape):
        super().__init__()
        _, dim, self.keep = shape
        self.option = option
        self.of_token = nn.Linear(dim, 256, bias=False)
        self.of_text = nn.Linear(2 * dim, 256)

    def forward(self, tokens):
        asked = prompt(tokens, self.of_text.in_features)
        rows = []
        for x, words, real in zip(tokens.x, asked.embeds, asked.mask, strict=True):
            mean = words[real].mean(0)
            text = self.of_text((mean - mean.mean()) / (mean.var(unbiased=False) + 1e-5).sqrt())
            seen = self.of_token(x - x.mean(0))
            scores = torch.stack([token @ text / (token.norm() * text.norm()) for token in seen])
            if self.option == "threshold":
                scores = (scores - scores.mean()) / (scores.var(unbiased=False) + 1e-12).sqrt()
            # a gate of 0 with a gradient is read here as a factor of 1
            gates = [torch.sigmoid(5.0 * s).log() for s in scores]
            factor = [(gate - gate.detach()).exp() for gate in gates]
            left = self.left(x, scores.detach())
            rows.append(torch.stack([x[i] * factor[i] if i in left else torch.zeros_like(x[0]) for i in range(len(x))]))
        return torch.stack(rows)

    def left(self, x, scores):
        if self.option == "prompt_topk":
            return best(scores, self.keep)
        if self.option == "threshold":
            return [i for i in range(len(x)) if scores[i] >= 0]
        relevance = (scores - scores.min() + 1e-6) / (scores.max() - scores.min())
        kernel = (relevance[:, None] * cosines(x.detach()) * relevance).double()
        chosen = []
        while len(chosen) < self.keep:
            rest = [i for i in range(len(x)) if i not in chosen]
            chosen.append(max(rest, key=lambda i: float(torch.linalg.det(kernel[[*chosen, i]][:, [*chosen, i]]))))
        return chosen


def answered(stage, tokens):
    asked = prompt(tokens, stage.scores.of_text.in_features)
    out = stage(tokens, StageContext(prompt=asked))
    return out.x * out.mask[..., None] * out.log_gate.exp()[..., None]


def by_prompt(option, paper, reference):
    return ReferenceCase(
        name=option,
        option=f"selector={option}",
        paper=paper,
        reference=reference,
        shapes=SHAPES,
        build_ref=lambda shape: ByPrompt(option, shape),
        build_ours=ours(option),
        inputs=inputs,
        call_ref=lambda module, tokens: module(tokens),
        call_ours=answered,
        convert=lambda state: {f"scores.{name}": tensor for name, tensor in state.items()},
    )


CASES = [
    *(
        ReferenceCase(
            name=f"selector_{option}",
            option=f"selector={option}",
            paper=paper or "–",
            reference=reference,
            shapes=SHAPES,
            build_ref=lambda shape, rule=rule: Rule(rule, shape),
            build_ours=ours(option),
            inputs=inputs,
            call_ref=lambda module, tokens: module(tokens),
            call_ours=without_dropped,
        )
        for option, (rule, paper, reference) in RULES.items()
    ),
    ReferenceCase(
        name="selector_pool",
        option="selector=pool",
        paper="arXiv 2511.02650",
        reference="means, cell by cell",
        shapes=SHAPES,
        build_ref=Pooled,
        build_ours=ours("pool"),
        inputs=inputs,
        call_ref=lambda module, tokens: module(tokens),
    ),
    by_prompt("prompt_topk", "arXiv 2503.19903", "cosines, token by token"),
    by_prompt("threshold", "–", "cosines, token by token"),
    by_prompt("cdpruner", "arXiv 2506.10967", "determinants, set by set"),
]
