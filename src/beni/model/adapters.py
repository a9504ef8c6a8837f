"""The adapters of a whole model: put in, begun anew, merged, and saved without the weights they stand beside.

An adapter folder has one folder of peft for each backbone with adapters (``llm/``, ``vision/``), which plain peft puts
beside the published backbone, and ``parts.safetensors`` with everything else that is not in a published backbone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file
from torch import Tensor

from beni.adapter.none import NoAdapter
from beni.errors import ResumeError
from beni.model.quantized import BACKBONES, backbone, dequantize
from beni.nn.streams import torch_stream

if TYPE_CHECKING:
    from beni.model.modeling import BeniForConditionalGeneration

PARTS = "parts.safetensors"


def inject(model: BeniForConditionalGeneration) -> None:
    """Puts adapters into every component whose plan is ``lora``; each draws from a stream of its own."""
    for name in adapted(model):
        component = backbone(model, name)
        device = next(component.parameters()).device  # meta, where the component's weights are still to come
        with torch_stream(model.config.seed, "init", "adapter", name), device:
            model.adapter.inject(component, name)


def reset(model: BeniForConditionalGeneration, name: str) -> None:
    """The adapters of one component as ``inject`` makes them, beside the weights that it has now."""
    with torch_stream(model.config.seed, "init", "adapter", name):
        model.adapter.reset(backbone(model, name))


def merge(model: BeniForConditionalGeneration) -> None:
    """Adds all adapters to the weights they stand beside, in place: neither the model nor its config has any then, and
    components that had some are not packed any more.
    """
    for name in list(adapted(model)):
        dequantize(model, name)  # to add to rounded weights and round them again would lose what was learned
        model.adapter.merge(backbone(model, name))
        model.config.plan[name] = "frozen"
    model.adapter = NoAdapter()
    model.config.parts["adapter"] = {"_target_": f"{NoAdapter.__module__}.{NoAdapter.__name__}"}


def save(model: BeniForConditionalGeneration, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes everything of ``model`` but frozen backbones into ``folder``.

    Args:
        state: the model's whole tensors, where it is sharded.
    """
    state = model.state_dict() if state is None else state
    folder.mkdir(parents=True, exist_ok=True)
    for name in adapted(model):
        if name in BACKBONES:
            prefix = f"{name}.model."
            own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            model.adapter.save(backbone(model, name), own, folder / name, model.config.parts[name].get("name"))
    kept = {key: state[key].detach().cpu().contiguous() for key in _own_keys(model, state)}
    save_file(kept, folder / PARTS, metadata={"format": "pt"})


def load(model: BeniForConditionalGeneration, folder: Path) -> None:
    """Reads what ``save`` has written into a model of the same parts, plan and backbones, not yet sharded.

    Raises:
        ResumeError: when there is nothing in ``folder``, or something else than such a model has.
    """
    if not (folder / PARTS).is_file():
        raise ResumeError(f"{folder} holds no adapters: it has no {PARTS}")
    saved, ours = load_file(folder / PARTS), model.state_dict()
    clash = {key for key in ours.keys() & saved.keys() if ours[key].shape != saved[key].shape}
    differ = sorted(_own_keys(model, ours) ^ saved.keys() | clash)
    if differ:
        raise ResumeError(
            f"{folder / PARTS} is of another model: it differs in {differ[0]}\n"
            "  fix: build the model of the run that wrote it"
        )
    here = [name for name in adapted(model) if name in BACKBONES]
    name = next((name for name in BACKBONES if (folder / name).is_dir() and name not in here), None)
    if name is not None:
        raise ResumeError(
            f"{folder} holds adapters of {name}, and this model has train.plan.{name}={model.config.plan[name]}\n"
            f"  fix: build the model with train.plan.{name}=lora"
        )
    for name in here:
        model.adapter.load(backbone(model, name), folder / name)
    model.load_state_dict(saved, strict=False)


def adapted(model: BeniForConditionalGeneration) -> Iterator[str]:
    """Components that have adapters."""
    return (name for name, mode in model.config.plan.items() if mode == "lora")


def _own_keys(model: BeniForConditionalGeneration, state: Mapping[str, Tensor]) -> set[str]:
    """Tensors that no published backbone has, without adapters of backbones; of tied ones only the first."""
    published = {name for name in BACKBONES if model.config.plan.get(name) != "full"}
    return {key for key in state if key.partition(".")[0] not in published} - set(model.all_tied_weights_keys)
