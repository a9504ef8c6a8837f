"""Names of what a run folder holds stand in one place, and its files are whole whoever replaces them."""

from __future__ import annotations

import ast
import threading

import pytest

from beni.paths import PACKAGE
from beni.runs import files

NAMES = {value for name, value in vars(files).items() if name.isupper() and not name.startswith("_")}


def spelled_out(path):
    """Names of a run folder's files that a module spells out: as a whole string, or behind a slash."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) and isinstance(node.right, ast.Constant):
            yield from {node.right.value} & NAMES
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from {node.value} & {name for name in NAMES if "." in name}


def test_no_other_module_spells_the_name_of_a_file_of_a_run_folder():
    found = {str(path.relative_to(PACKAGE)): set(spelled_out(path)) for path in PACKAGE.rglob("*.py")}
    assert {path: names for path, names in found.items() if names} == {"runs/files.py": {n for n in NAMES if "." in n}}


def test_only_the_owner_of_a_status_names_its_file():
    naming = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.Name) and node.id == "STATUS")
        or (isinstance(node, ast.Attribute) and node.attr == "STATUS")
    }
    # the folder tells its backlog which file waits, the reader knows a run folder by it
    assert naming == {"runs/files.py", "runs/status.py", "runs/folder.py", "runs/read.py"}


def test_every_name_is_in_the_drawing():
    assert [name for name in NAMES - {files.COMPLETE} if name not in (files.__doc__ or "")] == []


def test_checkpoints_are_found_in_the_order_of_their_steps(tmp_path):
    for step in (10, 2, 300):
        (tmp_path / files.checkpoint_name(step)).mkdir()
    (tmp_path / "step_00000007").touch()
    (tmp_path / ".partial_00000009").mkdir()
    assert list(files.checkpoints_in(tmp_path)) == [2, 10, 300]
    assert files.checkpoints_in(tmp_path / "none") == {}


def test_a_file_that_two_threads_replace_at_once_is_whole(tmp_path):
    path = tmp_path / "status.json"
    texts = ["a" * 50_000, "b" * 70_000]
    together = threading.Barrier(2)

    def write(text):
        together.wait()
        for _ in range(50):
            files.replace(path, text)

    threads = [threading.Thread(target=write, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in texts
    assert list(tmp_path.iterdir()) == [path]


def test_a_disk_that_is_full_leaves_the_file_as_it_was_and_nothing_beside_it(tmp_path, monkeypatch):
    files.replace(tmp_path / "a.json", "1")

    def fails(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", fails)
    with pytest.raises(OSError, match="No space left"):
        files.replace(tmp_path / "a.json", "2")
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "1"


def test_what_killed_processes_left_is_removed(tmp_path):
    for name in (".status.json.7-8.partial", "status.json", ".kept"):
        (tmp_path / name).touch()
    files.remove_partials(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [".kept", "status.json"]
