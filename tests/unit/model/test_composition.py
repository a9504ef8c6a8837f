"""Impossible combinations fail before any weight exists, with a code, the groups involved and what to set."""

from __future__ import annotations

import pytest
import torch

from beni.errors import CompositionError, DataError
from beni.model.costing.table import propagate
from support.counting import flops_of

PERCEIVER = "resampler=perceiver"
SMALL = (PERCEIVER, "resampler.num_latents=5", "resampler.num_heads=2", "resampler.head_dim=8")
LORA = ("adapter=lora", "train.plan.llm=lora", "adapter.targets=[qq]")
SIGLIP = ("vision=siglip", "vision.weights=random", "llm=tinyllama", "llm.weights=random")


@pytest.mark.parametrize(
    ("code", "groups", "fix", "overrides"),
    [
        ("E-HEADS", "resampler", "num_kv_heads to 1 or 16", [PERCEIVER, "resampler.num_kv_heads=3"]),
        (
            "E-DIM",
            "vision x resampler",
            "resampler.hidden_size=auto",
            [PERCEIVER, "resampler.hidden_size=48"],
        ),
        (
            "E-RES",
            "vision",
            "vision.image_size=[24, 24]",
            ["vision.architecture.model_type=aimv2_vision_model", "vision.image_size=36"],
        ),
        ("E-SPACE", "connector x llm", "connector=auto", ["connector=identity", "llm.architecture.hidden_size=64"]),
        ("E-TOKENS", "resampler x llm", "perceiver", ["llm.architecture.max_position_embeddings=4"]),
        ("E-LEVELS", "vision", "vision.layer=-1", ["vision.layer=-5"]),
        ("E-LEVELS", "vision", "vision.layer=-1", ["vision.layer=0"]),
        ("E-DEPTH", "connector", "connector.depth=1", ["connector=linear", "connector.depth=0"]),
        (
            "E-ADAPTER",
            "adapter x llm",
            "set adapter.targets to all-linear",
            LORA,
        ),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("E-") else "",
)
def test_an_impossible_combination_names_its_code_groups_and_fix(tiny_run, code, groups, fix, overrides):
    with pytest.raises(CompositionError) as caught:
        propagate(tiny_run(*overrides))
    text = str(caught.value)
    assert caught.value.code == code
    assert text.startswith(f"{code} [{groups}]: ")
    assert fix in text.partition("fix: ")[2]


def test_placeholders_without_their_tokens_are_an_error_that_counts_them(tiny_run, tiny_model, steps_of):
    model = tiny_model()
    batch = steps_of(tiny_run(), model)[0][0]
    wanted = int((batch.input_ids == model.config.image_token_id).sum())
    with pytest.raises(DataError, match=rf"E-COUNT: {wanted} image placeholders for {wanted - 4} visual tokens"):
        model(**batch.model_inputs() | {"pixels": batch.pixels[1:]})
    with pytest.raises(DataError, match=rf"E-COUNT: {wanted} image placeholders but no image"):
        model(**batch.model_inputs() | {"pixels": None})


def test_the_wished_perceiver_has_exactly_19763712_parameters(tiny_overrides):
    from beni.config.compose import compose

    model = propagate(compose([*SIGLIP, "resampler=perceiver"]))
    assert sum(p.numel() for p in model.resampler.parameters()) == 19_763_712
    assert flops_of(model.resampler, model.specs["vision"]) == pytest.approx(3.154e9, rel=1e-3)
    assert next(model.parameters()).device.type == "meta"


def test_latents_of_a_fresh_perceiver_are_distinct(tiny_model, tiny_run, steps_of):
    model = tiny_model(
        "resampler=perceiver", "resampler.num_latents=5", "resampler.num_heads=2", "resampler.head_dim=8"
    )
    with torch.no_grad():
        tokens = model.encode_images(torch.randn(2, 3, 24, 24)).x
    for image in tokens.double():
        assert torch.linalg.matrix_rank(image - image.mean(0)) == 4
