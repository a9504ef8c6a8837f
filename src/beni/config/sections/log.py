"""The ``log`` section: what is watched while a run trains. Nothing in it changes what is learned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from beni.config.ranges import Above, AtLeast, Example


@dataclass(frozen=True)
class Log:
    """What is watched (training/attempt.py, measure/, distributed/watchdog.py).

    Attributes:
        every: steps between lines of metrics.jsonl; ``auto`` is 25, and a tenth of the steps of a shorter run.
        profile: steps that are profiled, ``first:last`` (from 1) or one step, else null (measure/profile.py).
        peak_tflops: rate in TFLOP/s that utilisation (MFU) is a share of; null takes the device's data sheet, and a
            measured matrix product where the device is not known.
        watchdog_s: seconds after which a rank that does not move has hung, and the run ends; 0 waits for ever.
    """

    every: Annotated[int, AtLeast(1)] | Literal["auto"]
    profile: str | int | None
    peak_tflops: Annotated[float, Above(0), Example("null")] | None
    watchdog_s: Annotated[float, AtLeast(0), Example("300, or 0 to disable it")]


def steps_between_lines(run: Mapping[str, Any]) -> int:
    """``log.every`` of a run, ``auto`` counted out."""
    every = run["log"]["every"]
    return max(1, min(25, run["train"]["steps"] // 10)) if every == "auto" else every


def profiled_steps(value: str | int) -> tuple[int, int] | None:
    """First and last step of ``log.profile``; None where it is neither ``first:last`` nor a number."""
    first, _, last = str(value).partition(":")
    return (int(first), int(last or first)) if first.isdecimal() and (last or first).isdecimal() else None


def log_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules that no type expresses, as problems with their fixes."""
    profile, last = run["log"]["profile"], run["train"]["steps"]
    if profile is not None:
        steps = profiled_steps(profile)
        if steps is None or not 1 <= steps[0] <= steps[1] <= last:
            yield (
                f"log.profile={profile}, expected steps first:last between 1 and {last}\n"
                "  fix: set log.profile=4:6, or null"
            )
