"""Tokens of regions: boxes proposed by each rule, window by window and patch by patch, and pooled point by point.

What is random about ``resampler=roi_random`` is where its windows stand; they are pooled as those of the others.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import scipy.linalg
import torch
import torch.nn.functional as F
from torch import nn

from beni.config.build import build_stage
from beni.stage import StageContext
from beni.types import Prompt, TokenSpec
from reference.harness import ReferenceCase, grid_tokens
from support.options import node

BINS, WHOLE, KEYS = 2, 3, 6
SIZES = (0.5, 0.34)
# (grid, width, regions)
SHAPES = (((5, 6), 12, 3), ((4, 4), 10, 4), ((6, 8), 16, 5))


def point(x, y, column):
    """A map ``(rows, columns, d)`` between its cells; cell (0, 0) has its centre at (0.5, 0.5)."""
    rows, columns = x.shape[:2]
    y, column = min(max(y - 0.5, 0), rows - 1), min(max(column - 0.5, 0), columns - 1)
    top, left = min(int(y), rows - 2), min(int(column), columns - 2)
    down, right = y - top, column - left
    upper = (1 - right) * x[top, left] + right * x[top, left + 1]
    lower = (1 - right) * x[top + 1, left] + right * x[top + 1, left + 1]
    return (1 - down) * upper + down * lower


def pooled(x, box, bins, longest):
    """The bins of a box in reading order, each the mean of points at even distances, which leave no cell of the map out
    of a box of the ``longest`` side that there can be.
    """
    rows, columns = x.shape[:2]
    top, left, bottom, right = box
    samples = math.ceil(longest * max(rows, columns) / bins)
    tall, wide = (bottom - top) / bins, (right - left) / bins
    out = []
    for i in range(bins):
        for j in range(bins):
            points = [
                point(
                    x,
                    rows * (top + tall * (i + (a + 0.5) / samples)),
                    columns * (left + wide * (j + (b + 0.5) / samples)),
                )
                for a in range(samples)
                for b in range(samples)
            ]
            out.append(sum(points) / len(points))
    return out


def dealt(count):
    first = -(-count // 2)
    return ((first, SIZES[0]), (count - first, SIZES[1]))


def grid_boxes(regions, size):
    """Windows of a size in as many rows as there are in each, or fewer, from edge to edge."""
    lines = math.ceil(regions / math.ceil(math.sqrt(regions)))
    boxes = []
    for i in range(lines):
        in_line = regions // lines + (i < regions % lines)
        top = (1 - size) / 2 if lines == 1 else (1 - size) * i / (lines - 1)
        for j in range(in_line):
            left = (1 - size) / 2 if in_line == 1 else (1 - size) * j / (in_line - 1)
            boxes.append((top, left, top + size, left + size))
    return boxes


def iou(a, b):
    tall, wide = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(tall, 0) * max(wide, 0)
    return both / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - both)


def windows(heat, regions, overlap=0.3):
    """The windows of each size with the highest mean, none of which overlaps with one before it while there are such;
    with their means.
    """
    rows, columns = heat.shape
    left = []
    for count, size in dealt(regions):
        tall, wide = max(1, round(rows * size)), max(1, round(columns * size))
        known = [
            ((i / rows, j / columns, (i + tall) / rows, (j + wide) / columns), heat[i : i + tall, j : j + wide].mean())
            for i in range(rows - tall + 1)
            for j in range(columns - wide + 1)
        ]
        known.sort(key=lambda one: -float(one[1].detach()))
        best, second = [], []
        for box, mean in known:
            apart = all(iou(box, other) <= overlap for other, _ in best)
            (best if apart else second).append((box, mean))
        left += (best + second)[:count]
    return left


def flood(inside, seed):
    """The patches of a set (row, column) that hang together with one of them."""
    if seed not in inside:
        return set()
    reached, edge = {seed}, [seed]
    while edge:
        y, x = edge.pop()
        for beside in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
            if beside in inside and beside not in reached:
                reached.add(beside)
                edge.append(beside)
    return reached


def around(cells, grid):
    y, x = zip(*cells, strict=True)
    return (min(y) / grid[0], min(x) / grid[1], (max(y) + 1) / grid[0], (max(x) + 1) / grid[1])


def lost_seed_and_mask(products, left, seeds):
    degree = {i: sum(products[i, j] > 0 for j in left) for i in left}
    order = sorted(left, key=lambda i: (degree[i], i))
    joined = [i for i in order[:seeds] if products[order[0], i] >= 0]
    return order[0], [i for i in left if sum(products[i, j] for j in joined) >= 0]


def tokencut_seed_and_mask(cosines, left, threshold=0.2):
    own = np.ix_(left, left)
    weights = np.where(cosines[own] > threshold, 1.0, 1e-5)
    degree = np.diag(weights.sum(1))
    _, vectors = scipy.linalg.eigh(degree - weights, degree, subset_by_index=[1, 1])
    vector = vectors[:, 0]
    size = np.abs(vector)
    seed = int((size >= size.max() * (1 - 1e-6)).argmax())  # patches with the same neighbours have the same value
    vector = vector * np.sign(vector[seed])
    return left[seed], [left[i] for i in np.flatnonzero(vector > vector.mean())]


def objects(keys, grid, regions, rule, least):
    """Objects found one after another among the patches that are left; even windows of half a side after that."""
    columns, left, boxes = grid[1], list(range(len(keys))), grid_boxes(regions, 0.5)
    for region in range(regions):
        if len(left) < least:
            break
        seed, mask = rule(left)
        found = flood({(i // columns, i % columns) for i in mask}, (seed // columns, seed % columns))
        boxes[region] = around(found, grid)
        left = [i for i in left if (i // columns, i % columns) not in found]
    return boxes


class Reference(nn.Module):
    """An option: its boxes, the points in them, and what the MLP makes of where they lie."""

    def __init__(self, option, shape):
        super().__init__()
        self.option, (self.grid, dim, self.regions) = option, shape
        self.fc1, self.fc2 = nn.Linear(80, dim), nn.Linear(dim, dim)
        if option == "roi_prompt":
            self.of_token, self.of_text = nn.Linear(dim, 256, bias=False), nn.Linear(2 * dim, 256)

    def forward(self, tokens):
        rows = []
        for row in range(len(tokens.x)):
            boxes, factors = self.boxes(tokens, row)
            x = tokens.x[row].unflatten(0, self.grid)
            whole = self.placed(pooled(x, (0, 0, 1, 1), WHOLE, 1.0), (0, 0, 1, 1), 1)
            some = zip(boxes, factors, self.sides(), strict=True)
            rest = [self.placed(pooled(x, box, BINS, side), box, factor) for box, factor, side in some]
            rows.append(torch.cat([whole, *rest]))
        return torch.stack(rows)

    def sides(self):
        if self.option in ("roi_lost", "roi_tokencut"):
            return [1.0] * self.regions
        return [size for count, size in dealt(self.regions) for _ in range(count)]

    def placed(self, bins, box, factor):
        numbers = [*box, (box[2] - box[0]) * (box[3] - box[1])]
        angles = torch.tensor([math.pi * 2**k * number for number in numbers for k in range(8)], dtype=torch.float64)
        wave = torch.cat([angles.sin(), angles.cos()]).to(bins[0].dtype)
        return (torch.stack(bins) + self.fc2(F.gelu(self.fc1(wave)))) * factor

    def boxes(self, tokens, row):
        ones = [1] * self.regions
        if self.option == "roi_grid":
            return [box for count, size in dealt(self.regions) for box in grid_boxes(count, size)], ones
        if self.option == "roi_saliency":
            return [box for box, _ in windows(tokens.attn[row].unflatten(0, self.grid), self.regions)], ones
        if self.option == "roi_prompt":
            found = windows(self.scores(tokens, row).unflatten(0, self.grid), self.regions)
            gates = [torch.sigmoid(5.0 * mean).log() for _, mean in found]
            return [box for box, _ in found], [(gate - gate.detach()).exp() for gate in gates]
        keys = F.normalize(tokens.keys[row].double(), dim=-1).numpy()
        products = keys @ keys.T
        if self.option == "roi_lost":
            return objects(keys, self.grid, self.regions, lambda left: lost_seed_and_mask(products, left, 7), 1), ones
        return objects(keys, self.grid, self.regions, lambda left: tokencut_seed_and_mask(products, left), 2), ones

    def scores(self, tokens, row):
        words = prompt(tokens).embeds[row][prompt(tokens).mask[row]].mean(0)
        text = self.of_text((words - words.mean()) / (words.var(unbiased=False) + 1e-5).sqrt())
        seen = self.of_token(tokens.x[row] - tokens.x[row].mean(0))
        return torch.stack([one @ text / (one.norm() * text.norm()) for one in seen])


def prompt(tokens):
    """Three words for the first row, two for the second."""
    width = 2 * tokens.x.shape[2]
    embeds = torch.linspace(-1, 1, 6 * width, dtype=tokens.x.dtype).sin().view(2, 3, width)
    return Prompt(embeds, torch.tensor([[True, True, True], [True, True, False]]))


def ours(option):
    def build(shape):
        grid, dim, regions = shape
        values = node("resampler", option) | {"regions": regions, "bins": BINS, "whole": WHOLE}
        values |= {"sizes": list(SIZES)} if "sizes" in values else {}
        values |= {"seeds": 7} if "seeds" in values else {}
        spec = TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid, attn=True, keys=KEYS)
        return build_stage(values, tokens=spec, dim_out=2 * dim)

    return build


def inputs(shape, generator, dtype):
    grid, dim, _ = shape
    tokens = grid_tokens(grid, dim, generator, dtype)
    attn = torch.rand(tokens.mask.shape, generator=generator, dtype=torch.float64).softmax(1)
    keys = torch.randn(*tokens.mask.shape, KEYS, generator=generator, dtype=torch.float64)
    return replace(tokens, attn=attn.to(dtype), keys=keys.to(dtype))


def answered(stage, tokens):
    out = stage(tokens, StageContext(prompt=prompt(tokens)))
    return out.x if out.log_gate is None else out.x * out.log_gate.exp()[..., None]


def named(state):
    of_stage = {"fc1": "box_embedding.fc1", "fc2": "box_embedding.fc2"}
    of_stage |= {"of_token": "scores.of_token", "of_text": "scores.of_text"}
    return {f"{of_stage[name.partition('.')[0]]}.{name.partition('.')[2]}": tensor for name, tensor in state.items()}


def aligned(module, tokens):
    """torchvision's RoI-Align of the same boxes, (left, top, right, bottom) in cells of the map."""
    from torchvision.ops import roi_align

    rows, columns = tokens.grid
    maps = tokens.x.transpose(1, 2).unflatten(2, tokens.grid)
    made = []
    for row in range(len(maps)):
        parts = []
        regions = zip(module.boxes(tokens, row)[0], module.sides(), strict=True)
        for bins, box, side in ((WHOLE, (0, 0, 1, 1), 1.0), *((BINS, box, side) for box, side in regions)):
            corners = maps.new_tensor([[box[1] * columns, box[0] * rows, box[3] * columns, box[2] * rows]])
            samples = math.ceil(side * max(rows, columns) / bins)
            read = roi_align(maps[row : row + 1], [corners], bins, sampling_ratio=samples, aligned=True)
            parts.append(module.placed(list(read[0].flatten(1).T), box, 1))
        made.append(torch.cat(parts))
    return torch.stack(made)


RULES = {
    "roi_grid": ("arXiv 1703.06870", "RoI-Align, point by point"),
    "roi_saliency": ("arXiv 2502.17422", "windows, one by one"),
    "roi_prompt": ("–", "cosines, token by token"),
    "roi_lost": ("arXiv 2109.14279", "LOST, patch by patch"),
    "roi_tokencut": ("arXiv 2202.11539", "scipy.linalg.eigh"),
}


def case(option, paper, reference, **more):
    return ReferenceCase(
        **{
            "name": option,
            "option": f"resampler={option}",
            "paper": paper,
            "reference": reference,
            "shapes": SHAPES,
            "build_ref": lambda shape: Reference(option, shape),
            "build_ours": ours(option),
            "inputs": inputs,
            "call_ref": lambda module, tokens: module(tokens),
            "call_ours": answered,
            "convert": named,
            **more,
        }
    )


CASES = [
    *(case(option, paper, reference) for option, (paper, reference) in RULES.items()),
    case(
        "roi_grid",
        "arXiv 1703.06870",
        "torchvision.ops.roi_align",
        name="roi_grid_torchvision",
        call_ref=aligned,
        needs="torchvision",
    ),
]
