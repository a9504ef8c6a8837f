"""Submits runs to SLURM, through submitit: one array for the runs that ask for the same; jobs have names of runs.

A refusal of sbatch is one screen with its own words; what was written for runs that it took stays.
"""

from __future__ import annotations

import io
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from beni.errors import ResourceError
from beni.launch import jobs
from beni.launch.arm import Arm
from beni.launch.names import job_names
from beni.launch.scheduler import ask
from beni.runs.code import exports
from beni.runs.files import LOGS, to_json

NAMED = ("partition", "account", "qos", "constraint")
"""Values that submitit and SLURM call by the same name."""


NEVER = ("PartitionConfig", "PartitionNodeLimit", "PartitionTimeLimit", "BadConstraints")
"""Reasons of jobs that wait for something that their partition does not have."""

SIZE = (
    "lower launcher.cpus_per_task, launcher.mem_gb, launcher.gpus_per_node, launcher.nodes or launcher.timeout_min to "
    "what sinfo -N -l shows, or name another launcher.partition"
)


HOLDING = "BENI_HOLDING_SIGNALS"
HOLD = f'{HOLDING}=; env --block-signal=TERM true 2>/dev/null && {HOLDING}="env --block-signal=TERM,USR1,USR2"'
"""Shell line that makes a command hold signals back until ``Arm`` listens: one that comes while python starts would end
the process, and the job would have failed. GNU coreutils before 8.31 have no such option; then nothing is held.
"""


@dataclass(frozen=True)
class Refused:
    """Runs that sbatch did not take.

    Args:
        folders: of the runs.
        reason: sbatch's own words, and a fix.
    """

    folders: list[Path]
    reason: str


def require_slurm() -> None:
    """Raises ResourceError where this machine cannot submit."""
    missing = [command for command in ("sbatch", "srun") if shutil.which(command) is None]
    if missing:
        raise ResourceError(
            f"SLURM's {' and '.join(missing)} cannot be found on this machine\n"
            "  fix: start it on a login node of the cluster, or set launcher=local"
        )


def submit(folders: Sequence[Path], launchers: Sequence[Mapping[str, Any]], code: Path) -> list[Refused]:
    """Hands frozen runs to SLURM, and notes the job of each in its ``jobs.jsonl``.

    Args:
        folders: of the runs.
        launchers: the ``launcher`` section of each.
        code: snapshot that they run.

    Returns:
        What was refused; everything else is submitted.
    """
    from submitit import SlurmExecutor

    order = sorted(zip(folders, launchers, strict=True), key=lambda pair: to_json(pair[1]))
    refused, called = [], job_names(folders)
    for _, group in groupby(order, key=lambda pair: to_json(pair[1])):
        alike = list(group)
        launcher, names = alike[0][1], [folder for folder, _ in alike]
        logs = Path(launcher["logs"] or names[0].parent / LOGS).resolve()
        logs.mkdir(parents=True, exist_ok=True)
        python = launcher["python"] or shlex.quote(sys.executable)
        executor = SlurmExecutor(logs, python=f"${HOLDING} {python}")
        executor.update_parameters(**parameters(launcher, _job_name(names, called), code))
        try:
            with redirect_stderr(io.StringIO()), executor.batch():  # submitit prints what it raises
                submitted = [executor.submit(Arm(str(folder.resolve()))) for folder in names]
        except Exception as error:  # submitit has one of its own, and lets those of subprocess through
            refused.append(Refused(names, _told(error, launcher)))
            continue
        ids = [job.job_id for job in submitted]
        if (reason := _never(ids)) is not None:
            cancel(ids)
            refused.append(Refused(names, f"SLURM would never start them: {reason}\n  fix: {SIZE}"))
            continue
        for folder, job in zip(names, submitted, strict=True):
            pattern = str(logs / f"{job.job_id}_*_log.*")
            jobs.note(folder, "submitted", backend="slurm", job=job.job_id, logs=pattern, code=code.name)
        if len(names) > 1:
            _name({job.job_id: called[folder] for folder, job in zip(names, submitted, strict=True)})
    return refused


def parameters(launcher: Mapping[str, Any], name: str, code: Path) -> dict[str, Any]:
    """What submitit is told of a job: the values of ``launcher``, and beni's own environment."""
    more = {key.replace("_", "-"): value for key, value in launcher["additional_parameters"].items()}
    further = {"requeue": True} | {key: True if v is None else v for key, v in more.items() if v is not False}
    if launcher["reservation"] is not None:
        further["reservation"] = launcher["reservation"]
    optional = {key: launcher[key] for key in NAMED if launcher[key] is not None}
    if launcher["gpus_per_node"]:
        optional["gpus_per_node"] = launcher["gpus_per_node"]
    if launcher["mem_gb"] is not None:
        optional["mem"] = f"{int(launcher['mem_gb'] * 1024)}MB"
    before, after = exports(code)
    return optional | {
        "job_name": name,
        "wckey": launcher["wckey"],  # submitit has one of its own, unless it is told None
        "nodes": launcher["nodes"],
        "ntasks_per_node": launcher["tasks_per_node"],
        "cpus_per_task": launcher["cpus_per_task"],
        "time": launcher["timeout_min"],
        "signal_delay_s": launcher["signal_delay_s"],
        "array_parallelism": launcher["array_parallelism"],
        "additional_parameters": further,
        "srun_args": ["--kill-on-bad-exit=1", *launcher["srun_args"]],
        "setup": [*before, *launcher["setup"], *after, HOLD],
    }


def _never(ids: Sequence[str]) -> str | None:
    """Why jobs that sbatch took can never start in their partition; None where SLURM knows of no reason."""
    told = ask(["squeue", "-h", "-r", "-o", "%r", "-j", ",".join(ids)]) or ""
    return next((reason for reason in told.split() if reason in NEVER), None)


def _name(runs: Mapping[str, str]) -> None:
    """Gives every job of an array the name of its run, where SLURM lets it: one that has ended keeps the study's."""
    lines = "".join(f"update jobid={job} jobname={name}\n" for job, name in runs.items())
    with suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run(["scontrol"], input=lines, capture_output=True, text=True, timeout=120)


def cancel(ids: Sequence[str]) -> None:
    """Raises ResourceError where SLURM refuses, or cannot be asked."""
    try:
        done = subprocess.run(["scancel", *ids], capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise ResourceError(
            f"scancel cannot be found on this machine; nobody ends {' '.join(ids)}\n"
            "  fix: cancel on a login node of their cluster"
        ) from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ResourceError(f"scancel {' '.join(ids)}: {error}\n  fix: cancel again once SLURM answers") from None
    if done.returncode != 0:
        raise ResourceError(f"scancel {' '.join(ids)}: {done.stderr.strip()}\n  fix: cancel the jobs that are yours")


def _job_name(folders: Sequence[Path], called: Mapping[Path, str]) -> str:
    return called[folders[0]] if len(folders) == 1 else folders[0].parent.name


def _told(error: Exception, launcher: Mapping[str, Any]) -> str:
    """sbatch's words, and what to set."""
    said = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in said if "error" in line.lower()), said[-1] if said else type(error).__name__)
    line = line.removeprefix("sbatch:").strip().removeprefix("error:").strip()
    fix = next((fix for words, fix in _fixes(launcher) if re.search(words, line, re.IGNORECASE)), None)
    return f"sbatch: {line}\n  fix: {fix or 'see what sbatch says, or set launcher=local'}"


def _fixes(launcher: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What sbatch says of a mistake, as a pattern, and what to set; the first that is found counts."""
    yours = "sacctmgr show assoc user=$USER lists"
    return [
        (r"time limit (is invalid|spec)|MaxWall|TimeLimit", "lower launcher.timeout_min to the limit that sinfo shows"),
        (r"limit|policy", "wait for jobs to end, or lower launcher.array_parallelism or the number of arms"),
        (r"account", f"set launcher.account to one that {yours}"),
        (r"partition", "set launcher.partition to one that sinfo lists"),
        (r"qos", f"set launcher.qos to one that {yours}"),
        (r"wckey", "set launcher.wckey to one that sacctmgr show wckey lists"),
        (r"reservation", "set launcher.reservation to one that scontrol show reservation lists"),
        (r"feature", "set launcher.constraint to features that sinfo -o %f lists"),
        (r"node configuration|memory|processors|CPU count|node count", SIZE),
        (r"gres|generic resource", f"set launcher.gpus_per_node=0, which is {launcher['gpus_per_node']}"),
        (
            r"contact|not responding|timed out",
            "wait until scontrol ping says that the controller is up, or set launcher=local",
        ),
    ]
