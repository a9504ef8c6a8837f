"""The values that travel between the rooms of the house, and the legend of their axes.

Axis letters, everywhere in beni: ``b`` rows, ``t`` text positions, ``i`` images (views count as images), ``n``
patches or visual tokens going in, ``m`` visual tokens coming out, ``d`` width, ``h`` heads, ``v`` vocabulary,
``s`` segments of a packed row.
"""

from beni.types.batch import Batch, pinned, to_device
from beni.types.images import Box, ImageLayout, Markup, Pixels, ViewedImage
from beni.types.inputs import ImageInputs, SampleInputs
from beni.types.pruning import Attention, Candidates, Cut, Pruning, Recycling
from beni.types.sequence import IGNORE, Places, Sequence
from beni.types.spec import Nested, TokenSpec
from beni.types.visitor import Heads, LayerCall, LayerVisitor, Reading, Turn
from beni.types.visual import Prompt, VisualTokens, centres

__all__ = [
    "IGNORE",
    "Attention",
    "Batch",
    "Box",
    "Candidates",
    "Cut",
    "Heads",
    "ImageInputs",
    "ImageLayout",
    "LayerCall",
    "LayerVisitor",
    "Markup",
    "Nested",
    "Pixels",
    "Places",
    "Prompt",
    "Pruning",
    "Reading",
    "Recycling",
    "SampleInputs",
    "Sequence",
    "TokenSpec",
    "Turn",
    "ViewedImage",
    "VisualTokens",
    "centres",
    "pinned",
    "to_device",
]
