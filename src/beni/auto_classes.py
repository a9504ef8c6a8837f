"""transformers' Auto classes know a saved model of beni as soon as ``import beni`` was said, which imports neither.

``AutoConfig.register`` needs the classes, and those need torch. So beni waits until transformers itself imports its
table of configurations, or of processors, and imports then the module that registers itself there. The model follows
when there is a configuration of it: no Auto class looks for one earlier.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

REGISTERING = {
    "transformers.models.auto.configuration_auto": "beni.model.configuration",
    "transformers.models.auto.processing_auto": "beni.model.processing",
}
"""Table of transformers -> the module of beni that registers its class there."""
MODEL = "beni.model.modeling"
"""The module that registers the model's class."""


class _AfterImport(MetaPathFinder):
    """Finds the tables as anybody would, and sees to it that a module of beni is imported after each of them."""

    def __init__(self, waiting: dict[str, str]) -> None:
        self.waiting = waiting

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        follows = self.waiting.pop(fullname, None)
        if follows is None:
            return None
        spec = find_spec(fullname)  # asks the other finders: this one no longer waits for it
        if spec is not None and spec.loader is not None:
            setattr(spec.loader, "exec_module", _and_then(spec.loader.exec_module, follows))  # noqa: B010
        return spec


def _and_then(execute: Callable[[ModuleType], None], follows: str) -> Callable[[ModuleType], None]:
    def run(module: ModuleType) -> None:
        execute(module)
        import_module(follows)

    return run


def register_when_needed() -> None:
    """Lets the Auto classes know beni's: at once where their tables are imported already, else when they are."""
    waiting = {table: ours for table, ours in REGISTERING.items() if table not in sys.modules}
    if waiting:
        sys.meta_path.insert(0, _AfterImport(waiting))
    for table, ours in REGISTERING.items():
        if table not in waiting:
            import_module(ours)


def register_model() -> None:
    """Lets the Auto classes know the model."""
    import_module(MODEL)
