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

LETTER = re.compile(r"\W*(?:(?:the )?(?:correct )?(?:answer|option|choice)(?: is)?\W*)?([A-Z])(?=[\s.,:;)\]]|$)", re.I)
"""A letter in front of an answer: ``B``, ``(b)``, ``B. a dog``, ``The answer is B.``"""
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
    """1 where what the model says is the expected choice: its text, its letter, or the only choice in what is said.

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
        chosen = chosen_of(said, sample.choices)
        return {"score": float(chosen == sample.answer), "choice": chosen}


def chosen_of(said: str, choices: Sequence[str]) -> str | None:
    """Which of the choices an answer is; None where nobody can tell."""
    plain = {_plain(choice): choice for choice in choices}
    if (text := _plain(said)) in plain:
        return plain[text]
    if (letter := LETTER.match(said)) and (place := ord(letter[1].upper()) - ord("A")) < len(choices):
        return choices[place]
    held = [choice for one, choice in plain.items() if one and re.search(rf"(?<!\w){re.escape(one)}(?!\w)", text)]
    return held[0] if len(held) == 1 else None


def _plain(text: str) -> str:
    return " ".join(text.lower().split()).strip(" .")


def _no_choices(sample: Sample) -> str | None:
    if len(sample.choices) >= 2:
        return None
    return f"{sample} has no choices\n  fix: set data.columns.choices, or task=exact"
