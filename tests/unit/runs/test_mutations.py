"""Damaged run folders, drawn from a seed: every reader names the file, none ends in a traceback or says nothing.

``BENI_MUTATIONS=500 python -m pytest tests/unit/runs/test_mutations.py`` draws so many cases for each test.
"""

from __future__ import annotations

import json
import os
import random
import shutil

import pytest

from beni.analysis.render import render_report
from beni.compare import main
from beni.errors import ResumeError
from beni.runs.folder import RunFolder
from beni.runs.frozen import load_frozen, save_frozen
from beni.runs.identity import provenance, relevant
from beni.runs.status import write_status
from support.damage import damage

CASES = int(os.environ.get("BENI_MUTATIONS", "40"))


def test_a_comparison_shows_a_damaged_run_among_the_others_and_names_the_file(make_run, tmp_path, capsys):
    make_run("none", 0)
    scored = {"scored": {"step": 600, "rows": 80}}
    study = make_run("perceiver", 0, status=scored).parent
    name = sorted(path.name for path in study.iterdir())[1]
    kept = tmp_path / "kept"
    study.rename(kept)
    silent = []
    for case in range(CASES):
        shutil.copytree(kept, study)
        folder = next(path for path in study.iterdir() if "perceiver" in path.name)
        file, how = damage(folder, random.Random(case))
        assert main([str(study)]) == 0, (case, file, how)
        shown = capsys.readouterr().out
        if file not in shown or folder.name not in shown.replace("\n", ""):
            silent.append((case, file, how))
        assert render_report(folder).is_file()
        shutil.rmtree(study)
    assert (silent, bool(name)) == ([], True)


def test_a_run_goes_on_with_a_damaged_folder_only_where_it_says_so(tiny_run, tmp_path):
    run = tiny_run()
    folder = RunFolder(run, writes=True)
    proof = {"data_fingerprint": "d", "template_hash": "t", "hashes": {"data_order": "o", "init": {"llm": "w"}}}
    folder.path.mkdir(parents=True)
    save_frozen(folder.path, run)
    (folder.path / "identity.json").write_text(json.dumps(provenance(run) | proof))
    write_status(folder.path, state="preempted", step=2, steps=run["train"]["steps"], seconds=3.5, wall_s=2.0)
    (folder.path / "checkpoints" / "step_00000002").mkdir(parents=True)
    (folder.path / "checkpoints" / "step_00000002" / "complete.json").write_text('{"files": {}}')
    kept = tmp_path / "kept"
    shutil.copytree(folder.path, kept)
    silent = []
    for case in range(CASES):
        shutil.rmtree(folder.path)
        shutil.copytree(kept, folder.path)
        file, how = damage(folder.path, random.Random(case), ("config.yaml", "identity.json", "status.json"))
        again, told = RunFolder(run, writes=True), []
        again.identity |= proof
        again.backlog.tell = told.append
        try:
            assert not again.finished()
            with again.opened():
                again.require_same(())
        except ResumeError as error:
            told += [str(error)] if "fix: " in str(error) else []
        rewritten = file == "config.yaml" and load_same(folder.path, run)
        if not any(file in text for text in told) and not rewritten and not (file == "status.json" and how == "gone"):
            silent.append((case, file, how))
    assert silent == []


def load_same(folder, run) -> bool:
    """Whether the frozen config is the run again: it was gone and is written anew, or its change changes no result."""
    try:
        frozen = load_frozen(folder)
    except ResumeError:
        return False
    return relevant(frozen) == relevant(run)


@pytest.mark.parametrize("identity", ["the same", "gone"])
def test_another_runs_folder_under_this_name_is_not_taken_for_this_run_finished(tiny_run, identity):
    other, run = RunFolder(tiny_run("train.steps=7"), writes=True), tiny_run()
    with other.opened():
        other.write_json("identity.json", other.identity)
        other.update(state="finished")
    mine = RunFolder(run, writes=True)
    shutil.copytree(other.path, mine.path)
    if identity == "gone":
        (mine.path / "config.yaml").unlink()
    with pytest.raises(ResumeError, match=r"holds another run(.|\n)*fix: move .* away, or set checkpoint.resume=never"):
        mine.finished()
