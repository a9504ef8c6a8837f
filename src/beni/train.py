"""``python -m beni.train``: compose, check, freeze, and hand over to the run.

The module can also be called, ``beni.train(run)``: importing it as a submodule would otherwise put it in the place of
the function of that name.
"""

from __future__ import annotations

import sys
import types
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from beni import hub
from beni.config.command import one_screen, run_command
from beni.config.compose import freeze
from beni.console import to_stderr
from beni.data.records.open import require_there
from beni.paths import conf_dir
from beni.runs.identity import run_folder


@hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
@one_screen
def main(composed: DictConfig) -> str:
    """One composed run, here and now; returns its folder."""
    known: Any = HydraConfig.instance().cfg
    run = freeze(composed, known.hydra)
    require_there(run["data"])
    hub.require_weights(run)
    submits = run["launcher"]["backend"] == "slurm"
    if submits or run["study"]["match"] is not None:
        run = checked(run, composed, known)
    if submits:
        return submit(run)
    from beni.launch.local import in_this_process
    from beni.run import train  # imports torch: only once the run is known to be sound

    with in_this_process(run_folder(run)):
        return str(train(run))


def checked(run: dict[str, Any], composed: DictConfig, config: DictConfig) -> dict[str, Any]:
    """The run once it has been checked in a further process, with what ``study.match`` chooses."""
    from beni.launch import match
    from beni.launch.estimate import told
    from beni.launch.submit import check_arms

    arm = [str(word) for word in config.hydra.overrides.task]
    [found] = check_arms(match.to_check([run], [arm]))
    for line in match.told([run], [arm], [found]):
        to_stderr(line)
    to_stderr(told([found], [run["launcher"]]))
    return match.settled(composed, config.hydra, run, found)


def submit(run: dict[str, Any]) -> str:
    """One run as a job of the cluster, after it was checked here."""
    from beni.launch.launch import launch

    launch([(run, None)], to_stderr)
    return str(run_folder(run))


def command() -> None:
    """The command ``beni-train``."""
    run_command(main)


class _CallableModule(types.ModuleType):
    def __call__(self, run: Any) -> Any:
        from beni.run import train

        return train(run)


sys.modules[__name__].__class__ = _CallableModule

if __name__ == "__main__":
    from beni.train import command as importable  # launchers pickle the task by name: it must not live in __main__

    importable()
