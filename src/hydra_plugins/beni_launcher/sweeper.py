"""``hydra/sweeper=beni``: the arms of a multirun, whatever launches them, are checked together before one starts.

Hydra's own sweeper writes a multirun.yaml before it looks at the arms, and shows the first failure only; and it knows
products alone. ``hydra.sweeper.arms`` is a list of arms, each with the overrides that belong together
(``resampler=perceiver resampler.num_latents=9``); every arm is run with the product of all swept values.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

NODE = {
    "_target_": "hydra_plugins.beni_launcher.sweeper.BeniSweeper",
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
        self.arms: list[str] = list(arms or [""])

    def sweep(self, arguments: list[str]) -> Sequence[JobReturn]:
        """Runs all arms.

        Raises:
            ConfigError: when an arm does not compose; nothing has been written then.
            ImpossibleArm: when one could never run; nothing has been written then.
            ArmFailed: after all arms, when some did not finish; says which and why.
        """
        assert self.config is not None  # these three: Hydra has called setup
        assert self.launcher is not None
        assert self.hydra_context is not None
        from beni.config.compose import freeze
        from beni.launch.submit import ArmFailed, check_arms, freeze_arm, settle_arm

        loader = self.hydra_context.config_loader
        parser = OverridesParser.create(config_loader=loader)
        swept = parser.parse_overrides([*self._parse_config(), *arguments])
        product = [values for batch in self.split_arguments(swept, None) for values in batch]
        # what the command line says comes last: it may change a value of every arm
        arms = [[*own, *values] for own in map(_words, self.arms) for values in product]
        composed = [loader.load_sweep_config(self.config, list(arm)) for arm in arms]
        runs = [freeze(config, config.hydra.runtime.choices) for config in composed]
        check_arms(runs)
        # two arms that are the same run are run once
        by_folder = {freeze_arm(run): arm for run, arm in zip(runs, arms, strict=True)}

        results = self.launcher.launch(list(by_folder.values()), initial_job_idx=0)
        failed = {}
        for folder, result in zip(by_folder, results, strict=True):
            error = result._return_value if result.status is JobStatus.FAILED else None
            if (reason := settle_arm(folder, error)) is not None:
                failed[folder] = reason
        if failed:
            study = next(iter(failed)).parent
            raise ArmFailed(
                f"{len(failed)} of {len(by_folder)} arms failed:\n"
                + "\n".join(f"  {folder.name}: {reason}" for folder, reason in failed.items())
                + f"\n  the others are finished; python -m beni.compare {study} shows them all"
            )
        return results


def _words(arm: str) -> list[str]:
    """Overrides as a shell would split them."""
    from beni.errors import ConfigError

    try:
        return shlex.split(arm)
    except ValueError as error:
        raise ConfigError(
            f"hydra.sweeper.arms: {arm}: {error}\n  fix: write overrides as on a command line, with quotes that close"
        ) from error
