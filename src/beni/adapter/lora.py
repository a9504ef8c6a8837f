"""LoRA (arXiv 2106.09685) and its kin through peft, injected into one component only.

DoRA (arXiv 2402.09353) trains a magnitude for each output beside the direction, rsLoRA (arXiv 2312.03732) scales by the
root of the rank, PiSSA (arXiv 2404.02948) and OLoRA (arXiv 2406.01775) begin with the largest directions of the weight
and take them out of it: then the base is no longer the published one, so what was taken out is kept beside the adapter.

Suffix targets such as ``q_proj`` name modules of the vision encoder, the perceiver and the llm alike; injecting into
the component, not into the whole model, is what keeps the adapters where the plan put them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, cast

import torch
from peft import LoraConfig, TaskType, get_peft_model_state_dict, inject_adapter_in_model, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from beni.adapter.base import Adapter
from beni.config.ranges import AtLeast, Below, Example
from beni.errors import CompositionError, ResumeError
from beni.nn.linear import Targets, chosen_layers
from beni.nn.packed import PackedLinear

ADAPTER = "default"
"""What peft calls the one adapter that a component has."""

PREFIX = "base_model.model."
"""What stands before a module's name in a file of peft."""

FIX = "fix: set adapter and train.plan as the run that wrote it has them"


class Lora(Adapter):
    """Low-rank adapters beside the linear layers that ``targets`` name.

    Args:
        r: rank, at least 1.
        alpha: scale; the update is multiplied by ``alpha / r``, with ``rslora`` by ``alpha / sqrt(r)``.
        dropout: probability in [0, 1) on the adapter's input.
        targets: ``all-linear`` (all but the head), or ends of module names, for instance ``[q_proj, v_proj]``, or a
            mapping from component to either.
        dora: train magnitudes too.
        rslora: scale by the root of the rank.
        init: ``zero`` (the update begins at nothing), ``pissa`` (the largest singular directions of the weight),
            ``pissa_niter_4`` or ``_16`` (the same by so many randomised iterations: seconds where ``pissa`` takes
            minutes) or ``olora`` (the first directions of its QR decomposition; not for GPT-2's ``Conv1D``).
    """

    def __init__(
        self,
        *,
        r: Annotated[int, AtLeast(1), Example("8")],
        alpha: Annotated[int, AtLeast(1), Example("16")],
        dropout: Annotated[float, AtLeast(0), Below(1), Example("0.05")],
        targets: Literal["all-linear"] | list[str] | dict[str, Literal["all-linear"] | list[str]],
        dora: bool,
        rslora: bool,
        init: Literal["zero", "pissa", "pissa_niter_4", "pissa_niter_16", "olora"],
    ) -> None:
        self.r, self.alpha, self.dropout, self.targets = r, alpha, dropout, targets
        self.dora, self.rslora, self.init = dora, rslora, init

    def inject(self, component: nn.Module, name: str) -> None:
        wanted = cast(Targets, self.targets[name] if isinstance(self.targets, dict) else self.targets)
        layers = chosen_layers(component, name, wanted, "adapter", "E-ADAPTER")
        if self.init != "zero":
            self._require_decomposable(list(layers.values()), name)
        config = LoraConfig(
            r=self.r,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=list(layers),
            use_dora=self.dora,
            use_rslora=self.rslora,
            init_lora_weights=cast(Any, True if self.init == "zero" else self.init),
            fan_in_fan_out=all(isinstance(layer, Conv1D) for layer in layers.values()),
            task_type=TaskType.CAUSAL_LM if name == "llm" else None,
        )
        inject_adapter_in_model(config, component)
        self._keep_initial(component)

    def reset(self, component: nn.Module) -> None:
        for _, layer in adapted(component):
            layer.update_layer(ADAPTER, self.r, lora_alpha=self.alpha, config=_config(component))
        self._keep_initial(component)

    def bare(self, component: nn.Module) -> Iterator[tuple[str, Tensor]]:
        if self.init != "zero":
            for name, layer in adapted(component):
                taken = _product(layer, layer.lora_initial_B, layer.lora_initial_A)
                yield f"{name}.base_layer.weight", layer.get_base_layer().weight.detach() + taken

    def merge(self, component: nn.Module) -> None:
        for name, layer in list(adapted(component)):
            layer.merge()
            parent, _, last = name.rpartition(".")
            setattr(component.get_submodule(parent), last, layer.get_base_layer())

    def save(self, component: nn.Module, state: Mapping[str, Tensor], folder: Path, base: str | None) -> None:
        config = self._written(component)
        tensors = get_peft_model_state_dict(component, dict(state), ADAPTER, save_embedding_layers=False)
        if self.init != "zero":
            for name, _ in adapted(component):
                a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
                tensors[a] = torch.cat([tensors[a], state[f"{name}.lora_initial_A"]])
                tensors[b] = torch.cat([tensors[b], -state[f"{name}.lora_initial_B"]], dim=1)
        config.base_model_name_or_path, config.inference_mode = base, True
        config.save_pretrained(str(folder))
        whole = {f"{PREFIX}{name}": tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        save_file(whole, folder / "adapter_model.safetensors", metadata={"format": "pt"})

    def load(self, component: nn.Module, folder: Path) -> None:
        if not (folder / "adapter_config.json").is_file():
            raise ResumeError(f"{folder} holds no adapters: it has no adapter_config.json\n  {FIX}")
        theirs, here = LoraConfig.from_pretrained(str(folder)), self._written(component)
        for key in ("r", "lora_alpha", "use_rslora", "use_dora"):
            if getattr(theirs, key) != getattr(here, key):
                raise ResumeError(
                    f"{folder} holds other adapters than this model has: {key}={getattr(theirs, key)}, this model's "
                    f"would be written with {getattr(here, key)}\n  {FIX}"
                )
        tensors = {k.removeprefix(PREFIX): t for k, t in load_file(folder / "adapter_model.safetensors").items()}
        ours = get_peft_model_state_dict(component, adapter_name=ADAPTER, save_embedding_layers=False)
        twice = self.init != "zero"
        sizes = {name: tensor.numel() * (2 if twice and _low_rank(name) else 1) for name, tensor in ours.items()}
        clash = {name for name in ours.keys() & tensors.keys() if tensors[name].numel() != sizes[name]}
        if differ := sorted(ours.keys() ^ tensors.keys() | clash):
            raise ResumeError(f"{folder} holds other adapters than this model has: {differ[0]}\n  {FIX}")
        if twice:
            for name, layer in adapted(component):
                a, b = f"{name}.lora_A.weight", f"{name}.lora_B.weight"
                self._exchange_initial(layer, tensors[a][self.r :], -tensors[b][:, self.r :])
                tensors[a], tensors[b] = tensors[a][: self.r].clone(), tensors[b][:, : self.r].clone()
        set_peft_model_state_dict(component, tensors, ADAPTER)

    def require_alike(self, other: Mapping[str, Any], source: str) -> None:
        ours = {"r": self.r, "alpha": self.alpha, "dora": self.dora, "rslora": self.rslora}
        for key, value in ours.items():
            if key in other and other[key] != value:
                there, here = (str(one).lower() for one in (other[key], value))
                raise ResumeError(
                    f"{source} has adapters of another kind than this run: adapter.{key}={there}, here {here}\n"
                    f"  fix: set adapter.{key}={there}"
                )

    def _written(self, component: nn.Module) -> LoraConfig:
        """What ``save`` writes: where something was taken out of the weights, an adapter of twice the rank beside the
        published ones.
        """
        config = copy.deepcopy(_config(component))
        if self.init != "zero":
            config.init_lora_weights = True
            config.r, config.lora_alpha = 2 * self.r, cast(int, self.alpha * (math.sqrt(2) if self.rslora else 2))
        return config

    def _require_decomposable(self, layers: list[nn.Module], name: str) -> None:
        """A weight that something is taken out of is not packed, and has as many directions as are taken."""
        if any(isinstance(layer, PackedLinear) for layer in layers):
            raise CompositionError(
                "E-ADAPTER",
                f"adapter.init={self.init} takes its directions out of the weights of {name}, which are quantized",
                groups=("adapter", "quantization", name),
                fix="set adapter.init=zero, or quantization=none",
            )
        if self.init == "olora" and any(isinstance(layer, Conv1D) for layer in layers):
            raise CompositionError(
                "E-ADAPTER",
                f"adapter.init=olora of peft takes the weights of {name}, which are Conv1D, for their transposes",
                groups=("adapter", name),
                fix="set adapter.init=pissa or zero",
            )
        smallest = min(side for layer in layers for side in cast(Tensor, layer.weight).shape)
        if smallest < self.r:
            raise CompositionError(
                "E-ADAPTER",
                f"adapter.r={self.r}, adapter.init={self.init}, but a layer of {name} has only {smallest} directions",
                groups=("adapter", name),
                fix=f"set adapter.r={smallest} or less",
            )

    def _keep_initial(self, component: nn.Module) -> None:
        """Beside each adapter that was taken out of its weight: what was taken out."""
        if self.init != "zero":
            for _, layer in adapted(component):
                layer.register_buffer("lora_initial_A", layer.lora_A[ADAPTER].weight.detach().clone())
                layer.register_buffer("lora_initial_B", layer.lora_B[ADAPTER].weight.detach().clone())

    def _exchange_initial(self, layer: AdaptedLayer, a: Tensor, b: Tensor) -> None:
        """Takes another ``b @ a`` out of the base: decompositions differ in sign or rounding between machines."""
        if layer.lora_initial_A.equal(a) and layer.lora_initial_B.equal(b):
            return
        with torch.no_grad():
            change = _product(layer, layer.lora_initial_B, layer.lora_initial_A) - _product(layer, b, a)
            layer.get_base_layer().weight.add_(change)
            layer.lora_initial_A.copy_(a)
            layer.lora_initial_B.copy_(b)


class AdaptedLayer(nn.Module, LoraLayer):
    """What peft makes of a layer, with what ``_keep_initial`` leaves beside it; for the type checker only."""

    fan_in_fan_out: bool
    lora_initial_A: Tensor
    lora_initial_B: Tensor


def adapted(component: nn.Module) -> Iterator[tuple[str, AdaptedLayer]]:
    """The layers that have an adapter, with their names."""
    found = ((name, module) for name, module in component.named_modules() if isinstance(module, LoraLayer))
    return ((name, cast(AdaptedLayer, module)) for name, module in found)


def _product(layer: AdaptedLayer, b: Tensor, a: Tensor) -> Tensor:
    """What such an adapter adds to the weight of ``layer``."""
    product = (b @ a) * layer.scaling[ADAPTER]
    return product.T if layer.fan_in_fan_out else product


def _config(component: nn.Module) -> LoraConfig:
    """What ``component`` was injected with; peft leaves it there."""
    return cast(dict[str, LoraConfig], component.peft_config)[ADAPTER]


def _low_rank(name: str) -> bool:
    return "lora_A" in name or "lora_B" in name
