"""LoRA (arXiv 2106.09685) through peft, injected into one component only.

Suffix targets such as ``q_proj`` name modules of the vision encoder, the perceiver and the llm alike; injecting into
the component, not into the whole model, is what keeps the adapters where the plan put them.
"""

from __future__ import annotations

from peft import LoraConfig, inject_adapter_in_model
from torch import nn

from beni.adapter.base import Adapter
from beni.errors import CompositionError


class Lora(Adapter):
    """Low-rank adapters beside the linear layers that ``targets`` name.

    Args:
        r: rank, at least 1.
        alpha: scale; the update is multiplied by ``alpha / r``.
        dropout: probability in [0, 1) on the adapter's input.
        targets: last parts of module names, for instance ``[q_proj, v_proj]``.
    """

    def __init__(self, *, r: int, alpha: int, dropout: float, targets: list[str]) -> None:
        self.config = LoraConfig(r=r, lora_alpha=alpha, lora_dropout=dropout, target_modules=targets, bias="none")
        self.targets = targets

    def inject(self, component: nn.Module) -> None:
        names = [name for name, _ in component.named_modules()]
        missing = [t for t in self.targets if not any(name.split(".")[-1] == t for name in names)]
        if missing:
            linear = sorted({n.split(".")[-1] for n, m in component.named_modules() if isinstance(m, nn.Linear)})
            raise CompositionError(
                "E-ADAPTER",
                f"adapter.targets={missing} are no modules of {type(component).__name__}; its linear layers: {linear}",
                groups=("adapter", "llm"),
                fix=f"set adapter.targets={linear}",
            )
        inject_adapter_in_model(self.config, component)
