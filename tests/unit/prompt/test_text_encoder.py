"""What is asked as a frozen text encoder reads it: the text half of CLIP or SigLIP, one text at a time."""

from __future__ import annotations

import pickle

import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    CLIPConfig,
    CLIPModel,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipModel,
    ViTConfig,
    ViTModel,
)

from beni.errors import ConfigError, WeightsError
from beni.llm.tokenizer import CARRIED
from beni.model.build import build
from beni.model.costing.counts import Costs
from beni.model.costing.table import propagate
from beni.model.modeling import BeniForConditionalGeneration
from beni.prompt.asked import Asked
from beni.prompt.text_encoder import TextEncoder
from beni.types import Prompt
from support.options import node

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
IDS = {"vocab_size": 600, "max_position_embeddings": 24, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
PICTURE = {**TEXT, "image_size": 16, "patch_size": 8}
FINE = ("vision.architecture.patch_size=6",)
CPU, META = torch.device("cpu"), torch.device("meta")
ASKED = ("What is to the left of the red circle?", "How many squares?")


@pytest.fixture
def folder(tmp_path):
    """folder(kind): a saved CLIP or SigLIP with random weights, or another model, and a tokenizer beside it."""

    def make(kind):
        torch.manual_seed(0)
        if kind == "bert":
            model = BertModel(BertConfig(**TEXT, vocab_size=600, max_position_embeddings=24))
        elif kind == "vit":
            model = ViTModel(ViTConfig(**PICTURE))
        else:
            config, cls = {"clip": (CLIPConfig, CLIPModel), "siglip": (SiglipConfig, SiglipModel)}[kind]
            model = cls(config(text_config={**TEXT, **IDS}, vision_config=PICTURE))
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_(0, 0.2)
        path = tmp_path / kind
        model.save_pretrained(path)
        PreTrainedTokenizerFast.from_pretrained(CARRIED["embedded"]).save_pretrained(path)
        return str(path), model.eval()

    return make


@torch.no_grad()
@pytest.mark.parametrize("kind", ["clip", "siglip", "bert"])
def test_a_text_is_what_the_encoder_of_transformers_pools(folder, kind):
    path, model = folder(kind)
    encoder, tokenizer = TextEncoder(path, "selector"), AutoTokenizer.from_pretrained(path)
    assert encoder.dim == 16
    out = encoder(ASKED, CPU)
    for text, vector in zip(ASKED, out, strict=True):
        fill = {"padding": "max_length"} if kind == "siglip" else {}
        ids = tokenizer(text, return_tensors="pt", truncation=True, max_length=24, **fill).input_ids
        reader = model if kind == "bert" else model.text_model
        torch.testing.assert_close(vector, reader(ids).pooler_output[0], rtol=1e-6, atol=1e-6)
    assert (out[0] - out[1]).abs().max() > 1e-3
    assert encoder(("a " * 100,), CPU).isfinite().all()  # more than it has positions for


@torch.no_grad()
def test_each_text_is_read_once_and_whatever_it_is_read_with_to_the_same_bits(folder, monkeypatch):
    path, _ = folder("clip")
    encoder = TextEncoder(path, "selector")
    read, own = [], encoder._encode
    monkeypatch.setattr(encoder, "_encode", lambda model, text, device: read.append(text) or own(model, text, device))
    together = encoder((*ASKED, ASKED[0]), CPU)
    alone = TextEncoder(path, "selector")((ASKED[1],), CPU)
    assert read == [*ASKED]
    assert together[1].equal(alone[0])
    assert together[2].equal(together[0])
    encoder(ASKED, CPU)
    assert len(read) == 2
    monkeypatch.undo()
    copied = pickle.loads(pickle.dumps(encoder))  # as a worker of the loader is given it
    assert copied._model is None
    assert copied(ASKED, CPU).equal(together[:2])


def test_without_values_it_is_run_all_the_same_so_that_its_flops_are_counted(folder):
    from beni.measure.flops import count_flops

    encoder = TextEncoder(folder("clip")[0], "selector")
    assert encoder(ASKED, META).shape == (2, 16)
    length = len(encoder._tokenizer(ASKED[1]).input_ids)
    layer = length * 2 * (4 * 16 * 16 + 2 * 16 * 32) + 4 * length * length * 16
    assert count_flops(lambda: encoder((ASKED[1],), META)) == 2 * layer


@torch.no_grad()
def test_rows_about_which_nothing_is_asked_are_told(folder):
    asked = Asked("text_encoder", 32, folder("clip")[0], "selector")
    like = torch.randn(2, 5, 8, dtype=torch.float64)
    assert (asked.dim, asked.reads) == (16, {"prompt_text"})
    prompt = Prompt(torch.zeros(2, 3, 32), torch.tensor([[True, True, False], [False] * 3]), texts=ASKED)
    text, there = asked(like, prompt)
    assert (text.dtype, there.tolist()) == (torch.float64, [True, False])
    text, there = asked(like, None)
    assert (text.shape, there.tolist()) == ((2, 16), [False, False])


@pytest.mark.parametrize(
    ("source", "name", "error"),
    [
        (
            "text_encoder",
            None,
            r"selector.source=text_encoder with selector.text_encoder=null\n  fix: set selector.text",
        ),
        ("hidden", "here", r"selector.source=hidden with selector.text_encoder=here\n  fix: set selector.source=text"),
    ],
)
def test_an_encoder_that_is_named_and_not_read_or_read_and_not_named_is_refused(source, name, error):
    with pytest.raises(ConfigError, match=error):
        Asked(source, 32, name, "selector")


def test_what_is_no_encoder_of_texts_or_not_there_is_refused(folder):
    path, _ = folder("vit")
    with pytest.raises(ConfigError, match=r"views.text_encoder=.*vit cannot read a text: [\s\S]*\n  fix: name a CLIP"):
        TextEncoder(path, "views")
    with pytest.raises(WeightsError, match=r"selector.text_encoder=nobody/nothing is not in the cache.*\n  fix: .*"):
        TextEncoder("nobody/nothing", "selector")


@torch.no_grad()
@pytest.mark.parametrize(
    ("group", "option"),
    [
        *(("selector", name) for name in ("prompt_topk", "threshold", "cdpruner", "gate_gumbel", "gate_hardkuma")),
        ("views", "ps3"),
        ("resampler", "roi_prompt"),
    ],
)
def test_in_a_model_the_question_decides_by_the_text_encoder_alone(
    folder, tiny_run, steps_of, tmp_path, group, option, monkeypatch
):
    from support.shrink import shrink_stage
    from support.small_model import LONG

    path, _ = folder("clip")
    run = tiny_run(*LONG, *FINE)
    run[group] = shrink_stage(group, option, node(group, option)) | {"source": "text_encoder", "text_encoder": path}
    model = build(run).eval()
    assert not any("text_model" in name for name in model.state_dict())
    batch = steps_of(run, model)[0][0]
    inputs = batch.model_inputs()
    assert len(inputs["samples"].prompts) > 1
    logits = model(**inputs).logits
    assert Costs(propagate(run), model.config.image_token_id).flop_count(batch).components[group] > 0
    model.save_pretrained(tmp_path / "saved")
    again = BeniForConditionalGeneration.from_pretrained(tmp_path / "saved").eval()
    torch.testing.assert_close(again(**inputs).logits, logits, rtol=1e-5, atol=1e-5)
    part = getattr(model, group)
    scores = part.scores.source if hasattr(part, "scores") else part.scorer.asked
    heard = []
    monkeypatch.setattr(
        scores, "_read", lambda prompt, device: heard.append(prompt.texts) or torch.zeros(len(prompt.texts), 16)
    )
    model(**inputs)
    assert set(heard[0]) <= set(inputs["samples"].prompts)


def test_a_scorer_that_reads_no_prompt_is_not_given_a_source_of_it():
    from beni.config.build import build_stage
    from beni.types import TokenSpec

    values = node("selector", "dynamicvit") | {"source": "hidden"}
    with pytest.raises(ConfigError, match=r"selector.source=hidden with selector.scorer=dynamicvit.*\n  fix: .+"):
        build_stage(values, tokens=TokenSpec(n=12, dim=8, grid=(3, 4)), dim_out=16)
