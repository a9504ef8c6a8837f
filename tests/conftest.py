"""What all tests share: one CPU thread, no network, shapes checked when called, and the smallest run that trains."""

from __future__ import annotations

import os
import sys
import types

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported; CPU runs repeat bit for bit at one thread count only
os.environ["HF_HUB_OFFLINE"] = "1"

from collections.abc import Callable
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from beartype import BeartypeConf, beartype
from jaxtyping import install_import_hook

# Shape types are checked in the packages whose signatures carry shapes; elsewhere the hook would only cost seconds.
SHAPED = ("types", "nn", "vision", "views", "selector", "resampler", "connector", "fusion", "llm", "model")
checker = types.ModuleType("beni_test_checker")  # the hook takes a dotted name; this one lets an int be a float
checker.check = beartype(conf=BeartypeConf(is_pep484_tower=True))
sys.modules[checker.__name__] = checker
install_import_hook([f"beni.{name}" for name in SHAPED], "beni_test_checker.check")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with slow tests first: at the end of a run two workers then share many small files, and none waits long."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


TINY_PARTS = (
    "vision.architecture.hidden_size=32",
    "vision.architecture.intermediate_size=64",
    "vision.architecture.num_hidden_layers=2",
    "vision.architecture.num_attention_heads=2",
    "vision.architecture.image_size=24",
    "vision.architecture.patch_size=12",
    "vision.image_size=24",
    "llm.architecture.hidden_size=32",
    "llm.architecture.intermediate_size=64",
    "llm.architecture.num_hidden_layers=2",
    "llm.architecture.num_attention_heads=4",
    "llm.architecture.num_key_value_heads=2",
    "data.image_size=24",
)
"""A model of some 60 thousand parameters: 2x2 visual tokens of 32, a Llama of two layers."""

TINY_TRAINING = (
    "data.size=64",
    "data.heldout=4",
    "data.questions=2",
    "train.steps=2",
    "train.batch_size=8",
    "compute.threads=1",
    "compute.workers=0",
    "log.every=1",
    "compute.device=cpu",
    "checkpoint.export=false",
    "eval.gallery=0",
)


@pytest.fixture(scope="session")
def tiny_values() -> list[str]:
    """Overrides of the smallest run, without a folder."""
    return [*TINY_PARTS, *TINY_TRAINING]


@pytest.fixture
def tiny_overrides(tiny_values: list[str], tmp_path: Path) -> list[str]:
    """Overrides of the smallest run, its folder below the test's own."""
    return [*tiny_values, f"paths.runs={tmp_path / 'runs'}"]


@pytest.fixture(scope="session")
def tiny_once(tiny_values: list[str]) -> Callable[..., dict[str, Any]]:
    """The smallest run with further overrides, without a folder; thousands of tests want the same few."""
    from beni.config.compose import compose

    composed = cache(compose)

    def make(*overrides: str) -> dict[str, Any]:
        unknown = [value for group in ("vision", "llm") for value in _unknown(group, tiny_values, overrides)]
        return deepcopy(composed((*(value for value in tiny_values if value not in unknown), *overrides)))

    return make


def _unknown(group: str, values: list[str], overrides: tuple[str, ...]) -> list[str]:
    """Fields of the smallest run's model that a model of another type, which overrides choose, does not have."""
    before = f"{group}.architecture."
    kinds = [word.partition("=")[2] for word in overrides if word.startswith(f"{before}model_type=")]
    if not kinds:
        return []
    from transformers import CONFIG_MAPPING

    from beni.nn.architecture import fields_of

    known = fields_of(CONFIG_MAPPING[kinds[-1]]) if kinds[-1] in CONFIG_MAPPING else set()
    return [
        value for value in values if value.startswith(before) and value[len(before) :].partition("=")[0] not in known
    ]


@pytest.fixture
def tiny_run(tiny_once: Callable[..., dict[str, Any]], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """The smallest run with further overrides: ``tiny_run("resampler=perceiver")``; its folder below the test's own."""

    def make(*overrides: str) -> dict[str, Any]:
        run = tiny_once(*overrides)
        if not any(override.startswith("paths.runs=") for override in overrides):
            run["paths"]["runs"] = str(tmp_path / "runs")
        return run

    return make


@pytest.fixture
def tiny_model(tiny_run: Callable[..., dict[str, Any]]) -> Callable[..., Any]:
    """Builds the smallest model, its plan applied, in evaluation mode: ``tiny_model("resampler=perceiver")``."""
    from beni.model.build import build

    return lambda *overrides: build(tiny_run(*overrides)).eval()


@pytest.fixture
def steps_of() -> Callable[..., Any]:
    """(run, model) -> the run's micro-batches by step, as ``beni.run`` makes them; further fields by keyword."""
    from beni.assemble import make_schedule
    from beni.config.build import build
    from beni.data.batch.loader import Steps
    from beni.data.render.template import Renderer
    from beni.llm.tokenizer import load_tokenizer

    def make(run: dict[str, Any], model: Any, **fields: Any) -> Any:
        train = run["train"]
        source = build(run["data"], train["seed"])
        renderer = Renderer(load_tokenizer(run["llm"]), run["template"])
        values = {
            "source": source,
            "renderer": renderer,
            "viewer": model.viewer,
            "schedule": make_schedule(run, source, renderer, model.viewer),
            "accumulation": train["accumulation"],
            "layout": run["compute"]["layout"],
        }
        return Steps(**values | fields)

    return make


@pytest.fixture(scope="session")
def absent() -> Callable[[str], None]:
    """Ends a test whose package this machine lacks: skipped for a user, failed where CI must run it."""
    return pytest.fail if os.environ.get("CI") == "true" else pytest.skip
