"""``hydra/sweeper=beni``: the arms of a multirun, whatever launches them, are checked together before one starts.

Hydra's own sweeper writes a multirun.yaml before it looks at the arms, and shows the first failure only.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra._internal.core_plugins.basic_sweeper import BasicSweeper, BasicSweeperConf
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn, JobStatus

NODE = BasicSweeperConf(_target_="hydra_plugins.beni_launcher.sweeper.BeniSweeper")
ConfigStore.instance().store(group="hydra/sweeper", name="beni", node=NODE, provider="beni")


class BeniSweeper(BasicSweeper):
    """The product of all comma-separated values; refuses all arms when one is impossible."""

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
        overrides = OverridesParser.create(config_loader=loader).parse_overrides([*self._parse_config(), *arguments])
        arms = [arm for batch in self.split_arguments(overrides, None) for arm in batch]
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
