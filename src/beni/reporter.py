"""What a run says while it goes: metrics.jsonl, status.json, scores.jsonl, the tracker, the terminal, report.html."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from rich.console import Console

from beni.analysis.render import render_report
from beni.analysis.terminal_tables import run_table
from beni.config.build import build
from beni.console import output_problems
from beni.distributed.environment import Environment
from beni.errors import Preempted
from beni.evals.evaluation import Scores
from beni.evals.gallery import GalleryItem, write_gallery
from beni.measure import memory
from beni.runs import files
from beni.runs.folder import RunFolder
from beni.runs.identity import now
from beni.runs.read import collect_run
from beni.tracker.base import Tracker
from beni.tracker.metrics import MetricsFile
from beni.tracker.progress import Progress
from beni.vision.feature_bank import FeatureBank

SPEED = ("samples_per_s", "tflops_per_s", "mfu", "mfu_causal", "hfu", "wall_s")
"""Values of the last log line that status.json has too, beside FLOPs and shares of wall time."""


class Reporter:
    """What a run says, on its way to metrics.jsonl, status.json, scores.jsonl, the tracker and the terminal.

    Notices reach the terminal at once; as a context manager around the work in the run folder it keeps them there too.

    Attributes:
        bank: features that the run keeps, whose use status.json tells; None where it keeps none.
    """

    def __init__(self, folder: RunFolder, run: Mapping[str, Any], environment: Environment) -> None:
        self.folder, self.run, self.environment = folder, run, environment
        self.start, self.step = time.perf_counter(), 0
        self.active = environment.is_main
        self.bank: FeatureBank | None = None
        self.progress = Progress(run["train"]["steps"], shown=self.active)
        self._before = 0.0
        self._closing = ExitStack()
        self._begun = self._entered = False
        self._early: list[str] = []
        folder.backlog.tell = self.notice

    def __enter__(self) -> Reporter:
        if self.active:
            path, backlog = self.folder.path, self.folder.backlog
            self._before = float(self.folder.status.get("seconds", 0.0))
            self.metrics = MetricsFile(path / files.METRICS, backlog)
            self.faults = MetricsFile(path / files.DATA_ERRORS, backlog)
            self.notices = MetricsFile(path / files.NOTICES, backlog)
            for file in (self.metrics, self.faults, self.notices):
                self._closing.callback(file.close)
            self.tracker: Tracker = build(self.run["tracker"])
            self._entered = True
            for text in self._early:
                self._keep(text)
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._closing.__exit__(kind, error, trace)

    def train(self, step: int, values: Mapping[str, float]) -> None:
        self.step = step
        if self.active:
            self._log(step, {f"train/{key}": float(value) for key, value in values.items()})
            self.progress.update(step, values)
            told = {k: v for k, v in values.items() if k in SPEED or k.startswith(("flops/", "goodput/"))}
            self.folder.update(step=step, **told, **self._cost(), **self._banked())

    def data(self, step: int, values: Mapping[str, float], faults: Sequence[Mapping[str, Any]]) -> None:
        if self.active:
            self._log(step, values)
            for fault in faults:
                self.faults.append(fault["step"], fault)

    def begin(self, step: int) -> None:
        if self.active:
            for file in (self.metrics, self.faults):
                if lost := file.rewind(step):
                    self.notice(f"{lost} damaged lines of {file.path.name} are skipped")
            if not self._begun:
                self._begun = True
                self._closing.push(self._finish_tracker)
                self._closing.enter_context(self.progress)
            self.tracker.start(self.folder.path, self.run, self.folder.identity, step)
            self.folder.update(step=step)
            if step:
                self.notice(f"resumed after step {step}")

    def notice(self, text: str) -> None:
        """Something that a person should know: what the run has decided, or met."""
        if self.active:
            self.progress.console.print(text, highlight=False)
            if self._entered:
                self._keep(text)
            else:
                self._early.append(text)

    def table(self) -> None:
        """The result of the run on stdout, as its folder has it."""
        if self.active:
            Console().print(run_table(collect_run(self.folder.path)))

    def already_finished(self) -> None:
        """Says that there is nothing to do, and shows what came of the run."""
        if self.active:
            Console(markup=False).print(f"already finished: {self.folder.path} (checkpoint.resume=never runs it again)")
            self.table()

    def saved(self, step: int, values: Mapping[str, float]) -> None:
        if self.active:
            self._log(step, values)

    def best(self, step: int, metric: str, value: float) -> None:
        path = f"{files.CHECKPOINTS}/{files.checkpoint_name(step)}"
        self.folder.update(best={"step": step, "metric": metric, "value": value, "checkpoint": path})

    def scored(self, step: int, scores: Scores) -> None:
        """Scores of the held-out samples after a step."""
        if self.active:
            values = dict(scores.values)
            if decay := self.run["train"]["ema"]:
                values["eval/ema"] = decay  # these are scores of the averaged weights
            lines = [json.dumps({"step": step, **row}, ensure_ascii=False) + "\n" for row in scores.rows]
            self.folder.write(files.SCORES, "".join(lines))
            self._log(step, values)
            told = {k: v for k, v in values.items() if k.count("/") == 1}
            self.folder.update(step=step, scored={"step": step, "rows": len(scores.rows)}, **told)

    def end(self, gallery: Sequence[GalleryItem]) -> None:
        """The gallery, the final status and report.html."""
        if not self.active:
            return
        if gallery:
            path = self.folder.path
            self.folder.backlog.write(path / files.GALLERY, lambda: write_gallery(path, gallery))
        for stream, problem in output_problems().items():
            self._keep(f"{stream} lost output ({problem}); this file and metrics.jsonl are complete")
        self.folder.update(state="finished", **self._cost(), **self._banked())
        self.folder.backlog.write(self.folder.path / files.REPORT, lambda: render_report(self.folder.path))

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        self.metrics.append(step, values)
        self.tracker.log(step, values)

    def _keep(self, text: str) -> None:
        self.notices.append(self.step, {"time": now(), "text": text})

    def _finish_tracker(self, kind: Any, error: Any, trace: Any) -> None:
        stopped = kind is not None and issubclass(kind, KeyboardInterrupt | Preempted)
        self.tracker.finish("finished" if kind is None else "preempted" if stopped else "failed")

    def _cost(self) -> dict[str, float]:
        return {
            "seconds": round(self._before + time.perf_counter() - self.start, 1),
            "peak_memory_gib": round(memory.peak_gib(self.environment.device), 2),
        }

    def _banked(self) -> dict[str, dict[str, int]]:
        """What the feature bank was asked for since this process began, evaluation included."""
        if self.bank is None:
            return {}
        return {"feature_bank": {"hits": self.bank.hits, "misses": self.bank.misses, "encoded": self.bank.encoded}}
