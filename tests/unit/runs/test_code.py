"""Which code a run has run stands in its folder, whoever started it, and a copy lies in its study."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from beni.runs import code, identity
from beni.runs.code import exports, take_snapshot
from beni.runs.folder import RunFolder
from beni.runs.identity import origin, run_folder


@pytest.fixture
def package(tmp_path, monkeypatch):
    """package(text): as in a process that begins now with a package of this content; returns its hash."""

    def edited(text, folder=tmp_path / "src"):
        made = folder / "beni"
        made.mkdir(parents=True, exist_ok=True)
        (made / "part.py").write_text(text)
        monkeypatch.setattr(code, "PACKAGE", made)
        monkeypatch.setattr(identity, "PACKAGE", made)
        code.running_code.cache_clear()
        return code.running_code()

    yield edited
    code.running_code.cache_clear()


def freeze(run):
    """What a launcher leaves in a folder, of the code that runs now."""
    folder = run_folder(run)
    folder.mkdir(parents=True)
    (folder / "origin.json").write_text(json.dumps(origin(run, "the command")))
    return folder


def saved(folder):
    """Leaves a checkpoint of step 3, and the proof of what it goes on with."""
    step = folder.path / "checkpoints" / "step_00000003"
    step.mkdir(parents=True)
    (step / "complete.json").touch()
    proof = {"data_fingerprint": "d", "template_hash": "t", "hashes": {"data_order": "o", "init": {}}}
    folder.identity |= proof
    folder.write_json("identity.json", folder.identity)


def test_a_run_that_nobody_froze_keeps_a_copy_of_its_code_and_its_command(tiny_run, package):
    own = package("a = 1")
    with RunFolder(tiny_run(), writes=True).opened() as folder:
        assert (folder.path.parent / ".code" / own / "beni" / "part.py").read_text() == "a = 1"
        known = json.loads((folder.path / "origin.json").read_text())
        assert (known["code"], known["command"]) == (own, "beni.train(run)")
        assert folder.require_same([]) == []


def test_a_run_that_begins_with_other_code_than_it_was_frozen_with_says_so_and_is_that_of_the_other(tiny_run, package):
    frozen = package("a = 1")
    freeze(tiny_run())
    ran = package("a = 2")
    with RunFolder(tiny_run(), writes=True).opened() as folder:
        assert folder.require_same([]) == [f"starts with code {ran}, not {frozen}, which it was frozen with"]
        assert (folder.identity["code"], folder.identity["command"]) == (ran, "the command")
        assert (folder.path.parent / ".code" / ran / "beni" / "part.py").read_text() == "a = 2"
    with RunFolder(tiny_run(), writes=True).opened() as folder:  # it has been told
        assert folder.require_same([]) == []


def test_a_run_that_goes_on_with_other_code_than_it_was_frozen_with_says_so(tiny_run, package):
    frozen = package("a = 1")
    freeze(tiny_run())
    with RunFolder(tiny_run(), writes=True).opened() as folder:
        saved(folder)
    ran = package("a = 2")
    with RunFolder(tiny_run(), writes=True).opened() as folder:
        folder.identity |= {"data_fingerprint": "d", "template_hash": "t", "hashes": {"data_order": "o", "init": {}}}
        [told] = folder.require_same([])
        assert told == f"resumes after step 3 with other code (code: {frozen!r} -> {ran!r})"
        assert folder.identity["code"] == frozen
        assert [one["code"] for one in folder.identity["other_code"]] == [ran]


def test_what_is_edited_while_a_process_runs_is_not_its_code(tiny_run, package, tmp_path):
    own = package("a = 1")
    with RunFolder(tiny_run(), writes=True).opened() as first:  # as of a sweep with launcher=debug
        (tmp_path / "src" / "beni" / "part.py").write_text("a = 2")
    with RunFolder(tiny_run("train.seed=1"), writes=True).opened() as second:
        assert (first.identity["code"], second.identity["code"]) == (own, own)
        assert second.require_same([]) == []
    with RunFolder(tiny_run("study.name=other"), writes=True).opened() as other:
        assert other.identity["code"] == own
        assert other.require_same([]) == [f"code {own} was edited since this process began; no copy of it is kept"]


def test_the_commit_of_a_checkout_in_which_a_copy_happens_to_lie_is_not_that_of_the_copy(tmp_path, package):
    for words in (
        ["init", "-q"],
        ["-c", "user.name=n", "-c", "user.email=e", "commit", "-q", "--allow-empty", "-m", "m"],
    ):
        subprocess.run(["git", "-C", str(tmp_path), *words], check=True)
    package("a = 1")
    assert identity._git()["commit"] is not None
    package("a = 1", take_snapshot(tmp_path / "runs" / "study"))
    assert identity._git() == {"commit": None, "dirty": None}


@pytest.mark.parametrize("before", ["/own/packages", None])
def test_a_copy_comes_before_what_a_job_script_puts_on_the_path(monkeypatch, before):
    if before is None:
        monkeypatch.delenv("PYTHONPATH", raising=False)
    else:
        monkeypatch.setenv("PYTHONPATH", before)
    first, last = exports(Path("/study of mine/.code/12ab"))
    script = [*first, "export PYTHONPATH=/opt/site${PYTHONPATH:+:$PYTHONPATH}", *last]
    shown = "\n".join([*script, 'echo "$PYTHONPATH $PYTHONSAFEPATH"'])
    told = subprocess.run(["bash", "-c", shown], capture_output=True, text=True, check=True, env={}).stdout
    rest = "" if before is None else f":{before}"
    assert told == f"/study of mine/.code/12ab:/opt/site{rest} 1\n"
    nothing = subprocess.run(
        ["bash", "-c", "\n".join([*last, "echo $PYTHONPATH"])], capture_output=True, text=True, env={}
    )
    assert nothing.stdout == "/study of mine/.code/12ab\n"
