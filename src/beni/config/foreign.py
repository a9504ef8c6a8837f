"""Values of presets (``recipe``, ``experiment`` ...) of an option that the run does not have: left out and told.

A recipe chooses ``resampler=perceiver`` and sets ``resampler.num_latents``; whoever puts a resampler of their own there
wants the rest of the recipe, and no ``unknown key``. What a user sets on the command line is never left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from omegaconf import DictConfig

from beni.components import PART_GROUPS
from beni.config.check import untrusted
from beni.config.given import chosen_by_presets, given_by_overrides, given_by_presets, options_with
from beni.config.schema import VARIANTS
from beni.config.signature import keys_of

DROPPED = "dropped"
"""Top-level key of a frozen run: dotted key of a preset's value that was left out -> the options it belongs to."""


def drop_foreign_values(run: dict[str, Any], hydra: DictConfig) -> None:
    """Removes from ``run`` what presets set and only another option reads, and notes it under ``DROPPED``.

    A key that no option of its group has stays, for the check of the run to name it; so does one whose option the
    preset itself has chosen.
    """
    presets, chosen = given_by_presets(hydra), chosen_by_presets(hydra)
    said, dropped = given_by_overrides(hydra), {}
    for group in (*PART_GROUPS, *VARIANTS):
        values, node, choice = presets.get(group), run.get(group), run["choices"].get(group)
        if not isinstance(values, Mapping) or not isinstance(node, dict) or choice == chosen.get(group):
            continue
        known, by_user = _known(group, node), said.get(group)
        for key in values.keys() - known - (by_user.keys() if isinstance(by_user, Mapping) else set()):
            owners = [name for name in options_with(hydra, group, str(key)) if name != choice]
            if known and key in node and owners:
                del node[key]
                meant = chosen.get(group)
                dropped[f"{group}.{key}"] = meant if meant in owners else ", ".join(owners)
    if dropped:
        run[DROPPED] = dict(sorted(dropped.items()))


def dropped_notices(run: Mapping[str, Any]) -> Iterator[str]:
    """What a person should know of values that were left out of ``run``."""
    for key, owner in run.get(DROPPED, {}).items():
        group = key.partition(".")[0]
        if group == "launcher":
            continue  # a site's values for its cluster are meant for some of its runs
        yield (
            f"{key} of the recipe or experiment is left out: it is a value of {group}={owner}, and this run has "
            f"{group}={run['choices'].get(group, 'another')}"
        )


def _known(group: str, node: Mapping[str, Any]) -> set[str]:
    """Keys that the chosen option reads; empty where that cannot be said."""
    if group in VARIANTS:
        key, variants = VARIANTS[group]
        section = variants.get(str(node.get(key)))
        return {field.name for field in dataclasses.fields(section)} if section else set()
    target = node.get("_target_")
    return set() if target is None or untrusted(node, group) else {"_target_", *keys_of(str(target))}
