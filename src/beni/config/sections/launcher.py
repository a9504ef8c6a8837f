"""The ``launcher`` section: where runs are executed, and what a job of each takes there.

A value that the chosen launcher does not read is an unknown key, so each has a class of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from beni.config.ranges import Above, AtLeast, Example


@dataclass(frozen=True)
class Launcher:
    """What every launcher reads (launch/submit.py).

    Attributes:
        name: of the option, for the reader.
        backend: ``local`` starts processes on this machine, ``debug`` runs one arm after another in this process,
            ``slurm`` submits jobs.
    """

    name: str
    backend: Literal["local", "debug", "slurm"]


@dataclass(frozen=True)
class Local(Launcher):
    """Processes on this machine (launch/local.py).

    Attributes:
        jobs: arms of a sweep that run at a time; the machine's cores and GPUs are divided among them.
    """

    jobs: Annotated[int, AtLeast(1)]


@dataclass(frozen=True)
class Slurm(Launcher):
    """Jobs of a SLURM cluster, one for each run (launch/slurm.py). What is null is left to the cluster.

    Attributes:
        wait: whether the command waits until all runs have ended.
        nodes: machines of a run.
        tasks_per_node: processes on each, one for each GPU.
        gpus_per_node: GPUs of each machine; 0 asks for none.
        cpus_per_task: cores of a process.
        mem_gb: memory of each machine in GiB.
        timeout_min: minutes after which SLURM ends the job.
        signal_delay_s: seconds before that at which the run is asked to save; enough for one step and a checkpoint.
        partition: that jobs are submitted to.
        account: that pays.
        qos: quality of service.
        wckey: characterization key.
        constraint: features that machines must have.
        reservation: whose machines are used.
        array_parallelism: jobs of a sweep that run at a time.
        additional_parameters: further options of sbatch, such as ``{nice: 100}``; one without a value is null or true
            (``{exclusive: null}``), and one that is false is left out.
        srun_args: further arguments of srun.
        setup: shell lines before the run: modules, conda, a container.
        python: command of the interpreter; null takes the one that submits.
        logs: folder of the logs; null takes ``.jobs`` in the study.
    """

    wait: bool
    nodes: Annotated[int, AtLeast(1)]
    tasks_per_node: Annotated[int, AtLeast(1)]
    gpus_per_node: Annotated[int, AtLeast(0)]
    cpus_per_task: Annotated[int, AtLeast(1)]
    mem_gb: Annotated[float, Above(0), Example("64")] | None
    timeout_min: Annotated[int, AtLeast(1)]
    signal_delay_s: Annotated[int, AtLeast(1)]
    partition: str | None
    account: str | None
    qos: str | None
    wckey: str | None
    constraint: str | None
    reservation: str | None
    array_parallelism: Annotated[int, AtLeast(1)]
    additional_parameters: dict[str, str | int | float | bool | None]
    srun_args: list[str]
    setup: list[str]
    python: str | None
    logs: str | None


LAUNCHERS: dict[str, type[Launcher]] = {"local": Local, "debug": Launcher, "slurm": Slurm}
"""``launcher.backend`` -> the values that it reads."""

OWN_FLAGS = {
    "array": "array_parallelism",
    "job-name": "study.name",
    "output": "launcher.logs",
    "error": "launcher.logs",
    "signal": "launcher.signal_delay_s",
    "requeue": "nothing: jobs are requeued",
    "no-requeue": "nothing: jobs are requeued, as long as they come forward",
    "open-mode": "nothing: logs are appended to",
    "nodes": "launcher.nodes",
    "ntasks": "launcher.nodes and launcher.tasks_per_node",
    **dict.fromkeys(("ntasks-per-node", "tasks-per-node", "ntasks-per-gpu"), "launcher.tasks_per_node"),
    **dict.fromkeys(("cpus-per-task", "cpus-per-gpu"), "launcher.cpus_per_task"),
    "mem": "launcher.mem_gb",
    "time": "launcher.timeout_min",
    "gpus-per-node": "launcher.gpus_per_node",
    **{name: f"launcher.{name}" for name in ("partition", "account", "qos", "wckey", "constraint", "reservation")},
}
"""Options of sbatch that have a value of their own -> which. sbatch knows them by their beginnings as well."""

OTHER_WAYS = {
    **dict.fromkeys(("mem-per-cpu", "mem-per-gpu"), ("mem_gb", "null")),
    **dict.fromkeys(("gpus", "gpus-per-task", "gpus-per-socket"), ("gpus_per_node", "0")),
}
"""Options that ask for what a value asks for already, in another way -> the value, and that with which they may be."""

LETTERS = {
    **{"a": "array", "A": "account", "C": "constraint", "c": "cpus-per-task", "e": "error", "J": "job-name"},
    **{"N": "nodes", "n": "ntasks", "o": "output", "p": "partition", "q": "qos", "t": "time"},
}
"""Short names of options in ``OWN_FLAGS``."""


def launcher_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules that no type expresses, as problems with their fixes."""
    launcher = run["launcher"]
    if launcher["backend"] != "slurm":
        return
    if launcher["signal_delay_s"] >= 60 * launcher["timeout_min"]:
        yield (
            f"launcher.signal_delay_s={launcher['signal_delay_s']} is not less than the {launcher['timeout_min']} "
            "minutes of launcher.timeout_min: a job would be asked to end at once\n"
            "  fix: set launcher.signal_delay_s to the seconds of a step and a checkpoint"
        )
    for key, value in launcher["additional_parameters"].items():
        if (problem := _taken(str(key).replace("_", "-").lstrip("-"), value, launcher)) is not None:
            yield f"launcher.additional_parameters.{key}={value}: {problem}"


def _taken(flag: str, value: Any, launcher: Mapping[str, Any]) -> str | None:
    """Why an option cannot stand beside those that beni sets, with the fix."""
    own = LETTERS.get(flag, flag)
    if len(flag) > 1 and flag not in OTHER_WAYS and flag not in OWN_FLAGS:
        own = next((name for name in OWN_FLAGS if name.startswith(flag)), flag)
    if own in OWN_FLAGS:
        return f"this option of sbatch has a value of its own\n  fix: set {OWN_FLAGS[own]}"
    if len(flag) == 1:
        return "the script of a job has long options only\n  fix: write the long name that sbatch --help shows"
    other = OTHER_WAYS["gpus"] if flag == "gres" and str(value).startswith("gpu") else OTHER_WAYS.get(flag)
    if other is not None and launcher[other[0]]:
        name, none = other
        return f"launcher.{name}={launcher[name]} asks for that already\n  fix: set launcher.{name}={none} beside it"
    return None
