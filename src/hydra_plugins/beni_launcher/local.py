"""``hydra/launcher=beni_local``: the arms of a multirun, checked together, then run in processes of their own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

NODE = {"_target_": "hydra_plugins.beni_launcher.local.BeniLocalLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="beni_local", node=NODE, provider="beni")


class BeniLocalLauncher(Launcher):
    """Composes every arm, refuses them all when one is impossible, and runs them one after another."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from beni.config.compose import freeze
        from beni.launch.submit import ArmFailed, check_arms, freeze_arm, run_arms

        composed = [self.context.config_loader.load_sweep_config(self.config, list(o)) for o in job_overrides]
        runs = [freeze(config, config.hydra.runtime.choices) for config in composed]
        check_arms(runs)
        folders = list(dict.fromkeys(freeze_arm(run) for run in runs))
        results = dict(run_arms(folders, say=lambda text: print(text, file=sys.stderr, flush=True)))
        failed = [folder for folder, reason in results.items() if reason is not None]
        if failed:
            study = failed[0].parent
            raise ArmFailed(
                f"{len(failed)} of {len(results)} arms failed:\n"
                + "\n".join(f"  {folder.name}: {results[folder]}" for folder in failed)
                + f"\n  the others are finished; python -m beni.compare {study} shows them all"
            )
        return [JobReturn(overrides=list(o), status=JobStatus.COMPLETED) for o in job_overrides]
