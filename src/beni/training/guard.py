"""Steps that would spoil a run: a loss or gradient that is not finite, a loss far above those before it.

What is done about one is the run's choice (``train.guard``): end the run, leave the update of that step out, or go back
to the newest checkpoint and leave it out when the run comes by again, since what made the loss jump may have been
learned before. Decisions depend on numbers that all ranks share and that a checkpoint holds, so they are the same on
every rank, and a run that is interrupted decides as one that is not.

Where the run only ends at a loss or gradient that is not finite (``nonfinite=halt spike=accept``, the default), nothing
waits for the numbers of a step: they are read before the next log line, checkpoint or evaluation. Until then weights in
memory may be spoilt; nothing of them is written, scored or shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from beni.errors import DivergenceError
from beni.training.trainable import named_trainable

FEWEST = 8
"""Losses without which no other is called far above them."""
NORMAL = 1.4826
"""Times the median deviation, the standard deviation of a normal distribution."""


class Rewind(Exception):
    """The run goes back to its newest checkpoint, or to its beginning.

    Attributes:
        step: number of the step (from 1) that is left out from then on.
        told: what is wrong with it.
    """

    def __init__(self, step: int, told: str) -> None:
        super().__init__(told)
        self.step, self.told = step, told


@dataclass(frozen=True)
class Unread:
    """A step whose numbers may still be on their way from the device."""

    step: int
    loss: float | Float[Tensor, ""]
    norm: float | Float[Tensor, ""]
    samples: Sequence[str]


class Guard:
    """Looks at each step between its backward pass and its update.

    Args:
        settings: ``train.guard`` (config/sections/train.py).
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self.settings = settings
        self.losses: list[float] = []
        """The latest that were accepted."""
        self.left_out: set[int] = set()
        """Steps (from 1) that have not been learned from, or will not be."""
        self._unread: list[Unread] = []

    @property
    def rewinds(self) -> bool:
        """Whether a run may go back."""
        return "rewind" in (self.settings["nonfinite"], self.settings["spike"])

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"losses": self.losses, "left_out": sorted(self.left_out)}

    def begin(self, state: Mapping[str, Any]) -> None:
        """Goes on with the state of a checkpoint, or without one; after a rewind what it was for stays known."""
        self._unread = []
        self.losses = list(state.get("losses", []))
        self.left_out |= set(state.get("left_out", []))

    def metrics(self) -> dict[str, float]:
        """For a log line; nothing while every step was learned from."""
        return {"steps_left_out": float(len(self.left_out))} if self.left_out else {}

    @property
    def reads_every_step(self) -> bool:
        """Whether it must know the numbers of a step before its update. A run that only ends at such as are not finite
        can learn of them later: ``settle`` stands before whatever outlives the process.
        """
        return self.settings["spike"] != "accept" or self.settings["nonfinite"] != "halt"

    def accepts(
        self,
        model: nn.Module,
        step: int,
        loss: float | Float[Tensor, ""],
        norm: float | Float[Tensor, ""],
        samples: Sequence[str],
    ) -> tuple[bool, str | None]:
        """Whether step ``step`` (from 1) is to be learned from, and what there is to tell.

        Args:
            loss: of the step, on all ranks.
            norm: of its gradients, over all of the model.
            samples: ids of this rank's share.

        Raises:
            Rewind: the run is to go back.
            DivergenceError: the run is to end.
        """
        if step in self.left_out:
            return False, None
        if not self.reads_every_step:
            self._unread.append(Unread(step, loss, norm, samples))
            return True, None
        loss, norm = float(loss), float(norm)
        problem, policy = self._problem(step, loss, norm)
        if problem is None:
            self.losses = [*self.losses, loss][-self.settings["window"] :]
            return True, None
        told = f"{problem}{_culprit(model, norm)}; samples of this process: {', '.join(samples)}"
        if policy == "halt" or len(self.left_out) >= self.settings["most"]:
            raise DivergenceError(f"{told}\n  fix: {self._fix(policy)}")
        self.left_out.add(step)
        if policy == "rewind":
            raise Rewind(step, told)
        return False, f"{told}; the step is skipped"

    def settle(self, model: nn.Module) -> None:
        """Reads the numbers of the steps since the last time; before a log line, a checkpoint, an evaluation.

        Raises:
            DivergenceError: at the first step whose loss or gradient was not finite.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return
        pairs = [[torch.as_tensor(value).double() for value in (one.loss, one.norm)] for one in unread]
        values = torch.stack([torch.stack(pair) for pair in pairs])  # the device is waited for once
        for one, (loss, norm) in zip(unread, values.tolist(), strict=True):
            problem, policy = self._problem(one.step, loss, norm)
            if problem is not None:
                culprit = _culprit(model, norm) if one is unread[-1] else ""  # gradients of earlier steps are gone
                told = f"{problem}{culprit}; samples of this process: {', '.join(one.samples)}"
                raise DivergenceError(f"{told}\n  fix: {self._fix(policy)}")
            self.losses = [*self.losses, loss][-self.settings["window"] :]

    def _problem(self, step: int, loss: float, norm: float) -> tuple[str | None, str]:
        """What is wrong, and what is to be done about it."""
        if not math.isfinite(loss):
            return f"the loss of step {step} is {loss}", self.settings["nonfinite"]
        if not math.isfinite(norm):
            return f"a gradient of step {step} is not finite (loss {loss:.4g})", self.settings["nonfinite"]
        if self.settings["spike"] == "accept" or len(self.losses) < FEWEST:
            return None, ""
        middle = median(self.losses)
        deviation = NORMAL * median(abs(other - middle) for other in self.losses)
        limit = middle + self.settings["threshold"] * max(deviation, 0.01 * abs(middle))
        if loss <= limit:
            return None, ""
        told = f"the loss of step {step} is {loss:.4g}, the median of {len(self.losses)} before it {middle:.4g}"
        return f"{told} (train.guard.threshold allows {limit:.4g})", self.settings["spike"]

    def _fix(self, policy: str) -> str:
        if policy == "halt":
            return "lower optim.lr, set compute.precision=fp32, or skip such steps (train.guard: skip or rewind)"
        return f"{len(self.left_out)} steps were skipped before, train.guard.most allows no more; lower optim.lr"


def _culprit(model: nn.Module, norm: float) -> str:
    """The first parameter, in the order of the model, whose gradient (this process' part of it) is not finite."""
    if math.isfinite(norm):
        return ""
    for name, parameter in named_trainable(model):
        gradient = parameter.grad
        if gradient is not None:
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            if not bool(local.isfinite().all()):
                return f"; first non-finite gradient: {name}"
    return ""
