"""One renderer for training, evaluation, chat and export: a conversation to token ids and labels.

The chat template renders text in which every supervised turn is fenced by two noncharacters; their places give the
label spans, the fences are removed, and the text is tokenised once. So labels come from offsets, never from tokenising
substrings, and any Jinja template works unchanged. A supervised span is the turn's text, the spaces before it (most
tokenizers write them into the first word) and the end token that the template puts behind it. A prompt is the same text
up to where the last span begins, so what is asked at evaluation is what was seen in training.
"""

from __future__ import annotations

import datetime
import hashlib
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
from transformers import PreTrainedTokenizerBase

from beni.data.images import Image
from beni.data.render.refusal import explained
from beni.data.render.tokens import IMAGE, SpecialTokens, added_tokens, resolve_tokens
from beni.data.sample import Message, Sample
from beni.errors import DataError
from beni.types import IGNORE, Markup

# noncharacters: Unicode keeps them out of texts that are exchanged, no template strips them
OPEN, CLOSE = "\ufdd0", "\ufdd1"
GUARD = "\ufdd2"  # stands inside a text's "</s>" while it is tokenised, so that it stays the four characters it is
FORBIDDEN = re.compile("[\ufdd0-\ufdd2\ud800-\udfff]")  # the marks above, and halves of characters

STAND_IN = "a"
"""What stands for the answer while a prompt is rendered and tokenised."""

# Llama-3.2 and Granite-3.1 write today's date. What a model sees must not depend on the day it is trained, so they are
# told the one that Llama's template has for want of a clock; a macro, since transformers hands templates no function.
DAY = datetime.date(2024, 7, 26)
TODAY = (
    "{% macro strftime_now(form) %}{{ form"
    + "".join(f" | replace('%{code}', '{DAY.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY")
    + " }}{% endmacro +%}"
)
# cut otherwise by almost any two tokenizers: spaces, digits, lines, accents, forms of one character, a special token
TELLTALE = f"Is  it's 20345\n\n\tcafe\u0301 caf\u00e9 \ufb01 赤い星 <a/>   ...{IMAGE}and\r\n "


@dataclass(frozen=True)
class Encoded:
    """A sample as the llm sees it.

    Attributes:
        ids: token ids, each image as a run of placeholders. int64, (t,).
        labels: the ids that are supervised, -100 elsewhere. int64, (t,).
        truncated: tokens cut off by ``template.overlong=truncate``.
    """

    ids: np.ndarray
    labels: np.ndarray
    truncated: int = 0


class Renderer:
    """Conversations to ids and labels.

    Args:
        tokenizer: the llm's; the image placeholder is added to it.
        settings: the ``template`` section of the run.
        visual_tokens: placeholders of an image for which ``encode`` is given no markup.

    Raises:
        DataError: when there is no chat template, or it loses, changes or never ends an assistant's text.

    A message's text that spells the bos, pad, unk or end token is tokenised as ordinary text; other added tokens in it
    (``<loc0001>``, ``<|box_start|>``) keep their meaning. A template that asks for today's date is told ``DAY``.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], visual_tokens: int = 1) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.tokens: SpecialTokens = resolve_tokens(tokenizer)
        self.visual_tokens = visual_tokens
        own = tokenizer.chat_template  # a dict where the tokenizer names several, for tools and retrieval
        jinja = settings["jinja"] or (own.get("default") if isinstance(own, dict) else own)
        if not jinja:
            raise DataError(
                f"template={settings['name']}: the llm's tokenizer has no chat template\n"
                "  fix: set template=chatml (for conversations) or template=plain (for captions)"
            )
        self.jinja: str = jinja
        # Gemma's line breaks are added tokens as well, but a blank line ends no answer
        self._know_ends(token for token in added_tokens(tokenizer) if token != IMAGE and not token.isspace())
        end = self._probe()
        self.tokens = replace(self.tokens, eos=tuple(dict.fromkeys((*self.tokens.eos, end))))
        self._know_ends(cast(list[str], tokenizer.convert_ids_to_tokens(list(self.tokens.eos))))

    def hash(self) -> str:
        """Changes with anything that changes what the model sees: template, system message, tokenizer.

        Tokenizers of one vocabulary differ by how they cut a telltale text; their description as JSON would differ
        between versions of the library as well.
        """
        vocabulary = sorted(self.tokenizer.get_vocab().items())
        cut = self._text_ids(TELLTALE).tolist()
        parts = [self.jinja, str(self.settings["system"]), str(vocabulary), str(self.tokens), str(cut)]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]

    def encode(self, sample: Sample, markups: Sequence[Markup] | None = None, fit: bool = True) -> Encoded:
        """The whole conversation with its labels.

        Args:
            markups: what stands for each image, in reading order.
            fit: hold it to ``template.max_length``.

        Raises:
            DataError: nothing supervised, placeholders and images that disagree, too long, or a message that the
                template refuses, loses or changes; names the sample.
        """
        text, spans, heard = self._render(sample)
        self._check_heard(text, heard, sample)
        ids, labels = self._tokenise(text, spans, sample)
        ids, labels = self._expand(ids, labels, sample, markups)
        encoded = self._fit(ids, labels, sample) if fit else Encoded(ids, labels)
        if not (encoded.labels[1:] != IGNORE).any():
            raise DataError(
                f"{sample}: no token is supervised; expected a non-empty assistant message "
                f"(roles: {', '.join(m.role for m in sample.messages)})\n"
                "  fix: give the record an answer, set 'train' on a message, or remove the record"
            )
        return encoded

    def whole(self, sample: Sample, markups: Sequence[Markup] | None = None) -> Encoded:
        """What ``encode`` gives, never cut, whatever ``template.overlong`` says: an answer is scored to its end, and of
        choices that are cut to the same tokens none could be told from another.

        Raises:
            DataError: as ``encode``, or when it is longer than ``template.max_length``; names the sample.
        """
        encoded = self.encode(sample, markups, fit=False)
        self.require_whole(sample, encoded)
        return encoded

    def require_whole(self, sample: Sample, encoded: Encoded) -> None:
        """Return when a sample that is scored fits as it is.

        Raises:
            DataError: when it is longer than ``template.max_length``; names the sample.
        """
        limit = self.settings["max_length"]
        if len(encoded.ids) > limit:
            raise DataError(
                f"{sample} has {len(encoded.ids)} tokens with the answer {_beginning(sample.answer)}, "
                f"template.max_length is {limit}, and held-out answers are never cut\n"
                f"  fix: set template.max_length={len(encoded.ids)}, use fewer visual tokens, or remove the record"
            )

    def prompt(self, sample: Sample, markups: Sequence[Markup] | None = None) -> Encoded:
        """The conversation up to where its last assistant message begins (all of it if it has none), unsupervised.

        Its ids are the first ids of ``encode``, except where the answer's first character changes how the tokenizer
        cuts what stands before it (never behind a special token), or the template writes an answer otherwise once it
        is followed by a question (Qwen3's, which then leaves its block of thoughts out). A letter stands in for the
        answer meanwhile: many a tokenizer cuts two line breaks otherwise when nothing follows them.
        """
        text, spans, asked = self._asked(sample)
        given = None if markups is None else markups[: len(asked.images)]
        return self._before(*self._expand(*self._tokenise(text, spans[-1:], asked), asked, given))

    def prompt_text(self, sample: Sample) -> str:
        """The text of ``prompt``, the spaces in front of the answer included; ``<image>`` stands for each image.

        Raises:
            DataError: as ``prompt``, and when a message spells a control token: as text it would be one.
        """
        text, spans, asked = self._asked(sample)
        if (place := text.find(GUARD)) >= 0:
            raise DataError(
                f"{asked}: a message spells a control token ({text[place - 1 : place + 12].replace(GUARD, '')!r}), "
                "which a prompt given as text cannot tell from the token itself\n"
                "  fix: ask for token ids instead of text (tokenize=True), or remove it from the message"
            )
        start = spans[-1][0]
        return text[: start + len(text[start:]) - len(text[start:].lstrip(" "))]

    def prompt_ids(self, text: str, images: Sequence[Image], markups: Sequence[Markup]) -> np.ndarray:
        """What ``prompt_text`` gave -> the ids that ``prompt`` gives.

        Args:
            images: that the placeholders of the text stand for.
            markups: what stands for each.

        Raises:
            DataError: when placeholders and images differ in number.
        """
        sample = Sample("prompt", (Message("user", tuple(images)),))
        span = (len(text.rstrip(" ")), len(text) + len(STAND_IN))
        ids, labels = self._expand(*self._tokenise(text + STAND_IN, [span], sample), sample, markups)
        return self._before(ids, labels).ids

    def _asked(self, sample: Sample) -> tuple[str, list[tuple[int, int]], Sample]:
        """-> text and supervised spans of a conversation that ends with a stand-in for the last answer; the latter."""
        last = max((i for i, m in enumerate(sample.messages) if m.role == "assistant"), default=len(sample.messages))
        answer = Message("assistant", (STAND_IN,), train=True)
        asked = replace(sample, messages=(*sample.messages[:last], answer))
        text, spans, heard = self._render(asked)
        self._check_heard(text, heard, asked)
        return text, spans, asked

    @staticmethod
    def _before(ids: np.ndarray, labels: np.ndarray) -> Encoded:
        """What stands before the first label, unsupervised."""
        begin = int((labels != IGNORE).argmax())
        return Encoded(ids[:begin], np.full(begin, IGNORE))

    def decode(self, ids: Any) -> str:
        """Generated ids -> the answer's text, cut at the first end token."""
        return self.written(ids).strip()

    def written(self, ids: Any) -> str:
        """Generated ids -> what ``decode`` gives, with the white space around it."""
        kept: list[int] = []
        for token in map(int, ids):
            if token in self.tokens.eos:
                break
            kept.append(token)
        return self._text(kept, skip_special_tokens=True)

    def text_length(self, text: str) -> int:
        """Tokens of a text that stands beside an image's placeholders."""
        return len(self._text_ids(text))

    def _render(self, sample: Sample) -> tuple[str, list[tuple[int, int]], list[dict[str, str]]]:
        """-> text, character spans to supervise (spaces before and end token included), turns not supervised."""
        turns, supervised = [], []
        if self.settings["system"] and not any(m.role == "system" for m in sample.messages):
            turns.append({"role": "system", "content": self.settings["system"]})
        for message in sample.messages:
            content = self._content(message, sample)
            if message.supervised:
                supervised.append(content)
                content = f"{OPEN}{content}{CLOSE}"
            turns.append({"role": message.role, "content": content})
        if not turns:
            raise DataError(f"{sample}: it has no message; expected a conversation\n  fix: remove it from the data")
        name = self.settings["name"]
        jinja = TODAY + self.jinja if "strftime_now" in self.jinja else self.jinja
        with explained(sample, self.settings, ", ".join(turn["role"] for turn in turns)):
            fenced = cast(str, self.tokenizer.apply_chat_template(turns, chat_template=jinja, tokenize=False))
        before, *rest = fenced.split(OPEN)
        pieces = [piece.split(CLOSE) for piece in rest]
        if CLOSE in before or [piece[0] for piece in pieces] != supervised or any(len(p) != 2 for p in pieces):
            raise DataError(
                f"{sample}: template={name} loses or changes a supervised message's text, so labels cannot "
                "be placed\n  fix: use template=chatml, or a template.jinja that writes {{ message.content }} as it is"
            )
        text, spans = before, []
        for said, after in pieces:
            start, end = len(text.rstrip(" ")), len(text) + len(said)
            text += said + after
            close = self._end.match(text, end)
            spans.append((start, close.end() if close else end))
        heard = [turn for turn in turns if OPEN not in turn["content"]]
        return text, spans, heard

    def _content(self, message: Message, sample: Sample) -> str:
        said = "".join(part for part in message.content if isinstance(part, str))
        if not said.isascii() and (odd := FORBIDDEN.search(said)):
            raise DataError(
                f"{sample}: the text holds U+{ord(odd[0]):04X}; expected no surrogate and none of the noncharacters "
                "U+FDD0 to U+FDD2\n  fix: remove it from the text"
            )
        texts = [""]  # between images; guarded as a whole, as neighbouring parts may spell a token together
        for part in message.content:
            if isinstance(part, Image):
                texts.append("")
            else:
                texts[-1] += part
        whole = IMAGE.join(text.replace(IMAGE, IMAGE[0] + GUARD + IMAGE[1:]) for text in texts)
        return self._control.sub(lambda m: m[0][0] + GUARD + m[0][1:], whole).strip()

    def _check_heard(self, text: str, heard: list[dict[str, str]], sample: Sample) -> None:
        """Turns that are not supervised must be there as well: some templates drop a system message without a word."""
        for turn in heard:
            content = turn["content"].strip()
            if any(piece not in text for piece in content.split(IMAGE)):
                raise DataError(
                    f"{sample}: template={self.settings['name']} loses or changes the {turn['role']} message "
                    f"{content[:40]!r}\n  fix: use template=chatml, or say it in the user's message instead "
                    "(and set template.system=null)"
                )

    def _tokenise(self, text: str, spans: list[tuple[int, int]], sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.array(coded["input_ids"], dtype=np.int64)
        offsets = np.array(coded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        labels = np.full_like(ids, IGNORE)
        for a, b in spans:
            # a token may be empty: GPT-NeoX's post-processor takes the spaces out of the offsets; or reach into the
            # spaces from in front of them: Phi-4's markers swallow those beside them
            said = a + len(text[a:b]) - len(text[a:b].lstrip(" "))
            inside = ((offsets[:, 1] > said) | (offsets[:, 0] >= a)) & (offsets[:, 0] < b)
            labels[inside] = ids[inside]
        if GUARD in text:
            pieces = [text[a:b] for a, b in offsets]
            if any(GUARD in piece and piece != GUARD for piece in pieces):
                raise DataError(f"{sample}: a text that spells a control token cannot be tokenised as text")
            kept = np.array([piece != GUARD for piece in pieces])
            ids, labels = ids[kept], labels[kept]
        bos = self.tokens.bos
        if bos is not None and (len(ids) == 0 or ids[0] != bos):
            ids, labels = np.concatenate([[bos], ids]), np.concatenate([[IGNORE], labels])
        return ids, labels

    def _expand(
        self, ids: np.ndarray, labels: np.ndarray, sample: Sample, markups: Sequence[Markup] | None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Each placeholder becomes what stands for its image: as many as it has visual tokens, and texts between."""
        places = ids == self.tokens.image
        images = sample.images
        if places.sum() != len(images):
            raise DataError(
                f"{sample}: the text has {int(places.sum())} {IMAGE} placeholders for {len(images)} images; "
                "expected one each\n"
                f"  fix: remove {IMAGE} from texts where no image belongs"
            )
        if markups is None:
            markups = [(self.visual_tokens,)] * len(images)
        if len(markups) != len(images):
            raise DataError(f"{sample}: {len(markups)} markups for {len(images)} images; expected one each")
        new_ids, new_labels, done = [], [], 0
        for place, markup in zip(np.flatnonzero(places), markups, strict=True):
            stands = [
                np.full(part, self.tokens.image) if isinstance(part, int) else self._text_ids(part) for part in markup
            ]
            new_ids += [ids[done:place], *stands]
            new_labels += [labels[done:place], *(np.full(len(part), IGNORE) for part in stands)]
            done = place + 1
        return np.concatenate([*new_ids, ids[done:]]), np.concatenate([*new_labels, labels[done:]])

    def _text(self, ids: Any, **options: bool) -> str:
        """One sequence of ids as text."""
        return cast(str, self.tokenizer.decode(ids, clean_up_tokenization_spaces=False, **options))

    def _text_ids(self, text: str) -> np.ndarray:
        return np.array(self.tokenizer(text, add_special_tokens=False)["input_ids"], dtype=np.int64)

    def _fit(self, ids: np.ndarray, labels: np.ndarray, sample: Sample) -> Encoded:
        limit, excess = self.settings["max_length"], len(ids) - self.settings["max_length"]
        if excess <= 0:
            return Encoded(ids, labels)
        if self.settings["overlong"] == "truncate":
            cut_image = (ids[limit:] == self.tokens.image).any()
            if not cut_image and (labels[1:limit] != IGNORE).any():
                return Encoded(ids[:limit], labels[:limit], excess)
        raise DataError(
            f"{sample} has {len(ids)} tokens, template.max_length is {limit}"
            + ("; cutting it would remove an image or every label" if self.settings["overlong"] == "truncate" else "")
            + "\n  fix: raise template.max_length, use fewer visual tokens, or set template.overlong=truncate"
        )

    def _probe(self) -> int:
        """Renders one exchange, checks that nothing of the answer is lost or changed, and returns the end token."""
        answer = "beni probe answer"
        sample = Sample("probe", (Message("user", ("question",)), Message("assistant", (answer,))))
        name = self.settings["name"]
        text, spans, heard = self._render(sample)
        self._check_heard(text, heard[:-1], sample)  # the system message of the settings; a question may be left out
        _, labels = self._tokenise(text, spans, sample)
        kept = labels[labels != IGNORE]
        end = int(kept[-1])
        if text[slice(*spans[0])].lstrip() == answer:
            raise DataError(
                f"template={name} puts no end token behind the assistant's text, so generation would never stop\n"
                "  fix: use template=chatml, or end assistant messages with {{ eos_token }} in template.jinja"
            )
        said = self._text(kept[:-1]).strip()
        if said != answer:
            raise DataError(f"template={name}: labels say {said!r}, expected {answer!r}")
        return end

    def _know_ends(self, tokens: Iterable[str]) -> None:
        """Makes the patterns of what may end a turn, and of what a text must not be mistaken for."""
        ends = list(tokens)
        self._end = _any_of(ends, r"\s*")
        controls = (self.tokenizer.bos_token, self.tokenizer.pad_token, self.tokenizer.unk_token, *ends)
        self._control = _any_of(token for token in controls if isinstance(token, str))


def _beginning(text: str) -> str:
    """How errors show a text."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def _any_of(tokens: Iterable[str], before: str = "") -> re.Pattern[str]:
    """Matches any of ``tokens``, the longest first."""
    return re.compile(f"{before}(?:{'|'.join(map(re.escape, sorted(tokens, key=len, reverse=True)))})")
