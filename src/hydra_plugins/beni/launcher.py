"""``hydra/launcher=beni_local``: the arms of a multirun one after another, each in a process of its own."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

NODE = {"_target_": "hydra_plugins.beni.launcher.BeniLocalLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="beni_local", node=NODE, provider="beni")


class BeniLocalLauncher(Launcher):
    """Freezes every arm and runs them one after another; one that fails leaves the others alone."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from beni.launch.sweep import launch_here

        return launch_here(
            job_overrides,
            compose=lambda arm: self.context.config_loader.load_sweep_config(self.config, arm),
            say=lambda text: print(text, file=sys.stderr, flush=True),
        )
