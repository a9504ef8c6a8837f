"""resampler=ldp against MobileVLM's LDPBlock: multiplied out, and with torchvision's blocks where it is installed."""

from __future__ import annotations

import importlib
from functools import partial

import torch
import torch.nn.functional as F
from torch import nn

from beni.resampler.ldp import Ldp
from beni.types import TokenSpec
from reference.harness import ReferenceCase, grid_tokens

# (grid, width in, width out, width of the squeeze)
SHAPES = (((4, 6), 12, 24, 8), ((5, 3), 10, 72, 24), ((3, 4), 9, 64, 16))


def gelu(x):
    return 0.5 * x * (1 + torch.erf(x / 2**0.5))


def hard_sigmoid(x):
    return (x + 3).clamp(0, 6) / 6


def normed(x, weight, bias):
    """``(i, rows, columns, d)``, over the channels."""
    centred = x - x.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt() * weight + bias


def depthwise(x, kernel, stride):
    """``(i, rows, columns, d)``: 3x3 with zeros around, nine shifted copies."""
    images, rows, columns, dim = x.shape
    framed = x.new_zeros(images, rows + 2, columns + 2, dim)
    framed[:, 1:-1, 1:-1] = x
    shifted = [
        framed[:, dy : dy + rows : stride, dx : dx + columns : stride] * kernel[:, 0, dy, dx]
        for dy in range(3)
        for dx in range(3)
    ]
    return torch.stack(shifted).sum(0)


class Block(nn.Module):
    """The tensors of torchvision's InvertedResidual, by its names, and what it does with them."""

    def __init__(self, dim, squeeze, stride):
        super().__init__()
        self.stride = stride
        excite = nn.ModuleDict({"fc1": nn.Conv2d(dim, squeeze, 1), "fc2": nn.Conv2d(squeeze, dim, 1)})
        self.block = nn.ModuleList(
            [
                nn.ModuleList([nn.Conv2d(dim, dim, 3, groups=dim, bias=False), nn.LayerNorm(dim)]),
                excite,
                nn.ModuleList([nn.Conv2d(dim, dim, 1, bias=False), nn.LayerNorm(dim)]),
            ]
        )

    def forward(self, x):
        (conv, norm), excite, (point, last) = self.block
        y = normed(depthwise(x, conv.weight, self.stride), norm.weight, norm.bias)
        y = y * hard_sigmoid(y)
        mean = y.mean((1, 2))
        hidden = (mean @ excite["fc1"].weight[:, :, 0, 0].T + excite["fc1"].bias).clamp(min=0)
        # torch's, for its gradient takes 1/6 in fp32: off by 5e-9 in fp64
        scale = F.hardsigmoid(hidden @ excite["fc2"].weight[:, :, 0, 0].T + excite["fc2"].bias)
        y = torch.einsum("iyxd,ed->iyxe", y * scale[:, None, None], point.weight[:, :, 0, 0])
        y = normed(y, last.weight, last.bias)
        return x + y if self.stride == 1 else y


class LdpBlock(nn.Module):
    """``(i, rows, columns, d)``, by the names of MobileVLM's weights."""

    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, squeeze = shape
        self.mlp = nn.Sequential(nn.Identity(), nn.Linear(dim, dim_out), nn.GELU(), nn.Linear(dim_out, dim_out))
        self.mb_block = nn.Sequential(nn.Identity(), Block(dim_out, squeeze, 1), Block(dim_out, squeeze, 2))

    def forward(self, x):
        _, first, _, second = self.mlp
        return self.mb_block(gelu(x @ first.weight.T + first.bias) @ second.weight.T + second.bias).flatten(1, 2)


class TorchvisionLdp(nn.Module):
    """``(i, rows, columns, d)``, with the blocks that MobileVLM takes."""

    def __init__(self, shape):
        super().__init__()
        _, dim, dim_out, _ = shape
        mobilenet = importlib.import_module("torchvision.models.mobilenetv3")
        squeeze_excitation = importlib.import_module("torchvision.ops.misc").SqueezeExcitation
        norm = partial(importlib.import_module("timm.layers.norm_act").LayerNormAct2d, act_layer=None)
        excite = partial(squeeze_excitation, scale_activation=nn.Hardsigmoid)
        self.mlp = nn.Sequential(nn.Identity(), nn.Linear(dim, dim_out), nn.GELU(), nn.Linear(dim_out, dim_out))
        configs = [
            mobilenet.InvertedResidualConfig(dim_out, 3, dim_out, dim_out, True, "HS", stride, 1, 1)
            for stride in (1, 2)
        ]
        blocks = [mobilenet.InvertedResidual(config, norm, excite) for config in configs]
        self.mb_block = nn.Sequential(nn.Identity(), *blocks)

    def forward(self, x):
        return self.mb_block(self.mlp(x).permute(0, 3, 1, 2)).flatten(2).transpose(1, 2)


def convert(state):
    places = {
        "mlp.1.": "mlp.fc1.",
        "mlp.3.": "mlp.fc2.",
        "mb_block.1.block.": "blocks.0.",
        "mb_block.2.block.": "blocks.1.",
    }
    parts = {"0.0.": "depthwise.", "0.1.": "depthwise_norm.norm.", "1.": "excite.", "2.0.": "pointwise."}
    parts["2.1."] = "pointwise_norm.norm."
    out = {}
    for name, tensor in state.items():
        start = next(start for start in places if name.startswith(start))
        rest = name.removeprefix(start)
        if start.startswith("mb_block"):
            part = next(part for part in parts if rest.startswith(part))
            rest = parts[part] + rest.removeprefix(part)
            tensor = tensor.flatten(1) if part == "1." and tensor.ndim == 4 else tensor
        out[places[start] + rest] = tensor
    return out


def case(name, reference, build_ref, needs):
    return ReferenceCase(
        name=name,
        option="resampler=ldp",
        paper="arXiv 2312.16886",
        reference=reference,
        shapes=SHAPES,
        build_ref=build_ref,
        build_ours=lambda shape: Ldp(
            TokenSpec(n=shape[0][0] * shape[0][1], dim=shape[1], grid=shape[0]), dim_out=shape[2]
        ),
        inputs=lambda shape, generator, dtype: grid_tokens(shape[0], shape[1], generator, dtype),
        call_ref=lambda module, tokens: module(tokens.x.unflatten(1, tokens.grid)),
        convert=convert,
        needs=needs,
    )


CASES = [
    case("ldp", "shifted copies and einsum", LdpBlock, None),
    case("ldp torchvision", "torchvision.models.mobilenetv3.InvertedResidual", TorchvisionLdp, "timm"),
]
