"""What SLURM is told and how its answers are read, by programs in the place of its own; a real one: test_cluster.py."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from beni.config.compose import compose
from beni.errors import ResourceError
from beni.launch import arm, jobs, slurm
from beni.launch.arm import Arm, superseded
from beni.launch.scheduler import scheduler_states
from beni.runs.status import write_status

SBATCH = """
if "--version" in sys.argv:
    raise SystemExit
count = len(list(here.glob("batch*.sh"))) + 1
(here / f"batch{count}.sh").write_text(pathlib.Path(sys.argv[-1]).read_text())
print(f"Submitted batch job {100 * count}")
"""


@pytest.fixture
def programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """programs(name=text): programs of these names on the path; ``here`` is the folder that they note things in."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def make(**texts: str) -> Path:
        for name, text in texts.items():
            path = folder / name
            head = f"#!{sys.executable}\nimport pathlib, sys, time\nhere = pathlib.Path({str(folder)!r})\n"
            path.write_text(
                head + f"(here / 'calls').open('a').write(' '.join([{name!r}, *sys.argv[1:]]) + '\\n')\n" + text
            )
            path.chmod(0o755)
        return folder

    return make


def launchers(*overrides: str) -> dict[str, Any]:
    return compose(["launcher=slurm_cpu", *overrides])["launcher"]


def folders_of(tmp_path: Path, names: str = "ab") -> list[Path]:
    made = [tmp_path / "runs" / "study" / name for name in names]
    for folder in made:
        folder.mkdir(parents=True)
    return made


def test_runs_that_ask_for_the_same_are_one_array_and_each_knows_its_job(tmp_path: Path, programs: Any) -> None:
    here = programs(sbatch=SBATCH, srun="", scontrol="(here / 'updates').write_text(sys.stdin.read())")
    folders = folders_of(tmp_path, "abc")
    small, large = launchers("launcher.mem_gb=4"), launchers("launcher.mem_gb=8")
    assert slurm.submit(folders, [small, large, small], Path("/code/12ab")) == []
    lines = [jobs.last(jobs.history(folder), "submitted") for folder in folders]
    assert all(line is not None and (line["backend"], line["code"]) == ("slurm", "12ab") for line in lines)
    ids = {folder.name: line["job"] for folder, line in zip(folders, lines, strict=True) if line is not None}
    array = next(one.split("_")[0] for one in ids.values() if "_" in one)
    assert sorted(ids.values()) == sorted([f"{array}_0", f"{array}_1", ids["b"]])
    named = [f"update jobid={ids[name]} jobname={name}" for name in "ac"]
    assert (here / "updates").read_text().splitlines() == named
    texts = {("array" in text): text for text in (path.read_text() for path in here.glob("batch*.sh"))}
    assert "#SBATCH --array=0-1%2" in texts[True]
    assert "#SBATCH --job-name=study" in texts[True]
    assert "#SBATCH --mem=4096MB" in texts[True]
    assert "#SBATCH --job-name=b" in texts[False]
    assert "#SBATCH --mem=8192MB" in texts[False]


def test_jobs_are_named_by_arm_and_seed(tmp_path: Path, programs: Any, make_run: Any) -> None:
    here = programs(sbatch=SBATCH, srun="", scontrol="(here / 'updates').write_text(sys.stdin.read())")
    folders = [make_run("perceiver", 1, resampler__num_latents=latents) for latents in (4, 9)]
    assert slurm.submit(folders, [launchers()] * 2, Path("/code/12ab")) == []
    updates = (here / "updates").read_text().splitlines()
    assert [line.split(" ", 2)[2] for line in updates] == [f"jobname=resampler.num_latents={n},s1" for n in (4, 9)]
    (here / "updates").unlink()
    for path in here.glob("batch*.sh"):
        path.unlink()
    assert slurm.submit(folders[1:], [launchers()], Path("/code/12ab")) == []
    [batch] = here.glob("batch*.sh")
    assert "#SBATCH --job-name=resampler.num_latents=9,s1\n" in batch.read_text()


def test_every_value_of_a_launcher_reaches_sbatch(tmp_path: Path, programs: Any) -> None:
    here = programs(sbatch=SBATCH, srun="")
    launcher = launchers(
        *("launcher.nodes=2", "launcher.tasks_per_node=3", "launcher.gpus_per_node=3", "launcher.cpus_per_task=5"),
        *("launcher.mem_gb=1.5", "launcher.timeout_min=77", "launcher.signal_delay_s=99", "launcher.partition=a100"),
        *("launcher.account=lab", "launcher.qos=low", "launcher.wckey=key", "launcher.constraint=big"),
        *("launcher.reservation=mine", "launcher.array_parallelism=1", "launcher.additional_parameters={nice: 7}"),
        *("launcher.srun_args=['--mpi=none']", "launcher.setup=[module load cuda]", "launcher.python=/opt/py"),
        f"launcher.logs={tmp_path}/logs",
    )
    slurm.submit(folders_of(tmp_path), [launcher] * 2, Path("/code/12ab"))
    text = (here / "batch1.sh").read_text()
    options = dict(
        line.removeprefix("#SBATCH --").split("=", 1)
        for line in text.splitlines()
        if "#SBATCH --" in line and "=" in line
    )
    expected = {
        "nodes": "2",
        "ntasks-per-node": "3",
        "gpus-per-node": "3",
        "cpus-per-task": "5",
        "mem": "1536MB",
        "time": "77",
        "signal": "USR2@99",
        "partition": "a100",
        "account": "lab",
        "qos": "low",
        "wckey": "key",
        "constraint": "big",
        "reservation": "mine",
        "array": "0-1%1",
        "nice": "7",
    }
    assert {key: options.get(key) for key in expected} == expected
    assert "#SBATCH --requeue" in text
    assert options["output"].startswith(f"{tmp_path}/logs/")
    assert text.index("module load cuda") < text.index("export PYTHONPATH=/code/12ab$") < text.index("\nsrun ")
    assert "export PYTHONSAFEPATH=1" in text
    run = next(line for line in text.splitlines() if line.startswith("srun"))
    assert "--kill-on-bad-exit=1" in run
    assert "--mpi=none" in run
    assert "/opt/py -u -m submitit.core._submit" in run


def test_an_option_without_a_value_is_written_bare_and_one_that_is_false_not_at_all(
    tmp_path: Path, programs: Any
) -> None:
    here = programs(sbatch=SBATCH, srun="")
    options = (
        "launcher.additional_parameters={exclusive: null, spread_job: true, mail-type: false, hint: nomultithread}"
    )
    slurm.submit(folders_of(tmp_path, "a"), [launchers(options)], Path("/code/12ab"))
    lines = (here / "batch1.sh").read_text().splitlines()
    wanted = ["#SBATCH --exclusive", "#SBATCH --spread-job", "#SBATCH --hint=nomultithread"]
    assert [line for line in wanted if line not in lines] == []
    assert not [line for line in lines if "mail" in line or "None" in line]


def test_what_is_null_is_left_to_the_cluster(tmp_path: Path, programs: Any) -> None:
    here = programs(sbatch=SBATCH, srun="")
    slurm.submit(folders_of(tmp_path, "a"), [launchers("launcher.mem_gb=null")], Path("/code/12ab"))
    text = (here / "batch1.sh").read_text()
    for name in ("mem", "gpus-per-node", "partition", "account", "qos", "wckey", "constraint", "reservation", "array"):
        assert f"--{name}=" not in text


def test_nothing_but_the_folder_is_pickled(tmp_path: Path, programs: Any) -> None:
    programs(sbatch=SBATCH, srun="")
    [folder] = folders_of(tmp_path, "a")
    slurm.submit([folder], [launchers()], Path("/code/12ab"))
    [pickle] = (folder.parent / ".jobs").glob("*.pkl")
    content = pickle.read_bytes()
    assert str(folder).encode() in content
    assert b"beni.launch.arm" in content
    assert len(content) < 1000


@pytest.mark.parametrize(
    ("said", "fix"),
    [
        ("sbatch: error: invalid partition specified: none", "set launcher.partition"),
        (
            "sbatch: error: Batch job submission failed: Invalid account or account/partition combination specified",
            "set launcher.account",
        ),
        (
            "sbatch: error: Batch job submission failed: Requested node configuration is not available",
            "lower launcher.cpus_per_task",
        ),
        (
            "sbatch: error: Batch job submission failed: Invalid generic resource (gres) specification",
            "set launcher.gpus_per_node=0",
        ),
        ("sbatch: error: QOSMaxSubmitJobPerUserLimit", "wait for jobs to end"),
        (
            "sbatch: error: Batch job submission failed: Requested time limit is invalid (missing or exceeds some "
            "limit)",
            "lower launcher.timeout_min",
        ),
        (
            "sbatch: error: Batch job submission failed: Job violates accounting/QOS policy (job submit limit, user's "
            "size and/or time limits)",
            "wait for jobs to end",
        ),
        ("sbatch: error: Batch job submission failed: Memory required by task is not available", "lower launcher.cpus"),
        ("sbatch: error: Batch job submission failed: Invalid feature specification", "set launcher.constraint"),
        (
            "sbatch: error: Batch job submission failed: Unable to contact slurm controller (connect failure)",
            "wait until scontrol ping",
        ),
        ("sbatch: error: something new", "see what sbatch says"),
    ],
)
def test_a_refusal_has_the_words_of_sbatch_and_a_fix(tmp_path: Path, programs: Any, said: str, fix: str) -> None:
    programs(sbatch=f"print({said!r}, file=sys.stderr)\nraise SystemExit(1)", srun="")
    folders = folders_of(tmp_path)
    [refused] = slurm.submit(folders, [launchers()] * 2, Path("/code/12ab"))
    assert refused.folders == folders
    assert refused.reason.startswith(f"sbatch: {said.removeprefix('sbatch: error: ')}\n")
    assert f"\n  fix: {fix}" in refused.reason
    assert [jobs.history(folder) for folder in folders] == [[], []]


def test_a_machine_without_slurm_is_told_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ResourceError, match=r"sbatch and srun cannot be found.*\n  fix: start it on a login node"):
        slurm.require_slurm()


def test_the_scheduler_is_asked_once_and_what_is_live_counts(programs: Any) -> None:
    here = programs(
        sacct="print('7_0|COMPLETED|None|n1|0:0\\n7_1|CANCELLED by 0|None|n2|0:15\\n7_2|PREEMPTED|None|n1|0:0')",
        squeue="print('7_2|PENDING|BeginTime|\\n7_3|RUNNING|None|n[1-2]')",
    )
    states = scheduler_states(["7_0", "7_1", "7_2", "7_3"])
    assert states is not None
    assert {job: one["state"] for job, one in states.items()} == {
        "7_0": "COMPLETED",
        "7_1": "CANCELLED",
        "7_2": "PENDING",
        "7_3": "RUNNING",
    }
    assert (states["7_1"]["exit"], states["7_2"]["reason"], states["7_3"]["node"]) == ("0:15", "BeginTime", "n[1-2]")
    assert len((here / "calls").read_text().splitlines()) == 2
    assert scheduler_states([]) == {}


def test_a_job_that_can_never_start_is_taken_back_and_refused(tmp_path: Path, programs: Any) -> None:
    here = programs(sbatch=SBATCH, srun="", scancel="", squeue="print('None\\nPartitionConfig')")
    folders = folders_of(tmp_path)
    [refused] = slurm.submit(folders, [launchers()] * 2, Path("/code/12ab"))
    assert refused.folders == folders
    assert "never start them: PartitionConfig\n  fix: lower launcher.cpus_per_task" in refused.reason
    assert "scancel 100_0 100_1" in (here / "calls").read_text()
    assert jobs.history(folders[0]) == []


def test_a_scheduler_that_does_not_answer_is_none(programs: Any) -> None:
    programs(sacct="raise SystemExit(1)", squeue="raise SystemExit(1)")
    assert scheduler_states(["7"]) is None


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, in a process that SLURM has started for it."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.delenv("SLURM_ARRAY_JOB_ID", raising=False)
    monkeypatch.setattr(arm.signal, "signal", lambda number, handler: None)
    folder = tmp_path / "run"
    folder.mkdir()
    write_status(folder, state="preempted", step=5)
    return folder


def ended(folder: Path, code: int, monkeypatch: pytest.MonkeyPatch) -> tuple[int, dict[str, Any]]:
    """The exit code of a job whose run ends with ``code``, and what it has noted."""
    monkeypatch.setattr("beni.launch.job.main", lambda words: code)
    with pytest.raises(SystemExit) as caught:
        Arm(str(folder))()
    line = jobs.last(jobs.history(folder), "ended")
    assert line is not None
    return int(caught.value.code or 0), line


@pytest.mark.parametrize("code", [0, 1, 2, 70])
def test_a_job_ends_with_the_exit_code_of_its_run(
    job: Path, programs: Any, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    here = programs(scontrol="")
    assert ended(job, code, monkeypatch)[0] == code
    assert not (here / "calls").exists()


STARTS_SLOWLY = """
import sys, time
print("python starts", flush=True)
time.sleep(1)
from beni.launch import arm
arm._run = lambda folder: sys.exit("it ran")
arm.Arm(sys.argv[1])()
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2])
def test_a_signal_that_comes_while_python_starts_is_heard_once_it_has(
    tmp_path: Path, programs: Any, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    programs(scontrol="print('JobId=7 JobName=x JobState=RUNNING Reason=None')")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    line = f"{slurm.HOLD}\nexec ${slurm.HOLDING} {sys.executable} -c '{STARTS_SLOWLY}' {tmp_path}"
    process = subprocess.Popen(["bash", "-c", line], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "python starts\n"
    process.send_signal(number)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == 75, told
    assert f"{number.name} before the run began" in told
    ended = jobs.last(jobs.history(tmp_path), "ended")
    assert ended is not None
    assert ended["next"] == "requeued"


def test_where_signals_cannot_be_held_a_command_is_run_as_it_is() -> None:
    line = f"env() {{ return 125; }}\n{slurm.HOLD}\n${slurm.HOLDING} echo $HOME"
    done = subprocess.run(["bash", "-euc", line], capture_output=True, text=True, env={"HOME": "/here"}, check=True)
    assert done.stdout == "/here\n"


@pytest.mark.parametrize(
    ("state", "again"), [("RUNNING", True), ("SIGNALING", True), ("COMPLETING", False), ("CANCELLED", False)]
)
def test_a_run_that_a_signal_has_ended_is_queued_again_while_slurm_says_running(
    job: Path, programs: Any, monkeypatch: pytest.MonkeyPatch, state: str, again: bool
) -> None:
    here = programs(scontrol=f"print('JobId=7 JobName=x JobState={state} Reason=None')")
    code, line = ended(job, 75, monkeypatch)
    assert code == 75
    assert line["next"] == ("requeued" if again else f"the scheduler says {state}")
    assert ("scontrol requeue 7" in (here / "calls").read_text()) == again


@pytest.mark.parametrize("lost", ["show", "requeue"])
def test_a_controller_that_does_not_answer_at_once_is_asked_again(
    job: Path, programs: Any, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    monkeypatch.setattr(arm, "PAUSES_S", (0, 0, 0))
    here = programs(
        scontrol=f"""
times = (here / "calls").read_text().count({lost!r})
if sys.argv[1] == {lost!r} and times < 3:
    print("slurm_requeue error: Unable to contact slurm controller", file=sys.stderr)
    raise SystemExit(1)
print("JobId=7 JobState=RUNNING")
"""
    )
    assert ended(job, 75, monkeypatch)[1]["next"] == "requeued"
    assert (here / "calls").read_text().count(lost) == 3


def test_a_job_that_is_not_queued_again_does_not_say_that_it_is(
    job: Path, programs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(arm, "PAUSES_S", (0, 0))
    programs(
        scontrol="""
if sys.argv[1] == "requeue":
    print("Access denied", file=sys.stderr)
    raise SystemExit(1)
print("JobId=7 JobState=RUNNING")
"""
    )
    assert ended(job, 75, monkeypatch)[1]["next"] == "scontrol requeue: Access denied"
    assert "not queued again: scontrol requeue: Access denied" in capsys.readouterr().err


def test_a_job_whose_end_no_disk_notes_is_queued_again(
    job: Path, programs: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (job / "jobs.jsonl").mkdir()  # nothing can be appended to it
    here = programs(scontrol="print('JobId=7 JobState=RUNNING')")
    monkeypatch.setattr("beni.launch.job.main", lambda words: 75)
    with pytest.raises(SystemExit) as caught:
        Arm(str(job))()
    assert caught.value.code == 75
    assert "scontrol requeue 7" in (here / "calls").read_text()
    said = capsys.readouterr().err
    assert "that the job has started is not noted" in said
    assert "that the job has ended is not noted" in said


def test_a_start_of_which_no_note_was_taken_is_not_superseded_by_the_one_before(job: Path) -> None:
    jobs.note(job, "started", job="7", node="n1", attempt=0, step=0)
    assert not superseded(job, 1)


def test_the_last_element_of_an_array_which_has_the_number_of_the_array_asks_for_itself_alone(
    job: Path, programs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    here = programs(
        scontrol="print('JobId=9 JobState=RUNNING' if sys.argv[-1] == '7_1' else 'JobState=RUNNING\\nJobState=PENDING')"
    )
    assert ended(job, 75, monkeypatch)[1]["next"] == "requeued"
    assert [line.split()[-1] for line in (here / "calls").read_text().splitlines()] == ["7_1", "7_1"]


def test_a_run_that_saves_no_step_in_two_starts_is_not_queued_again(
    job: Path, programs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = programs(scontrol="print('JobId=7 JobState=RUNNING')")
    assert ended(job, 75, monkeypatch)[1]["next"] == "requeued"
    assert "2 starts have saved no step" in ended(job, 75, monkeypatch)[1]["next"]
    assert (here / "calls").read_text().count("requeue") == 1


def test_other_processes_of_a_run_end_without_an_error_so_that_the_first_can_ask(
    job: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_PROCID", "1")
    monkeypatch.setattr("beni.launch.job.main", lambda words: 75)
    with pytest.raises(SystemExit) as caught:
        Arm(str(job))()
    assert caught.value.code == 0
    assert jobs.history(job) == []


def test_a_start_that_another_one_has_taken_over_is_not_queued_again(
    job: Path, programs: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs(scontrol="print('JobId=7 JobState=RUNNING')")

    def main(words: list[str]) -> int:
        jobs.note(job, "started", job="7", node="n2", attempt=1, step=0)
        assert superseded(job, 0)
        return 75

    monkeypatch.setattr("beni.launch.job.main", main)
    with pytest.raises(SystemExit):
        Arm(str(job))()
    line = jobs.last(jobs.history(job), "ended")
    assert line is not None
    assert line["next"] == "another start of the run has taken over"


def test_the_table_of_a_study_is_read_by_people_and_scripts(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "study" / "run"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text("a: 1\n")
    write_status(folder, state="finished", step=5, steps=5)
    done = subprocess.run(
        [sys.executable, "-m", "beni.launch", "status", str(folder.parent)], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "1 run: 1 finished"
    assert "5/5" in done.stdout
    error = {"type": "DataError", "message": "row 3", "traceback": ""}
    (folder / "status.json").write_text(json.dumps({"state": "failed", "step": 2, "steps": 5, "error": error}))
    done = subprocess.run([sys.executable, "-m", "beni.launch", "status", str(folder)], capture_output=True, text=True)
    assert done.returncode == 1
    assert "row 3" in done.stdout
