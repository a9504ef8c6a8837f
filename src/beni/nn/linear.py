"""Which linear layers of a component are meant: all of them, or those that names end with."""

from __future__ import annotations

from typing import Literal

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from beni.errors import CompositionError

Targets = Literal["all-linear"] | list[str]


def linear_layers(component: nn.Module, head: bool = False) -> dict[str, nn.Module]:
    """Name -> linear layer, in the order of the modules; the output head only where ``head`` is set.

    Those inside ``nn.MultiheadAttention`` are left out: it reads their weights and never calls them.
    """
    output = component.get_output_embeddings() if isinstance(component, PreTrainedModel) and not head else None
    inside = {
        child
        for module in component.modules()
        if isinstance(module, nn.MultiheadAttention)
        for child in module.modules()
    }
    return {
        name: module
        for name, module in component.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not output and module not in inside
    }


LEFT_OUT = {
    "adapter": "set train.plan.{name}=full, or frozen",
    "quantization": "leave {name} out of quantization.targets; all-linear means the llm",
}
"""Config group with ``targets`` -> how a component is left out of them."""


def chosen_layers(component: nn.Module, name: str, wanted: Targets, group: str, code: str) -> dict[str, nn.Module]:
    """The layers of ``component``, called ``name``, that ``wanted`` stands for: all but the head, or every one whose
    name ends with one of ``wanted``.

    Args:
        group: config group whose ``targets`` are meant.
        code: of the error.

    Raises:
        CompositionError: when there is no linear layer, a name matches nothing, or a head that is one weight with the
            token embedding.
    """
    if not (inside := linear_layers(component)):
        raise CompositionError(
            code,
            f"{group}.targets={wanted}: {name}, {type(component).__name__}, has no linear layers",
            groups=(group, name),
            fix=LEFT_OUT[group].format(name=name),
        )
    if isinstance(wanted, str):
        return inside
    layers = linear_layers(component, head=True)
    matches = {end: [one for one in layers if one == end or one.endswith(f".{end}")] for end in wanted}
    missing = [end for end, found in matches.items() if not found]
    if missing or not wanted:
        ends = sorted({one.rpartition(".")[2] for one in inside})
        raise CompositionError(
            code,
            f"{group}.targets={missing} are no linear layers of {name}, {type(component).__name__}; it has {ends}",
            groups=(group, name),
            fix=f"set {group}.targets to all-linear or some of {ends}",
        )
    chosen = {one: layers[one] for one in layers if any(one in found for found in matches.values())}
    head = next((one for one, layer in chosen.items() if _is_tied_head(layer, component)), None)
    if head is not None:
        raise CompositionError(
            code,
            f"{group}.targets={wanted}: {head} is one weight with the token embedding, which must stay as it is",
            groups=(group, name),
            fix=f"leave {head} out of {group}.targets",
        )
    return chosen


def _is_tied_head(layer: nn.Module, component: nn.Module) -> bool:
    return isinstance(component, PreTrainedModel) and layer.weight is component.get_input_embeddings().weight
