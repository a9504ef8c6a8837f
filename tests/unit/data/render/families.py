"""Small tokenizers with the exact structure of published families, and what each family does with a conversation.

Each has its family's normalizer, pre-tokenizer, post-processor, decoder, special tokens, habits with bos, eos and pad,
and a chat template that renders chats without tools as the published one does. Only the vocabulary is small: it is
trained here on a few lines of text.
"""

from __future__ import annotations

import copy
import functools
import json
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    Qwen2Tokenizer,
    T5Tokenizer,
)

CORPUS = [
    "what colour is the star? red, and the left shape is a square; isn't it?",
    "a photograph of a small dog on the grass.\n\na second line about 2 cats and 15 birds,\n  and a third",
    "user system assistant model question answer User: Assistant: [INST] [/INST] beni probe answer",
    "un café crème, 赤い星, звезда, שלום; if a < b and c > d: return </p> or <br/> # | { } ...",
    "A Quick Brown Fox Jumps Over The Lazy Dog; JUMPS! 0123456789 (one) [two] *three* \"four\" 'five' & @ $ % + = _ -",
] * 8

CL100K_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN_WORDS = CL100K_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
DEEPSEEK_WORDS = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def same(text: str) -> str:
    return text


def composed(text: str) -> str:
    """What a tokenizer with an NFC normalizer keeps."""
    return unicodedata.normalize("NFC", text)


def spaced(text: str) -> str:
    """What SentencePiece keeps: its sign for a space is a space when it is read back."""
    return text.replace("▁", " ")


def swallowing(*tokens: str) -> Callable[[str], str]:
    """What SentencePiece keeps where these added tokens swallow the white space beside them."""
    swallowed = re.compile(rf"\s*({'|'.join(map(re.escape, tokens))})\s*")
    return lambda text: swallowed.sub(r"\1", spaced(text))


def airless(text: str) -> str:
    """The text without white space."""
    return "".join(spaced(text).split())


@dataclass(frozen=True)
class Family:
    """What is known of a published tokenizer and its template.

    Attributes:
        make: a fresh tokenizer.
        end: the token that ends an answer.
        shown: the template's rendering of a chat: system "s" where the family takes one, then q, a, r, b.
        template: which of beni's templates is used: ``chat``, its own, where it has one.
        before_end: what the template writes between an answer and its end.
        bos: the token that a sequence begins with.
        bos_each_question: whether every question begins with it.
        system: what the template does with a system message: ``kept``, ``refused`` or ``lost``.
        alternates: whether roles that do not alternate are refused.
        keeps: text -> what is left of it when it was tokenised and decoded; None: only the tokenizer can tell.
    """

    make: Callable[[], PreTrainedTokenizerBase]
    end: str
    shown: str
    template: str = "chat"
    before_end: str = ""
    bos: str | None = None
    bos_each_question: bool = False
    system: str = "kept"
    alternates: bool = False
    keeps: Callable[[str], str] | None = same


def token(text: str, **how: bool) -> AddedToken:
    return AddedToken(text, **({"special": True, "normalized": False} | how))


def added(tokens: Sequence[str | AddedToken]) -> list[str | AddedToken]:
    """Plain strings as special tokens."""
    return [t if isinstance(t, AddedToken) else token(t) for t in tokens]


def wrap(
    tokenizer: Tokenizer, tokens: Sequence[str | AddedToken], bos: str | None = None, **names: Any
) -> PreTrainedTokenizerBase:
    """The tokenizer with its added tokens; ``bos`` is what the post-processor writes in front."""
    tokenizer.add_tokens(added(tokens))
    if bos is not None:
        tokenizer.post_processor = leading(tokenizer, bos)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names)


def leading(tokenizer: Tokenizer, bos: str) -> Any:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


def byte_level(words: str | None, control: Sequence[str] = (), before: Sequence[Any] = ()) -> Tokenizer:
    """GPT-2's kind. ``control`` come first in the vocabulary; ``before`` are pre-tokenizers that cut first."""
    tokenizer = Tokenizer(models.BPE())
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=words is None)
    cut = [] if words is None else [pre_tokenizers.Split(Regex(words), "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*before, *cut, last])
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=list(control),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


def sentencepiece(control: Sequence[str], more: Sequence[str] = ()) -> Tokenizer:
    """SentencePiece's BPE with bytes for what it does not know; ``more`` are further ordinary pieces."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()  # only while it is trained: pieces never cross a word
    trainer = trainers.BpeTrainer(
        vocab_size=750,
        special_tokens=[*control, *(f"<0x{n:02X}>" for n in range(256)), *more],
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    described = json.loads(tokenizer.to_str())
    described["added_tokens"] = [t for t in described["added_tokens"] if t["content"] in control]
    described["pre_tokenizer"] = None
    tokenizer = Tokenizer.from_str(json.dumps(described))
    tokenizer.decoder = spoken(strip=True)
    return tokenizer


def spoken(strip: bool) -> Any:
    """SentencePiece's decoder; ``strip`` takes the space away that its normalizer put in front."""
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if strip else steps)


def legacy_prefix() -> Any:
    """A space in front of each text between two added tokens."""
    return normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])


def unigram(control: Sequence[str], unknown: str) -> list[tuple[str, float]]:
    """SentencePiece's Unigram pieces with their scores."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=list(control), unk_token=unknown, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return [(piece, score) for piece, score in json.loads(tokenizer.to_str())["model"]["vocab"]]


def bpe_parts(tokenizer: Tokenizer) -> tuple[dict[str, int], Any]:
    """Vocabulary and merges, as the classes of transformers take them."""
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [(left, right) for left, right in model["merges"]]


ALTERNATE = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}"
)
SYSTEM_APART = (
    "{% if messages[0].role == 'system' %}{% set turns, system = messages[1:], messages[0].content %}"
    "{% else %}{% set turns, system = messages, none %}{% endif %}"
)
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA2 = (  # Llama-2-7b-chat
    SYSTEM_APART + "{% for m in turns %}" + ALTERNATE + "{% set content = '<<SYS>>\n' + system + '\n<</SYS>>\n\n' + "
    "m.content if loop.first and system is not none else m.content %}"
    "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
LLAMA3 = (  # Meta-Llama-3-8B-Instruct
    "{% for m in messages %}{{ bos_token if loop.first else '' }}"
    "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' + m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN25 = (  # Qwen2.5-7B-Instruct
    "{% if messages[0].role != 'system' %}"
    "{{ '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n' }}"
    "{% endif %}" + CHATML
)
QWEN3 = (  # Qwen3-8B: only what answers the last question gets a block of thoughts, an empty one for want of any
    "{% set ns = namespace(last=messages | length - 1, seen=false) %}"
    "{% for m in messages[::-1] %}{% if m.role == 'user' and not ns.seen %}"
    "{% set ns.seen, ns.last = true, messages | length - 1 - loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% set ns.said, ns.thought = m.content, '' %}"
    "{% if m.role == 'assistant' and '</think>' in m.content %}"
    "{% set ns.thought = m.content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}"
    "{% set ns.said = m.content.split('</think>')[-1].lstrip('\n') %}{% endif %}"
    "{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.index0 > ns.last and (loop.last or ns.thought) %}"
    "{{ '<think>\n' + ns.thought.strip('\n') + '\n</think>\n\n' + ns.said.lstrip('\n') }}"
    "{% else %}{{ ns.said }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
GEMMA2 = (  # gemma-2-9b-it
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}" + ALTERNATE + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) "
    "+ '\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
GEMMA3 = (  # gemma-3-4b-it
    "{{ bos_token }}" + SYSTEM_APART + "{% for m in turns %}" + ALTERNATE + "{{ '<start_of_turn>' + "
    "('model' if m.role == 'assistant' else m.role) + '\n' "
    "+ (system + '\n\n' if system is not none and loop.first else '') + m.content | trim + '<end_of_turn>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL3 = (  # Mistral-7B-Instruct-v0.3: the system message goes into the question that ends the chat, if one ends it
    SYSTEM_APART + "{{ bos_token }}{% for m in turns %}" + ALTERNATE + "{% if m.role == 'user' %}"
    "{{ '[INST] ' + (system + '\n\n' if system is not none and loop.last else '') + m.content + '[/INST]' }}"
    "{% else %}{{ ' ' + m.content | trim + eos_token }}{% endif %}{% endfor %}"
)
PHI3 = (  # Phi-3-mini-4k-instruct
    "{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}"
)
PHI3_MEDIUM = (  # Phi-3-medium-4k-instruct: knows no system
    "{% for m in messages %}{% if m.role == 'user' %}{{ '<|user|>\n' + m.content + '<|end|>\n<|assistant|>\n' }}"
    "{% elif m.role == 'assistant' %}{{ m.content + '<|end|>\n' }}{% endif %}{% endfor %}"
)
PHI4 = (  # phi-4
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '<|im_sep|>' + m.content + '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}"
)
SMOLLM2 = (  # SmolLM2-1.7B-Instruct
    "{% if messages[0].role != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n' }}{% endif %}" + CHATML
)
GRANITE3 = (  # granite-3.0-8b-instruct
    "{% for m in messages %}{{ '<|start_of_role|>' + m.role + '<|end_of_role|>' + m.content + '<|end_of_text|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"
)
GRANITE31 = (  # granite-3.1-8b-instruct: tells the day
    "{% if messages[0].role != 'system' %}{{ '<|start_of_role|>system<|end_of_role|>"
    "Knowledge Cutoff Date: April 2024.\nToday\\'s Date: ' + strftime_now('%B %d, %Y') + '.\n"
    "You are Granite, developed by IBM. You are a helpful AI assistant.<|end_of_text|>\n' }}{% endif %}" + GRANITE3
)
OLMO2 = (  # OLMo-2-1124-7B-Instruct
    "{{ bos_token }}{% for m in messages %}{{ '<|' + m.role + '|>\n' + m.content }}"
    "{{ '\n' if m.role != 'assistant' else eos_token if loop.last else eos_token + '\n' }}"
    "{% if loop.last and add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}{% endfor %}"
)
DEEPSEEK2 = (  # DeepSeek-V2-Chat
    "{{ bos_token }}{% for m in messages %}{% if m.role == 'user' %}{{ 'User: ' + m.content + '\n\n' }}"
    "{% elif m.role == 'assistant' %}{{ 'Assistant: ' + m.content + eos_token }}"
    "{% else %}{{ m.content + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}Assistant:{% endif %}"
)
DEEPSEEK3 = (  # DeepSeek-V3
    "{% set ns = namespace(system='') %}"
    "{% for m in messages if m.role == 'system' %}{% set ns.system = m.content %}{% endfor %}"
    "{{ bos_token }}{{ ns.system }}{% for m in messages %}{% if m.role == 'user' %}{{ '<｜User｜>' + m.content }}"
    "{% elif m.role == 'assistant' %}{{ '<｜Assistant｜>' + m.content + '<｜end▁of▁sentence｜>' }}"
    "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<｜Assistant｜>' }}{% endif %}"
)
INTERNLM2 = "{{ bos_token }}" + CHATML  # internlm2-chat-7b
FALCON = (  # falcon-180B-chat: nothing ends an answer
    "{% for m in messages %}{% if not loop.first %}{{ '\n' }}{% endif %}"
    "{{ {'system': 'System', 'user': 'User', 'assistant': 'Falcon'}[m.role] + ': ' + m.content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\nFalcon:' }}{% endif %}"
)


def llama2() -> PreTrainedTokenizerBase:
    tokenizer = sentencepiece(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = legacy_prefix()
    return wrap(tokenizer, [], "<s>", bos_token="<s>", eos_token="</s>", unk_token="<unk>", chat_template=LLAMA2)


def llama2_class() -> PreTrainedTokenizerBase:
    """The class that transformers makes of it: the space only before the first text."""
    vocabulary, merges = bpe_parts(sentencepiece(["<unk>", "<s>", "</s>"]))
    return LlamaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, chat_template=LLAMA2)


def llama3() -> PreTrainedTokenizerBase:
    special = ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(CL100K_WORDS)
    tokenizer.add_tokens(added(special))
    tokenizer.post_processor = processors.Sequence(
        [processors.ByteLevel(trim_offsets=False), leading(tokenizer, special[0])]
    )
    return wrap(tokenizer, [], bos_token=special[0], eos_token=special[4], chat_template=LLAMA3)


QWEN_SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|box_start|>", "<|vision_start|>"]


def qwen(template: str) -> PreTrainedTokenizerBase:
    tokenizer = byte_level(QWEN_WORDS)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    thoughts = [token(text, special=False) for text in ("<think>", "</think>")] if template is QWEN3 else []
    names = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "chat_template": template}
    return wrap(tokenizer, [*QWEN_SPECIAL, *thoughts], **names)


def qwen_class() -> PreTrainedTokenizerBase:
    vocabulary, merges = bpe_parts(byte_level(QWEN_WORDS))
    tokenizer = Qwen2Tokenizer(vocab=vocabulary, merges=merges, eos_token="<|im_end|>", chat_template=QWEN25)
    tokenizer.add_tokens(QWEN_SPECIAL, special_tokens=True)
    return tokenizer


GEMMA_SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]
GEMMA_TURNS = ["<start_of_turn>", "<end_of_turn>"]
GEMMA_RUNS = ["\n\n", "\n\n\n", "▁▁", "▁▁▁", "<table>", "</p>"]  # whole tokens, though not special ones


def gemma(template: str) -> PreTrainedTokenizerBase:
    tokenizer = sentencepiece(GEMMA_SPECIAL, more=["\n"])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = spoken(strip=False)
    tokens = [*GEMMA_TURNS, *(token(text, special=False) for text in GEMMA_RUNS)]
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return wrap(tokenizer, tokens, "<bos>", chat_template=template, **names)


def gemma_class() -> PreTrainedTokenizerBase:
    vocabulary, merges = bpe_parts(sentencepiece(GEMMA_SPECIAL, more=["\n"]))
    tokenizer = GemmaTokenizer(vocab=vocabulary, merges=merges, add_bos_token=True, chat_template=GEMMA2)
    tokenizer.add_tokens(GEMMA_TURNS, special_tokens=True)
    return tokenizer


def mistral3() -> PreTrainedTokenizerBase:
    tokenizer = sentencepiece(["<unk>", "<s>", "</s>", "[INST]", "[/INST]", "[TOOL_CALLS]"])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "chat_template": MISTRAL3}
    return wrap(tokenizer, [], "<s>", **names)


PHI3_MARKERS = ("<|assistant|>", "<|end|>", "<|system|>", "<|user|>")


def phi3(template: str) -> PreTrainedTokenizerBase:
    tokenizer = sentencepiece(["<unk>", "<s>"])
    tokenizer.normalizer = legacy_prefix()
    greedy = [token(text, rstrip=True) for text in PHI3_MARKERS]
    tokens = [token("</s>", special=False, rstrip=True), "<|endoftext|>", *greedy]
    names = {"bos_token": "<s>", "eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>", "unk_token": "<unk>"}
    return wrap(tokenizer, tokens, chat_template=template, **names)


PHI4_MARKERS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|im_sep|>", "<|dummy_85|>")


def phi4() -> PreTrainedTokenizerBase:
    tokenizer = byte_level(CL100K_WORDS)
    greedy = [token(text, lstrip=True, rstrip=True) for text in PHI4_MARKERS]
    return wrap(
        tokenizer,
        greedy,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|dummy_85|>",
        unk_token="<|endoftext|>",
        chat_template=PHI4,
    )


def gpt2() -> PreTrainedTokenizerBase:
    tokenizer = byte_level(None)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return wrap(tokenizer, ["<|endoftext|>"], **names)


def gpt2_class() -> PreTrainedTokenizerBase:
    vocabulary, merges = bpe_parts(byte_level(None, ["<|endoftext|>"]))
    return GPT2Tokenizer(vocab=vocabulary, merges=merges)


def neox() -> PreTrainedTokenizerBase:
    """Pythia: the post-processor takes spaces out of the offsets, and runs of spaces are whole tokens."""
    tokenizer = byte_level(None, ["<|endoftext|>", "<|padding|>"])
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.post_processor = processors.ByteLevel(add_prefix_space=False, trim_offsets=True)
    spaces = [token(" " * n, special=False, normalized=True) for n in (4, 3, 2)]
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>")
    return wrap(tokenizer, spaces, **names)


def opt() -> PreTrainedTokenizerBase:
    """GPT-2's pieces behind fairseq's special tokens: a text begins with the token that also ends it."""
    tokenizer = byte_level(None, ["<s>", "<pad>", "</s>", "<unk>"])
    names = {"bos_token": "</s>", "eos_token": "</s>", "unk_token": "</s>", "pad_token": "<pad>"}
    return wrap(tokenizer, [], "</s>", **names)


def smollm2() -> PreTrainedTokenizerBase:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    names = {"bos_token": special[1], "eos_token": special[2], "pad_token": special[2], "unk_token": special[0]}
    tokenizer = byte_level(None, special, before=[pre_tokenizers.Digits(individual_digits=True)])
    return wrap(tokenizer, [], chat_template=SMOLLM2, **names)


def granite(template: str) -> PreTrainedTokenizerBase:
    """StarCoder's pieces; one token is bos, eos and pad."""
    special = ["<|end_of_text|>", "<fim_prefix>", "<|start_of_role|>", "<|end_of_role|>", "<|tool_call|>"]
    tokenizer = byte_level(None, special[:2], before=[pre_tokenizers.Digits(individual_digits=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    names = dict.fromkeys(("bos_token", "eos_token", "pad_token", "unk_token"), special[0])
    return wrap(tokenizer, special[2:], chat_template=template, **names)


def olmo2() -> PreTrainedTokenizerBase:
    tokenizer = byte_level(CL100K_WORDS)
    names = dict.fromkeys(("bos_token", "eos_token", "unk_token"), "<|endoftext|>") | {"pad_token": "<|pad|>"}
    return wrap(tokenizer, ["<|endoftext|>", "<|pad|>", "<|im_start|>"], chat_template=OLMO2, **names)


def deepseek(template: str) -> PreTrainedTokenizerBase:
    before = [
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), "isolated"),
        pre_tokenizers.Split(Regex(r"[一-龥\u3040-ゟ゠-ヿ]+"), "isolated"),
    ]
    tokenizer = byte_level(DEEPSEEK_WORDS, before=before)
    bos, eos = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"
    turns = [token(text, special=False) for text in ("<｜User｜>", "<｜Assistant｜>")]
    names = {"bos_token": bos, "eos_token": eos, "pad_token": eos, "chat_template": template}
    return wrap(tokenizer, [bos, eos, *turns], bos, **names)


def internlm2() -> PreTrainedTokenizerBase:
    tokenizer = sentencepiece(["<unk>", "<s>", "</s>"])
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = spoken(strip=False)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "</s>", "unk_token": "<unk>"}
    return wrap(tokenizer, ["<|im_start|>", "<|im_end|>"], "<s>", chat_template=INTERNLM2, **names)


def t5_class() -> PreTrainedTokenizerBase:
    """Unigram: lines and runs of spaces become one space, what has no piece becomes <unk>."""
    return T5Tokenizer(vocab=unigram(["<pad>", "</s>", "<unk>"], "<unk>"), extra_ids=5)


def albert() -> PreTrainedTokenizerBase:
    """Unigram of small letters without accents, [CLS] in front and [SEP] behind."""
    special = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.Unigram(unigram(special, "<unk>"), unk_id=1, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace("``", '"'),
            normalizers.Replace("''", '"'),
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    tokenizer.decoder = decoders.Metaspace(prepend_scheme="always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"bos_token": "[CLS]", "eos_token": "[SEP]", "unk_token": "<unk>", "pad_token": "<pad>"}
    return wrap(tokenizer, [*special[:4], token("[MASK]", lstrip=True)], mask_token="[MASK]", **names)


def falcon(template: str | None) -> PreTrainedTokenizerBase:
    tokenizer = byte_level(None, [">>TITLE<<", "<|endoftext|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Punctuation("contiguous"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
            pre_tokenizers.Digits(individual_digits=False),
            pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated"),
        ]
    )
    return wrap(tokenizer, [], eos_token="<|endoftext|>", chat_template=template)


def chat(turn: str) -> str:
    """What a template writes of the chat if it writes every turn alike, as ``turn`` says with {role} and {said}."""
    roles = ("system", "user", "assistant", "user", "assistant")
    return "".join(
        turn.replace("{role}", role).replace("{said}", said) for role, said in zip(roles, "sqarb", strict=True)
    )


def chatml(end: str) -> str:
    return chat("<|im_start|>{role}\n{said}" + end + "\n")


IM_END = chatml("<|im_end|>")
GEMMA_SHOWN = (
    "<bos><start_of_turn>user\n{}q<end_of_turn>\n<start_of_turn>model\na<end_of_turn>\n"
    "<start_of_turn>user\nr<end_of_turn>\n<start_of_turn>model\nb<end_of_turn>\n"
)
LLAMA2_FAMILY: dict[str, Any] = {
    "end": "</s>",
    "before_end": " ",
    "bos": "<s>",
    "bos_each_question": True,
    "alternates": True,
    "keeps": spaced,
    "shown": "<s>[INST] <<SYS>>\ns\n<</SYS>>\n\nq [/INST] a </s><s>[INST] r [/INST] b </s>",
}
GEMMA_FAMILY: dict[str, Any] = {"end": "<end_of_turn>", "bos": "<bos>", "alternates": True, "keeps": spaced}
GRANITE_SHOWN = chat("<|start_of_role|>{role}<|end_of_role|>{said}<|end_of_text|>\n")
GPT2_FAMILY: dict[str, Any] = {"end": "<|endoftext|>", "template": "chatml", "shown": chatml("<|endoftext|>")}

FAMILIES: dict[str, Family] = {
    "llama2": Family(llama2, **LLAMA2_FAMILY),
    "llama2_class": Family(llama2_class, **LLAMA2_FAMILY),
    "llama3": Family(
        llama3,
        end="<|eot_id|>",
        bos="<|begin_of_text|>",
        shown="<|begin_of_text|>" + chat("<|start_header_id|>{role}<|end_header_id|>\n\n{said}<|eot_id|>"),
    ),
    "qwen25": Family(lambda: qwen(QWEN25), end="<|im_end|>", keeps=composed, shown=IM_END),
    "qwen25_class": Family(qwen_class, end="<|im_end|>", keeps=composed, shown=IM_END),
    "qwen3": Family(
        lambda: qwen(QWEN3),
        end="<|im_end|>",
        keeps=composed,
        shown=IM_END.replace("assistant\nb", "assistant\n<think>\n\n</think>\n\nb"),
    ),
    "gemma2": Family(lambda: gemma(GEMMA2), system="refused", shown=GEMMA_SHOWN.format(""), **GEMMA_FAMILY),
    "gemma2_class": Family(gemma_class, system="refused", shown=GEMMA_SHOWN.format(""), **GEMMA_FAMILY),
    "gemma3": Family(lambda: gemma(GEMMA3), shown=GEMMA_SHOWN.format("s\n\n"), **GEMMA_FAMILY),
    "mistral3": Family(
        mistral3,
        end="</s>",
        bos="<s>",
        system="lost",
        alternates=True,
        keeps=spaced,
        shown="<s>[INST] q[/INST] a</s>[INST] r[/INST] b</s>",
    ),
    "phi3": Family(
        lambda: phi3(PHI3),
        end="<|end|>",
        keeps=swallowing("</s>", *PHI3_MARKERS),
        shown="<|system|>\ns<|end|>\n<|user|>\nq<|end|>\n<|assistant|>\na<|end|>\n<|user|>\nr<|end|>\n"
        "<|assistant|>\nb<|end|>\n<|endoftext|>",
    ),
    "phi3_medium": Family(
        lambda: phi3(PHI3_MEDIUM),
        end="<|end|>",
        system="lost",
        keeps=swallowing("</s>", *PHI3_MARKERS),
        shown="<|user|>\nq<|end|>\n<|assistant|>\na<|end|>\n<|user|>\nr<|end|>\n<|assistant|>\nb<|end|>\n",
    ),
    "phi4": Family(
        phi4,
        end="<|im_end|>",
        keeps=swallowing(*PHI4_MARKERS),
        shown=chat("<|im_start|>{role}<|im_sep|>{said}<|im_end|>"),
    ),
    "gpt2": Family(gpt2, **GPT2_FAMILY),
    "gpt2_class": Family(gpt2_class, **GPT2_FAMILY),
    "gpt2_plain": Family(gpt2, end="<|endoftext|>", template="plain", shown="s q a r b<|endoftext|>"),
    "neox": Family(neox, keeps=composed, **GPT2_FAMILY),
    "opt": Family(opt, end="</s>", bos="</s>", template="chatml", shown=chatml("</s>")),
    "opt_plain": Family(opt, end="</s>", bos="</s>", template="plain", shown="s q a r b</s>"),
    "smollm2": Family(smollm2, end="<|im_end|>", shown=IM_END),
    "granite3": Family(lambda: granite(GRANITE3), end="<|end_of_text|>", shown=GRANITE_SHOWN),
    "granite31": Family(lambda: granite(GRANITE31), end="<|end_of_text|>", shown=GRANITE_SHOWN),
    "olmo2": Family(
        olmo2,
        end="<|endoftext|>",
        bos="<|endoftext|>",
        shown="<|endoftext|><|system|>\ns\n<|user|>\nq\n<|assistant|>\na<|endoftext|>\n<|user|>\nr\n"
        "<|assistant|>\nb<|endoftext|>",
    ),
    "deepseek2": Family(
        lambda: deepseek(DEEPSEEK2),
        end="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        shown="<｜begin▁of▁sentence｜>s\n\nUser: q\n\nAssistant: a<｜end▁of▁sentence｜>User: r\n\n"
        "Assistant: b<｜end▁of▁sentence｜>",
    ),
    "deepseek3": Family(
        lambda: deepseek(DEEPSEEK3),
        end="<｜end▁of▁sentence｜>",
        bos="<｜begin▁of▁sentence｜>",
        shown="<｜begin▁of▁sentence｜>s<｜User｜>q<｜Assistant｜>a<｜end▁of▁sentence｜><｜User｜>r<｜Assistant｜>b"
        "<｜end▁of▁sentence｜>",
    ),
    "internlm2": Family(internlm2, end="<|im_end|>", bos="<s>", keeps=spaced, shown="<s>" + IM_END),
    "t5_class": Family(t5_class, end="</s>", template="chatml", keeps=None, shown=chatml("</s>")),
    "albert": Family(albert, end="[SEP]", bos="[CLS]", template="chatml", keeps=None, shown=chatml("[SEP]")),
    "falcon": Family(lambda: falcon(None), **GPT2_FAMILY),
}


@functools.cache
def _made(name: str) -> PreTrainedTokenizerBase:
    return FAMILIES[name].make()


def tokenizer_of_family(name: str) -> PreTrainedTokenizerBase:
    """A fresh copy: beni adds its placeholder to it."""
    return copy.deepcopy(_made(name))
