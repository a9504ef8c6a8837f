"""The page that draws the house names every room of it, and none that is not there."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml

from beni.components import PART_GROUPS
from beni.paths import PACKAGE, conf_dir
from support.imports import layers

CHECKOUT = PACKAGE.parent.parent
PAGE = CHECKOUT / "docs" / "dev" / "architecture.md"


@pytest.fixture(scope="module")
def page() -> str:
    if not PAGE.is_file():
        pytest.skip("not a source checkout: there is no docs/")
    return PAGE.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def rooms(page: str) -> dict[str, list[str]]:
    """Room -> what the table says is in it."""
    table = page.partition("## The rooms")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| `([\w/]+)` \|[^|]+\|(.*)\|$", table, re.MULTILINE)
    return {name: re.findall(r"`(\w+)`", inside) for name, inside in rows}


def inside(folder: Path) -> set[str]:
    """Modules and packages that stand directly in a package."""
    found = {path.stem for path in folder.glob("*.py") if path.name != "__init__.py"}
    return found | {path.parent.name for path in folder.glob("*/__init__.py")}


def options(group: str) -> set[str]:
    """Modules of a part group that hold the class of an option."""
    nodes = [yaml.safe_load(path.read_text()) for path in (conf_dir() / group).glob("*.yaml")]
    return {node["_target_"].split(".")[2] for node in nodes if node["_target_"].count(".") == 3}


def test_every_module_and_package_of_beni_is_a_room_and_every_room_is_there(rooms: dict[str, list[str]]) -> None:
    assert {name for name in rooms if "/" not in name} == inside(PACKAGE)
    nested = [name for name in rooms if "/" in name]
    assert [name for name in nested if not (PACKAGE / name / "__init__.py").is_file()] == []


def test_a_room_names_all_that_is_in_it_and_nothing_else(rooms: dict[str, list[str]]) -> None:
    """But for files of options: adding a part edits nothing."""
    for room, named in rooms.items():
        folder = PACKAGE / room
        expected = inside(folder) if folder.is_dir() else set()
        if room in PART_GROUPS:
            expected -= options(room)
        assert len(named) == len(set(named)), f"{room} names something twice"
        assert set(named) == expected, f"the row of {room} in docs/dev/architecture.md"


def test_a_package_within_a_room_has_a_row_of_its_own(rooms: dict[str, list[str]]) -> None:
    missing = [
        f"{room}/{name}"
        for room, named in rooms.items()
        for name in named
        if (PACKAGE / room / name).is_dir() and f"{room}/{name}" not in rooms
    ]
    assert missing == []


def test_the_floors_are_the_layers_of_the_contract(page: str) -> None:
    drawn = page.partition('```text title="floors"')[2].partition("```")[0]
    floors = [set(re.split(r"\s{3,}", line[1:].strip())[0].split()) for line in drawn.strip().splitlines()]
    contracts = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    declared = next(contract["layers"] for contract in contracts if contract["id"] == "layers")
    there = inside(PACKAGE)
    assert floors == [layer & there for layer in layers(declared) if layer & there]


def test_files_that_the_page_names_exist(page: str) -> None:
    roots = (CHECKOUT, PACKAGE, PACKAGE.parent)
    names = set(re.findall(r"`((?:\w+/)+\w+\.(?:py|md|toml|json|yaml))`", page))
    assert names, "the page names files"
    there = {name for name in names if any((root / name).exists() for root in roots)}
    assert {name for name in names - there if not re.search(r"/x\.", name)} == set()
