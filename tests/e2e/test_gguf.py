"""Files for llama.cpp: read back by gguf, and run by llama.cpp from the environment of ``make llama``."""

from __future__ import annotations

import json
import subprocess
from base64 import b64encode
from io import BytesIO
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, normalizers, trainers
from transformers import LlamaConfig, PreTrainedTokenizerFast

from beni.config.compose import compose
from beni.data.render.tokens import resolve_tokens
from beni.errors import CompositionError, WeightsError
from beni.export.formats import Export
from beni.export.gguf import content, writing
from beni.export.gguf.content import Content, differences, write_file
from beni.export.gguf.llm import interleaved, require_known
from beni.export.gguf.vocabulary import cut_of
from beni.export.native import comparing
from beni.llm.make_tokenizer import SPECIAL, TEMPLATE, _corpus
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build
from beni.model.processing import BeniProcessor
from beni.paths import PACKAGE
from support.native_runs import as_trained, native_run, scrambled_model, tagged_tokenizer
from support.shrink import shrink_vision

ROOT = PACKAGE.parent.parent
LLAMA = ROOT / ".venv-llama" / "bin" / "python"
SIGLIP = ("vision=siglip_base", "vision.layer=-2")
TEXTS = (
    "Is  it's 20345\n\n\tcaf\u00e9 \u8d64\u3044\u661f <a/> ...and",
    "what colour is it?",
    " two  spaces ",
    "x\n\ny",
)
TALKS = [
    [{"role": "user", "content": "what is it?"}],
    [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "what is it?"},
        {"role": "assistant", "content": "a caf\u00e9"},
        {"role": "user", "content": "sure?"},
    ],
]


@pytest.fixture(scope="session")
def tagged(tmp_path_factory):
    return tagged_tokenizer(tmp_path_factory.mktemp("tagged"))


@pytest.fixture(scope="session")
def spaced(tmp_path_factory):
    """A tokenizer of Llama 2's kind: spaces as marks, bytes to fall back on."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    single = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*single, decoders.Strip(" ", 1, 0)])
    special = ["<unk>", "<s>", "</s>", "<image>", *SPECIAL[4:], *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    tokenizer.train_from_iterator(_corpus(), trainer)
    told = json.loads(tokenizer.to_str())
    told["added_tokens"] = [one for one in told["added_tokens"] if not one["content"].startswith("<0x")]
    whole = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(told)),
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<unk>",
        unk_token="<unk>",
        additional_special_tokens=["<image>", *SPECIAL[4:]],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )
    folder = tmp_path_factory.mktemp("spaced")
    whole.save_pretrained(folder)
    LlamaConfig().save_pretrained(folder)
    return folder


def written(run, out):
    out.mkdir()
    model, said = scrambled_model(run), []
    trained = as_trained(model, run, out.parent)
    writing.write(Export(trained, False, 16, out, lambda text, **_: said.append(text)))
    return model, said


@pytest.mark.parametrize(("name", "projector"), [("llava15", "mlp"), ("idefics3", "idefics3")])
def test_both_files_hold_the_weights_and_fields_of_the_run(name, projector, tagged, tmp_path):
    model, said = written(native_run(name, tagged), tmp_path / "out")
    read = [text for text in said if "read back equal" in str(text)]
    assert [text.partition(":")[0] for text in read] == ["llm.gguf", "mmproj.gguf"]
    llm, mmproj = (gguf.GGUFReader(tmp_path / "out" / file) for file in ("llm.gguf", "mmproj.gguf"))
    fields = {key: value.contents() for key, value in llm.fields.items()}
    assert fields["general.architecture"] == "llama"
    assert fields["llama.block_count"] == model.llm.model.config.num_hidden_layers
    assert len(fields["tokenizer.ggml.tokens"]) == fields["llama.vocab_size"] == model.llm.vocab_size
    tensors = {tensor.name: np.asarray(tensor.data) for tensor in llm.tensors}
    weights = model.llm.model.state_dict()
    assert np.array_equal(tensors["token_embd.weight"], weights["model.embed_tokens.weight"].numpy())
    key = weights["model.layers.0.self_attn.k_proj.weight"]
    assert not np.array_equal(tensors["blk.0.attn_k.weight"], key.numpy())
    assert sorted(map(tuple, tensors["blk.0.attn_k.weight"].tolist())) == sorted(map(tuple, key.tolist()))
    seen = {key: value.contents() for key, value in mmproj.fields.items()}
    assert seen["clip.projector_type"] == projector
    assert seen["clip.vision.projection_dim"] == model.llm.hidden_size
    patches = {tensor.name: np.asarray(tensor.data) for tensor in mmproj.tensors}["v.patch_embd.weight"]
    assert np.array_equal(patches, model.vision.model.state_dict()["embeddings.patch_embedding.weight"].numpy())


def test_a_file_that_holds_something_else_is_told(tmp_path):
    held = Content("llama", {"llama.block_count": 2, "general.name": "a"}, {"x": np.ones((2, 3), np.float32)})
    write_file(tmp_path / "a.gguf", held)
    assert differences(tmp_path / "a.gguf", held) == []
    other = Content("llama", {"llama.block_count": 3, "general.name": "a"}, {"x": np.zeros((2, 3), np.float32)})
    assert len(differences(tmp_path / "a.gguf", other)) == 2
    more = Content("llama", held.fields, held.tensors | {"y": np.ones(1, np.float32)})
    assert differences(tmp_path / "a.gguf", more) == ["tensors ['y'] are in one of both only"]


def test_rotated_channels_are_put_side_by_side():
    halves = torch.arange(8.0)[:, None]  # two heads of two pairs: (0, 2), (1, 3) and (4, 6), (5, 7) rotate together
    assert interleaved(halves, 2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"model_type": "gpt2"}, "beni writes llama, mistral, qwen2, qwen3"),
        ({"rope_parameters": {"rope_type": "yarn", "rope_theta": 1e4}}, "of type yarn"),
        ({"hidden_act": "gelu"}, "its activation is gelu"),
        ({"sliding_window": 8}, "look back 8 positions"),
    ],
)
def test_an_llm_that_llama_cpp_would_compute_otherwise_is_refused(fields, said):
    values = LlamaConfig().to_dict() | fields
    config = SimpleNamespace(model_type=values["model_type"], to_dict=lambda: values)
    with pytest.raises(CompositionError, match=f"E-GGUF.*{said}"):
        require_known(config)


def test_a_tokenizer_whose_cutting_has_no_name_is_refused():
    told = {"model": {"type": "BPE"}, "normalizer": None}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    assert cut_of(told | {"pre_tokenizer": level}) == "gpt-2"
    assert cut_of(told | {"pre_tokenizer": {"type": "Sequence", "pretokenizers": [digits, level]}}) == "smollm"
    for odd in (None, {"type": "Whitespace"}, level | {"add_prefix_space": True}):
        with pytest.raises(CompositionError, match="E-GGUF"):
            cut_of(told | {"pre_tokenizer": odd})


def test_a_class_that_is_not_written_is_refused_and_tokens_that_llama_cpp_wants_are_named(tagged, tmp_path):
    with pytest.raises(CompositionError, match="PaliGemmaForConditionalGeneration cannot be written"):
        written(native_run("paligemma", tagged), tmp_path / "out")
    short = PreTrainedTokenizerFast.from_pretrained(PACKAGE / "llm" / "embedded_tokenizer")
    short.add_special_tokens({"additional_special_tokens": ["<fake_token_around_image>"]})
    short.save_pretrained(tmp_path / "short")
    LlamaConfig().save_pretrained(tmp_path / "short")
    with pytest.raises(CompositionError, match="'<global-img>' around an image"):
        written(native_run("idefics3", tmp_path / "short"), tmp_path / "other")


def test_without_the_package_its_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(WeightsError, match=r"pip install 'beni\[gguf\]'"):
        content.library()


@pytest.fixture
def run_by_llama_cpp(absent, tmp_path):
    """run_by_llama_cpp(model, run, out, wide): what llama.cpp says to two questions, and what the run asks and says."""

    def ask(model, run, out, wide=1):
        if not LLAMA.is_file():
            absent("make llama has not made .venv-llama")
        tokenizer = load_tokenizer(run["llm"])
        resolve_tokens(tokenizer)
        processor = BeniProcessor(tokenizer, model.config, model.viewer)
        side, asked, ours = model.vision.transform.shape[0], [], []
        for number in (0, 3):
            picture = comparing.picture(number).resize((wide * side, side))
            question = [processor.question(picture, f"what colour is shape {number}?")]
            text = processor.apply_chat_template(question, add_generation_prompt=True).rstrip(" ")
            asked.append({"text": text.replace("<image>", "<__media__>"), "images": [as_base64(picture)]})
            ours.append(processor.apply_chat_template(question, add_generation_prompt=True, tokenize=True))
        files = {"llm": str(out / "llm.gguf"), "mmproj": str(out / "mmproj.gguf")}
        (tmp_path / "asked.json").write_text(json.dumps({**files, "asked": asked, "texts": TEXTS, "talks": TALKS}))
        words = [LLAMA, "-P", ROOT / "tests" / "support" / "llama_cpp_run.py", tmp_path / "asked.json"]
        done = subprocess.run(words, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        told = json.loads(done.stdout.splitlines()[-1])
        assert told["texts"] == [tokenizer(text, add_special_tokens=False).input_ids for text in TEXTS]
        prompts = [processor.apply_chat_template(talk, add_generation_prompt=True).rstrip(" ") for talk in TALKS]
        assert told["prompts"] == prompts
        return list(zip(told["answers"], ours, strict=True))

    return ask


def as_base64(picture):
    buffer = BytesIO()
    picture.save(buffer, "PNG")
    return b64encode(buffer.getvalue()).decode()


def agree(theirs, batch, model, bound):
    """As many positions, log-probabilities within ``bound`` (a share of the largest logit), and the same greedy ids."""
    assert theirs["positions"] == batch["input_ids"].shape[1]
    with torch.no_grad():
        logits = model(**batch).logits[0, -1]
    ours = logits.log_softmax(-1)
    told = torch.tensor([theirs["logprobs"][str(token)] for token in range(len(ours))])
    assert len(theirs["logprobs"]) >= len(ours)
    assert (told - ours).abs().max() <= bound * logits.abs().max()
    said = model.generate(**batch, max_new_tokens=8)[0, batch["input_ids"].shape[1] :].tolist()
    ends = model.generation_config.eos_token_id
    assert [token for token in theirs["said"] if token not in ends] == [token for token in said if token not in ends]
    assert said


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "overrides", "wide", "kind"),
    [("llava15", SIGLIP, 1, "tagged"), ("llava15", SIGLIP, 1, "spaced"), ("idefics3", (), 2, "tagged")],
)
def test_llama_cpp_has_the_ids_and_the_text_of_the_run(
    name, overrides, wide, kind, request, tagged, tmp_path, run_by_llama_cpp
):
    run = native_run(name, tagged, *overrides)
    run["llm"]["tokenizer"] = str(request.getfixturevalue(kind))
    model, _ = written(run, tmp_path / "out")
    for theirs, batch in run_by_llama_cpp(model, run, tmp_path / "out", wide):
        agree(theirs, batch, model, 2e-3)  # its GELU is a table of half precision


@pytest.mark.slow
def test_a_pretrained_llm_says_in_llama_cpp_what_it_says_here(tmp_path, run_by_llama_cpp):
    values = ("vision.weights=random", "llm=smollm2_gguf", "template=chat")
    run = compose(["recipe=llava15", *SIGLIP, *values])
    run["vision"] = shrink_vision(run["vision"])
    model, out = build(run).eval(), tmp_path / "out"
    out.mkdir()
    export = Export(as_trained(model, run, tmp_path), False, 16, out, lambda *_, **__: None)
    writing.write(export)
    assert export.findings.compared[1] == ("greedy answers that are equal", "6 of 6")
    for theirs, batch in run_by_llama_cpp(model, run, out):
        agree(theirs, batch, model, 2e-3)
