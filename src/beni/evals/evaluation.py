"""The evaluation of a run: scores of held-out samples under ablations, and a gallery of some of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from beni.data.fetch.fetcher import Fetcher
from beni.data.sample import Sample
from beni.data.source import Source
from beni.errors import DataError
from beni.evals.ablations import ALWAYS, FURTHER, TRUE, Ablation
from beni.evals.dropping import can_drop
from beni.evals.gallery import GalleryItem, draw_gallery
from beni.evals.heldout import reachable, spread
from beni.evals.scores import score, summarise
from beni.evals.subject import Subject


@dataclass(frozen=True)
class Scores:
    """What came of one evaluation.

    Attributes:
        rows: of scores.jsonl, without the step.
        values: flat keys of metrics.jsonl.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)


class Listener(Protocol):
    """Who is told what comes of it, on every rank."""

    def notice(self, text: str) -> None:
        """Something that a person should know."""
        ...

    def scored(self, step: int, scores: Scores) -> None:
        """The scores after a step."""
        ...


class Evaluation:
    """Evaluates a model as often as it is asked to; by all ranks alike.

    Args:
        subject: the model, and how it is called.
        source: whose held-out samples are scored, by its metric.
        fetcher: of their pictures.
        listener: told of scores, and of what is left out.
        places: which of the held-out samples are scored.
        shown: samples of the gallery.
        attention: last layers of the llm whose attention the gallery draws; 0 draws none.
        ahead: samples whose pictures are asked for while those of others are waited for.
        ablations: names of those that the last evaluation scores beside the true and the blank pictures.
        last: optimizer steps of the run, after which the last evaluation is.
    """

    def __init__(
        self,
        subject: Subject,
        source: Source,
        fetcher: Fetcher,
        listener: Listener,
        *,
        places: Sequence[int],
        shown: int,
        attention: int,
        ahead: int,
        ablations: Sequence[str],
        last: int,
    ) -> None:
        self.subject, self.source, self.fetcher, self.listener = subject, source, fetcher, listener
        self.places, self.shown, self.attention, self.ahead = places, shown, attention, ahead
        self.ablations, self.last = ablations, last
        self._samples: Sequence[Sample] = ()
        self._scores = Scores()

    def score(self, step: int) -> dict[str, float]:
        """Scores the held-out samples whose pictures can be read, after an optimizer step.

        Returns:
            Flat keys of metrics.jsonl.

        Raises:
            DataError: when there is none.
        """
        samples = self._samples = self._heldout()
        self.subject.model.eval()
        rows = list(self._rows(samples, TRUE))
        if len(rows) < len(samples):
            left_out = len(samples) - len(rows)
            self.listener.notice(f"{left_out} held-out samples are left out: their images cannot be read")
        if not rows:
            raise DataError("no held-out sample has readable images\n  fix: see data_errors.jsonl")
        values = summarise(rows, TRUE)
        read = {row["id"] for row in rows}
        samples = samples if len(read) == len(samples) else [sample for sample in samples if sample.id in read]
        for ablation in (*ALWAYS[1:], *(self._further(samples) if step == self.last else ())):
            found = list(self._rows(samples, ablation))
            if len(found) < len(samples):
                self.listener.notice(
                    f"{len(samples) - len(found)} held-out samples are not scored {ablation.name}: "
                    "there is no other picture to show"
                )
            rows += found
            values |= summarise(found, ablation)
        self._scores = Scores(rows, values)
        self.listener.scored(step, self._scores)
        return values

    def gallery(self) -> list[GalleryItem]:
        """Some of the samples that were last scored, with what the model says to them."""
        samples = spread(self._samples, self.shown)
        if samples and not self.subject.model.llm.capabilities.generates:
            self.listener.notice("no gallery: transformers cannot generate from embeddings with this llm")
            return []
        return draw_gallery(self.subject, samples, self._scores.rows, self.attention, self.listener.notice)

    def _rows(self, samples: Sequence[Sample], ablation: Ablation) -> Iterator[dict[str, Any]]:
        return score(self.subject, self.source.metric, samples, ablation)

    def _further(self, samples: Sequence[Sample]) -> list[Ablation]:
        """What the last evaluation scores beside what every evaluation does; why it does not is told."""
        if self.ablations and not any(sample.images for sample in samples):
            self.listener.notice("no ablations of pictures: no held-out sample has one")
            return []
        names = list(self.ablations)
        if "dropped" in names and not can_drop(self.subject.model.fusion):
            names.remove("dropped")
            self.listener.notice(
                "held-out samples are not scored dropped: this fusion reads the encoders' features too"
            )
        return [FURTHER[name](samples) for name in names]

    def _heldout(self) -> Sequence[Sample]:
        samples, between, tell = self.source.heldout(), self.subject.between, self.listener.notice
        return reachable(samples, self.places, self.fetcher, self.ahead, between, tell)
