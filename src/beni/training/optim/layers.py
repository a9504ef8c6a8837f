"""Layer-wise decay of the learning rate (BEiT, arXiv 2106.08254; ELECTRA, arXiv 2003.10555).

The lower a layer of a pretrained backbone, the less it should move: embeddings are layer 0, the N-1 blocks follow, and
the norm and head behind them are layer N; layer k learns at ``decay ** (N - k)`` times the component's rate.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from beni.llm.base import Llm
from beni.vision.base import VisionEncoder


def layer_factors(component: nn.Module, decay: float) -> dict[int, float]:
    """``id(parameter)`` -> what its rate is multiplied by.

    Each backbone in ``component`` counts layers of its own, also where several encoders stand side by side.
    """
    backbones = [module for module in component.modules() if isinstance(module, VisionEncoder | Llm)]
    # an encoder of several comes before those it holds, whose own count then replaces its
    return {name: factor for backbone in backbones for name, factor in _of_one(backbone, decay).items()}


def _of_one(backbone: VisionEncoder | Llm, decay: float) -> Mapping[int, float]:
    blocks = backbone.layers() if isinstance(backbone, Llm) else backbone.blocks()
    block_of = {id(p): k for k, block in enumerate(blocks, start=1) for p in block.parameters()}
    factors, met, behind = {}, 0, len(blocks) + 1
    # in the order of registration, which is that of the forward pass: what comes before the first block is layer 0,
    # what stands between two (a stage's downsampling) goes with the one before it
    for parameter in backbone.parameters():
        block = block_of.get(id(parameter))
        met = max(met, block or 0)
        layer = block or (met if met < len(blocks) else behind)
        factors[id(parameter)] = decay ** (behind - layer)
    return factors
