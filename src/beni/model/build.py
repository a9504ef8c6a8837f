"""From a run to a model: on the meta device for planning, with weights for training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from beni.components import COMPONENTS
from beni.data.render.tokens import resolve_tokens
from beni.llm.tokenizer import load_tokenizer
from beni.model.configuration import BeniConfig
from beni.model.modeling import BeniForConditionalGeneration
from beni.model.plan import apply_plan

PARTS = (*COMPONENTS, "pruner", "adapter", "quantization")


def build_model(run: Mapping[str, Any], image_token_id: int, pretrained: bool = True) -> BeniForConditionalGeneration:
    """The model a run describes.

    Args:
        run: frozen run.
        image_token_id: the placeholder in the run's tokenizer.
        pretrained: load pretrained weights where a part asks for them; False leaves such parts on the meta device.

    Raises:
        CompositionError: when the parts do not fit together.
        WeightsError: when pretrained weights cannot be had.
    """
    config = BeniConfig(
        parts={group: dict(run[group]) for group in PARTS if group in run},
        plan=dict(run["train"]["plan"]),
        image_token_id=image_token_id,
        seed=run["train"]["seed"],
    )
    model = BeniForConditionalGeneration(config, pretrained=pretrained)
    # from here on the config describes a model that needs no hub: architectures in full, nothing to download
    for group, part in (("vision", model.vision), ("llm", model.llm)):
        model.config.parts[group] |= part.resolved() | {"weights": "random"}
    return model


def build(run: Mapping[str, Any]) -> BeniForConditionalGeneration:
    """The model of a run (``beni.compose``), its plan applied; loads pretrained weights where the run asks for them."""
    tokens = resolve_tokens(load_tokenizer(run["llm"]))
    model = build_model(run, tokens.image)
    apply_plan(model, run["train"]["plan"])
    return model
