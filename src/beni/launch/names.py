"""The runs of a study by arm and seed, as ``beni.compare`` calls them, and which of them a text means."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from beni.errors import ResumeError
from beni.runs.files import CONFIG
from beni.runs.read import arms, collect_run, collect_study, runs_of

_SEED = re.compile(r"s(\d+)")


@dataclass(frozen=True)
class Name:
    """What a run is called.

    Args:
        folder: of the run.
        arm: what sets its arm apart within the study, as overrides.
        seed: None where nothing says it.
        damage: why its frozen config cannot be read, so that it can be launched no more; empty where it can.
    """

    folder: Path
    arm: str
    seed: int | None
    damage: str = ""

    def __str__(self) -> str:
        return self.arm if self.seed is None else f"{self.arm} s{self.seed}"

    @property
    def job(self) -> str:
        """The name of its job, in which spaces and quotes would not do."""
        return re.sub(r"[^\w.=+,-]+", "_", str(self).replace(" ", ","))


def names_of(study: Path) -> list[Name]:
    """The runs of a study, or the one run that it is: arm by arm, the one first that was started first.

    Raises:
        ResumeError: when there is none.
    """
    folders = runs_of(study)
    if not folders:
        raise ResumeError(
            f"{study} holds no run; expected a study such as runs/default, or the folder of a run\n"
            f"  fix: name one of {', '.join(str(p) for p in sorted(study.parent.glob('*')) if p.is_dir()) or 'them'}"
        )
    runs = [collect_run(study)] if folders == [study] else collect_study(study)
    return [
        Name(run.folder, arm.label, run.seed, next((said for said in run.problems if said.startswith(CONFIG)), ""))
        for arm in arms(runs)
        for run in sorted(arm.runs, key=lambda run: (run.seed is None, run.seed or 0, run.name))
    ]


def job_names(folders: Sequence[Path]) -> dict[Path, str]:
    """What the jobs of runs are called: ``resampler=perceiver,s0``."""
    studies = [study for study in dict.fromkeys(folder.parent for folder in folders) if runs_of(study)]
    known = {name.folder: name.job for study in studies for name in names_of(study)}
    return {folder: known.get(folder, folder.name) for folder in folders}


def select(names: Sequence[Name], text: str) -> list[Name]:
    """The runs that a text means: ``perceiver``, ``num_latents=4 s0``, or a folder. Every word of it must be in the
    arm or in the folder's name, whole words before parts of words; ``s0`` is the seed.

    Raises:
        ResumeError: when it means none.
    """
    for fits in (_is_whole, _is_part):
        if found := [name for name in names if all(_means(word, name, fits) for word in text.split())]:
            return found
    known = list(dict.fromkeys(name.arm for name in names))
    shown = ", ".join(known[:10]) + (f" and {len(known) - 10} more" if len(known) > 10 else "")
    raise ResumeError(
        f"--run {text} means none of {len(names)} runs\n  fix: name words of an arm, or a seed as s0: {shown}"
    )


def _means(word: str, name: Name, fits: Callable[[str, str], bool]) -> bool:
    if seed := _SEED.fullmatch(word):
        return name.seed == int(seed[1])
    return fits(word, name.arm) or fits(word, name.folder.name)


def _is_whole(word: str, text: str) -> bool:
    """Whether a word stands in a text without more letters or digits of the same word beside it."""
    return re.search(rf"(?<![a-zA-Z0-9]){re.escape(word)}(?![a-zA-Z0-9]|\.\d)", text) is not None


def _is_part(word: str, text: str) -> bool:
    return word in text
