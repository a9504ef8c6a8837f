"""The values of gates: which go together, how a temperature falls, and where parameters start."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from beni.errors import ConfigError
from beni.nn.gate_distributions import HIGH, LOW

COOLED = 0.5
"""Share of a run's steps after which a temperature has fallen to its end."""
SHAPE = 0.5
"""First parameter of a HardKuma gate at the start (the second where it is reflected): below 1, so that much of the mass
is near both ends."""


@dataclass(frozen=True)
class Temperature:
    """A temperature that falls from ``first`` to ``last`` while the first half of the steps is taken."""

    first: float
    last: float
    cooling: Literal["constant", "linear", "exponential"]

    def at(self, step: int, steps: int) -> float:
        """The temperature of a step; outside of a run, which has 0 steps, the first."""
        share = min(1.0, step / (COOLED * steps)) if steps else 0.0
        if self.cooling == "linear":
            return self.first + (self.last - self.first) * share
        return self.first * (self.last / self.first) ** share


def start_of(distribution: str, opened: float, temperature: float) -> tuple[float, ...]:
    """What is added to a scorer's outputs so that a gate is open with that probability where they are 0.

    It is a logit, or for HardKuma log a and -log b, each turned round for a reflected gate: either way a larger output
    opens a gate.
    """
    if distribution in ("concrete", "straight_through"):
        return (math.log(opened / (1 - opened)),)
    if distribution == "hard_concrete":
        return (math.log(opened / (1 - opened)) + temperature * math.log(-LOW / HIGH),)
    share = -LOW / (HIGH - LOW)
    if distribution == "hardkuma":  # (1 - share^a)^b = opened
        return math.log(SHAPE), -math.log(math.log(opened) / math.log1p(-(share**SHAPE)))
    # P(1 - x > share) = 1 - (1 - (1 - share)^a)^b = opened, b given
    log_a = math.log(math.log1p(-((1 - opened) ** (1 / SHAPE))) / math.log1p(-share))
    return -log_a, math.log(SHAPE)


def together(**values: Any) -> None:
    """Returns when the values of a gate go together.

    Raises:
        ConfigError: with every problem found.
    """
    if problems := [*_temperatures(values), *_choices(values), *_targets(values), *_priors(values)]:
        raise ConfigError("\n".join(problems))


def _temperatures(values: dict[str, Any]) -> Iterator[str]:
    first, last, cooling = values["temperature"], values["temperature_end"], values["cooling"]
    given = f"selector.temperature={_shown(first)} and selector.temperature_end={_shown(last)}"
    if values["distribution"].startswith("hardkuma"):
        if first is not None or last is not None or cooling != "constant":
            yield (
                f"{given} with selector.cooling={cooling}, but selector.distribution={values['distribution']} has no "
                "temperature\n"
                "  fix: set selector.temperature=null selector.temperature_end=null selector.cooling=constant"
            )
    elif first is None or last is None:
        yield (
            f"{given}, but selector.distribution={values['distribution']} needs both\n"
            "  fix: set selector.temperature=1.0 selector.temperature_end=1.0"
        )
    elif (cooling == "constant") != (first == last):
        yield (
            f"{given} with selector.cooling={cooling}\n"
            "  fix: set selector.cooling=exponential where they differ, constant where they do not"
        )


def _choices(values: dict[str, Any]) -> Iterator[str]:
    if values["positions"] == "compact" and values["phase"] == "soft":
        yield (
            "selector.positions=compact with selector.phase=soft, where all tokens have places\n"
            "  fix: set selector.positions=preserve, or selector.phase=drop"
        )
    if values["scorer"] == "dynamicvit" and values["source"] != "embeddings":
        yield (
            f"selector.source={values['source']} with selector.scorer=dynamicvit, which reads no prompt\n"
            "  fix: set selector.source=embeddings selector.text_encoder=null, or selector.scorer=mlp"
        )


def _targets(values: dict[str, Any]) -> Iterator[str]:
    target, wanted, weight = values["target"], values["target_open"], values["target_weight"]
    if (target in ("rate", "lagrangian")) != (wanted is not None):
        fix = "null" if wanted is not None else "0.25"
        yield (
            f"selector.target={target} with selector.target_open={_shown(wanted)}\n"
            f"  fix: set selector.target_open={fix}, or another selector.target"
        )
    if (target == "none") != (weight == 0):
        fix = "0.0" if target == "none" else "1.0, or selector.target=none selector.target_open=null"
        yield (
            f"selector.target={target} with selector.target_weight={weight}\n  fix: set selector.target_weight={fix}"
        )


def _priors(values: dict[str, Any]) -> Iterator[str]:
    prior, given, weight = values["prior"], values["prior_values"], values["prior_weight"]
    expected = {"none": 0, "bernoulli": 1}.get(prior, 2)
    if len(given) != expected or (prior == "bernoulli" and given[0] >= 1):
        example = {"none": "[]", "bernoulli": "[0.25], a rate below 1"}.get(prior, "[0.33, 1.0]")
        yield (f"selector.prior={prior} with selector.prior_values={given}\n  fix: set selector.prior_values={example}")
    if (prior == "none") != (weight == 0):
        fix = "0.0" if prior == "none" else "0.1, or selector.prior=none 'selector.prior_values=[]'"
        yield f"selector.prior={prior} with selector.prior_weight={weight}\n  fix: set selector.prior_weight={fix}"
    if prior in ("beta", "kumaraswamy") and not values["distribution"].startswith("hardkuma"):
        yield (
            f"selector.prior={prior} is of numbers within (0, 1), and selector.distribution={values['distribution']} "
            "has none before it is closed\n  fix: set selector.prior=bernoulli, or selector.distribution=hardkuma"
        )


def _shown(value: float | None) -> str:
    return "null" if value is None else str(value)
