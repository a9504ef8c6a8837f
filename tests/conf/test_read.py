"""No value is set in vain: every key of every option and section is read by the code that it is meant for."""

from __future__ import annotations

import ast
from functools import cache
from typing import Any

import pytest
import yaml

from beni.components import PART_GROUPS
from beni.config.schema import SECTIONS
from beni.paths import PACKAGE, conf_dir
from beni.run import train

READ_BY_THE_MODEL = ("weights", "name")
"""Values of a backbone that model/build.py and config/sections/train.py read, whatever its class does with them."""


def targets() -> list[str]:
    """Every ``_target_`` of an option of a part group, once."""
    found = {
        yaml.safe_load(path.read_text(encoding="utf-8")).get("_target_")
        for group in PART_GROUPS
        for path in (conf_dir() / group).glob("*.yaml")
    }
    return sorted(target for target in found if target and target.startswith("beni."))


@cache
def tree_of(module: str) -> ast.Module:
    path = PACKAGE.joinpath(*module.split(".")[1:]).with_suffix(".py")
    path = path if path.is_file() else path.with_suffix("") / "__init__.py"
    return ast.parse(path.read_text(encoding="utf-8"))


def unread(target: str) -> list[str]:
    """Keyword arguments of a constructor that its body never mentions."""
    module, _, name = target.rpartition(".")
    node = next(n for n in tree_of(module).body if isinstance(n, ast.ClassDef | ast.FunctionDef) and n.name == name)
    if isinstance(node, ast.ClassDef):
        inits = [n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"]
        if not inits:
            return []
        node = inits[0]
    names = [n for part in node.body for n in ast.walk(part) if isinstance(n, ast.Name)]
    read = {name.id for name in names if isinstance(name.ctx, ast.Load)}
    return [a.arg for a in node.args.kwonlyargs if a.arg not in (*read, *READ_BY_THE_MODEL)]


@pytest.mark.parametrize("target", targets())
def test_a_part_reads_every_value_of_its_option(target: str) -> None:
    assert unread(target) == []


class Recording(dict[str, Any]):
    """A section that notes which of its values somebody asks for."""

    def __init__(self, values: dict[str, Any], prefix: str, seen: set[str]) -> None:
        super().__init__({k: Recording(v, f"{prefix}.{k}", seen) if k == "guard" else v for k, v in values.items()})
        self.prefix, self.seen = prefix, seen

    def __getitem__(self, key: str) -> Any:
        self.seen.add(f"{self.prefix}.{key}")
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.seen.add(f"{self.prefix}.{key}")
        return super().get(key, default)


RUNS = (
    ("train.steps=12", "train.guard.spike=skip", "log.profile=2", "checkpoint.export=true", "eval.gallery=2"),
    ("schedule=packs", "schedule.tokens=256", "train.batch_size=2", "compute.activation_checkpointing=full"),
    (
        "schedule=by_length",
        "schedule.modality=grouped",
        "optim.schedule=wsd",
        "optim.decay_ratio=0.2",
        "optim=adafactor",
    ),
    ("optim=muon",),
    ("optim=lion",),
    ("fsdp=full",),
)
"""Runs that together meet every value of a section."""

ELSEWHERE = {
    "images.retries": "data/fetch/loop.py, when an image is fetched",
    "images.timeout": "data/fetch/loop.py",
    "images.idle_timeout": "data/fetch/loop.py",
    "images.max_mib": "data/fetch/loop.py",
    "images.max_pixels": "data/fetch/loop.py",
    "images.min_side": "data/fetch/loop.py",
    "images.redirects": "data/fetch/loop.py",
    "images.per_host": "data/fetch/loop.py",
    "images.concurrency": "data/fetch/loop.py",
    "fsdp.shard_size": "fsdp=hybrid, on several processes",
    "fsdp.reshard_after_forward": "distributed/fsdp.py, on several processes",
    "launcher.name": "a label for the reader",
    "launcher.backend": "train.py and launch/launch.py",
    "launcher.jobs": "launch/local.py, for a sweep",
    "study.match": "launch/match.py, before a run is frozen",
    "study.budget": "launch/match.py",
    "study.solve": "launch/match.py",
    "study.stop": "launch/dropping.py, when a job begins",
    "train.guard.most": "training/guard.py, once a step is left out",
    "checkpoint.on_error": "training/checkpoint/saver.py, once a checkpoint cannot be written",
}
"""Values that these runs do not meet, and where they are read."""


def test_a_run_reads_every_value_of_its_sections(tiny_run, monkeypatch) -> None:
    """Reading while checking does not count: what is only checked does nothing."""
    monkeypatch.setattr("beni.run.check", lambda run: None)
    dumps_as_dict = yaml.SafeDumper.yaml_multi_representers | {dict: yaml.SafeDumper.represent_dict}
    monkeypatch.setattr(yaml.SafeDumper, "yaml_multi_representers", dumps_as_dict)
    seen: set[str] = set()
    known: set[str] = set()
    for overrides in RUNS:
        run = tiny_run(*overrides)
        for name in SECTIONS:
            known |= {f"{name}.{key}" for key in run[name]} | (
                {f"train.guard.{key}" for key in run["train"]["guard"]} if name == "train" else set()
            )
            run[name] = Recording(run[name], name, seen)
        train(run)
    assert " ".join(sorted(known - seen - set(ELSEWHERE))) == ""
    assert sorted(set(ELSEWHERE) & seen) == [], "these are met: they need no exception"
