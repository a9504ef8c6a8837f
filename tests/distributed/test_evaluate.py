"""An evaluation in several processes has the bytes of one, also when it is killed, and nobody waits for who is gone."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from beni.evaluate import main
from beni.run import train
from support.evaluations import SHORT, draw_pictures, questions, varied_run
from support.processes import run_module, start_ranks

pytestmark = pytest.mark.slow

EVERYTHING = "--ablations=blank,shuffled,swapped,noise,dropped"
WORKER = Path(__file__).with_name("evaluating.py")
SECONDS = 300


@pytest.fixture(scope="module")
def folder(tiny_once, tmp_path_factory):
    return varied_run(tiny_once, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    """Words of a command that name ten questions with choices; one picture cannot be read."""
    root = tmp_path_factory.mktemp("data")
    draw_pictures(root)
    content = (root / "3.png").read_bytes()
    (root / "3.png").write_bytes(content[: len(content) - 50])  # its size can still be read
    return questions(root, lambda i: "red", choices=lambda i: ["red", "a blue one", "green or so"][: 2 + i % 2])


@pytest.fixture(scope="module")
def alone(folder, asked, tmp_path_factory):
    """alone(*words): the folder of that evaluation in one process."""
    root, known = tmp_path_factory.mktemp("alone"), {}

    def make(*words):
        if words not in known:
            known[words] = root / str(len(known))
            assert main([str(folder), *asked, *words, f"--out={known[words]}"]) == 0
        return known[words]

    return make


def same(ours, theirs):
    assert sorted(path.name for path in ours.iterdir()) == ["scores.jsonl", "summary.json"]
    for name in ("scores.jsonl", "summary.json"):
        assert (ours / name).read_bytes() == (theirs / name).read_bytes()


def groups_of(folder):
    """Groups in each journal of an evaluation that is under way."""
    return {path.name: path.read_bytes().count(b"\n") - 1 for path in folder.glob("journal*.jsonl")}


@pytest.mark.parametrize(
    "words",
    [
        ("task=exact", SHORT, "--batch-size=2", "--attention=1", EVERYTHING),
        ("task=choice", "--batch-size=5", "--ablations=blank,swapped"),
        ("task=exact", SHORT, "--batch-size=8", "--ablations=none"),
    ],
    ids=["generated, with attention", "multiple choice", "fewer batches than processes"],
)
@pytest.mark.parametrize("world", [2, 3])
def test_several_processes_write_the_bytes_of_one(words, world, folder, asked, alone, tmp_path):
    whole = alone(*words)
    rows = (whole / "scores.jsonl").read_text().splitlines()
    assert len({json.loads(row)["variant"] for row in rows}) == 1 + (
        0 if "none" in words[-1] else words[-1].count(",") + 1
    )
    done = run_module("beni.evaluate", str(folder), *asked, *words, f"--out={tmp_path / 'out'}", world=world)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "out", whole)
    assert done.stdout.count("written: ") == 1
    assert done.stderr.count("1 samples are left out: their images cannot be read") == 1


def test_the_scores_of_training_come_from_two_processes_too(tiny_run):
    run = train(tiny_run("data.heldout=12", "optim.lr=1e-2", "eval.batch_size=3"))
    done = run_module("beni.evaluate", str(run), "--json", world=2)
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout.splitlines()[-1])
    assert (Path(summary["folder"]) / "scores.jsonl").read_bytes() == (run / "scores.jsonl").read_bytes()
    again = run_module("beni.evaluate", str(run), "--json", world=2)
    assert json.loads(again.stdout.splitlines()[-1]) == summary


WORDS = ("task=exact", SHORT, "--batch-size=1", "--ablations=blank,shuffled")


def started(words, *variables):
    """Processes of the command, one for each mapping of variables."""
    return [
        subprocess.Popen(
            [sys.executable, "-m", "beni.evaluate", *words],
            env=os.environ | own,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for own in variables
    ]


def ranks_of(world):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {"WORLD_SIZE": str(world), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [shared | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(world)]


def ended(processes):
    """(exit code, what it said on stderr) of each, all of which end in time."""
    try:
        said = [process.communicate(timeout=SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [(process.returncode, text) for process, text in zip(processes, said, strict=True)]


@pytest.mark.parametrize("world", [1, 2, 3])
def test_two_processes_that_were_killed_are_gone_on_with_by_any_number(world, folder, asked, alone, tmp_path):
    cut = tmp_path / "cut"
    processes = started([str(folder), *asked, *WORDS, f"--out={cut}"], *ranks_of(2))
    until = time.monotonic() + SECONDS
    while not (len(groups_of(cut)) == 2 and min(groups_of(cut).values()) >= 4) and time.monotonic() < until:
        assert all(process.poll() is None for process in processes)
        time.sleep(0.002)
    for process in processes:
        process.send_signal(signal.SIGKILL)
    assert [code for code, _ in ended(processes)] == [-signal.SIGKILL] * 2
    left = groups_of(cut)
    assert not (cut / "summary.json").exists()
    assert 8 <= sum(left.values()) < 30
    with (cut / "journal-1.jsonl").open("a") as file:
        file.write('{"group": 29, "rows": [{"id": "torn"')
    done = run_module("beni.evaluate", str(folder), *asked, *WORDS, f"--out={cut}", world=world)
    assert done.returncode == 0, done.stderr
    same(cut, alone(*WORDS))


@pytest.mark.parametrize(("fault", "code"), [("raises", 1), ("dies", -signal.SIGKILL)])
def test_a_rank_that_fails_ends_the_others_and_what_is_scored_is_kept(fault, code, folder, asked, alone, tmp_path):
    cut = tmp_path / "cut"
    settings = {"words": [str(folder), *asked, *WORDS, f"--out={cut}"], "fault": fault, "after": 3}
    codes, said = start_ranks(WORKER, settings, tmp_path / "seen", 2, SECONDS).end()
    assert codes == [2, code], said
    assert "another process of this evaluation has ended before it was done" in said
    assert "the same command goes on with what is not scored yet" in said
    # rank 0 has scored its half of the ten; of rank 1's one could not be asked, since its picture cannot be read
    assert groups_of(cut) == {"journal.jsonl": 5, "journal-1.jsonl": 4}
    done = run_module("beni.evaluate", str(folder), *asked, *WORDS, f"--out={cut}", world=2)
    assert done.returncode == 0, done.stderr
    same(cut, alone(*WORDS))


def test_a_rank_that_hangs_is_named_and_ends_all(folder, asked, tmp_path):
    hurried = tmp_path / "hurried"
    shutil.copytree(folder, hurried)
    frozen = yaml.safe_load((hurried / "config.yaml").read_text())
    frozen["log"]["watchdog_s"] = 0.6
    (hurried / "config.yaml").write_text(yaml.safe_dump(frozen))
    settings = {"words": [str(hurried), *asked, *WORDS, f"--out={tmp_path / 'cut'}"], "fault": "hangs", "after": 3}
    codes, said = start_ranks(WORKER, settings, tmp_path / "seen", 2, SECONDS).end()
    assert codes == [70, 70], said
    assert "rank 1 hangs in step 1, phase evaluate" in said


def test_a_process_that_is_left_over_keeps_the_folder(folder, asked, tmp_path):
    from beni.runs.lock import lock_of

    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "journal-1.jsonl").touch()
    with lock_of(tmp_path / "out" / "journal-1.jsonl"):
        done = run_module("beni.evaluate", str(folder), *asked, *WORDS, f"--out={tmp_path / 'out'}", world=2)
    assert done.returncode == 2
    assert done.stderr.count("another process evaluates into it") == 2


def test_processes_that_would_score_otherwise_are_refused(folder, asked, tmp_path):
    words = [str(folder), *asked, *WORDS, f"--out={tmp_path / 'out'}"]
    first, second = ranks_of(2)
    processes = [*started(words, first), *started([*words, "--attention=1"], second)]
    for code, said in ended(processes):
        assert code == 2
        assert "processes 0 and 1 would score otherwise: attention differ" in said
    assert not (tmp_path / "out").exists()


def test_processes_of_slurm_share_an_evaluation(folder, asked, alone, tmp_path):
    shared = {"SLURM_NTASKS": "2", "SLURM_JOB_NODELIST": "localhost", "SLURM_JOB_ID": str(os.getpid() % 20000)}
    variables = [shared | {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank)} for rank in range(2)]
    processes = started([str(folder), *asked, *WORDS, f"--out={tmp_path / 'out'}"], *variables)
    assert [code for code, _ in ended(processes)] == [0, 0]
    same(tmp_path / "out", alone(*WORDS))


def test_torchrun_shares_an_evaluation(folder, asked, alone, tmp_path):
    words = ["--nproc-per-node", "2", "-m", "beni.evaluate", str(folder), *asked, *WORDS, f"--out={tmp_path / 'out'}"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", f"--master-port={port}", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS)
    assert done.returncode == 0, done.stderr
    same(tmp_path / "out", alone(*WORDS))
