"""Law 1: the config tree and the source tree mirror each other. These tests walk conf/ and know no option by name."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from beni.components import BACKBONES, COMPONENTS, PART_GROUPS
from beni.config import schema
from beni.config.compose import SPARSE, compose
from beni.config.sections.optim import OPTIMIZERS
from beni.config.signature import keys_of
from beni.config.suggest import MOVED
from beni.errors import ConfigError
from beni.paths import PACKAGE, conf_dir

CONF = conf_dir()
THIRD_PARTY: frozenset[str] = frozenset()
"""Options, as ``group/option``, whose ``_target_`` may live outside their group's package."""

SETTING_GROUPS = ("template", "schedule", "optim", "fsdp", "launcher")
PRESET_GROUPS = ("recipe", "experiment")
"""Groups whose options set other groups."""


def folders() -> list[str]:
    return sorted(path.name for path in CONF.iterdir() if path.is_dir() and path.name != "local")


def options(*groups: str) -> list[str]:
    return [f"{group}/{path.stem}" for group in groups for path in sorted((CONF / group).glob("*.yaml"))]


def text(option: str) -> str:
    return (CONF / f"{option}.yaml").read_text(encoding="utf-8")


def content(option: str) -> dict[str, Any]:
    return yaml.safe_load(text(option)) or {}


def header(option: str) -> str:
    """The comment lines that open the file, without ``# @package``."""
    lines = []
    for line in text(option).splitlines():
        if not line.startswith("#"):
            break
        if not line.startswith("# @package"):
            lines.append(line.removeprefix("#").strip())
    return " ".join(lines).strip()


PARTS = options(*PART_GROUPS)
SETTINGS = options(*SETTING_GROUPS)
PRESETS = options(*PRESET_GROUPS)


def test_every_folder_of_conf_is_a_group_and_every_group_a_folder() -> None:
    assert folders() == sorted((*PART_GROUPS, *SETTING_GROUPS, *PRESET_GROUPS))


def test_every_part_group_is_a_package() -> None:
    assert [group for group in PART_GROUPS if not (PACKAGE / group / "__init__.py").is_file()] == []


def test_train_yaml_lists_every_group_once_and_shows_every_section() -> None:
    tree = yaml.safe_load((CONF / "train.yaml").read_text())
    listed = [name for entry in tree["defaults"] if isinstance(entry, dict) for name in entry]
    groups = [name for name in listed if not name.startswith(("override ", "optional "))]
    assert sorted(groups) == sorted((*PART_GROUPS, *SETTING_GROUPS, *PRESET_GROUPS))
    assert sorted(set(tree) - {"defaults", "hydra"}) == sorted(set(schema.SECTIONS) - set(SETTING_GROUPS))


def test_experiments_come_after_the_values_of_train_yaml() -> None:
    """With ``_self_`` last, what an experiment sets would silently be lost."""
    defaults = yaml.safe_load((CONF / "train.yaml").read_text())["defaults"]
    names = [next(iter(entry)) if isinstance(entry, dict) else entry for entry in defaults]
    assert names.index("_self_") < names.index("launcher") < names.index("experiment")


@pytest.mark.parametrize("folder", ["experiment", "launcher"])
def test_a_linked_group_shows_the_folder_at_the_root(folder: str) -> None:
    assert (CONF / folder).is_symlink()
    assert (CONF / folder).resolve() == CONF.parent / f"{folder}s"


def test_no_file_in_conf_is_left_unchecked() -> None:
    """An experiment's report may stand beside it."""
    known = {CONF / "train.yaml", *(CONF / f"{option}.yaml" for option in (*PARTS, *SETTINGS, *PRESETS))}
    known |= {CONF / f"{option}.{form}" for option in options("experiment") for form in ("md", "html", "csv")}
    found = {path for folder in folders() for path in (CONF / folder).rglob("*") if path.is_file()}
    stray = {path for path in found | set(CONF.glob("*.*")) if path not in known and path.name != ".gitkeep"}
    assert stray == set()


@pytest.mark.parametrize("option", [*PARTS, *SETTINGS, *PRESETS])
def test_a_file_is_named_like_a_word_of_the_command_line(option: str) -> None:
    assert re.fullmatch(r"[a-z][a-z0-9_]*", option.partition("/")[2])


@pytest.mark.parametrize("option", [*PARTS, *SETTINGS, *PRESETS])
def test_an_option_opens_with_a_comment_that_says_what_it_is(option: str) -> None:
    assert len(header(option).split()) >= 3


@pytest.mark.parametrize("option", PARTS)
def test_a_parts_target_lives_in_the_package_of_its_group(option: str) -> None:
    group, _, _ = option.partition("/")
    target = content(option)["_target_"]
    assert target.startswith(f"beni.{group}.") or option in THIRD_PARTY


def home(option: str) -> Path:
    """The file of an option's class, below src/."""
    module = content(option)["_target_"].rpartition(".")[0].replace(".", "/")
    return Path(f"{module}.py")


@pytest.mark.parametrize("option", PARTS)
def test_a_parts_file_has_the_stem_of_its_yaml_or_is_named_in_its_first_line(option: str) -> None:
    """Knowing one, you know the other: the same stem, a package of that stem, or the YAML says where."""
    _, _, name = option.partition("/")
    path, named = home(option), re.match(r"In (\S+): \S", header(option))
    below = path.parts[2:]  # of the group's package
    assert (PACKAGE.parent / path).is_file() or option in THIRD_PARTY
    if named is None:
        assert name in (path.stem, *below[:-1]), f'conf/{option}.yaml has to open with "# In {path}: "'
    else:
        assert text(option).startswith(f"# In {path}: "), f"conf/{option}.yaml names {named[1]}, its class is in {path}"


@pytest.mark.parametrize("option", PARTS)
def test_a_parts_keys_are_the_keyword_only_arguments_of_its_target(option: str) -> None:
    keys = set(content(option)) - {"_target_"}
    module, _, name = content(option)["_target_"].rpartition(".")
    target = getattr(importlib.import_module(module), name)
    own = target if inspect.isfunction(target) else vars(target).get("__init__")
    parameters = inspect.signature(own).parameters.values() if own is not None else ()
    assert keys == {p.name for p in parameters if p.kind is p.KEYWORD_ONLY}


@pytest.mark.parametrize("option", PARTS)
def test_no_part_has_a_default_that_its_yaml_does_not_show(option: str) -> None:
    assert [key.name for key in keys_of(content(option)["_target_"]).values() if not key.required] == []


@pytest.mark.parametrize("option", SETTINGS)
def test_a_setting_names_the_file_that_reads_it(option: str) -> None:
    named = re.search(r"Read by (\S+?)\.?(?:\s|$)", header(option))
    assert named, f"the header of conf/{option}.yaml lacks 'Read by <file>.'"
    plugins = [Path(path).parent for path in importlib.import_module("hydra_plugins").__path__]
    assert any((root / named[1]).exists() for root in (PACKAGE, *plugins)), f"{named[1]} does not exist"


@pytest.mark.parametrize("option", options("optim"))
def test_an_optimizers_file_is_named_after_it_and_holds_the_values_it_reads(option: str) -> None:
    assert content(option)["optimizer"] == option.partition("/")[2]
    assert set(content(option)) == set(OPTIMIZERS[content(option)["optimizer"]].__dataclass_fields__)


def test_every_optimizer_has_a_file() -> None:
    assert {f"optim/{name}" for name in OPTIMIZERS} == set(options("optim"))


NEEDED = {option: ["train.plan.llm=lora"] for option in options("adapter") if option != "adapter/none"}
"""Option -> what it does nothing without."""


@pytest.mark.parametrize("option", PARTS)
def test_an_option_composes_into_a_sound_run(option: str) -> None:
    group, _, name = option.partition("/")
    run = compose([f"{group}={name}", *NEEDED.get(option, [])])
    held = content(option)
    settled = {"instructions": "keep"} if held.get("instructions") == "auto" else {}  # as template=chat settles it
    assert run[group] == held | settled
    assert run["choices"][group] == name


@pytest.mark.parametrize("option", [*SETTINGS, *PRESETS])
def test_a_setting_or_preset_composes_into_a_sound_run(option: str) -> None:
    group, _, name = option.partition("/")
    assert compose([f"{group}={name}"])["choices"][group] == name


@pytest.mark.parametrize("option", options("experiment"))
def test_an_experiment_opens_with_the_command_that_runs_it(option: str) -> None:
    assert f"experiment={option.partition('/')[2]}" in header(option).split("#")[0]
    assert header(option).startswith("python -m beni.train ")


def test_a_frozen_run_says_how_each_component_trains_whatever_was_named() -> None:
    run = compose(["train.plan={llm: full}", "train.thaw.vision=0.5", "optim.lr_scale.vision=0.1", "llm=smollm2_gguf"])
    assert run["train"]["plan"] == dict.fromkeys(COMPONENTS, "full")
    assert run["train"]["thaw"] == dict.fromkeys(COMPONENTS, 0.0) | {"vision": 0.5}
    assert run["optim"]["lr_scale"] == dict.fromkeys(COMPONENTS, 1.0) | {"vision": 0.1}
    assert run["optim"]["layer_decay"] == dict.fromkeys(BACKBONES, 1.0)
    assert compose(["llm=smollm2_gguf"])["train"]["plan"]["llm"] == "frozen"


@pytest.mark.parametrize("key", SPARSE)
def test_a_mapping_of_components_is_empty_in_conf(key: str) -> None:
    group, _, name = key.partition(".")
    options_of = [content(option) for option in options("optim")]
    nodes = options_of if group == "optim" else [yaml.safe_load((CONF / "train.yaml").read_text())[group]]
    assert [node[name] for node in nodes] == [{}] * len(nodes)


@pytest.mark.parametrize("key", MOVED)
def test_a_key_that_was_moved_is_answered_with_its_new_name(key: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown key {key}: it is {MOVED[key]} now"):
        compose([f"{key}=1"])
    section, _, name = MOVED[key].partition(".")
    _, classes = schema.VARIANTS.get(section, ("", {section: schema.SECTIONS[section]}))
    assert any(name in one.__dataclass_fields__ for one in classes.values())
