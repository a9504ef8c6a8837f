"""One renderer for training, evaluation, chat and export: a conversation to token ids and labels.

The chat template renders text in which every supervised turn is fenced by two private-use characters; their places give
the label spans, the fences are removed, and the text is tokenised once. So labels come from offsets, never from
tokenising substrings, and any Jinja template works unchanged. A supervised span is the turn's text and the end token
that the template puts behind it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from beni.data.images import Image
from beni.data.sample import Message, Sample
from beni.data.tokens import IMAGE, SpecialTokens, resolve_tokens
from beni.errors import DataError

OPEN, CLOSE = "\ue000", "\ue001"  # private use area: no text has them, no template strips them
IGNORE = -100


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
        visual_tokens: visual tokens that one image becomes in this run.

    Raises:
        DataError: when there is no chat template, or it loses, changes or never ends an assistant's text.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any], visual_tokens: Callable[[Image], int] | int
    ) -> None:
        self.tokenizer, self.settings = tokenizer, settings
        self.tokens: SpecialTokens = resolve_tokens(tokenizer)
        self.visual_tokens = visual_tokens if callable(visual_tokens) else lambda image: visual_tokens
        self.jinja = settings["jinja"] or tokenizer.chat_template
        if not self.jinja:
            raise DataError(
                f"template={settings['name']}: the llm's tokenizer has no chat template\n"
                "  fix: set template=chatml (for conversations) or template=plain (for captions)"
            )
        end = self._probe()
        self.tokens = replace(self.tokens, eos=tuple(dict.fromkeys((*self.tokens.eos, end))))

    def hash(self) -> str:
        """Changes with anything that changes what the model sees: template, system message, tokenizer."""
        parts = [self.jinja, str(self.settings["system"]), str(len(self.tokenizer)), str(self.tokens)]
        return hashlib.sha256("\x1f".join(parts).encode()).hexdigest()[:12]

    def encode(self, sample: Sample) -> Encoded:
        """The whole conversation with its labels.

        Raises:
            DataError: nothing supervised, placeholders and images that disagree, or too long; names the sample.
        """
        text = self.render(sample.messages)
        text, spans = self._spans(text)
        ids, labels = self._tokenise(text, spans)
        ids, labels = self._expand(ids, labels, sample)
        encoded = self._fit(ids, labels, sample)
        if not (encoded.labels[1:] != IGNORE).any():
            raise DataError(
                f"sample {sample.id}: no token is supervised; expected a non-empty assistant message "
                f"(roles: {', '.join(m.role for m in sample.messages)})"
            )
        return encoded

    def prompt(self, sample: Sample) -> Encoded:
        """The conversation up to where its last assistant message begins; nothing is supervised."""
        last = max(i for i, m in enumerate(sample.messages) if m.role == "assistant")
        text = self._apply(sample.messages[:last], add_generation_prompt=True, fence=False)
        ids, labels = self._tokenise(text, [])
        return Encoded(*self._expand(ids, labels, sample))

    def decode(self, ids: Any) -> str:
        """Generated ids -> the answer's text, cut at the first end token."""
        kept: list[int] = []
        for token in map(int, ids):
            if token in self.tokens.eos:
                break
            kept.append(token)
        return self.tokenizer.decode(kept, skip_special_tokens=True).strip()

    def render(self, messages: tuple[Message, ...]) -> str:
        """The conversation as text, supervised turns still fenced."""
        return self._apply(messages, add_generation_prompt=False, fence=True)

    def _apply(self, messages: tuple[Message, ...], *, add_generation_prompt: bool, fence: bool) -> str:
        turns = []
        if self.settings["system"] and not any(m.role == "system" for m in messages):
            turns.append({"role": "system", "content": self.settings["system"]})
        for message in messages:
            text = "".join(IMAGE if isinstance(part, Image) else part for part in message.content).strip()
            fenced = fence and message.supervised
            turns.append({"role": message.role, "content": f"{OPEN}{text}{CLOSE}" if fenced else text})
        try:
            return self.tokenizer.apply_chat_template(
                turns, chat_template=self.jinja, tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except TemplateError as error:
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(f"template={self.settings['name']} refuses the roles {roles}: {error}") from error

    def _spans(self, fenced: str) -> tuple[str, list[tuple[int, int]]]:
        """Fenced text -> plain text and the character spans to supervise, end tokens included."""
        text, spans, start = "", [], 0
        for piece in _pieces(fenced):
            if piece == OPEN:
                start = len(text)
            elif piece == CLOSE:
                spans.append((start, len(text)))
            else:
                text += piece
        ends = sorted(self.tokenizer.all_special_tokens, key=len, reverse=True)
        extended = []
        for a, b in spans:
            end = next((token for token in ends if text.startswith(token, b)), "")
            extended.append((a, b + len(end)))
        return text, extended

    def _tokenise(self, text: str, spans: list[tuple[int, int]]) -> tuple[np.ndarray, np.ndarray]:
        coded = self.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        ids = np.array(coded["input_ids"], dtype=np.int64)
        offsets = np.array(coded["offset_mapping"], dtype=np.int64).reshape(-1, 2)
        labels = np.full_like(ids, IGNORE)
        for a, b in spans:
            inside = (offsets[:, 1] > a) & (offsets[:, 0] < b) & (offsets[:, 1] > offsets[:, 0])
            labels[inside] = ids[inside]
        bos = self.tokens.bos
        if bos is not None and (len(ids) == 0 or ids[0] != bos):
            ids, labels = np.concatenate([[bos], ids]), np.concatenate([[IGNORE], labels])
        return ids, labels

    def _expand(self, ids: np.ndarray, labels: np.ndarray, sample: Sample) -> tuple[np.ndarray, np.ndarray]:
        """Each placeholder becomes as many as its image has visual tokens."""
        places = ids == self.tokens.image
        images = sample.images
        if places.sum() != len(images):
            raise DataError(
                f"sample {sample.id}: the text has {int(places.sum())} {IMAGE} placeholders for {len(images)} images; "
                "expected one each"
            )
        counts = np.ones(len(ids), dtype=np.int64)
        counts[places] = [self.visual_tokens(image) for image in images]
        labels = np.where(places, IGNORE, labels)
        return np.repeat(ids, counts), np.repeat(labels, counts)

    def _fit(self, ids: np.ndarray, labels: np.ndarray, sample: Sample) -> Encoded:
        limit, excess = self.settings["max_length"], len(ids) - self.settings["max_length"]
        if excess <= 0:
            return Encoded(ids, labels)
        if self.settings["overlong"] == "truncate":
            cut_image = (ids[limit:] == self.tokens.image).any()
            if not cut_image and (labels[1:limit] != IGNORE).any():
                return Encoded(ids[:limit], labels[:limit], excess)
        raise DataError(
            f"sample {sample.id} has {len(ids)} tokens, template.max_length is {limit}"
            + ("; cutting it would remove an image or every label" if self.settings["overlong"] == "truncate" else "")
            + "\n  fix: raise template.max_length, use fewer visual tokens, or set template.overlong=truncate"
        )

    def _probe(self) -> int:
        """Renders one exchange, checks that nothing of the answer is lost or changed, and returns the end token."""
        answer = "beni probe answer"
        sample = Sample("probe", (Message("user", ("question",)), Message("assistant", (answer,))))
        text, spans = self._spans(self.render(sample.messages))
        name = self.settings["name"]
        if len(spans) != 1 or not text[slice(*spans[0])].startswith(answer):
            raise DataError(f"template={name} loses or changes the assistant's text, so labels cannot be placed")
        ids, labels = self._tokenise(text, spans)
        kept = labels[labels != IGNORE]
        end = int(kept[-1])
        if end not in self.tokenizer.all_special_ids:
            raise DataError(
                f"template={name} puts no end token behind the assistant's text, so no answer would ever end\n"
                "  fix: use template=chatml, or end assistant messages with {{ eos_token }} in template.jinja"
            )
        said = self.tokenizer.decode(kept[:-1]).strip()
        if said != answer:
            raise DataError(f"template={name}: labels say {said!r}, expected {answer!r}")
        return end


def _pieces(fenced: str) -> list[str]:
    for fence in (OPEN, CLOSE):
        fenced = fenced.replace(fence, f"\0{fence}\0")
    return [piece for piece in fenced.split("\0") if piece]
