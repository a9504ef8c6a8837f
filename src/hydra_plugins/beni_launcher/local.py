"""``hydra/launcher=beni_local``: the arms of a multirun one after another, each in a process of its own."""

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
    """Freezes every arm and runs them one after another; one that fails leaves the others alone."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from beni.config.compose import freeze
        from beni.launch.submit import ArmFailed, freeze_arm, run_arms

        composed = [self.context.config_loader.load_sweep_config(self.config, list(o)) for o in job_overrides]
        folders = [freeze_arm(freeze(config, config.hydra.runtime.choices)) for config in composed]
        results = []
        reasons = run_arms(folders, say=lambda text: print(text, file=sys.stderr, flush=True))
        for overrides, config, reason in zip(job_overrides, composed, reasons, strict=True):
            result = JobReturn(overrides=list(overrides), cfg=config)
            result.status = JobStatus.COMPLETED if reason is None else JobStatus.FAILED
            result.return_value = None if reason is None else ArmFailed(reason)
            results.append(result)
        return results
