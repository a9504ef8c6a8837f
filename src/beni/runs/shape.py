"""What the files of a run folder must look like, so that one that a crash, a disk or an editor has changed is named.

A shape is a type, a tuple of types, a frozenset of values, ``[shape]`` for a list, ``{...: shape}`` for a mapping of
any keys, or a mapping of keys to shapes: a key may be absent unless its shape is a ``Must``, and other keys are left
alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUMBER = (int, float)
TEXT_OR_NULL = (str, type(None))
NUMBER_OR_NULL = (int, float, type(None))


@dataclass(frozen=True)
class Must:
    """The shape of a key that may not be absent."""

    shape: Any


OF_STATUS = {
    "state": Must(frozenset({"queued", "running", "preempted", "failed", "finished", "dropped"})),
    "step": int,
    "steps": int,
    "started": str,
    "command": str,
    "updated": str,
    "seconds": NUMBER,
    "wall_s": NUMBER,
    "parameters": {...: {...: int}},
    **dict.fromkeys(("samples_per_s", "mfu", "hfu", "peak_memory_gib", "goodput/compute"), NUMBER_OR_NULL),
    **dict.fromkeys(("eval/accuracy", "eval/chance", "eval/loss"), NUMBER_OR_NULL),
    **{f"eval/accuracy_{name}": NUMBER_OR_NULL for name in ("blank", "shuffled", "swapped", "noise", "dropped")},
    "best": {"step": int, "metric": str, "value": NUMBER, "checkpoint": str},
    "scored": {"step": int, "rows": int},
}
OF_IDENTITY = {
    "signature": Must(str),
    "name": str,
    "created": str,
    "launched": str,
    "place": int,
    "command": str,
    "hypothesis": TEXT_OR_NULL,
    "git": {"commit": TEXT_OR_NULL, "dirty": (bool, type(None))},
    "code": str,
    "versions": {...: TEXT_OR_NULL},
    "other_code": [{"time": Must(str), "after_step": int, "code": Must(str), "versions": Must({...: TEXT_OR_NULL})}],
    "data_fingerprint": str,
    "template_hash": str,
    "specimen": {"text": Must(str), "tokens": Must([str]), "special": Must({}), "vocabulary": Must(int)},
    "views": TEXT_OR_NULL,
    "hashes": {"data_order": str, "init": {...: TEXT_OR_NULL}},
}
OF_ORIGIN = {key: OF_IDENTITY[key] for key in ("command", "hypothesis", "git", "code", "launched", "place")}
OF_PROOF = OF_IDENTITY | {
    "data_fingerprint": Must(str),
    "template_hash": Must(str),
    "hashes": Must({"data_order": Must(str), "init": Must({...: TEXT_OR_NULL})}),
}
"""The identity of a run that has checkpoints."""
OF_SPEC = {
    "rows": Must([{"stage": Must(str), "parameters": int, "trained": int, "flops": NUMBER_OR_NULL}]),
    "visual_tokens": NUMBER,
    "train_flops_per_sample": NUMBER,
    "prefill_flops": NUMBER,
}
OF_CONFIG = {
    **dict.fromkeys(("vision", "resampler", "llm", "data", "template"), Must({})),
    "train": Must({"steps": Must(int), "seed": Must(int), "plan": Must({...: str}), "ema": NUMBER}),
    "choices": Must({...: TEXT_OR_NULL}),
    "paths": Must({"runs": Must(str)}),
    "study": Must({"name": Must(str)}),
    "checkpoint": {},
    "compute": {},
    "log": {},
}
OF_METRICS_ROW = {"step": Must(int)}
OF_SCORES_ROW = {
    "step": Must(int),
    "id": Must(str),
    "variant": Must(str),
    "score": (int, float, bool, type(None)),
    "loss": NUMBER_OR_NULL,
    "chance": NUMBER_OR_NULL,
}
OF_GALLERY_ROW = {"images": [str], "question": str, "expected": str, "drawings": [{"image": int, "file": str}]}
OF_JOBS_ROW = {
    "event": Must(frozenset({"submitted", "started", "ended"})),
    "time": Must(str),
    "backend": str,
    "job": str,
    "logs": str,
    "node": str,
    "attempt": int,
    "step": int,
}
OF_BEST = {"step": Must(int), "metric": Must(str), "value": Must(NUMBER)}
OF_MARKER = {"files": Must({...: int})}


def misfit(value: Any, shape: Any, where: str = "") -> str | None:
    """Why a value does not have a shape, as ``step is "x", expected a whole number``; None where it has."""
    here = where or "it"
    if isinstance(shape, dict):
        return (
            _mapping_misfit(value, shape, where) if isinstance(value, Mapping) else _differs(here, value, "an object")
        )
    if isinstance(shape, list):
        if not isinstance(value, list):
            return _differs(here, value, "a list")
        found = (misfit(item, shape[0], f"{where}[{index}]") for index, item in enumerate(value))
        return next((problem for problem in found if problem), None)
    if isinstance(shape, frozenset):
        fits = isinstance(value, str) and value in shape
        return None if fits else _differs(here, value, f"one of {', '.join(sorted(shape))}")
    kinds = shape if isinstance(shape, tuple) else (shape,)
    fits = type(value) in kinds  # true is no number
    return None if fits else _differs(here, value, " or ".join(_NAMES[kind] for kind in kinds))


_NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false", type(None): "null"}


def _mapping_misfit(value: Mapping[Any, Any], shape: Mapping[Any, Any], where: str) -> str | None:
    for key, inner in shape.items():
        if isinstance(inner, Must) and key not in value:
            return f"{where}.{key} is missing" if where else f"{key} is missing"
    for key, item in value.items():
        if not isinstance(key, str):
            return _differs(f"a key of {where or 'it'}", key, "a text")
        inner = shape.get(key, shape.get(...))
        inner = inner.shape if isinstance(inner, Must) else inner
        if inner is not None and (problem := misfit(item, inner, f"{where}.{key}" if where else key)):
            return problem
    return None


def _differs(where: str, value: Any, expected: str) -> str:
    told = repr(value)
    return f"{where} is {told if len(told) <= 40 else told[:37] + '...'}, expected {expected}"
