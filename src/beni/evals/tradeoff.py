"""What a selector and a pruner save and change: a trained model beside the same weights with all visual tokens."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from itertools import cycle
from typing import Any

from scipy.stats import binomtest
from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from beni.data.batch.collate import Item
from beni.data.images import decode
from beni.data.metric import Metric
from beni.data.sample import Sample
from beni.errors import ResumeError
from beni.evals.ablations import TRUE
from beni.evals.scores import score, summarise
from beni.evals.subject import Asked, Subject
from beni.measure.latency import Ratio, alternately, ratio
from beni.model.modeling import BeniForConditionalGeneration

NOTHING = {
    "selector": {"_target_": "beni.selector.none.NoSelector"},
    "pruner": {"_target_": "beni.pruner.none.NoPruner"},
}
"""The groups that take tokens out, and the part that takes none."""
WARMUP = 2
"""Rounds before those that are timed."""


@dataclass(frozen=True)
class Tradeoff:
    """A model, and the same weights with all visual tokens: of each pair the first is the model.

    Attributes:
        examples: held-out samples that both were scored on and asked.
        scores: flat keys of metrics.jsonl of each.
        changed: how many of the generated answers differ.
        changed_interval: Wilson's 95 % interval of their share.
        prefill: seconds of encoding a sample's pictures and reading its prompt up to the first new token, by round.
        decoding: seconds of each further token.
        prefill_ratio, decoding_ratio: of the model to all tokens.
    """

    examples: int
    scores: tuple[dict[str, float], dict[str, float]]
    changed: int
    changed_interval: tuple[float, float]
    prefill: tuple[list[float], list[float]]
    decoding: tuple[list[float], list[float]]
    prefill_ratio: Ratio
    decoding_ratio: Ratio


def taken_out(run: Mapping[str, Any]) -> dict[str, str]:
    """The groups by which a run takes tokens out, and the options."""
    return {
        group: str(run["choices"].get(group, "custom"))
        for group, node in NOTHING.items()
        if run[group]["_target_"] != node["_target_"]
    }


def with_all_tokens(run: Mapping[str, Any]) -> dict[str, Any]:
    """A run with neither selector nor pruner."""
    return {**run, **NOTHING, "choices": {**run["choices"], **dict.fromkeys(NOTHING, "none")}}


def given_all_tokens(model: BeniForConditionalGeneration, named: str) -> BeniForConditionalGeneration:
    """A model of the same weights, in the same types and on the CPU, without selector and pruner.

    Args:
        named: how the user named the model.

    Raises:
        ResumeError: when parts behind the selector have weights of other shapes for all tokens.
    """
    config = deepcopy(model.config)
    config.parts = config.parts | {group: dict(node) for group, node in NOTHING.items()}
    weights = {name: tensor.cpu() for name, tensor in model.state_dict().items()}
    # a tensor of another shape counts as missing then, which is told below
    read: Any = BeniForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=weights, output_loading_info=True, ignore_mismatched_sizes=True
    )
    whole, loaded = read
    misfits = sorted({*loaded["missing_keys"], *(entry[0] for entry in loaded["mismatched_keys"])})
    if misfits:
        raise ResumeError(
            f"{named}: the weights of {misfits[0].partition('.')[0]} are for as many tokens as the selector leaves, "
            f"such as {misfits[0]}\n  fix: compare with a run of selector=none instead: python -m beni.compare STUDY"
        )
    for name, parameter in whole.named_parameters():
        parameter.data = parameter.data.to(weights[name].dtype)
    return whole.eval()


def measure(
    reduced: Subject, whole: Subject, samples: Sequence[Sample], metric: Metric, rounds: int, new_tokens: int
) -> Tradeoff:
    """Scores, asks and times both.

    Args:
        samples: held out, with pictures.
        metric: of their source.
        rounds: samples whose prefill and decoding are timed, one by one and both models in turn.
        new_tokens: generated beyond the first.
    """
    scores, said, prompts = [], [], []
    for subject in (reduced, whole):
        rows = list(score(subject, metric, samples, TRUE))
        scores.append(summarise(rows, TRUE))
        asked = [Asked(sample, [decode(image) for image in sample.images]) for sample in samples]
        said.append(subject.answer(asked))
        prompts.append([subject.prompt(one) for one in asked[:rounds]])
    changed = sum(ours != theirs for ours, theirs in zip(*said, strict=True))
    interval = binomtest(changed, len(samples)).proportion_ci(method="wilson")
    prefill, decoding = generation_seconds((reduced, whole), prompts, rounds, new_tokens)
    return Tradeoff(
        examples=len(samples),
        scores=(scores[0], scores[1]),
        changed=changed,
        changed_interval=(float(interval.low), float(interval.high)),
        prefill=prefill,
        decoding=decoding,
        prefill_ratio=ratio(*prefill),
        decoding_ratio=ratio(*decoding),
    )


def generation_seconds(
    subjects: tuple[Subject, Subject], prompts: Sequence[Sequence[Item]], rounds: int, new_tokens: int
) -> tuple[tuple[list[float], list[float]], tuple[list[float], list[float]]]:
    """Seconds up to the first new token, and of each further one, of both models by round and in turn.

    Args:
        prompts: of each model; a round is one of them, and they begin anew when all were read.
        new_tokens: generated beyond the first.
    """
    taken: tuple[list[Stopwatch], list[Stopwatch]] = ([], [])

    def caller(subject: Subject, turns: Iterator[Item], watches: list[Stopwatch]) -> Callable[[], object]:
        def call() -> None:
            watches.append(Stopwatch())
            subject.generate([next(turns)], new_tokens + 1, new_tokens + 1, watches[-1])

        return call

    names = ("reduced", "whole")
    calls = {
        name: caller(subject, cycle(own), watches)
        for name, subject, own, watches in zip(names, subjects, prompts, taken, strict=True)
    }
    alternately(calls, rounds, WARMUP)
    ours, theirs = (watches[WARMUP:] for watches in taken)
    prefill = ([watch.first for watch in ours], [watch.first for watch in theirs])
    return prefill, ([watch.each for watch in ours], [watch.each for watch in theirs])


class Stopwatch(BaseStreamer):
    """When each new token of one answer was there, as transformers' ``generate`` tells (after waiting for a GPU)."""

    def __init__(self) -> None:
        self.start = time.perf_counter()
        self.times: list[float] = []

    def put(self, value: Tensor) -> None:
        if value.numel():  # else the prompt, of which generation is given no ids
            self.times.append(time.perf_counter())

    def end(self) -> None:
        """Nothing is left to be written."""

    @property
    def first(self) -> float:
        """Seconds up to the first new token."""
        return self.times[0] - self.start

    @property
    def each(self) -> float:
        """Seconds of each further token."""
        return (self.times[-1] - self.times[0]) / (len(self.times) - 1)
