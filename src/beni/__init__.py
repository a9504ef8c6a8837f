"""beni: a laboratory for vision-language models.

The public names are loaded on first use, so that ``import beni`` and the commands' ``--help`` need no torch.
"""

from __future__ import annotations

import logging
import os
from importlib import import_module
from typing import TYPE_CHECKING, Any

from beni.auto_classes import register_when_needed

if TYPE_CHECKING:
    from beni.config.compose import compose as compose
    from beni.model.build import build as build
    from beni.model.configuration import BeniConfig as BeniConfig
    from beni.model.modeling import BeniForConditionalGeneration as BeniForConditionalGeneration
    from beni.model.processing import BeniProcessor as BeniProcessor
    from beni.run import train as train
    from beni.trained import Trained as Trained

# GNU OpenMP reads this once, when torch loads it, so it cannot wait for a command. By default idle threads spin for
# long: where cores are shared (a loader process is enough on two) a step of the main job took 5.2 s. This much spinning
# costs nothing on idle cores (0.155 s a step; 0.228 s without any) and little on busy ones (0.43 s).
os.environ.setdefault("GOMP_SPINCOUNT", "10000")

# transformers imports torchao wherever it is installed, and each command would begin with warnings about kernels for
# other machines and about torchao's own classes
_needless = {
    "torchao": "Failed to load ",
    "torchao.kernel.intmm": "Detected no triton",  # of products of integers, which beni does not form
    "torch.utils._pytree": " is an Enum subclass ",
}
for _logger, _said in _needless.items():
    logging.getLogger(_logger).addFilter(lambda record, said=_said: said not in record.getMessage())

__version__ = "0.1.0"
__all__ = ["BeniConfig", "BeniForConditionalGeneration", "BeniProcessor", "Trained", "build", "compose", "train"]

_HOMES = {
    "BeniConfig": "beni.model.configuration",
    "BeniForConditionalGeneration": "beni.model.modeling",
    "BeniProcessor": "beni.model.processing",
    "Trained": "beni.trained",
    "build": "beni.model.build",
    "compose": "beni.config.compose",
    "train": "beni.run",
}

register_when_needed()  # saved models open through transformers' Auto classes


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'beni' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)
