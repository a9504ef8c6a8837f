"""VQA accuracy, the rule of VQAv2 (arXiv 1612.00837): min(1, people who said so / 3), averaged over all sets that leave
one person out.

Answers are compared as its evaluation program (GT-Vision-Lab/VQA, ``vqaEval.py``) prepares them, peculiarities
included: what a model says loses punctuation, articles and capitals, and writes numbers as digits; what people said
loses punctuation only, and only where they do not all say the same.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, final

from beni.data.sample import Sample
from beni.evals.tasks.base import GeneratedTask, Row

FEWEST = 4
"""Answers of people with which the rule can give 1: those without one of them must hold three."""
ENOUGH = 3
"""People who must have said the same, beside the one that is left out."""
SIGNS = (";", ":", "/", "'", "[", "]", '"', "(", ")", "=", "+", "\\", "_", ">", "<", "@", "`", ",", "?")
COMMA = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
MOST_PERIODS = 32
"""Periods that are taken out; the program passes a flag where the number belongs."""
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {"none": "0"} | {word: str(number) for number, word in enumerate(NUMBERS)}
ARTICLES = ("a", "an", "the")
_LISTED = """
ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd he'd've he's
how'd how'll how's I'd've I'm I've isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've needn't
not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've somebody'll somebody's
someone'd someone'd've someone'll someone's something'd something'd've something'll that's there'd there'd've there're
there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've weren't what'll what're what's what've
when's where'd where's where've who'd who'd've who'll who's who've why'll why're why's won't would've wouldn't
wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTED = _LISTED.split()
"""Words that are found without one of their apostrophes."""


def _without_one(word: str) -> list[str]:
    return [word[:place] + word[place + 1 :] for place, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {short: word for word in CONTRACTED for short in _without_one(word)} | {"somebody'd": "somebodyd"}
"""Word that lacks an apostrophe -> the word; the last one is turned round in the program too."""


@final
@dataclass(frozen=True)
class VqaAccuracy(GeneratedTask):
    """The accuracy of VQAv2, in [0, 1]."""

    name: ClassVar[str] = "vqa_accuracy"

    def unfit(self, sample: Sample) -> str | None:
        if len(sample.references) >= FEWEST:
            return None
        return (
            f"{sample} has {len(sample.references)} reference answers, and VQAv2's rule needs {FEWEST} or more\n"
            "  fix: set task=exact, or data.columns.answer to a list of what people said"
        )

    def judge(self, sample: Sample, said: str) -> Row:
        return {"score": vqa_accuracy(said, sample.references)}


def vqa_accuracy(said: str, references: Sequence[str]) -> float:
    """What an answer is worth, in [0, 1], by what people have answered, each as often as it was said."""
    answer = _digits_and_articles(_punctuation(said.replace("\n", " ").replace("\t", " ").strip()))
    people = [_punctuation(one) for one in references] if len(set(references)) > 1 else list(references)
    agreeing = sum(one == answer for one in people)
    scores = [min(1.0, (agreeing - (one == answer)) / ENOUGH) for one in people]
    return sum(scores) / len(scores)


def _punctuation(text: str) -> str:
    """The text without signs, or with a space for them where they stand between letters."""
    out = text
    for sign in SIGNS:
        aside = f"{sign} " in text or f" {sign}" in text or COMMA.search(text)
        out = out.replace(sign, "" if aside else " ")
    return PERIOD.sub("", out, count=MOST_PERIODS)


def _digits_and_articles(text: str) -> str:
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
