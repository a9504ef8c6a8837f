"""The names of groups and components, written once: whoever goes over all of them imports them from here."""

from __future__ import annotations

from typing import Literal, get_args

Backbone = Literal["vision", "llm"]
Component = Literal["vision", "views", "selector", "resampler", "connector", "fusion", "llm"]

BACKBONES: tuple[Backbone, ...] = get_args(Backbone)
"""Components that are Hugging Face models, with pretrained weights of their own."""

DESCRIBED: tuple[str, ...] = (*BACKBONES, "views")
"""Groups whose nodes may have an ``architecture``: the backbones, and views that ask a detector."""

COMPONENTS: tuple[Component, ...] = get_args(Component)
"""Part groups that are modules of the model, in the order of the forward pass."""

PART_GROUPS: tuple[str, ...] = (*COMPONENTS, "pruner", "adapter", "quantization", "data", "tracker")
"""Groups whose options carry a ``_target_``, in the order of the data's way."""
