"""``hydra/sweeper=beni``: the arms of a multirun, whatever launches them, are checked together before one starts.

Hydra's own sweeper writes a multirun.yaml before it looks at the arms, and shows the first failure only; and it knows
products alone. ``hydra.sweeper.arms`` is a list of arms, each with the overrides that belong together
(``resampler=perceiver resampler.num_latents=9``); every arm is run with the product of all swept values.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn

NODE = {
    "_target_": "hydra_plugins.beni.sweeper.BeniSweeper",
    "max_batch_size": None,
    "params": None,
    "arms": None,
}
ConfigStore.instance().store(group="hydra/sweeper", name="beni", node=NODE, provider="beni")


class BeniSweeper(BasicSweeper):
    """Every arm with the product of all comma-separated values; refuses all when one is impossible."""

    def __init__(
        self, max_batch_size: int | None, params: dict[str, str] | None, arms: list[str] | None = None
    ) -> None:
        super().__init__(max_batch_size, params)
        self.arms = arms

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Launches all arms at once."""
        assert self.config is not None  # these three: Hydra has called setup
        assert self.launcher is not None
        assert self.hydra_context is not None
        from beni.config.hydra_node import sweeper_problems
        from beni.errors import ConfigError
        from beni.launch.sweep import arms_of, require_values

        if problems := list(sweeper_problems(self.config.hydra.sweeper)):
            raise ConfigError("\n".join(problems))
        loader = self.hydra_context.config_loader
        swept = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        require_values(swept)
        product = [values for batch in self.split_arguments(swept, None) for values in batch]
        return self.launcher.launch(arms_of(self.arms or [""], product), initial_job_idx=0)
