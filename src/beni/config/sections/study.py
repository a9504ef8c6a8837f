"""The ``study`` section: which question a run belongs to, and what its arms are given alike."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from beni.config.ranges import Above, Below, Example

STEPS = "train.steps"
"""Key that is solved for unless another one is named."""


@dataclass(frozen=True)
class Study:
    """Which question the run belongs to (runs/identity.py, analysis/), and what its arms are compared at.

    Attributes:
        name: folder of the study under ``paths.runs``.
        match: what all arms get the same amount of: ``tokens`` (positions that the llm is trained on), ``train_flops``
            (of all steps), ``prefill_flops`` (of a sample), ``steps`` or ``params`` (that train); null for nothing
            (launch/match.py).
        budget: how much of that; null takes what the first arm of a sweep has as it is configured. A frozen run holds
            the number.
        solve: key of the integer that is chosen such that an arm meets the budget; null leaves the arm as it is.
        stop: probability with which the best arm may ever be dropped: runs are launched seed by seed, and arms that can
            no longer win are not trained further (launch/dropping.py); null trains all. Runs started alone, without
            ``-m``, on this machine are trained.
    """

    name: str
    match: Literal["tokens", "train_flops", "prefill_flops", "steps", "params"] | None
    budget: Annotated[float, Above(0), Example("1e15")] | None
    solve: str | None
    stop: Annotated[float, Above(0), Below(1)] | None


def study_rules(run: Mapping[str, Any]) -> Iterator[str]:
    """Rules that no type expresses, as problems with their fixes."""
    study = run["study"]
    name, match, key = study["name"], study["match"], study["solve"]
    if not name.strip() or "/" in name or name.startswith("."):
        yield f"study.name={name}, expected the name of a folder below paths.runs\n  fix: set study.name=default"
    launcher = run["launcher"]
    processes = launcher.get("nodes", 1) * launcher.get("tasks_per_node", 1)
    if study["stop"] is not None and processes > 1:
        yield (
            f"study.stop={study['stop']} is decided by the one process of a run, and this launcher starts {processes}\n"
            "  fix: set study.stop=null, or launcher.nodes=1 launcher.tasks_per_node=1"
        )
    if match is None or key is None:
        return
    if match in ("prefill_flops", "params") and key == STEPS:
        yield (
            f"study.match={match}, but study.solve={STEPS} does not change it\n"
            "  fix: set study.solve to an integer that does, such as resampler.num_latents, or to null in one with none"
        )
    elif match == "steps" and key != STEPS:
        yield f"study.match=steps, but study.solve={key} does not change them\n  fix: set study.solve={STEPS}"
    elif type(value := value_of(run, key)) is not int:
        has = "is not there" if value is None else f"is {value}"
        yield (
            f"study.solve={key} {has}, expected the key of an integer of this arm\n"
            "  fix: set study.solve in each arm to one of its own, such as resampler.num_latents, or to null"
        )


def value_of(run: Mapping[str, Any], key: str) -> Any:
    """The value of a dotted key; None where it is not there."""
    node: Any = run
    for name in key.split("."):
        node = node.get(name) if isinstance(node, Mapping) else None
    return node
