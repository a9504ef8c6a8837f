"""What is particular to families of Hugging Face decoders: experts, heads that give every position."""

from __future__ import annotations

import copy
import re

import pytest
import torch

from beni.errors import CompositionError
from beni.llm import probes
from beni.llm.hf import HFLlm
from beni.llm.probes import require_embeddings
from beni.measure.flops import count_flops, count_training_flops
from beni.paths import PACKAGE
from beni.types import Sequence

SMALL = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"num_key_value_heads": 2, "vocab_size": 97, "max_position_embeddings": 64},
}
ONE_EXPERT = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
EXPERTS = {
    "mixtral": SMALL | {"num_local_experts": 8},
    "phimoe": SMALL | {"num_local_experts": 4},
    "gpt_oss": SMALL | {"num_local_experts": 4, "head_dim": 8},
    "qwen2_moe": SMALL | ONE_EXPERT | {"shared_expert_intermediate_size": 16},
    "qwen3_moe": SMALL | ONE_EXPERT | {"head_dim": 8},
    "deepseek_v3": SMALL
    | {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 16}
    | {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
    | {"first_k_dense_replace": 1, "num_key_value_heads": 4},
}


XLSTM = {"hidden_size": 32, "num_hidden_layers": 1, "num_blocks": 1, "num_heads": 4, "vocab_size": 97}


def counted(llm, rows):
    """FLOPs of a dry run of eight positions, the head on ``rows`` of them."""
    return count_flops(llm.dry_run(torch.empty(1, 8, llm.hidden_size, device="meta"), rows))


def make(family, fields, device="cpu"):
    torch.manual_seed(0)
    with torch.device(device):
        return HFLlm(
            name=None,
            weights="random",
            architecture={"model_type": family, **fields},
            attn_implementation="eager",
            tokenizer="embedded",
        ).eval()


@pytest.mark.parametrize("family", EXPERTS)
def test_a_position_is_billed_the_experts_that_it_is_sent_to(family):
    llm, twin = make(family, EXPERTS[family]), make(family, EXPERTS[family], "meta")
    llm.model.set_experts_implementation("eager")  # torch does not count its own grouped products
    embeds, keep = torch.randn(1, 40, 32), torch.tensor([7, 39])

    def run():
        return llm(Sequence.plain(embeds), keep)

    embeds.requires_grad_()
    dry_run = twin.dry_run(embeds.detach().to("meta").requires_grad_(), 2)
    ours, theirs = count_training_flops(lambda: [dry_run()]), count_training_flops(lambda: [run()])
    assert ours == pytest.approx(theirs, rel=1e-3)
    assert 0 < ours[0] < ours[1]


def test_an_llm_that_reads_values_to_choose_what_it_computes_is_refused_by_name():
    llm = make("jetmoe", SMALL | {"num_local_experts": 4, "kv_channels": 8}, "meta")
    with pytest.raises(CompositionError, match=r"E-FLOPS \[llm\]: jetmoe cannot be run without weights.*meta tensor"):
        counted(llm, 1)
    fields = SMALL | ONE_EXPERT | {"head_dim": 8, "num_experts_per_tok": 8}
    with pytest.raises(
        CompositionError, match=r"E-FLOPS.*qwen3_moe.*not in range for dimension\n  fix: correct the field"
    ):
        counted(make("qwen3_moe", fields, "meta"), 1)


@torch.no_grad()
def test_a_model_that_gives_every_position_is_taken_at_the_ones_asked_for():
    llm = make("xlstm", XLSTM)
    embeds = torch.randn(1, 4, 32)
    whole = llm(Sequence.plain(embeds))
    for keep in ([1, 3], [3, 0, 2, 1]):
        assert llm(Sequence.plain(embeds), torch.tensor(keep)).equal(whole[:, keep])
    twin = make("xlstm", XLSTM, "meta")
    assert counted(twin, 1) == counted(twin, 4)  # its head costs what it computes


def test_text_is_embedded_as_the_llm_embeds_ids():
    fields = SMALL | {
        "embedding_multiplier": 3.0,
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 4,
    }
    require_embeddings(make("falcon_h1", fields))
    with pytest.raises(CompositionError, match=r"^E-EMBED \[llm\]: roberta"):
        require_embeddings(make("roberta", SMALL | {"is_decoder": True}))


def test_llms_that_transformers_generates_with_from_embeddings_are_known():
    assert make("llama", SMALL).capabilities.generates
    bamba = make("bamba", SMALL | {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 4})
    assert not bamba.capabilities.generates


def test_positions_that_vary_with_the_longest_sample_are_known_without_weights():
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    for fields, kind, varies in ((SMALL, "default", False), (SMALL | {"rope_parameters": rope}, "dynamic", True)):
        llm = make("llama", fields, "meta")
        assert llm.describe().rope_type == kind
        assert llm.capabilities.varying_positions == varies
    gpt2 = make("gpt2", {"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 97}, "meta").describe()
    assert (gpt2.kind, gpt2.intermediate_size, gpt2.rope_type) == ("gpt2", 128, None)


def test_a_capability_is_found_out_once_and_leaves_the_llm_as_it_was(monkeypatch):
    llm, calls = make("llama", SMALL).train(), []
    monkeypatch.setattr(probes, "isolates_segments", lambda asked: calls.append(asked) or True)
    assert llm.capabilities.packed
    assert llm.capabilities.packed
    assert calls == [llm]
    assert llm.capabilities.reads_embeddings
    assert llm.capabilities.linear_head
    assert llm.training
    assert copy.deepcopy(llm).capabilities.llm is not llm


def test_nobody_outside_of_the_package_looks_into_the_model():
    looks = re.compile(r"llm\.(model|config)\b(?!\.yaml)")
    found = [
        f"{path.relative_to(PACKAGE)}: {line.strip()}"
        for path in PACKAGE.rglob("*.py")
        if path.parent.name != "llm"
        for line in path.read_text().splitlines()
        if looks.search(line)
    ]
    assert not found
