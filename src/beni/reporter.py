"""What a run says while it goes: metrics.jsonl, status.json, scores.jsonl, the tracker, the terminal, report.html."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from beni.analysis.render import render_report
from beni.config.build import build
from beni.data.batch.loader import Viewer
from beni.data.fetch.fetcher import Fetcher
from beni.data.images import BadImage
from beni.data.order.schedule import Schedule
from beni.data.render.template import Renderer
from beni.data.sample import Sample, Source
from beni.distributed.collectives import gather_objects
from beni.distributed.environment import Environment
from beni.distributed.fsdp import is_sharded
from beni.errors import DataError, Preempted
from beni.evals.gallery import draw_gallery, write_gallery
from beni.evals.scores import Scorer, summarise
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
    """What the loop says, on its way to metrics.jsonl, status.json, scores.jsonl, the tracker and the terminal."""

    def __init__(
        self,
        folder: RunFolder,
        run: Mapping[str, Any],
        source: Source,
        schedule: Schedule,
        renderer: Renderer,
        viewer: Viewer,
        model: BeniForConditionalGeneration,
        layout: str,
        environment: Environment,
        fetcher: Fetcher,
        between: Callable[[], None],
    ) -> None:
        self.folder, self.run, self.source, self.environment = folder, run, source, environment
        self.schedule, self.fetcher = schedule, fetcher
        settings = run["train"]
        how = (settings["precision"], run["eval"]["batch_size"], environment.device)
        self.scorer = Scorer(model, renderer, viewer, source.task, layout, *how, between)
        self.heldout: Sequence[Sample] = ()
        self.rows: Sequence[dict[str, Any]] = ()
        self.start, self.step = time.perf_counter(), 0
        self.active = environment.is_main
        self.before = float(folder.status.get("seconds", 0.0))
        if self.active:
            self.metrics = MetricsFile(folder.path / files.METRICS, folder.backlog)
            self.faults = MetricsFile(folder.path / files.DATA_ERRORS, folder.backlog)
            self.tracker: Tracker = build(run["tracker"])
            self.progress = Progress(settings["steps"])

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

    def evaluate(self, step: int) -> Mapping[str, float]:
        """Scores the held-out examples with the true and with a blank image."""
        samples = self.heldout = self._heldout()
        self.scorer.model.eval()
        rows = [{"step": step, **row} for variant in ("true", "blank") for row in self.scorer.score(samples, variant)]
        if len(rows) < 2 * len(samples):
            self.notice(f"{len(samples) - len(rows) // 2} held-out samples are left out: their pictures cannot be read")
        if not rows:
            raise DataError("no held-out sample has pictures that can be read\n  fix: see data_errors.jsonl")
        self.rows = rows
        values = summarise(rows, "true") | summarise(rows, "blank")
        if decay := self.run["train"]["ema"]:
            values["eval/ema"] = decay  # these are scores of the averaged weights
        if self.active:
            scores = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            self.folder.write(files.SCORES, scores)
            self._log(step, values)
            self.folder.update(step=step, **{k: v for k, v in values.items() if k.count("/") == 1})
        return values

    def end(self) -> None:
        """The gallery, the final status and report.html; called by all ranks."""
        together = is_sharded(self.environment.world, self.run["fsdp"])
        samples = _spread(self.heldout, self.run["eval"]["gallery"])
        if samples and not self.scorer.model.llm.capabilities.generates:
            self.notice("no gallery: transformers does not generate from embeddings with this llm")
            samples = []
        gallery = draw_gallery(self.scorer, samples, self.rows, together and self.environment.world > 1)
        if not self.active:
            return
        if gallery:
            path = self.folder.path
            self.folder.backlog.write(path / files.GALLERY, lambda: write_gallery(path, gallery))
        self.folder.update(state="finished", **self._cost(), **self._banked())
        self.folder.backlog.write(self.folder.path / files.REPORT, lambda: render_report(self.folder.path))

    def _heldout(self) -> Sequence[Sample]:
        samples, limit = self.source.heldout(), self.run["eval"]["examples"]
        if limit == "auto":
            limit = self.schedule.samples(self.run["train"]["steps"])
        return self._reachable(samples[:limit] if limit else samples)

    def _reachable(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        """Without those that any rank cannot fetch a picture of; they are asked for in good time."""
        urls = [[image.url for image in sample.images if image.url is not None] for sample in samples]
        if not any(urls):
            return samples
        ahead = self.run["images"]["ahead"] or 1
        bad = []
        for i, mine in enumerate(urls):
            if i % ahead == 0:
                self.scorer.between()
                self.fetcher.want([url for some in urls[i : i + 2 * ahead] for url in some])
            try:
                for url in mine:
                    self.fetcher.get(url)
            except BadImage as error:
                bad.append((i, str(error)))
        left_out = dict(gather_objects(bad))
        if left_out:
            self.notice(f"{len(left_out)} held-out samples are left out: {next(iter(left_out.values()))}")
        return [sample for i, sample in enumerate(samples) if i not in left_out]

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
        bank = self.scorer.model.feature_bank
        if bank is None:
            return {}
        return {"feature_bank": {"hits": bank.hits, "misses": bank.misses, "encoded": bank.encoded}}


def _spread(samples: Sequence[Sample], count: int) -> list[Sample]:
    """``count`` samples with a picture, evenly over the kinds of question."""
    by_kind: dict[str, list[Sample]] = {}
    for sample in samples:
        if sample.images:
            by_kind.setdefault(sample.kind, []).append(sample)
    chosen: list[Sample] = []
    while len(chosen) < count and any(by_kind.values()):
        chosen += [group.pop(0) for group in by_kind.values() if group]
    return chosen[:count]
