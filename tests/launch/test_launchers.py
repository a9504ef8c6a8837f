"""Cluster shapes compose with the parameters that they are named after; nothing is submitted."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from beni.paths import conf_dir


def composed(*overrides: str) -> Any:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return compose("train", overrides=list(overrides), return_hydra_config=True)


@pytest.mark.parametrize(
    ("shape", "nodes", "gpus", "fsdp"),
    [("slurm_1gpu", 1, 1, "none"), ("slurm_node", 1, 8, "full"), ("slurm_multinode", 4, 8, "full")],
)
def test_a_slurm_shape_has_one_task_a_gpu_and_time_to_save(shape: str, nodes: int, gpus: int, fsdp: str) -> None:
    run = composed(f"launcher={shape}")
    launcher = run.hydra.launcher
    assert launcher._target_.endswith("SlurmLauncher")
    assert (launcher.nodes, launcher.gpus_per_node, launcher.tasks_per_node) == (nodes, gpus, gpus)
    assert launcher.cpus_per_task >= 4
    assert launcher.mem_gb >= 64 * gpus or launcher.mem_gb >= 512
    assert launcher.timeout_min >= 60
    assert launcher.signal_delay_s >= 60, "a job that is about to be stopped needs the time to write a checkpoint"
    assert launcher.max_num_timeout >= 1, "a job that ran out of time goes on in another"
    assert run.fsdp.mode == fsdp
    assert run.launcher.name == shape


def test_a_slurm_job_logs_below_its_study(tmp_path: Any) -> None:
    run = composed("launcher=slurm_1gpu", f"paths.runs={tmp_path}", "study.name=mine")
    assert run.hydra.launcher.submitit_folder == f"{tmp_path}/mine/.submitit/%j"


@pytest.mark.parametrize("shape", ["local", "submitit_local", "slurm_1gpu", "slurm_node", "slurm_multinode"])
def test_every_shape_checks_all_arms_before_the_first_starts(shape: str) -> None:
    assert composed(f"launcher={shape}").hydra.sweeper._target_.endswith("BeniSweeper")


def test_values_of_a_launcher_can_be_overridden() -> None:
    run = composed("launcher=slurm_1gpu", "hydra.launcher.partition=a100", "hydra.launcher.timeout_min=90")
    assert OmegaConf.to_container(run.hydra.launcher)["partition"] == "a100"
    assert run.hydra.launcher.timeout_min == 90
