"""Encoder families x llm families: each pair trains a step, saves, reloads with equal logits, and generates."""

from __future__ import annotations

import pytest
import torch

from beni.errors import BeniError
from beni.model.build import build_model
from beni.model.costing.table import propagate
from beni.model.modeling import BeniForConditionalGeneration
from beni.training.optim.build import build_optimizer
from beni.training.step import clip_and_update, forward_backward
from support.families import EAGER, LLMS

pytestmark = pytest.mark.slow

VIT = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
VIT |= {"image_size": 24, "patch_size": 12}
STAGES = {"hidden_sizes": [8, 8, 16, 16], "depths": [1, 1, 1, 1], "num_stages": 4}
ENCODERS = {
    "siglip_vision_model": VIT | {"vision_use_head": False},
    "clip_vision_model": VIT,
    "vit": VIT,
    "dinov2": VIT,
    "dinov3_vit": VIT | {"num_register_tokens": 2},
    "ijepa": VIT,
    "beit": VIT,
    "convnext": STAGES | {"image_size": 64},
    "resnet": STAGES | {"embedding_size": 8, "layer_type": "basic"},
    "radio": VIT | {"max_img_size": 48},
    "tipsv2_vision_model": VIT,
    "kimi_k25_vision": VIT | {"pos_emb_height": 4, "pos_emb_width": 4},
}
FEW = tuple(LLMS)[list(LLMS).index("gpt_neox") :]
"""Families that are tried with one encoder only."""
ONCE = ("radio", "tipsv2_vision_model", "kimi_k25_vision")
"""Encoders that are tried with one family only."""
PAIRS = [
    (encoder, llm)
    for encoder in ENCODERS
    for llm in LLMS
    if (llm not in FEW or encoder == "clip_vision_model") and (encoder not in ONCE or llm == "llama")
]


@pytest.mark.parametrize(("encoder", "llm"), PAIRS, ids=[f"{encoder}-{llm}" for encoder, llm in PAIRS])
def test_the_pair_trains_saves_reloads_and_generates(tiny_run, steps_of, tmp_path, encoder, llm):
    run = tiny_run("connector=linear", "train.batch_size=2", "compute.layout=padded", "data.image_size=24")
    cnn = encoder in ("convnext", "resnet")
    size = 64 if cnn else 24
    run["vision"] |= {"architecture": {"model_type": encoder, **ENCODERS[encoder]}, "image_size": size}
    run["llm"]["architecture"] = {"model_type": llm, **LLMS[llm]}
    run["llm"] |= {"tokenizer": "embedded"}
    model = build_model(run, image_token_id=600)
    assert model.llm.attn_implementation == ("eager" if llm in EAGER else "sdpa")
    steps = steps_of(run, model)
    model.config.image_token_id = steps.renderer.tokens.image
    optimizer = build_optimizer(model, run["optim"])
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train()
    result = forward_backward(model, steps[0], 0, torch.device("cpu"), "fp32")
    loss, labels = float(result.loss), result.labels
    clip_and_update(model, optimizer, 1e-2, 1.0)
    assert 0 < loss < 20
    assert labels > 0
    moved = {name.partition(".")[0] for name, p in model.named_parameters() if not p.detach().equal(before[name])}
    assert moved == {"vision", "connector", "llm"}

    model.eval().save_pretrained(tmp_path / "saved")
    again = BeniForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    inputs = steps[1][0].model_inputs() | {"labels": None}
    with torch.no_grad():
        assert again(**inputs).logits.equal(model(**inputs).logits)
    prompt = {key: inputs[key] for key in ("input_ids", "pixels", "attention_mask", "images")}
    padding = (1 - prompt["attention_mask"]).sum(1).tolist()  # which generation wants in front
    for key in ("input_ids", "attention_mask"):
        prompt[key] = torch.stack([row.roll(count) for row, count in zip(prompt[key], padding, strict=True)])
    said = again.generate(**prompt, max_new_tokens=3, min_new_tokens=3, do_sample=False, pad_token_id=2)
    assert said[:, prompt["input_ids"].shape[1] :].shape == (2, 3)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["llm.attn_implementation=spda"], "set llm.attn_implementation=sdpa"),
        (["llm.architecture.model_type=llama", "llm.architecture.num_attention_heads=7"], "llm.architecture"),
        (["llm.architecture=null", "llm.name=nobody/nothing"], "llm.architecture=null needs nobody/nothing"),
        (["vision.architecture=null", "vision.name=FOLDER"], "vision.name="),
        (["vision.architecture.model_type=vit_mae"], "vision.architecture.model_type=vit"),
        (["vision.architecture.model_type=llama"], "vision"),
        (["vision.architecture.model_type=detr"], "vision"),
        (["vision.architecture.num_attention_heads=5"], "vision.architecture"),
        (["vision.architecture.model_type=aimv2_vision_model", "vision.image_size=36"], "vision.image_size"),
    ],
)
def test_what_cannot_work_fails_at_composition_with_a_fix(tiny_run, tmp_path, overrides, words):
    (tmp_path / "config.json").write_text('{"model_type": "brings_its_own_code"}')
    overrides = [word.replace("FOLDER", str(tmp_path)) for word in overrides]
    with pytest.raises(BeniError) as caught:
        propagate(tiny_run(*overrides))
    assert words in str(caught.value)
    assert "fix: " in str(caught.value)


@pytest.mark.parametrize(
    ("group", "kind", "attention", "words"),
    [
        ("llm", "t5", "auto", ("no causal language model", "llm.architecture.model_type=llama")),
        ("llm", "bert", "auto", ("llm.architecture.is_decoder=true",)),
        ("llm", "mamba", "sdpa", ("MambaForCausalLM of transformers has eager", "set llm.attn_implementation=eager")),
        ("llm", "bloom", "flash_attention_2", ("BloomForCausalLM of transformers has eager",)),
        ("vision", "regnet", "sdpa", ("RegNetModel of transformers has eager", "set vision.attn_implementation=eager")),
        ("vision", "swin", "flex_attention", ("SwinModel of transformers has sdpa, eager",)),
        ("vision", "siglip_vison_model", "auto", ("unknown: siglip_vison_model", "model_type=siglip_vision_model")),
        ("vision", "siglip", "auto", ("a whole vision-language model", "model_type=siglip_vision_model")),
        (
            "vision",
            "hgnet_v2",
            "auto",
            ("returns feature_maps, hidden_states and no last_hidden_state",),
        ),
        ("llm", "qwen33", "auto", ("unknown: qwen33", "llm.architecture.model_type=qwen3")),
    ],
)
def test_a_type_that_cannot_be_built_as_asked_is_refused_with_what_can(tiny_run, group, kind, attention, words):
    run = tiny_run()
    run[group] |= {"architecture": {"model_type": kind}, "attn_implementation": attention}
    with pytest.raises(BeniError) as caught:
        propagate(run)
    for word in words:
        assert word in str(caught.value)
    assert len(str(caught.value)) < 400
