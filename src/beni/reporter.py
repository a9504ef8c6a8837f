"""What a run says while it goes: metrics.jsonl, status.json, scores.jsonl, the tracker, the terminal, report.html."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from typing import Any

from beni.analysis.render import render_report
from beni.config.build import build
from beni.distributed.environment import Environment
from beni.errors import Preempted
from beni.evals.evaluation import Scores
from beni.evals.gallery import Shown, write_gallery
from beni.measure import memory
from beni.model.modeling import BeniForConditionalGeneration
from beni.runs import files
from beni.runs.folder import RunFolder
from beni.tracker.base import Tracker
from beni.tracker.metrics import MetricsFile
from beni.tracker.progress import Progress

SPEED = ("samples_per_s", "tflops_per_s", "mfu", "mfu_causal", "hfu", "wall_s")
"""Values of the last log line that status.json has too, beside FLOPs and shares of wall time."""


class Reporter:
    """What a run says, on its way to metrics.jsonl, status.json, scores.jsonl, the tracker and the terminal."""

    def __init__(
        self,
        folder: RunFolder,
        run: Mapping[str, Any],
        model: BeniForConditionalGeneration,
        environment: Environment,
    ) -> None:
        self.folder, self.run, self.model, self.environment = folder, run, model, environment
        self.start, self.step = time.perf_counter(), 0
        self.active = environment.is_main
        self.before = float(folder.status.get("seconds", 0.0))
        if self.active:
            self.metrics = MetricsFile(folder.path / files.METRICS, folder.backlog)
            self.faults = MetricsFile(folder.path / files.DATA_ERRORS, folder.backlog)
            self.tracker: Tracker = build(run["tracker"])
            self.progress = Progress(run["train"]["steps"])

    def __enter__(self) -> Reporter:
        if self.active:
            self.progress.__enter__()
            self.folder.backlog.tell = self.notice
        return self

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        if self.active:
            self.progress.__exit__(kind, error, trace)
            self.metrics.close()
            self.faults.close()
            stopped = kind is not None and issubclass(kind, KeyboardInterrupt | Preempted)
            self.tracker.finish("finished" if kind is None else "preempted" if stopped else "failed")

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
            self.metrics.rewind(step)
            self.faults.rewind(step)
            self.tracker.start(self.folder.path, self.run, self.folder.identity, step)
            self.folder.update(step=step)
            if step:
                self.notice(f"goes on after step {step}")

    def notice(self, text: str) -> None:
        if self.active:
            self.progress.console.print(text, highlight=False)

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
            self.folder.update(step=step, **{k: v for k, v in values.items() if k.count("/") == 1})

    def end(self, gallery: Sequence[Shown]) -> None:
        """The gallery, the final status and report.html."""
        if not self.active:
            return
        if gallery:
            path = self.folder.path
            self.folder.backlog.write(path / files.GALLERY, lambda: write_gallery(path, gallery))
        self.folder.update(state="finished", **self._cost(), **self._banked())
        self.folder.backlog.write(self.folder.path / files.REPORT, lambda: render_report(self.folder.path))

    def _log(self, step: int, values: Mapping[str, float]) -> None:
        self.metrics.append(step, values)
        self.tracker.log(step, values)

    def _cost(self) -> dict[str, float]:
        return {
            "seconds": round(self.before + time.perf_counter() - self.start, 1),
            "peak_memory_gib": round(memory.peak_gib(self.environment.device), 2),
        }

    def _banked(self) -> dict[str, dict[str, int]]:
        """What the feature bank was asked for since this process began, evaluation included."""
        bank = self.model.feature_bank
        if bank is None:
            return {}
        return {"feature_bank": {"hits": bank.hits, "misses": bank.misses, "encoded": bank.encoded}}
