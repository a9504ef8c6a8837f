"""What a run may say to Hydra itself: beni names run folders, and a sweep needs its mode."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf


def hydra_problems(hydra: DictConfig) -> Iterator[str]:
    """Values of Hydra's own node that would do nothing, or not what they say, as problems with their fixes."""
    folder = hydra.run.dir
    if folder != ".":
        yield (
            f"hydra.run.dir={folder} has no effect: a run folder is <paths.runs>/<study.name>/<name of the run>\n"
            "  fix: set paths.runs and study.name instead"
        )
    if hydra.job.chdir:
        yield (
            "hydra.job.chdir=true would resolve relative paths differently in a sweep and in a run\n"
            "  fix: leave out hydra.job.chdir; set paths.runs for the run folders"
        )
    yield from sweeper_problems(hydra.sweeper)
    swept = [name for name in ("params", "arms") if hydra.sweeper.get(name)]
    if swept and getattr(hydra.mode, "name", hydra.mode) != "MULTIRUN":
        yield (
            f"hydra.sweeper.{swept[0]} names values to sweep over, but this is a single run\n"
            "  fix: write mode: MULTIRUN below hydra: where they stand, or call python -m beni.train -m"
        )


def sweeper_problems(sweeper: DictConfig | Mapping[str, Any]) -> Iterator[str]:
    """What of ``hydra.sweeper`` has another form than a sweep reads."""
    params, arms = (_plain(sweeper.get(key)) for key in ("params", "arms"))
    if params is not None and not isinstance(params, dict):
        yield (
            f"hydra.sweeper.params={params}, expected a mapping from keys to values with commas\n"
            "  fix: write params: {train.seed: '0,1'}"
        )
    if arms is not None and (not isinstance(arms, list) or not all(isinstance(arm, str) for arm in arms)):
        yield (
            f"hydra.sweeper.arms={arms}, expected a list of texts, each the overrides of an arm\n"
            "  fix: write arms: ['resampler=none', 'resampler=perceiver resampler.depth=2']"
        )


def _plain(value: Any) -> Any:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
