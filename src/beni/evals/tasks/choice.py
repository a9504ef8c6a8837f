"""Multiple choice, by what the model finds likeliest, or by what it says."""

from __future__ import annotations

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, final

from beni.data.metric import BestChoice, Metric, Reading
from beni.data.sample import Message, Sample
from beni.evals.ablations import Ablation
from beni.evals.tasks.base import GeneratedTask, ReadTask, Row, mean, means

_ONE = r"[\s:*\"']+[(\[]?([A-Z])(?![\w'’-])"
SAID = (
    re.compile(rf"(?i:\b(?:answer|option|choice) is){_ONE}"),  # the answer is (B) because
    re.compile(rf"(?i:\b(?:answer|option|choice)){_ONE}(?<![AI](?= [a-z]))"),  # answer: B, but not answer: A dog
    re.compile(r"^\W*([A-Z])(?:[.):,*\]]|\W*$)(?!\W*(?:(?:or|and)\W+)?[A-Z](?:[.):,]|\W*$))"),  # B. a dog, but not A, B
    re.compile(r"[(\[]([A-Z])[)\]]"),
)
"""Where an answer says the letter of its choice, in the order in which they count."""
STANDING = re.compile(r"(?<!\w)([A-Z])(?=[.):,]|\W*$)")
"""A letter within an answer that is no article: ``it is B, I think``."""
INSTRUCTION = "Answer with the option's letter from the given choices directly."
"""What LLaVA-1.5 puts behind lettered choices (arXiv 2310.03744)."""


@final
@dataclass(frozen=True)
class LikeliestChoice(ReadTask):
    """1 where the expected answer has the highest mean log-likelihood of its choices; ``accuracy_sum`` goes by the sum
    over tokens, which favours short ones.
    """

    name: ClassVar[str] = "accuracy"

    def unfit(self, sample: Sample) -> str | None:
        return _no_choices(sample)

    def metric(self, own: Metric) -> Metric:
        return BestChoice()

    def more(self, sample: Sample, readings: Mapping[str, Reading]) -> Row:
        total = {choice: reading.loglik * reading.tokens for choice, reading in readings.items()}
        return {"score_sum": float(max(total, key=lambda choice: total[choice]) == sample.answer)}

    def totals(self, rows: Sequence[Row], ablation: Ablation) -> dict[str, float]:
        values = means(self, rows, ablation)
        return values | {f"accuracy_sum{ablation.suffix}": mean([row["score_sum"] for row in rows])}


@final
@dataclass(frozen=True)
class SaidChoice(GeneratedTask):
    """1 where what the model says is the expected choice, see ``chosen_of``.

    Attributes:
        letters: put the choices behind the question, as ``A. ...``, and ask for a letter.
    """

    name: ClassVar[str] = "accuracy"
    letters: bool = False

    def unfit(self, sample: Sample) -> str | None:
        most = len(string.ascii_uppercase)
        if len(sample.choices) > most:
            return f"{sample} has {len(sample.choices)} choices, expected at most {most}\n  fix: set task=choice"
        return _no_choices(sample)

    def asked(self, sample: Sample) -> Sample:
        if not self.letters:
            return sample
        listed = "\n".join(
            f"{letter}. {choice}" for letter, choice in zip(string.ascii_uppercase, sample.choices, strict=False)
        )
        last = max(i for i, message in enumerate(sample.messages) if message.role == "user")
        question = sample.messages[last]
        longer = Message("user", (*question.content, f"\n{listed}\n{INSTRUCTION}"), question.train)
        return replace(sample, messages=(*sample.messages[:last], longer, *sample.messages[last + 1 :]))

    def judge(self, sample: Sample, said: str) -> Row:
        chosen = chosen_of(said, sample.choices, self.letters)
        return {"score": float(chosen == sample.answer), "choice": chosen}


def chosen_of(said: str, choices: Sequence[str], letters: bool = False) -> str | None:
    """Which of the choices an answer is; None where nobody can tell.

    An answer is the choice whose text it is. Else, where letters were asked for or are what the choices are made of, it
    is the one whose letter it names: a capital letter, since ``a`` is a word. Else it is the only one whose text is in
    it.

    Args:
        letters: each choice was shown with a letter in front.
    """
    plain = {_plain(choice): choice for choice in choices}
    if (text := _plain(said)) in plain:
        return plain[text]
    are_letters = all(len(choice) == 1 and choice in string.ascii_uppercase for choice in choices)
    names = choices if are_letters else string.ascii_uppercase
    named = dict(zip(names, choices, strict=False)) if letters or are_letters else {}
    for rule in SAID:
        if (letter := _only(rule.findall(said), named)) is not None:
            return named[letter]
    held = [choice for one, choice in plain.items() if one and re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text)]
    if len(held) == 1 and not are_letters:
        return held[0]
    letter = _only(STANDING.findall(said), named)
    return None if letter is None else named[letter]


def _only(found: Sequence[str], named: Mapping[str, str]) -> str | None:
    """The only letter of those found that a choice has."""
    letters = {letter for letter in found if letter in named}
    return letters.pop() if len(letters) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .")


def _no_choices(sample: Sample) -> str | None:
    if len(sample.choices) >= 2:
        return None
    return f"{sample} has no choices\n  fix: set data.columns.choices, or task=exact"
