"""Signatures are read from source: nothing is imported."""

import ast
import sys
from pathlib import Path

import pytest

from beni.config.signature import Key, keys_of

SOURCE = """
import missing_package  # importing this module would fail
from somewhere import Imported


class Part:
    def __init__(self, tokens, dim=3, *, depth: int, name: "str | None" = None, rate: float = 0.5, free=1):
        pass

    def forward(self, *, not_a_key: int):
        pass


class Bare:
    pass


class Twice:
    def __init__(self, *, old: int):
        pass


class Twice:
    def __init__(self, *, new: int):
        pass


def make(tokens, *, width: int | None):
    pass


value = 3
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package whose import fails, with a module ``parts``; its name is new to every test, since reading is cached."""
    name = f"parts_of_{abs(hash(str(tmp_path)))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").write_text("raise AssertionError('imported')\n")
    (tmp_path / name / "parts.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_the_keys_are_the_keyword_only_arguments_with_their_types(package: str) -> None:
    assert keys_of(f"{package}.parts.Part") == {
        "depth": Key("depth", "int", True),
        "name": Key("name", "'str | None'", False),
        "rate": Key("rate", "float", False),
        "free": Key("free", "Any", False),
    }


def test_a_function_is_a_part_too(package: str) -> None:
    assert keys_of(f"{package}.parts.make") == {"width": Key("width", "int | None", True)}


def test_a_class_without_a_constructor_has_no_keys(package: str) -> None:
    assert keys_of(f"{package}.parts.Bare") == {}


def test_the_last_definition_counts_as_in_python(package: str) -> None:
    assert list(keys_of(f"{package}.parts.Twice")) == ["new"]


@pytest.mark.parametrize("name", ["Imported", "value", "missing_package", "Nothing"])
def test_a_name_that_the_module_does_not_define_is_refused(package: str, name: str) -> None:
    with pytest.raises(LookupError, match=f"defines no class or function {name}"):
        keys_of(f"{package}.parts.{name}")


@pytest.mark.parametrize("target", ["{}.nowhere.Part", "{}.parts.Part.Inner", "no_such_package.Part", "Part", "", "."])
def test_a_module_that_does_not_exist_is_refused(package: str, target: str) -> None:
    with pytest.raises(LookupError, match="there is no module"):
        keys_of(target.format(package))


def test_nothing_is_imported_for_it(package: str) -> None:
    keys_of(f"{package}.parts.Part")
    assert [name for name in sys.modules if name.startswith(package)] == []


def test_built_in_modules_have_no_source_and_are_refused() -> None:
    with pytest.raises(LookupError, match="there is no module"):
        keys_of("sys.exit")


def test_an_annotation_is_source_that_parses() -> None:
    for key in keys_of("beni.resampler.perceiver.Perceiver").values():
        ast.parse(key.annotation, mode="eval")
