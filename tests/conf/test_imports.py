"""Law 3: arrows between modules point down and never close a circle, wherever in a file the import stands."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from beni.paths import PACKAGE
from support.imports import against, between_rooms, circles, import_graph, layers, modules

SRC = PACKAGE.parent
PYPROJECT = SRC.parent / "pyproject.toml"
LINES = 400
"""The longest that a file may be."""
FUNCTION_LINES = 60
"""The longest that a function may be, its docstring not counted."""


@pytest.fixture(scope="module")
def graph():
    return import_graph(SRC)


@pytest.fixture(scope="module")
def contracts():
    if not PYPROJECT.is_file():
        pytest.skip("not a source checkout: there is no pyproject.toml")
    linter = tomllib.loads(PYPROJECT.read_text())["tool"]["importlinter"]
    return {contract["id"]: contract for contract in linter["contracts"]}


def test_no_modules_import_each_other_in_a_circle(graph):
    assert circles(graph) == []


def test_no_rooms_of_a_package_import_each_other_in_a_circle(graph):
    """Nor do packages: what stands side by side has an order in which it can be read."""
    packages = [name for name, path in modules(SRC).items() if path.stem == "__init__"]
    assert {name: found for name in packages if (found := circles(between_rooms(graph, name)))} == {}


def test_no_import_points_against_the_layers(graph, contracts):
    assert against(graph, layers(contracts["layers"]["layers"]), "beni") == []


def test_every_package_and_module_has_its_layer(graph, contracts):
    named = set().union(*layers(contracts["layers"]["layers"]))
    assert {name.split(".")[1] for name in graph if name.startswith("beni.")} <= named


def test_the_torch_free_rooms_have_doors_inside_functions_only(graph, contracts):
    told = contracts["torch-free"]["ignore_imports"]
    assert told == [
        "beni.launch.job -> beni.run",
        "beni.launch.job -> beni.model.costing.plan",
        "beni.launch.launch -> beni.run",
    ]
    beyond = ("beni.run", "beni.model")
    doors = {f"{door} -> {room}" for door in graph if door.startswith("beni.launch.") for room in graph[door]}
    assert {one for one in doors if one.split(" -> ")[1].startswith(beyond) and "beni.runs" not in one} == set(told)
    for name in ("job", "launch"):
        source = (PACKAGE / "launch" / f"{name}.py").read_text()
        found = re.findall(r"^(.*)from beni(?: import run|\.run import|\.model)", source, re.MULTILINE)
        assert found
        assert all(before and not before.strip() for before in found), "inside a function only"


def test_no_file_is_too_long_to_be_read_at_a_sitting():
    long = {str(path.relative_to(SRC)): len(path.read_text().splitlines()) for path in SRC.rglob("*.py")}
    assert {path: lines for path, lines in long.items() if lines > LINES} == {}


def function_lengths(source: str) -> dict[str, int]:
    lengths = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = len((ast.get_docstring(node, clean=False) or "").splitlines())
            lengths[node.name] = (node.end_lineno or node.lineno) - node.lineno + 1 - docstring
    return lengths


def test_no_function_is_too_long_to_be_read_at_a_glance():
    assert function_lengths('def f():\n    """A\n\n    B"""\n    return 1\n') == {"f": 2}
    long = {path: function_lengths(path.read_text()) for path in SRC.rglob("*.py")}
    found = {f"{path.stem}.{name}": n for path, names in long.items() for name, n in names.items()}
    assert {name: lines for name, lines in found.items() if lines > FUNCTION_LINES} == {}


TREE = {
    "pkg/__init__.py": "",
    "pkg/top.py": "import pkg.low.a\n",
    "pkg/low/__init__.py": "",
    "pkg/low/a.py": "def f():\n    from pkg.low import b\n",
    "pkg/low/b.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from .a import f\n",
    "pkg/low/c.py": "from ..top import low\nfrom .. import side\n",
    "pkg/side.py": "from pkg.low.a import f as g\n",
}


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name, text in TREE.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return tmp_path


def test_imports_count_in_functions_under_type_checking_and_relative_ones(tree):
    found = import_graph(tree)
    assert found["pkg.low.a"] == {"pkg.low.b"}
    assert found["pkg.low.b"] == {"pkg.low.a"}
    assert found["pkg.low.c"] == {"pkg.top", "pkg.side"}
    assert circles(found) == [["pkg.low.a", "pkg.low.b"]]


def test_arrows_up_and_sideways_are_found_and_rooms_in_a_circle(tree):
    found = import_graph(tree)
    ranked = layers(["(top) | (side)", "low"])
    assert against(found, ranked, "pkg") == ["pkg.low.c -> pkg.side", "pkg.low.c -> pkg.top"]
    sideways = against(found, layers(["side", "low | top"]), "pkg")
    assert sorted(sideways) == ["pkg.low.c -> pkg.side", "pkg.low.c -> pkg.top", "pkg.top -> pkg.low.a"]
    assert circles(between_rooms(found, "pkg")) == [["pkg.low", "pkg.side", "pkg.top"]]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["data=captions", "data.path=nowhere"], "data.path=nowhere does not exist"),
        (["data=vqa", "data.path=x.jsonl", "data.images=nowhere"], "data.images=nowhere does not exist"),
        (["data=vqa", "data.path=x.jsonl", "data.heldout_path=nowhere"], "data.heldout_path=nowhere does not exist"),
    ],
)
def test_data_that_are_not_there_are_found_before_torch_is_imported(overrides, says, tmp_path):
    (tmp_path / "x.jsonl").write_text("")
    words = [sys.executable, "-X", "importtime", "-m", "beni.train", *overrides]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=300)
    assert done.returncode == 2
    assert says in done.stderr
    assert not re.search(r"\| +torch$", done.stderr, re.M)
