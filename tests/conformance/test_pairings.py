"""Whatever options are put together, a run either trains a step or is refused with a code, the groups and a fix."""

from __future__ import annotations

import random
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from beni.config.build import build
from beni.config.compose import compose
from beni.errors import CompositionError, ConfigError, WeightsError
from beni.model.build import build_model
from beni.model.costing.counts import Costs
from beni.model.costing.table import propagate
from beni.model.plan import apply_plan
from beni.training.step import forward_backward
from support.options import needed, node, options
from support.shrink import shrink_pruner, shrink_stage
from support.small_model import LONG

ROOT = Path(__file__).parents[2]
RANDOM = "vision.weights=random llm.weights=random"
IMPOSSIBLE = {
    "E-GRID": "vision=clip views=anyres views.join=true resampler=pixel_shuffle",
    "E-DIV": "vision=siglip resampler=pixel_shuffle",
    "E-SQUARE": "vision=siglip resampler=mqt resampler.max_queries=15",
    "E-CLS": "vision=siglip vision.keep_cls=true",
    "E-LEVELS": "vision=clip 'vision.levels=[40]' resampler=tokenpacker",
    "E-DIM": "vision=siglip resampler=perceiver resampler.hidden_size=1024",
    "E-HEADS": "vision=siglip resampler=perceiver resampler.num_kv_heads=3",
    "E-TOKENS": "vision=siglip views=internvl llm=tinyllama",
    "E-PLACE": "vision=siglip resampler=qformer resampler.cross_attention_every=0",
    "E-DEPTH": "connector=linear connector.depth=0",
    "E-STACK": "vision=cambrian4 views=s2",
    "E-RES": "vision=aimv2 vision.image_size=336",
    "E-SPACE": "vision=siglip connector=identity",
    "E-QUANT": "quantization=bnb_nf4 train.plan.llm=full",
    "E-ADAPTER": "adapter=lora train.plan.llm=lora adapter.targets=[nothing]",
}
"""Code -> what provokes it at real sizes, offline. E-FLOPS is for counting, others need weights: below."""


@pytest.mark.parametrize("code", IMPOSSIBLE)
def test_an_impossible_pair_is_refused_with_its_code_groups_and_fix(code):
    overrides = [word.strip("'") for word in IMPOSSIBLE[code].split()]
    with pytest.raises(CompositionError) as caught:
        propagate(compose([*overrides, *(word for word in RANDOM.split() if _has_weights(word, overrides))]))
    first, *rest = str(caught.value).splitlines()
    assert caught.value.code == code
    assert re.match(rf"{code} \[\w+( x \w+)*\]: .+", first)
    assert any(line.startswith("  fix: ") and len(line) > 12 for line in rest)


def _has_weights(word, overrides):
    return not any(option.startswith(word.partition(".")[0] + "=cambrian") for option in overrides) or "vision" in word


def test_an_llm_that_cannot_run_without_weights_cannot_be_planned():
    run = compose(["llm.architecture.model_type=jetmoe", "++llm.architecture.num_local_experts=4"])
    model = propagate(run)
    with pytest.raises(CompositionError, match=r"^E-FLOPS \[llm\]: jetmoe .*\n  fix: .+"):
        Costs(model).prefill(model.views.plan((48, 48)), 8, 1)


def test_an_llm_that_ignores_beni_s_attention_cannot_look_ahead(tiny_run):
    from beni.run import train

    run = tiny_run("fusion.image_attention=image")
    bloom = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4, "vocab_size": 512}
    run["llm"] |= {"architecture": bloom, "attn_implementation": "eager"}
    with pytest.raises(CompositionError, match=r"^E-ATTN \[fusion x llm\]: bloom"):
        train(run)


def test_an_llm_that_makes_more_of_ids_than_of_embeddings_is_no_llm_for_pictures(tiny_run):
    from beni.run import train

    run = tiny_run()
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    run["llm"] |= {"architecture": {"model_type": "roberta", "is_decoder": True, "vocab_size": 512, **sizes}}
    with pytest.raises(CompositionError, match=r"^E-EMBED \[llm\]: roberta"):
        train(run)


def test_an_llm_without_its_layers_in_a_list_is_refused(tiny_model):
    model = tiny_model()
    model.llm.config.num_hidden_layers = 7
    with pytest.raises(CompositionError, match=r"^E-LAYERS \[llm\]: llama says num_hidden_layers=7"):
        model.llm.layers()


def test_a_head_that_is_no_plain_matrix_cannot_be_fused(tiny_run):
    from beni.run import train

    run = tiny_run("compute.loss=fused", "llm.architecture.model_type=granite", "+llm.architecture.logits_scaling=8.0")
    expected = r"^E-HEAD \[llm\]: .* granite scales" if hasattr(F, "linear_cross_entropy") else "needs torch 2.13"
    with pytest.raises((CompositionError, ConfigError), match=expected):
        train(run)


@pytest.mark.parametrize("code", ["E-SIDE", "E-KEEP"])
def test_a_service_that_an_encoder_does_not_have_is_refused_with_a_fix(code):
    with torch.device("meta"):
        vision = build(compose(["vision=convnext", "vision.weights=random"])["vision"])
    with pytest.raises(CompositionError, match=rf"^{code} \[vision\]: .*convnext.*\n  fix: .+"):
        vision.serve(frozenset({"attn" if code == "E-SIDE" else "keep"}))


ELSEWHERE = {
    "E-GENERATE": "unit/test_trained.py",
    "E-NATIVE": "e2e/test_native.py",
    "E-GGUF": "e2e/test_gguf.py",
    "E-VLLM": "unit/serve/test_vllm_engine.py",
}
"""Codes of what is done with a model afterwards, and where they are provoked."""


def test_every_code_of_the_source_is_provoked_here_or_elsewhere_and_explained_in_the_docs():
    raised = {
        code
        for path in (ROOT / "src" / "beni").rglob("*.py")
        for code in re.findall(r'"(E-[A-Z]+)"', path.read_text(encoding="utf-8"))
    }
    page = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    explained = set(re.findall(r"^\| `(E-[A-Z]+)` \|", page, re.M))
    assert (
        raised
        == explained
        == {
            *IMPOSSIBLE,
            *("E-FLOPS", "E-ATTN", "E-HEAD", "E-EMBED", "E-LAYERS", "E-GATE", "E-SIDE", "E-KEEP"),
            *ELSEWHERE,
        }
    )
    for code, test in ELSEWHERE.items():
        assert code in (ROOT / "tests" / test).read_text(encoding="utf-8"), code


GROUPS = ("vision", "views", "selector", "resampler", "connector", "fusion", "pruner")
GRIDS = (24, 32, 48)
TEXT = {"hidden_size": 48, "intermediate_size": 64, "num_attention_heads": 4, "max_position_embeddings": 2048}
LLMS = {
    "llama": TEXT | {"num_key_value_heads": 2},
    "qwen3": TEXT | {"hidden_size": 32, "num_key_value_heads": 4, "head_dim": 8},
    "gemma3_text": TEXT | {"num_key_value_heads": 1, "head_dim": 12},
    "gpt2": {"n_embd": 32, "n_head": 4, "n_positions": 2048},
}
FUSION = {
    "image_attention": ("causal", "causal", "image", "prefix"),
    "out_norm": ("none", "rmsnorm"),
    "sees": ("latest", "all"),
    "sets": (1, 2),
}
PAIRINGS = 96


def drawn(tiny_run, seed):
    """A run of options drawn at random, small; a plain ViT now and then, so that the others meet a usual grid."""
    rng = random.Random(seed)
    run = tiny_run(*LONG, "connector=auto", "train.batch_size=2", "compute.layout=packed")
    chosen = {}
    for group in GROUPS:
        known = [option for option in options(group) if not needed(group, option)]
        chosen[group] = rng.choice(known)
    if rng.random() < 0.5:
        chosen["vision"] = "tiny_vit"
    if rng.random() < 0.6:
        chosen["connector"] = "auto"
    plain_ones = {"views": "single", "selector": "none", "resampler": "none", "fusion": "inline", "pruner": "none"}
    for group, plain in plain_ones.items():
        if rng.random() < 0.5:
            chosen[group] = plain
    for group, option in chosen.items():
        values = node(group, option)
        small = values if group == "vision" else shrink_stage(group, option, values)
        run[group] = shrink_pruner(values) if group == "pruner" else small
        run["choices"][group] = option
    if chosen["vision"] == "tiny_vit":
        run["vision"]["image_size"] = rng.choice(GRIDS)
        run["vision"]["architecture"]["patch_size"] = rng.choice((4, 6))
        run["vision"]["levels"] = rng.choice(([], [1, 2], [9]))
        run["vision"]["layer"] = rng.choice((-1, -1, -2, -9))
    for key in ("join", "newline"):
        if isinstance(run["views"].get(key), bool):
            run["views"][key] = rng.random() < 0.5
    llm = rng.choice(list(LLMS))
    run["llm"]["architecture"] = {"model_type": llm, **LLMS[llm], "num_hidden_layers": 4, "vocab_size": 512}
    run["llm"]["architecture"] |= {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
    for key, values in FUSION.items():
        if key in run["fusion"]:
            run["fusion"][key] = rng.choice(values)
    return run, chosen


REFUSED: list[bool] = []


@pytest.mark.parametrize("seed", range(PAIRINGS))
def test_options_at_random_train_a_step_or_are_refused_with_a_code(tiny_run, steps_of, absent, seed):
    run, chosen = drawn(tiny_run, seed)
    try:
        propagate(run)
    except CompositionError as error:
        refusal = str(error)
    except WeightsError as error:
        absent(str(error))
    else:
        refusal = None
    REFUSED.append(refusal is not None)
    if refusal is not None:
        assert re.match(r"E-[A-Z]+ \[\w+( x \w+)*\]: .+\n  fix: .+", refusal), chosen
        return
    model = build_model(run, image_token_id=-1)
    steps = steps_of(run, model)
    model.config.image_token_id = steps.renderer.tokens.image
    apply_plan(model, run["train"]["plan"])
    result = forward_backward(model, steps[0], 0, torch.device("cpu"), "fp32")
    loss, labels = float(result.loss), result.labels
    assert 0 < loss < 100, chosen
    assert labels > 0


def test_of_the_random_options_a_good_part_trains_and_another_is_refused():
    if len(REFUSED) < PAIRINGS:
        pytest.skip("the pairings were run elsewhere")
    assert 0.2 < sum(REFUSED) / len(REFUSED) < 0.8
