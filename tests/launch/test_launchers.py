"""Launchers compose with the values that they are named after, and say what they do not read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beni.config.compose import compose
from beni.errors import ConfigError


@pytest.mark.parametrize(
    ("name", "nodes", "gpus", "fsdp"),
    [
        ("slurm_cpu", 1, 0, "none"),
        ("slurm_1gpu", 1, 1, "none"),
        ("slurm_node", 1, 8, "full"),
        ("slurm_multinode", 4, 8, "full"),
    ],
)
def test_a_slurm_launcher_has_one_task_a_gpu_and_time_to_save(name: str, nodes: int, gpus: int, fsdp: str) -> None:
    run = compose([f"launcher={name}"])
    launcher = run["launcher"]
    assert (launcher["name"], launcher["backend"], launcher["wait"]) == (name, "slurm", False)
    assert (launcher["nodes"], launcher["gpus_per_node"], launcher["tasks_per_node"]) == (nodes, gpus, gpus or 1)
    assert launcher["signal_delay_s"] >= 60, "a job that is about to be stopped needs the time to write a checkpoint"
    assert run["fsdp"]["mode"] == fsdp


def test_values_of_a_launcher_can_be_overridden_and_change_no_signature() -> None:
    from beni.runs.identity import signature

    plain, mine = (
        compose(["launcher=slurm_1gpu", *more])
        for more in ((), ("launcher.partition=a100", "launcher.additional_parameters.nice=5"))
    )
    assert (mine["launcher"]["partition"], mine["launcher"]["additional_parameters"]) == ("a100", {"nice": 5})
    assert signature(plain) == signature(mine)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["launcher.partition=a100"], "launcher.partition"),
        (["launcher=slurm_cpu", "launcher.jobs=2"], "launcher.jobs"),
        (["launcher=slurm_cpu", "launcher.patition=a"], "did you mean launcher.partition?"),
        (["launcher=slurm_cpu", "launcher.backend=local"], "launcher.jobs is missing"),
        (["launcher.jobs=0"], "launcher.jobs=0, expected a whole number of at least 1"),
        (
            ["launcher=slurm_cpu", "launcher.timeout_min=2"],
            "signal_delay_s=120 is not less than the 2 minutes",
        ),
        (["launcher=slurm_cpu", "launcher.additional_parameters={time: 5}"], "set launcher.timeout_min"),
        (["launcher=slurm_cpu", "launcher.additional_parameters={cpus_per_task: 5}"], "set launcher.cpus_per_task"),
        (["launcher=slurm_cpu", "launcher.additional_parameters={p: a100}"], "set launcher.partition"),
        (["launcher=slurm_cpu", "launcher.additional_parameters={part: a100}"], "set launcher.partition"),
        (["launcher=slurm_cpu", "launcher.additional_parameters={w: n1}"], "write the long name"),
        (["launcher=slurm_cpu", "launcher.additional_parameters={mem-per-cpu: 4G}"], "set launcher.mem_gb=null beside"),
        (["launcher=slurm_1gpu", "launcher.additional_parameters={gpus: 2}"], "set launcher.gpus_per_node=0 beside"),
        (["launcher=slurm_1gpu", "launcher.additional_parameters={gres: 'gpu:2'}"], "launcher.gpus_per_node=1 asks"),
        (["launcher=slurm_cpu", "launcher.additional_parameters={nice: [5]}"], "launcher.additional_parameters.nice"),
        (["hydra.launcher.partition=a100"], "set launcher.partition"),
    ],
)
def test_a_value_that_a_launcher_does_not_read_is_refused(overrides: list[str], expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(overrides)
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        ("launcher.additional_parameters={mem-per-cpu: 4G, gres: 'nvme:1', exclusive: null}", "launcher.mem_gb=null"),
        ("launcher.additional_parameters={gpus: 2, nodelist: n1, time-min: 5}", "launcher.gpus_per_node=0"),
        ("launcher.additional_parameters={gres: 'gpu:a100:1', export: ALL}", "launcher.gpus_per_node=0"),
    ],
)
def test_an_option_that_asks_in_another_way_may_stand_where_the_value_does_not_ask(overrides: tuple[str, ...]) -> None:
    assert compose(["launcher=slurm_1gpu", *overrides])["launcher"]["name"] == "slurm_1gpu"


def test_values_of_a_site_reach_the_launchers_that_read_them(tmp_path: Path) -> None:
    site = tmp_path / "local" / "default.yaml"
    site.parent.mkdir()
    site.write_text("# @package _global_\nlauncher: {partition: a100, account: lab}\n")

    def launcher(*overrides: str) -> dict[str, Any]:
        return compose([*overrides], config_dir=tmp_path)["launcher"]

    assert launcher() == {"name": "local", "backend": "local", "jobs": 1}
    assert (launcher("launcher=slurm_1gpu")["partition"], launcher("launcher=slurm_1gpu")["account"]) == ("a100", "lab")
    assert launcher("launcher=slurm_1gpu", "launcher.partition=b")["partition"] == "b"
