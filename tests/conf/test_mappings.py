"""Mappings of a part or section take keys and whole mappings, without a plus and in presets alike."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from beni.config.compose import compose


@pytest.mark.parametrize(
    ("overrides", "path", "value"),
    [
        (["data=captions", "data.augment={flip: 0.5}"], "data.augment", {"flip": 0.5}),
        (["data=captions", "data.augment.flip=0.5"], "data.augment", {"flip": 0.5}),
        (["data=captions", "+data.augment.flip=0.5"], "data.augment", {"flip": 0.5}),
        (["data=mixture", "data.weights={shapes: 0.9, texts: 0.1}"], "data.weights", {"shapes": 0.9, "texts": 0.1}),
        (["data=mixture", "data.weights.shapes=0.9"], "data.weights", {"shapes": 0.9}),
        (["data=captions", "data.columns={image: a}"], "data.columns", {"image": "a", "caption": "text"}),
        (["optim.lr_scale={vision: 0.1}"], "optim.lr_scale.vision", 0.1),
        (["vision.architecture.attention_dropout=0.1"], "vision.architecture.attention_dropout", 0.1),
        (["llm.architecture={attention_dropout: 0.1}"], "llm.architecture.attention_dropout", 0.1),
        (["llm.architecture={attention_dropout: 0.1}"], "llm.architecture.hidden_size", 128),
        (["train={steps: 3, plan: {llm: frozen}}"], "train.plan.llm", "frozen"),
    ],
)
def test_an_entry_or_a_mapping_is_taken(overrides: list[str], path: str, value: Any) -> None:
    node: Any = compose(overrides)
    for name in path.split("."):
        node = node[name]
    assert node == value


REGNET = {"model_type": "regnet", "depths": [1, 2]}


@pytest.mark.parametrize(
    "overrides",
    [
        ["vision.architecture={model_type: regnet, depths: [1, 2]}"],
        ["vision.architecture.model_type=regnet", "vision.architecture.depths=[1,2]"],
        ["vision={architecture: {model_type: regnet, depths: [1, 2]}}"],
    ],
)
def test_an_architecture_of_another_model_keeps_nothing_of_the_option(overrides: list[str]) -> None:
    assert compose(overrides)["vision"]["architecture"] == REGNET


def test_an_architecture_of_the_same_model_keeps_the_other_fields() -> None:
    given = compose(["vision.architecture={model_type: siglip_vision_model, hidden_size: 64}"])["vision"][
        "architecture"
    ]
    assert given == compose([])["vision"]["architecture"] | {"hidden_size": 64}


def test_an_experiment_replaces_an_architecture_too_and_a_field_equal_to_the_options_stays(tmp_path: Path) -> None:
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nvision: {architecture: {model_type: vit, hidden_size: 128}}\n"
    (tmp_path / "experiment" / "x.yaml").write_text(text)
    run = compose(["experiment=x", "vision.architecture.patch_size=8"], config_dir=tmp_path)
    assert run["vision"]["architecture"] == {"model_type": "vit", "hidden_size": 128, "patch_size": 8}
    assert "given_by_presets" not in run["choices"]


def test_one_of_several_encoders_takes_another_architecture_by_itself() -> None:
    run = compose(["vision=mof", "vision.encoders.clip.architecture={model_type: vit, hidden_size: 64}"])
    encoders = run["vision"]["encoders"]
    assert encoders["clip"]["architecture"] == {"model_type": "vit", "hidden_size": 64}
    assert encoders["dinov2"] == compose(["vision=mof"])["vision"]["encoders"]["dinov2"]


def test_an_llm_without_pretrained_weights_trains_though_its_option_has_a_name() -> None:
    assert compose(["llm=smollm2", "llm.weights=random"])["train"]["plan"]["llm"] == "full"
    assert compose(["llm=smollm2"])["train"]["plan"]["llm"] == "frozen"
