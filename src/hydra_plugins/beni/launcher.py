"""``hydra/launcher=beni``: what carries out the arms of a multirun is said by ``launcher`` of each arm.

Hydra's own node of a launcher is empty: everything a launcher reads is checked with the rest of the run.
"""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

NODE = {"_target_": "hydra_plugins.beni.launcher.BeniLauncher"}
ConfigStore.instance().store(group="hydra/launcher", name="beni", node=NODE, provider="beni")


class BeniLauncher(Launcher):
    """Checks, freezes and launches arms together, see ``beni.launch.sweep``."""

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.context, self.config = hydra_context, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """A result for each arm, without a value: what a run has scored stands in its folder."""
        from beni.console import to_stderr
        from beni.launch.sweep import sweep

        compose = self.context.config_loader.load_sweep_config
        sweep(job_overrides, compose=lambda arm: compose(self.config, arm), say=to_stderr)
        return [JobReturn(overrides=list(arm), status=JobStatus.COMPLETED) for arm in job_overrides]
