"""The adapters of a whole model: put in, begun anew, merged, and saved without the weights they stand beside.

An adapter folder has one folder of peft for each backbone with adapters (``llm/``, ``vision/``), which plain peft puts
beside the published backbone, and ``parts.safetensors`` with everything else that is not in a published backbone. Where
frozen weights are not the published ones but those of another run (``train.init_from``), the folder says whose.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from beni.adapter.base import Adapter
from beni.adapter.none import NoAdapter
from beni.components import BACKBONES
from beni.errors import ResumeError
from beni.model.quantized import Quantizable, backbone, dequantize
from beni.nn.streams import torch_stream

PARTS = "parts.safetensors"


@runtime_checkable
class Adaptable(Quantizable, Protocol):
    """What is asked of a model of named components, some of which have adapters."""

    adapter: Adapter
    all_tied_weights_keys: dict[str, str]

    def state_dict(self) -> dict[str, Any]:
        """Its tensors by name."""
        ...

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> Any:
        """Copies tensors into those of the same name."""
        ...


def inject(model: Adaptable) -> None:
    """Puts adapters into every component whose plan is ``lora``; each draws from a stream of its own."""
    for name in adapted(model):
        component = backbone(model, name)
        tensors = chain(component.parameters(), component.buffers())
        # meta, where the component's weights are still to come
        device = next((tensor.device for tensor in tensors), torch.get_default_device())
        with torch_stream(model.config.seed, "init", "adapter", name), device:
            model.adapter.inject(component, name)


def reset(model: Adaptable, name: str) -> None:
    """The adapters of one component as ``inject`` makes them, beside the weights that it has now."""
    with torch_stream(model.config.seed, "init", "adapter", name):
        model.adapter.reset(backbone(model, name))


def merge(model: Adaptable) -> None:
    """Adds all adapters to the weights they stand beside, in place: neither the model nor its config has any then, and
    components that had some are not packed any more.
    """
    for name in list(adapted(model)):
        dequantize(model, name)  # to add to rounded weights and round them again would lose what was learned
        model.adapter.merge(backbone(model, name))
        model.config.plan[name] = "frozen"
        if name in BACKBONES:
            model.config.bases[name] = {"source": "adapters that were merged", "digest": ""}  # as nobody published them
    model.adapter = NoAdapter()
    model.config.parts["adapter"] = {"_target_": f"{NoAdapter.__module__}.{NoAdapter.__name__}"}


def save(model: Adaptable, folder: Path, state: Mapping[str, Tensor] | None = None) -> None:
    """Writes everything of ``model`` but frozen backbones into ``folder``.

    Args:
        state: the model's whole tensors, where it is sharded.
    """
    state = model.state_dict() if state is None else state
    folder.mkdir(parents=True, exist_ok=True)
    bases = _bases(model)
    for name in adapted(model):
        if name in BACKBONES:
            prefix = f"{name}.model."
            own = {key.removeprefix(prefix): tensor for key, tensor in state.items() if key.startswith(prefix)}
            base = bases[name]["source"] if name in bases else model.config.parts[name].get("name")
            model.adapter.save(backbone(model, name), own, folder / name, base)
    kept = {key: state[key].detach().cpu().contiguous() for key in _own_keys(model, state)}
    save_file(kept, folder / PARTS, metadata={"format": "pt", "bases": json.dumps(bases)})


def load(model: Adaptable, folder: Path) -> None:
    """Reads what ``save`` has written into a model of the same parts, plan and backbones, not yet sharded.

    Raises:
        ResumeError: when there is nothing in ``folder``, or something else than such a model has, or it belongs beside
            other frozen weights.
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
    _require_bases(model, folder)
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


def adapted(model: Adaptable) -> Iterator[str]:
    """Components that have adapters."""
    return (name for name, mode in model.config.plan.items() if mode == "lora")


def _bases(model: Adaptable) -> dict[str, dict[str, str]]:
    """Frozen backbones whose weights came from another run, and whose they are."""
    return {name: base for name, base in model.config.bases.items() if model.config.plan.get(name) != "full"}


def _require_bases(model: Adaptable, folder: Path) -> None:
    with safe_open(folder / PARTS, "pt") as file:
        said = (file.metadata() or {}).get("bases")
    if said is None:  # written before folders said so
        return
    theirs, ours = json.loads(said), _bases(model)
    for name in sorted(theirs.keys() | ours.keys()):
        there, here = (bases.get(name, {"source": "no other run", "digest": ""}) for bases in (theirs, ours))
        if there["digest"] != here["digest"]:
            call = f'beni.training.initial.load_initial(model, Path("{there["source"]}"))'
            fix = f"call {call} before" if name in theirs else "build the model without train.init_from"
            raise ResumeError(
                f"{folder} belongs beside {name} weights that come from {there['source']} (train.init_from), this "
                f"model's come from {here['source']}\n  fix: {fix}, or take the run's whole model, in its model/"
            )


def _own_keys(model: Adaptable, state: Mapping[str, Tensor]) -> set[str]:
    """Tensors that no published backbone has, without adapters of backbones; of tied ones only the first."""
    published = {name for name in BACKBONES if model.config.plan.get(name) != "full"}
    return {key for key in state if key.partition(".")[0] not in published} - set(model.all_tied_weights_keys)
