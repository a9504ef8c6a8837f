"""The model of a run as one of its checkpoints has it, without the run's data, optimizer or processes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from beni.errors import ResumeError
from beni.model.build import build
from beni.model.modeling import BeniForConditionalGeneration
from beni.runs.files import CHECKPOINTS, MODEL
from beni.training.checkpoint.best import read_best
from beni.training.checkpoint.files import read, steps
from beni.training.initial import load_initial
from beni.training.saved_model import require_whole
from beni.training.trainable import store_frozen_in_bf16


def restore(
    folder: Path, run: Mapping[str, Any], which: str, average: bool
) -> tuple[BeniForConditionalGeneration, int]:
    """The model in evaluation mode, and the step that its weights are of.

    Args:
        which: ``last`` (or ``newest``), ``best`` (by ``checkpoint.keep_best``) or the number of a step.
        average: the average of the weights (``train.ema``), not the weights themselves.

    Raises:
        ResumeError: when there is no such checkpoint or average.
    """
    root = folder / CHECKPOINTS
    step = _step(root, which)
    saved = read(root, step).tensors
    model = _untrained(folder, run)
    kind = "average" if average else "model"
    if average and not any(key.startswith("average/") for key in saved):
        raise ResumeError(f"{folder} has no EMA weights: train.ema={run['train']['ema']}")
    ours: dict[str, Tensor] = dict(model.named_parameters())
    theirs = [key.removeprefix("model/") for key in saved if key.startswith("model/")]
    if strange := sorted(n for n in theirs if n not in ours or tuple(ours[n].shape) != saved.shape(f"model/{n}")):
        raise ResumeError(f"{folder}: the checkpoint is of another model: no such tensors here as {strange[0]}")
    # a component that had yet to begin (train.thaw) is as it was built, not as the finished run left it
    begun = {name.partition(".")[0] for name in theirs}
    later = {component for component, mode in run["train"]["plan"].items() if mode != "frozen"} - begun
    waiting = [name for name in ours if name.partition(".")[0] in later]
    initial = dict(_built(run).named_parameters()) if waiting else {}
    with torch.no_grad():
        for name in waiting:
            ours[name].copy_(initial[name])
        for name in theirs:
            key = f"{kind}/{name}" if f"{kind}/{name}" in saved else f"model/{name}"
            ours[name].copy_(saved[key])
    return model.eval(), step


def _step(root: Path, which: str) -> int:
    there = steps(root)
    if not there:
        raise ResumeError(f"{root.parent} has no checkpoint\n  fix: wait until it has saved one, or name another run")
    if which in ("last", "newest"):
        return there[-1]
    if which == "best":
        best, problem = read_best(root)
        if problem is not None:
            raise ResumeError(f"{root}: {problem}\n  fix: name a step: --checkpoint {there[-1]}")
        if best is None:
            raise ResumeError(f"{root.parent} keeps no best checkpoint\n  fix: train with checkpoint.keep_best")
        return best.step
    if not which.isdigit():
        raise ResumeError(f"checkpoint {which}, expected last, best or the number of a step")
    return int(which)


def _untrained(folder: Path, run: Mapping[str, Any]) -> BeniForConditionalGeneration:
    """All that checkpoints leave out: frozen weights, and what was measured when the run began."""
    if (folder / MODEL).is_dir():
        fix = f"move {folder / MODEL} away: frozen weights then come from where the run took them"
        require_whole(folder / MODEL, str(folder), fix)
        read: Any = BeniForConditionalGeneration.from_pretrained(folder / MODEL, output_loading_info=True)
        model, loaded = read
        if missing := sorted(loaded["missing_keys"]):
            raise ResumeError(f"{folder / MODEL} lacks {len(missing)} tensors, such as {missing[0]}\n  fix: {fix}")
        return model
    model = _built(run)
    if model.fusion.calibrates:
        raise ResumeError(
            f"{folder}: its fusion was measured on the first batch (fusion.match_text_rms), which only the saved model "
            "keeps\n  fix: finish the run with checkpoint.export=true"
        )
    return model


def _built(run: Mapping[str, Any]) -> BeniForConditionalGeneration:
    """The model before its first step."""
    model = build(run)
    if run["train"]["init_from"] is not None:
        load_initial(model, Path(run["train"]["init_from"]))
    if run["compute"]["precision"] == "bf16":
        store_frozen_in_bf16(model, run["train"]["plan"])
    return model
