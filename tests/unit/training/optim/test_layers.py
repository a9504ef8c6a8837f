"""How much less a layer learns, the lower it is."""

from __future__ import annotations

import pytest
from torch import nn

from beni.training.optim.layers import layer_factors
from beni.vision.base import VisionEncoder
from unit.training.optim.test_build import SETTINGS, build_optimizer


@pytest.fixture
def factors(tiny_model):
    """factors(component, *overrides) -> parameter name -> factor, at a decay of 0.5."""

    def make(component, *overrides):
        module = getattr(tiny_model(*overrides), component)
        by_id = layer_factors(module, 0.5)
        return {name: by_id[id(p)] for name, p in module.named_parameters()}

    return make


def test_the_llm_counts_embeddings_as_layer_0_and_norm_and_head_as_the_last(factors):
    seen = factors("llm")
    assert seen["model.model.embed_tokens.weight"] == 0.5**3
    assert {f for n, f in seen.items() if "layers.0." in n} == {0.5**2}
    assert {f for n, f in seen.items() if "layers.1." in n} == {0.5}
    assert seen["model.model.norm.weight"] == seen["model.lm_head.weight"] == 1.0


def test_a_tied_head_is_an_embedding(factors):
    assert factors("llm", "llm.architecture.tie_word_embeddings=true")["model.model.embed_tokens.weight"] == 0.5**3


def test_a_vision_encoder_counts_its_patch_embedding_as_layer_0(factors):
    seen = factors("vision")
    below = {f for n, f in seen.items() if "embeddings" in n}
    behind = {f for n, f in seen.items() if "embeddings" not in n and "layers." not in n}
    assert below == {0.5**3}
    assert {f for n, f in seen.items() if "layers.0." in n} == {0.5**2}
    assert {f for n, f in seen.items() if "layers.1." in n} == {0.5}
    assert behind == {1.0}


def test_what_stands_between_two_stages_goes_with_the_layer_before_it():
    class Staged(VisionEncoder):
        transform = patches = spec = serve = dry_run = forward = load_pretrained = resolved = None

        def __init__(self):
            super().__init__()
            self.stem, self.norm = nn.Linear(1, 1), None
            self.first = nn.ModuleList([nn.Linear(1, 1), nn.Linear(1, 1)])
            self.down = nn.Linear(1, 1)
            self.second = nn.ModuleList([nn.Linear(1, 1)])
            self.norm = nn.LayerNorm(1)

        def blocks(self):
            return [*self.first, *self.second]

    encoder = Staged()
    seen = layer_factors(nn.ModuleList([encoder]), 0.5)
    of = {name: seen[id(p)] for name, p in encoder.named_parameters() if name.endswith("weight")}
    assert of == {
        "stem.weight": 0.5**4,
        "first.0.weight": 0.5**3,
        "first.1.weight": 0.5**2,
        "down.weight": 0.5**2,
        "second.0.weight": 0.5,
        "norm.weight": 1.0,
    }


def test_encoders_side_by_side_count_their_own_layers(tiny_model):
    class Pair(VisionEncoder):
        transform = patches = spec = serve = dry_run = forward = load_pretrained = resolved = None

        def __init__(self, *encoders):
            super().__init__()
            self.encoders = nn.ModuleList(encoders)

        def blocks(self):
            return [block for encoder in self.encoders for block in encoder.blocks()]

    one, two = tiny_model().vision, tiny_model().vision
    pair = layer_factors(Pair(one, two), 0.5)
    alone = layer_factors(one, 0.5)
    assert [pair[id(p)] for p in one.parameters()] == [alone[id(p)] for p in one.parameters()]
    assert [pair[id(p)] for p in two.parameters()] == list(alone.values())


def test_the_optimizers_groups_carry_the_factors_of_both_backbones_and_of_no_other_part(tiny_model):
    model = tiny_model("train.plan.vision=full")
    settings = SETTINGS | {"layer_decay": {"vision": 0.5, "llm": 0.1}}
    settings["lr_scale"] = settings["lr_scale"] | {"llm": 0.3}
    scales = {id(p): g["lr_scale"] for g in build_optimizer(model, settings).param_groups for p in g["params"]}
    of = {name: scales[id(p)] for name, p in model.named_parameters()}
    assert of["llm.model.model.embed_tokens.weight"] == pytest.approx(0.3 * 0.1**3)
    assert of["llm.model.model.layers.1.mlp.up_proj.weight"] == pytest.approx(0.3 * 0.1)
    assert of["llm.model.lm_head.weight"] == 0.3
    assert {scale for name, scale in of.items() if name.startswith("connector.")} == {1.0}
    assert {scale for name, scale in of.items() if name.startswith("vision.")} == {0.125, 0.25, 0.5, 1.0}
