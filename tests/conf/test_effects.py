"""Every value of every option does something: with another one its part behaves otherwise, or refuses it.

Stages are run alone; views, fusions, adapters and encoders within the smallest model, on images of several shapes. The
fields of an ``architecture`` are transformers'. Values of sections are watched while runs read them
(tests/conf/test_read.py), those of data formats in tests/unit/data.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from beni.config.build import build as build_part
from beni.config.compose import compose
from beni.config.signature import keys_of
from beni.config.types import fits
from beni.conformance.subject import Subject, find_subject, on_grids, run, seen
from beni.errors import BeniError
from beni.model.build import build
from beni.nn.streams import torch_stream
from support.options import DIM, node, options
from support.shrink import shrink_llm, shrink_pruner, shrink_stage, shrink_vision
from support.small_model import together

STAGES = ("selector", "resampler", "connector")
IN_A_MODEL = ("views", "fusion", "pruner", "adapter", "vision", "llm")

REASONS = {
    "architecture": "its fields are transformers'",
    "encoders": "each is an option of vision itself",
    "stages": "each is an option of selector itself",
    "weights": "pretrained weights are not on this machine; build.py reads it (tests/unit/model/test_pretrained)",
    "name": "the place of pretrained weights, as above",
    "text_encoder": "pretrained weights, as above; read in tests/unit/prompt/test_text_encoder.py",
    "tokenizer": "chooses how text is cut: tests/unit/llm/test_tokenizer.py",
    "attn_implementation": "the same numbers by other kernels",
    "vision.levels": "read by resampler=tokenpacker alone, and refused without it: tests/conf/test_errors.py",
    "fusion.sees": "one image a sample is the latest and all of them: tests/unit/fusion/test_flamingo.py",
    "fusion.match_text_rms": "measured on the first batch of a run: tests/unit/fusion/test_inline.py",
}
"""Keys whose value cannot change what a part does on this machine, and why."""


def distinct(groups: tuple[str, ...]) -> Iterator[tuple[str, str]]:
    """The first option of each ``_target_`` of the groups."""
    seen = set()
    for group in groups:
        for option in options(group):
            target = node(group, option)["_target_"]
            if target not in seen and "timm" not in target:
                seen.add(target)
                yield group, option


def leaves(groups: tuple[str, ...]) -> list[Any]:
    """(group, option, key) of every value that an option of a distinct class has."""
    return [
        pytest.param(group, option, key, id=f"{group}={option}-{key}")
        for group, option in distinct(groups)
        for key in keys_of(node(group, option)["_target_"])
        if key not in REASONS and f"{group}.{key}" not in REASONS
    ]


def alternatives(value: Any, annotation: str) -> Iterator[Any]:
    """Other values that an annotation allows, those near ``value`` first."""
    tree = ast.parse(annotation, mode="eval")
    literals = [ast.literal_eval(n) for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    numbers = value if isinstance(value, int | float) and not isinstance(value, bool) else 1
    near = [numbers * 2, numbers * 3, numbers + 1, max(1, numbers // 2), numbers - 1, numbers / 2, 0.5, 0.9, 3, 4, 0]
    lists = [value[::-1], [*value, *value], value[:1]] if isinstance(value, list) else []
    lists += [[0.3, 0.4, 0.6], [-1], [1, 2], [1, 3]]
    texts = ["x", "", "all-linear", "q_proj"]
    for other in (not value, None, *literals, *near, *lists, ["q_proj"], *texts):
        if (type(other), other) != (type(value), value) and fits(other, annotation):
            yield other


def facts_of_stage(subject: Subject) -> list[Any]:
    """What a stage makes of tokens: how many, its first weights, its outputs in both modes."""
    first = subject.make()
    refused = [subject.refuses(spec) is None for spec in on_grids(DIM, (3, 3), (5, 4))]
    facts = [repr(first.spec(subject.spec)), refused, *first.state_dict().values()]
    stage = subject.randomised()
    for prompt in subject.prompts(stage):
        for training in (False, True):
            stage.train(training)
            with torch_stream(0, "effects"), torch.no_grad():
                out = run(stage, subject.tokens(), prompt)
            facts.append(seen(out))
    return facts


def same(one: list[Any], other: list[Any]) -> bool:
    def equal(a: Any, b: Any) -> bool:
        if isinstance(a, list | tuple) and isinstance(b, list | tuple):
            return same([*a], [*b])
        if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
            return a.shape == b.shape and bool(torch.equal(a, b))
        return type(a) is type(b) and bool(a == b)

    return len(one) == len(other) and all(map(equal, one, other))


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    """Images of several shapes, with captions."""
    folder = tmp_path_factory.mktemp("images")
    for number, size in enumerate([(24, 24), (120, 6), (90, 30), (40, 100), (6, 90)]):
        picture = Image.effect_noise(size, 60 + number).convert("RGB")
        picture.save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"a grey image of number {number}")
    return folder


@pytest.fixture
def facts_in_a_model(tiny_values, images, steps_of):
    """facts(group, node) -> what the smallest model with this part is, and makes of a batch of images."""
    kept = [value for value in tiny_values if not value.startswith(("data.", "train.batch_size"))]
    data = ("data=captions", f"data.path={images}", "data.heldout=1", "train.batch_size=4", "adapter=lora")
    base = compose([*kept, *data, "train.plan.llm=lora", "train.plan.vision=full"])

    def facts(group: str, option: str, values: dict[str, Any]) -> list[Any]:
        run = {**base, group: values}
        if "deepstack" in values["_target_"]:
            run["vision"] = base["vision"] | {"levels": [0, 1]}
        if option in ("deepstack", "deepstack_views", "sva"):
            run["llm"] = {**run["llm"], "architecture": run["llm"]["architecture"] | {"num_hidden_layers": 4}}
        run |= together(group, option)
        if group == "vision":
            run["views"] = {"_target_": "beni.views.single.SingleView", "newline": False}
        if group == "pruner":
            run["llm"] = {**run["llm"], "architecture": run["llm"]["architecture"] | {"num_hidden_layers": 4}}
            run["vision"] = {**run["vision"], "architecture": run["vision"]["architecture"] | {"patch_size": 4}}
        model = build(run).train()
        trained = sorted(name for name, parameter in model.named_parameters() if parameter.requires_grad)
        batch = steps_of(run, model)[0][0]
        with torch_stream(0, "effects"):
            loss = model(**batch.model_inputs()).loss
        loss.backward()
        slopes = [p.grad.float().norm() for _, p in sorted(model.named_parameters()) if p.grad is not None]
        return [trained, batch.input_ids, batch.pixels, loss.detach(), *slopes]

    return facts


def small(group: str, option: str) -> dict[str, Any]:
    values = node(group, option)
    if group == "vision":
        return shrink_vision(values)
    if group == "llm":
        return shrink_llm(values)
    if group == "pruner":
        return shrink_pruner(values)
    if (group, option) == ("fusion", "deepstack"):
        return shrink_stage(group, option, values) | {"sets": 2}
    return shrink_stage(group, option, values) if group in ("views", "fusion", *STAGES) else values


def without_effect(values: dict[str, Any], key: str, facts_of: Callable[[dict[str, Any]], list[Any]]) -> list[Any]:
    """The other values of a key that change nothing of the facts; none where one does, or is refused."""
    before = facts_of(values)
    tried = []
    for other in alternatives(values[key], keys_of(values["_target_"])[key].annotation):
        tried.append(other)
        try:
            now = facts_of(values | {key: other})
        except BeniError:
            return []
        if not same(before, now):
            return []
    return tried or ["no other value was found"]


@pytest.mark.slow
@pytest.mark.parametrize(("group", "option", "key"), leaves((*STAGES, *IN_A_MODEL)))
def test_a_value_does_something(group, option, key, facts_in_a_model):
    values = small(group, option)
    if group in STAGES:
        subject = find_subject(group, values, DIM)
        if not without_effect(values, key, lambda other: facts_of_stage(replace(subject, node=other))):
            return
    assert without_effect(values, key, lambda other: facts_in_a_model(group, option, other)) == []


DRAWN = [(option, key) for option in ("shapes", "text") for key in keys_of(node("data", option)["_target_"])]


@pytest.mark.parametrize(("option", "key"), DRAWN)
def test_a_value_of_data_that_are_drawn_or_cut_does_something(option, key, tmp_path):
    (tmp_path / "one.txt").write_text("A text of some length, in which words follow words. " * 40)
    (tmp_path / "other.txt").write_text("Another text, in which other words follow others. " * 40)
    values = compose([f"data={option}", *([f"data.path={tmp_path}/one.txt"] if option == "text" else [])])["data"]
    values |= {"size": 64, "heldout": 8} if option == "shapes" else {"heldout": 0.1, "piece": 32}

    def facts_of(node: dict[str, Any]) -> list[Any]:
        if key == "path" and node[key] != values[key]:
            node |= {"path": str(tmp_path / "other.txt")}
        source = build_part(node, 0)
        samples = [*(source.train(i, 0) for i in range(min(40, len(source)))), *source.heldout()]
        return [len(source), *(sample.messages for sample in samples)]

    assert without_effect(values, key, facts_of) == []
