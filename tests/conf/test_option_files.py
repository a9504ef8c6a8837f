"""A file of options that cannot be read is answered with its name, the line and a fix, whatever is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from beni.config.compose import compose
from beni.errors import ConfigError
from beni.paths import conf_dir

HEAD = "# @package _global_\n"
MANY = "\n".join(f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 12))

FAULTS: dict[str, tuple[str | bytes, str, str]] = {
    "a bracket that stays open": (HEAD + "train: {steps: 3\n", "line 3: expected ',' or '}'", "close the bracket"),
    "a tab": (HEAD + "train:\n\tsteps: 3\n", "line 3", "indent with blanks"),
    "a key twice": (HEAD + "train: {steps: 3}\ntrain: {seed: 2}\n", "line 3: found duplicate key train", "keep one"),
    "another encoding": ((HEAD + "study: {name: é}\n").encode("latin-1"), "line 2: the file is not UTF-8", "UTF-8"),
    "two bytes a letter": ((HEAD + "study: {name: x}\n").encode("utf-16"), "line 1: the file is not UTF-8", "UTF-8"),
    "a tag that runs code": (
        HEAD + "train: !!python/object/apply:os.system [ls]\n",
        "line 2: the tag",
        "leave the tag",
    ),
    "a tag of one's own": (HEAD + "train: !mine {steps: 3}\n", "line 2: the tag !mine", "leave the tag out"),
    "a set": (HEAD + "train: !!set {a, b}\n", "line 2: the tag", "leave the tag out"),
    "a NUL": (HEAD + "train: {steps: 3}\n\0", "line 3: a character that no text has (#x0000)", "remove it"),
    "deep mappings": (HEAD + "a: " * 1 + "{a: " * 60 + "1" + "}" * 60, "line 2: more than 40 levels", "smaller"),
    "very deep lists": (HEAD + "a: " + "[" * 5000 + "]" * 5000, "nested too deeply", "40 levels"),
    "aliases of aliases": (HEAD + "x0: &x0 [1]\n" + MANY, "more than 20000 values", "without aliases"),
    "an alias of itself": (HEAD + "train: &a [*a]\n", "an alias that holds itself", "without aliases"),
    "an alias of nothing": (HEAD + "train: *nothing\n", "line 2: found undefined alias", "in quotes"),
    "two documents": (HEAD + "train: {steps: 3}\n---\ntrain: {steps: 4}\n", "another document", "leave out ---"),
    "a list": (HEAD + "- 1\n", "line 2: it holds a list", "KEY: VALUE"),
    "a text": (HEAD + "hello\n", "line 2: it holds the one value 'hello'", "KEY: VALUE"),
    "a number as key": (HEAD + "1: 2\n", "line 2: the key '1' is not text", "in quotes"),
    "no key": (HEAD + "? \n: 2\n", "line 2: the key ? is not text", "write a word"),
    "a list as key": (HEAD + "? [1, 2]\n: 2\n", "line 2: the key ? is not text", "write a word"),
    "a merge of a value": (HEAD + "train: {<<: 5}\n", "line 2: expected a mapping", "in quotes"),
    "an interpolation that stays open": (HEAD + "study: {name: '${x'}\n", "x.yaml: ", "${"),
    "defaults that are text": (HEAD + "defaults: stamps\n", "line 2: defaults is not a list", "as a list"),
    "defaults that are a mapping": (HEAD + "defaults: {vision: clip}\n", "line 2: defaults is not a list", "as a list"),
    "a list in defaults": (HEAD + "defaults:\n  - [1]\n", "line 3: an entry of defaults", "GROUP: OPTION"),
    "two groups in one entry": (
        HEAD + "defaults:\n  - {a: b, c: d}\n",
        "line 3: an entry of defaults",
        "GROUP: OPTION",
    ),
    "a number as option": (HEAD + "defaults:\n  - override /vision: 3\n", "line 3: the option 3", "GROUP: OPTION"),
    "defaults that name the file": (
        HEAD + "defaults:\n  - x\n",
        "experiment/x -> experiment/x",
        "leave experiment/x out",
    ),
    "defaults that name the run": (HEAD + "defaults:\n  - /train\n", "lead back", "out of the defaults of"),
    "no slash in an override": (
        HEAD + "defaults:\n  - override vision: clip\n",
        "override vision",
        "override /vision:",
    ),
    "no override": (HEAD + "defaults:\n  - /vision: clip\n", "vision is given a second option", "override /vision:"),
    "an option among the values": (
        HEAD + "vision: clip\n",
        "line 2: vision: clip is an option",
        "override /vision: clip",
    ),
    "a section without keys": (HEAD + "train:\n", "line 2: train is a section", "leave train out"),
    "a section that is a list": (HEAD + "vision: [a]\n", "line 2: vision is a section", "leave vision out"),
    "no package": ("train: {steps: 3}\n", "line 1: it has no '# @package _global_'", "first line"),
    "a misspelt package": (
        "# @package _globl_\ntrain: {steps: 3}\n",
        "line 1: it has the package _globl_",
        "first line",
    ),
    "a package further down": (
        "# Mine.\n" + HEAD + "train: {steps: 3}\n",
        "line 2: # @package is read in the first line only",
        "move it",
    ),
    "a package of three words": ("# @package _global_ x\ntrain: {steps: 3}\n", "is not '# @package NAME'", "_global_"),
    "a dotted key": (
        HEAD + "train.guard.spike: skip\n",
        "train.guard.spike has a dot",
        "train: {guard: {spike: skip}}",
    ),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "experiment").mkdir()
    return tmp_path


def write(folder: Path, content: str | bytes, name: str = "experiment/x") -> None:
    path = folder / f"{name}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_an_experiment_is_named_with_its_file_and_a_fix(folder: Path, fault: str) -> None:
    content, what, fix = FAULTS[fault]
    write(folder, content)
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=x"], config_dir=folder)
    problem, _, mended = str(caught.value).partition("\n  fix: ")
    assert what in problem
    assert fix in mended
    assert "\n" not in problem


@pytest.mark.parametrize("fault", ["a bracket that stays open", "another encoding", "a NUL", "a tag of one's own"])
def test_a_fault_in_an_option_of_ones_own_is_named_too(folder: Path, fault: str) -> None:
    content, what, _ = FAULTS[fault]
    write(folder, content, "resampler/mine")
    with pytest.raises(ConfigError, match=r"mine\.yaml") as caught:
        compose(["resampler=mine"], config_dir=folder)
    assert what in str(caught.value)


@pytest.mark.parametrize("fault", ["a tab", "no package", "a dotted key", "defaults that name the run"])
def test_a_fault_in_the_values_of_a_machine_is_named_too(folder: Path, fault: str) -> None:
    write(folder, FAULTS[fault][0], "local/default")
    with pytest.raises(ConfigError, match="local/default"):
        compose([], config_dir=folder)


@pytest.mark.parametrize("content", ["", "# Nothing yet.\n", HEAD])
def test_a_file_without_values_changes_nothing(folder: Path, content: str) -> None:
    write(folder, content, "local/default")
    assert compose([], config_dir=folder)["train"] == compose([])["train"]


@pytest.mark.parametrize(
    ("written", "read"),
    [
        ("log: {profile: 1:2}", ("log", "profile", "1:2")),
        ("study: {name: 2020-01-01}", ("study", "name", "2020-01-01")),
    ],
)
def test_a_value_is_read_as_on_a_command_line(folder: Path, written: str, read: tuple[str, str, str]) -> None:
    write(folder, HEAD + written + "\n")
    section, key, value = read
    run = compose(["experiment=x"], config_dir=folder)
    assert run[section][key] == compose([f"{section}.{key}={value}"])[section][key] == value


def test_a_byte_order_mark_is_no_fault(folder: Path) -> None:
    write(folder, ("\ufeff" + HEAD + "train: {steps: 3}\n").encode())
    assert compose(["experiment=x"], config_dir=folder)["train"]["steps"] == 3


def test_an_option_named_like_one_of_beni_is_not_shadowed_in_silence(folder: Path) -> None:
    ours = (conf_dir() / "optim" / "lion.yaml").read_text()
    write(folder, ours, "optim/lion")
    assert compose(["optim=lion"], config_dir=folder)["optim"]["optimizer"] == "lion"  # the same, so nothing is lost
    write(folder, ours.replace("clip: 1.0", "clip: 2.0"), "optim/lion")
    with pytest.raises(
        ConfigError, match=r"(?s)optim/lion is in two folders.*fix: give the option of your own another"
    ):
        compose(["optim=lion"], config_dir=folder)


def test_a_file_with_another_ending_is_no_option(folder: Path) -> None:
    (folder / "experiment" / "mine.yml").write_text(HEAD)
    with pytest.raises(ConfigError) as caught:
        compose(["experiment=mine"], config_dir=folder)
    assert "mine" not in str(caught.value).partition("expected one of")[2].partition("\n")[0]


def test_a_folder_of_options_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"(?s)nowhere .*is not a folder of options.*fix: "):
        compose([], config_dir=tmp_path / "nowhere")


def test_a_folder_of_options_may_have_quotes_in_its_name(tmp_path: Path) -> None:
    folder = tmp_path / "it's, [mine]"
    (folder / "experiment").mkdir(parents=True)
    write(folder, HEAD + "train: {steps: 3}\n")
    assert compose(["experiment=x"], config_dir=folder)["train"]["steps"] == 3
