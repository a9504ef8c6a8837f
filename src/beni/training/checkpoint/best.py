"""Which checkpoint of a run is the best, by ``checkpoint.keep_best``: judged here, noted in best.json, told to the log.

An evaluation that is better than all before it makes the checkpoint of its step the best as soon as that is written.
The best one stays beside the newest, and where the disk does not take its note, the note is tried again with each
checkpoint.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from beni.distributed.collectives import Peers, max_over_ranks
from beni.errors import ConfigError
from beni.runs.files import BEST, checkpoint_name, checkpoints_in, read_json, replace
from beni.runs.shape import OF_BEST


@dataclass(frozen=True)
class Best:
    """The best evaluation, whose checkpoint is kept.

    Attributes:
        step: of the checkpoint.
        metric: what was compared.
        value: of the metric at that step.
    """

    step: int
    metric: str
    value: float

    @property
    def sign(self) -> int:
        """1 where more is better, -1 where less is."""
        return -1 if "loss" in self.metric else 1

    def beats(self, other: Best | None) -> bool:
        """Whether it is better than ``other``; of equals the earlier one stays."""
        return other is None or self.sign * self.value > self.sign * other.value


@runtime_checkable
class BestLog(Protocol):
    """A log that is told which checkpoint is the best."""

    def notice(self, text: str) -> None:
        """Something a reader of the run should know."""

    def best(self, step: int, metric: str, value: float) -> None:
        """The checkpoint of ``step`` is the best until now, and kept."""


class BestCheckpoint:
    """The best checkpoint of one run. Made by all ranks; only rank 0 judges, and writes.

    Args:
        root: folder of the run's checkpoints.
        metric: of the evaluation; None where a run does not ask (``checkpoint.keep_best=null``).
    """

    def __init__(self, root: Path, metric: str | None, peers: Peers, log: BestLog) -> None:
        self.root, self.metric, self.peers, self.log = root, metric, peers, log
        self._best: Best | None = None
        self._candidate: Best | None = None
        """The best whose checkpoint is still being written."""
        self._unnoted: Best | None = None
        """The best on rank 0, as long as the disk has not taken its note."""
        self._told = False

    def resume(self, step: int) -> None:
        """Takes up the best of a run that goes on after ``step``. Called by all ranks."""
        best, problem = self.peers.from_main(lambda: (self._unnoted, None) if self._unnoted else read_best(self.root))
        if problem is not None and self.metric is not None:
            self.log.notice(f"{problem}; the next evaluation counts as the best so far")
        if best is not None and best.metric == self.metric and best.step <= step:
            self._best = best

    def is_beaten(self, step: int, scores: Mapping[str, float], device: torch.device) -> bool:
        """Whether the evaluation of ``step`` is the best until now, as rank 0 sees it. Called by all ranks.

        Raises:
            ConfigError: when it has no such metric.
        """
        if self.metric is None:
            return False
        if self.metric not in scores:
            raise ConfigError(
                f"checkpoint.keep_best={self.metric}, but this evaluation measures {', '.join(scores)}\n"
                "  fix: set checkpoint.keep_best to one of these, or to null"
            )
        best = self._candidate or self._best  # the one that is being written counts already
        better = self.peers.rank == 0 and Best(step, self.metric, scores[self.metric]).beats(best)
        return max_over_ranks([int(better)], device)[0] > 0

    def propose(self, step: int, scores: Mapping[str, float]) -> None:
        """The checkpoint of ``step`` is the best one, as soon as ``written`` says that it is there."""
        assert self.metric is not None, "checkpoint.keep_best is null"
        self._candidate = Best(step, self.metric, scores[self.metric])

    def written(self, good: bool) -> bool:
        """What was proposed is the best from now on, or, where there is no checkpoint of it, forgotten.

        Args:
            good: whether its checkpoint is there.

        Returns:
            Whether there is another best than before.
        """
        candidate, self._candidate = self._candidate, None
        if candidate is None or not good:
            return False
        self._best = candidate
        if self.peers.rank == 0:
            self._unnoted = candidate
        if (problem := self.note()) and not self._told:
            self._told = True
            self.log.notice(f"{problem}; the run continues and retries with its next checkpoint")
        self.log.best(**asdict(candidate))
        return True

    def note(self) -> str | None:
        """Notes on the disk which checkpoint is the best, where rank 0 has yet to do so.

        Returns:
            Why the disk has not taken it.
        """
        if self._unnoted is None:
            return None
        try:
            replace(self.root / BEST, json.dumps(asdict(self._unnoted)))
        except OSError as error:
            return f"{self.root / BEST} could not be written: {error}"
        self._unnoted = None
        return None

    def end(self) -> None:
        """The last try to note it; tells where that fails."""
        if problem := self.note():
            self.log.notice(f"{problem}; the run ends without recording which checkpoint is the best")

    def kept(self) -> set[str]:
        """Folders of checkpoints that must stay: the best one, and one that is still noted as such."""
        noted = read_best(self.root)[0]
        return {checkpoint_name(best.step) for best in (self._unnoted, noted) if best is not None}


def read_best(root: Path) -> tuple[Best | None, str | None]:
    """The best evaluation of the run whose checkpoints are in ``root``, where its checkpoint is kept; and the sentence
    that says why its note cannot be read.
    """
    if not (root / BEST).exists():
        return None, None
    found, problem = read_json(root / BEST, OF_BEST)
    if problem is not None:
        return None, problem
    best = Best(found["step"], found["metric"], float(found["value"]))
    return (best if best.step in checkpoints_in(root) else None), None
