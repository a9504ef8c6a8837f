"""Freeze schedules: components that train, but only from a given share of the steps on (``train.thaw``).

Until then their parameters want no gradient, so that their backward pass costs nothing, and have no moments; the
optimizer begins with them as it would at step 1.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import TracebackType

from torch import nn
from torch.distributed.fsdp import FSDPModule

from beni.distributed.fsdp import reshard
from beni.errors import TrainabilityError
from beni.training.trainable import named_trainable, set_modes


class Thaw:
    """What is frozen when, of a model whose ``requires_grad`` says what trains in the end, as it does again after the
    block (``with``): whoever goes on from an earlier step thaws anew.

    Args:
        plan: component -> ``frozen``, ``full`` or ``lora``.
        shares: component -> share of the steps, in [0, 1), for which it stays frozen.
        steps: of the run.
        done: steps already taken.

    Raises:
        TrainabilityError: when nothing would train in the first step.
    """

    def __init__(
        self, model: nn.Module, plan: Mapping[str, str], shares: Mapping[str, float], steps: int, done: int
    ) -> None:
        self._model, self._plan = model, plan
        reshard(model)
        waiting = {name: math.ceil(share * steps) for name, share in shares.items() if share}
        self._begins = {name: begin for name, begin in waiting.items() if begin >= done}
        self._parameters = {
            name: [p for p in getattr(model, name).parameters() if p.requires_grad] for name in self._begins
        }
        for parameters in self._parameters.values():
            for parameter in parameters:
                parameter.requires_grad_(False)
        if next(named_trainable(model), None) is None:
            raise TrainabilityError(
                f"nothing trains before step {min(self._begins.values()) + 1}: all components are frozen until then\n"
                f"  fix: set train.thaw.{min(self._begins, key=self._begins.__getitem__)}=0"
            )
        self.set_modes()

    def __enter__(self) -> Thaw:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for parameters in self._parameters.values():
            for parameter in parameters:
                parameter.requires_grad_(True)

    @property
    def trains(self) -> set[str]:
        """Components that train now."""
        return {name for name, mode in self._plan.items() if mode != "frozen"} - self._begins.keys()

    def set_modes(self) -> None:
        """Training mode for what trains now, see ``trainable.set_modes``."""
        set_modes(self._model, {**self._plan, **dict.fromkeys(self._begins, "frozen")})

    def due(self, step: int) -> list[str]:
        """Lets components train whose time has come before optimizer step ``step`` (from 0); their names."""
        names = [name for name, begin in self._begins.items() if begin <= step]
        if not names:
            return names
        reshard(self._model)
        for name in names:
            del self._begins[name]
            for parameter in self._parameters.pop(name):
                parameter.requires_grad_(True)
        for module in self._model.modules():
            if isinstance(module, FSDPModule):
                module.unshard()  # a unit looks up the dtype of its gradients here: until now it may have had none
                module.reshard()
        self.set_modes()
        return names
