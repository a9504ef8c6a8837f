"""What trains, while it trains: modes, storage, and the check after the first step that the plan came true.

"What is actually training?" is a question that peers' users ask for years. Here the plan is written per component, the
table is printed before step 1, and after it every planned tensor must have received a gradient and no other changed. So
it is again when a component begins to train later (training/thaw.py).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from beni.components import BACKBONES, COMPONENTS
from beni.errors import TrainabilityError
from beni.nn.batch_norm import batch_norms


def set_modes(model: nn.Module, plan: Mapping[str, str]) -> None:
    """Training mode, except that frozen components and every BatchNorm keep their evaluation behaviour."""
    model.train()
    for component, mode in plan.items():
        if mode == "frozen":
            getattr(model, component).eval()
    for norm in batch_norms(model):
        norm.eval()


def store_frozen_in_bf16(model: nn.Module, plan: Mapping[str, str]) -> None:
    """Halves the memory of what never changes: the matrices of frozen components, and of the base under adapters.

    Vectors (norms, biases) stay in fp32: they are small, and BatchNorm mixes them with fp32 statistics.
    """
    for name, parameter in model.named_parameters():
        if parameter.ndim >= 2 and not parameter.requires_grad and plan[name.partition(".")[0]] != "full":
            parameter.data = parameter.data.to(torch.bfloat16)


@dataclass
class TrainabilityCheck:
    """Compares the plan with what the first optimizer step did.

    Attributes:
        frozen: fingerprints of what wants no gradient, by name.
        trains: components that the plan trains in this step.
    """

    frozen: dict[str, Tensor]
    trains: Collection[str]

    @staticmethod
    def before_first_step(model: nn.Module, trains: Collection[str] = ()) -> TrainabilityCheck:
        frozen = {name: _mark(p) for name, p in model.named_parameters() if not p.requires_grad}
        return TrainabilityCheck(frozen, trains)

    def gradients(self, model: nn.Module) -> list[str]:
        """After the first backward pass: names of planned tensors that no gradient reaches. A pretrained backbone may
        have some (a pooling head that nobody reads); they stay as they are.

        Raises:
            TrainabilityError: when a tensor of one of beni's own parts, or a whole component, received no gradient, or
                no tensor of a component wants one.
        """
        silent = [name for name, p in named_trainable(model) if p.grad is None]
        for component in COMPONENTS:
            planned = [name for name, _ in named_trainable(model) if name.startswith(f"{component}.")]
            mute = [name for name in silent if name.startswith(f"{component}.")]
            asleep = [name for name in self.frozen if name.startswith(f"{component}.")]
            if component in self.trains and asleep and not planned:
                raise TrainabilityError(
                    f"{component} should train, but all its tensors are frozen: {_some(asleep)}\n"
                    f"  fix: set train.plan.{component}=frozen, or leave requires_grad of its parameters to the plan"
                )
            # single tensors of a model that other people wrote may be unused in a given run
            if mute and (len(mute) == len(planned) or component not in BACKBONES):
                raise TrainabilityError(
                    f"{component} should train, but no gradient reached {_some(mute)}\n"
                    f"  fix: set train.plan.{component}=frozen, or check that the data uses it (images, labels)"
                )
        return silent

    def after_first_step(self, model: nn.Module) -> None:
        """Raises TrainabilityError when a tensor that was frozen in that step changed."""
        changed = [n for n, p in model.named_parameters() if n in self.frozen and not _mark(p).equal(self.frozen[n])]
        if changed:
            raise TrainabilityError(f"frozen tensors changed in a step: {_some(changed)}")


def named_trainable(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Parameters that train, with their names."""
    return ((name, p) for name, p in model.named_parameters() if p.requires_grad)


def _mark(parameter: Tensor) -> Tensor:
    """A cheap fingerprint of a tensor: a strided sample of at most a thousand values."""
    local = parameter.to_local() if isinstance(parameter, DTensor) else parameter
    flat = local.detach().flatten()
    return flat[:: max(1, flat.numel() // 1000)].clone()


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
