"""Makes the tokenizers that beni carries: ``python -m beni.llm.make_tokenizer`` writes their folders anew.

``embedded_tokenizer/`` is byte-level BPE over all 256 bytes, its merges learned from the questions of ``data=shapes``:
any text can be written, and every word of the main job is one token. It lets llms with random weights train where no
hub can be reached. ``byte_tokenizer/`` has a token a byte, for losses that are to be compared character by character.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from beni.data.shapes import questions
from beni.data.shapes.scenes import Scene
from beni.llm.tokenizer import CARRIED

VOCABULARY = 512
SPECIAL = ["<pad>", "<bos>", "<eos>", "<image>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|{{ m.role }}|>{{ m.content }}"
    "{% if m.role == 'assistant' %}<|end|>{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer, the same on every machine."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_corpus(), trainer)
    return _finished(tokenizer)


def byte_tokenizer() -> PreTrainedTokenizerFast:
    """A token a byte, behind the special ones."""
    ids = {token: i for i, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    tokenizer = _byte_level(models.BPE(vocab=ids, merges=[]))
    tokenizer.add_special_tokens(SPECIAL)
    return _finished(tokenizer)


def _byte_level(model: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _finished(tokenizer: Tokenizer) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        additional_special_tokens=SPECIAL[3:],
        chat_template=TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def _corpus() -> Iterator[str]:
    """Questions and answers as they stand in a conversation: the first word of a turn has no space before it."""
    rng = random.Random(0)
    for _ in range(4000):
        scene = Scene.draw(rng)
        asked = questions.ask_several(scene, rng, 8)
        asked.append(questions.ask_description(scene, rng))
        asked += [q for q in (questions.ask_pictures(scene, Scene.draw(rng), rng), questions.ask_text(rng)) if q]
        for question in asked:
            yield question.text
            yield question.answer


if __name__ == "__main__":
    make_tokenizer().save_pretrained(CARRIED["embedded"])
    byte_tokenizer().save_pretrained(CARRIED["bytes"])
