"""resampler=c_abstractor against Honeybee's: multiplied out, and with timm's RegStage where it is installed."""

from __future__ import annotations

import importlib
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import nn

from beni.resampler.c_abstractor import CAbstractor
from beni.types import TokenSpec
from reference.cases.ldp import depthwise, normed
from reference.harness import ReferenceCase, grid_tokens

# (grid, width in, hidden, width out, depth, linear layers, side, norm first, end tokens)
SHAPES = (
    ((4, 4), 12, 16, 24, 2, 2, 2, False, 0),
    ((5, 7), 8, 8, 12, 1, 3, 3, True, 2),
    ((6, 3), 16, 24, 16, 3, 1, "auto", False, 1),
)


def silu(x):
    return x / (1 + (-x).exp())


def pooled(x, rows, columns):
    """Adaptive average pooling of ``(i, h, w, d)``, bin by bin."""
    h, w = x.shape[1:3]
    bins = [
        x[:, r * h // rows : -(-(r + 1) * h // rows), c * w // columns : -(-(c + 1) * w // columns)].mean((1, 2))
        for r in range(rows)
        for c in range(columns)
    ]
    return torch.stack(bins, 1).unflatten(1, (rows, columns))


class Elementary(nn.Module):
    """The tensors of beni's part, and what Honeybee does with them, on ``(i, rows, columns, d)``."""

    def __init__(self, shape):
        super().__init__()
        self.part, self.shape = ours(shape), shape

    def block(self, x, block):
        def convolved(x, conv):
            return torch.einsum("iyxd,ed->iyxe", x, conv.weight[:, :, 0, 0])

        def norm(x, layer):
            return normed(x, layer.norm.weight, layer.norm.bias)

        y = silu(norm(convolved(x, block.expand), block.expand_norm))
        y = silu(norm(depthwise(y, block.depthwise.weight, 1), block.depthwise_norm))
        squeezed = silu(y.mean((1, 2)) @ block.excite.fc1.weight.T + block.excite.fc1.bias)
        y = y / (1 + (-(squeezed @ block.excite.fc2.weight.T + block.excite.fc2.bias)).exp())[:, None, None]
        y = norm(convolved(y, block.project), block.project_norm)
        same = isinstance(block.shortcut, nn.Identity)
        return silu(y + (x if same else norm(convolved(x, block.shortcut), block.shortcut_norm)))

    def forward(self, x):
        (rows, columns), *_, side, prenorm, _ = self.shape
        part = self.part
        if prenorm:
            centred = x - x.mean(-1, keepdim=True)
            x = centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt() * part.norm.weight + part.norm.bias
        x = x + part.positions.weight.unflatten(0, (rows, columns))
        for block in part.before:
            x = self.block(x, block)
        x = pooled(x, *(((rows + 1) // 2, (columns + 1) // 2) if side == "auto" else (side, side)))
        for block in part.after:
            x = self.block(x, block)
        x = x.flatten(1, 2)
        for i, layer in enumerate(part.readout):
            x = (silu(x) if i else x) @ layer.weight.T + layer.bias
        return x if part.eos is None else torch.cat([x, part.eos.expand(len(x), -1, -1)], 1)


class TimmStages(nn.Module):
    """Honeybee's CAbstractor by its names, with the convolutions that it takes from timm."""

    def __init__(self, shape):
        super().__init__()
        grid, dim, hidden, dim_out, depth, layers, side, prenorm, ends = self.shape = shape
        stage = importlib.import_module("timm.models.regnet").RegStage
        norm = importlib.import_module("timm.layers").LayerNorm2d
        options = {"stride": 1, "dilation": 1, "act_layer": nn.SiLU, "norm_layer": norm}
        self.prenorm = nn.LayerNorm(dim, eps=1e-6) if prenorm else nn.Identity()
        self.pos_emb = nn.Parameter(torch.empty(1, grid[0] * grid[1], dim))
        self.pool = nn.AdaptiveAvgPool2d([(n + 1) // 2 for n in grid] if side == "auto" else side)
        self.net = nn.ModuleList([stage(depth, dim, hidden, **options), stage(depth, hidden, hidden, **options)])
        widths = [hidden] + [dim_out] * layers
        self.readout = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.eos = nn.Parameter(torch.empty(ends, dim_out)) if ends else None

    def forward(self, x):
        grid = x.shape[1:3]
        x = (self.prenorm(x.flatten(1, 2)) + self.pos_emb).transpose(1, 2).unflatten(2, grid)
        x = self.net[1](self.pool(self.net[0](x))).flatten(2).transpose(1, 2)
        for i, layer in enumerate(self.readout):
            x = layer(F.silu(x) if i else x)
        return x if self.eos is None else torch.cat([x, self.eos.expand(len(x), -1, -1)], 1)


def from_timm(state):
    places = {"net.0.b": "before.", "net.1.b": "after."}
    parts = {
        "conv1.conv": "expand",
        "conv1.bn": "expand_norm.norm",
        "conv2.conv": "depthwise",
        "conv2.bn": "depthwise_norm.norm",
        "se.fc1": "excite.fc1",
        "se.fc2": "excite.fc2",
        "conv3.conv": "project",
        "conv3.bn": "project_norm.norm",
        "downsample.conv": "shortcut",
        "downsample.bn": "shortcut_norm.norm",
    }
    out = {}
    for name, tensor in state.items():
        if name.startswith("net."):
            number, _, rest = name[7:].partition(".")
            part = next(part for part in parts if rest.startswith(f"{part}."))
            tensor = tensor.flatten(1) if part.startswith("se.") and tensor.ndim == 4 else tensor
            name = f"{places[name[:7]]}{int(number) - 1}.{parts[part]}.{rest.removeprefix(part + '.')}"
        name = {"pos_emb": "positions.weight"}.get(name, name.replace("prenorm.", "norm."))
        out[name] = tensor[0] if name == "positions.weight" else tensor
    return out


def ours(shape):
    grid, dim, hidden, dim_out, depth, layers, side, prenorm, ends = shape
    return CAbstractor(
        TokenSpec(n=grid[0] * grid[1], dim=dim, grid=grid),
        dim_out,
        side=side,
        hidden_size=hidden,
        depth=depth,
        mlp_depth=layers,
        prenorm=prenorm,
        num_eos_tokens=ends,
    )


def case(name, reference, build_ref, convert, needs):
    return ReferenceCase(
        name=name,
        option="resampler=c_abstractor",
        paper="arXiv 2312.06742",
        reference=reference,
        shapes=SHAPES,
        build_ref=build_ref,
        build_ours=ours,
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x.unflatten(1, tokens.grid)),
        convert=convert,
        needs=needs,
    )


def inner(state):
    return {name.removeprefix("part."): tensor for name, tensor in state.items()}


CASES = [
    case("c_abstractor", "shifted copies and einsum", Elementary, inner, None),
    case("c_abstractor timm", "timm.models.regnet.RegStage", TimmStages, from_timm, "timm"),
]
