"""The ``optim`` section: what every optimizer reads, what each reads besides, and the rules between the values.

A value that the chosen optimizer does not read is an unknown key, so each has a class and an option file of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from beni.components import Backbone, Component
from beni.config.ranges import Above, AtLeast, AtMost, Below, Example


@dataclass(frozen=True)
class Optim:
    """What every optimizer reads (training/optim/build.py, training/optim/rate.py).

    Attributes:
        optimizer: which one; its own values stand in the class below that is named after it.
        lr: peak learning rate.
        lr_scale: component -> what its rate is multiplied by, 1 where it is not named; adapters belong to their
            component.
        layer_decay: ``vision`` or ``llm`` -> what the rate of a layer is multiplied by for each layer above it
            (training/optim/layers.py); 1 is none.
        schedule: how the rate falls after warming up: ``cosine`` or ``linear`` to the last step, ``wsd`` stays and
            falls linearly in the last ``decay_ratio`` of the steps, ``constant`` stays.
        decay_ratio: share of the steps in which ``wsd`` falls, in (0, 1]; null under every other schedule.
        min_lr: learning rate at the last step, at most ``lr``; ``constant`` does not read it.
        warmup_ratio: share of the steps that warm up linearly, in [0, 1).
        weight_decay: decoupled, on what inputs are multiplied with (no norms, biases, embeddings, positions, latents).
        clip: largest global gradient norm; 0 switches clipping off.
    """

    optimizer: Literal["adamw", "adamw_8bit", "muon", "lion", "adafactor"]
    lr: Annotated[float, Above(0), Example("1e-4")]
    lr_scale: dict[Component, Annotated[float, Above(0), Example("1.0, or freeze it in train.plan")]]
    layer_decay: dict[Backbone, Annotated[float, Above(0), AtMost(1), Example("0.75, or 1.0 for none")]]
    schedule: Literal["cosine", "linear", "wsd", "constant"]
    decay_ratio: float | None
    min_lr: Annotated[float, AtLeast(0)]
    warmup_ratio: Annotated[float, AtLeast(0), Below(1), Example("0.03")]
    weight_decay: Annotated[float, AtLeast(0)]
    clip: Annotated[float, AtLeast(0)]


@dataclass(frozen=True)
class AdamW(Optim):
    """AdamW, its moments in 32 or 8 bits.

    Attributes:
        betas: decay rates of the moments.
        eps: term in the denominator.
    """

    betas: list[float]
    eps: Annotated[float, Above(0), Below(1), Example("1e-8")]


@dataclass(frozen=True)
class Muon(AdamW):
    """Muon for hidden matrices, AdamW for the rest.

    Attributes:
        momentum: decay rate of Muon's one moment.
        ns_steps: Newton-Schulz iterations of each update.
    """

    momentum: Annotated[float, AtLeast(0), Below(1), Example("0.95")]
    ns_steps: Annotated[int, AtLeast(1), Below(100), Example("5")]


@dataclass(frozen=True)
class Lion(Optim):
    """Lion.

    Attributes:
        betas: shares of the moment in the update, and of the old moment in the new one.
    """

    betas: list[float]


@dataclass(frozen=True)
class Adafactor(Optim):
    """Adafactor.

    Attributes:
        beta2_decay: exponent of the step by which the second moment's decay rate nears 1, at most 0.
        min_scale: least scale of a tensor; its rate is ``lr`` times its root mean square, or times this.
        clip_threshold: largest root mean square of an update before its rate, at least 1.
    """

    beta2_decay: Annotated[float, AtMost(0), Example("-0.8")]
    min_scale: Annotated[float, AtLeast(0), Example("1e-3")]
    clip_threshold: Annotated[float, AtLeast(1), Example("1.0")]


OPTIMIZERS: dict[str, type[Optim]] = {
    "adamw": AdamW,
    "adamw_8bit": AdamW,
    "muon": Muon,
    "lion": Lion,
    "adafactor": Adafactor,
}
"""``optim.optimizer`` -> the values that it reads."""


UNSHARDED = {
    "adamw_8bit": "quantizes its moments by blocks of a whole tensor",
    "adafactor": "factors the second moment of a whole matrix",
}
"""Optimizers that cannot run on what FSDP2 holds, replicas included, and why."""


def optim_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules for ``optim`` that no type expresses, as problems with their fixes."""
    optim = run["optim"]
    if optim["schedule"] != "constant" and optim["min_lr"] > optim["lr"]:
        yield (
            f"optim.min_lr={optim['min_lr']} exceeds optim.lr={optim['lr']}\n"
            f"  fix: set optim.min_lr={optim['lr'] / 10:g}, or another rate below it"
        )
    for key in ("lr_scale", "layer_decay"):
        for component, factor in optim[key].items():
            if factor != 1 and run["train"]["plan"][component] == "frozen":
                yield (
                    f"optim.{key}.{component}={factor}, but train.plan.{component}=frozen\n"
                    f"  fix: set optim.{key}.{component}=1.0, or train.plan.{component}=full"
                )
    betas = optim.get("betas", [0.0, 0.0])
    if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
        yield f"optim.betas={betas}, expected two numbers in [0, 1)\n  fix: set 'optim.betas=[0.9,0.95]'"
    yield from _decay_rules(optim)
    name = optim["optimizer"]
    if name in UNSHARDED and run["fsdp"]["mode"] != "none":
        yield (
            f"optim={name} {UNSHARDED[name]}, but fsdp.mode={run['fsdp']['mode']} shards tensors\n"
            "  fix: set optim=adamw, optim=lion or optim=muon, or fsdp=none"
        )


def _decay_rules(optim: Mapping[str, Any]) -> Iterator[str]:
    warmup, decay, schedule = optim["warmup_ratio"], optim["decay_ratio"], optim["schedule"]
    if schedule != "wsd" and decay is not None:
        yield (
            f"optim.decay_ratio={decay} is read by optim.schedule=wsd only, not by {schedule}\n"
            "  fix: set optim.schedule=wsd or optim.decay_ratio=null"
        )
    elif schedule == "wsd" and (decay is None or not 0 < decay <= 1):
        shown = "null" if decay is None else decay
        yield (
            f"optim.decay_ratio={shown}, but optim.schedule=wsd needs a share of the steps in (0, 1]\n"
            "  fix: set optim.decay_ratio=0.2"
        )
    elif schedule == "wsd" and warmup + decay > 1:
        yield (
            f"optim.warmup_ratio={warmup} and optim.decay_ratio={decay} exceed 1 together\n"
            f"  fix: set optim.decay_ratio={1 - warmup:g} or less"
        )
