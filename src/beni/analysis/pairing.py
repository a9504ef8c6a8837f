"""Proof that two arms may be compared pairwise: same batches, same starting weights, same code, same data.

The proof reads the hashes that every run writes into identity.json. A difference that the arm's own setting explains
(another template changes the template's hash, another width reshapes the connector) is its treatment, not a confounder.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from beni.runs.identity import FILES
from beni.runs.read import Arm, Run, plain


@dataclass(frozen=True)
class Pairing:
    """The verdict on one arm against the baseline.

    Args:
        verdict: ``yes`` (all hashes match), ``confounded`` (something else differs, too), ``unknown`` (no proof).
        findings: what differs or is missing, one short sentence each.
        notes: what is expected to differ, or cannot be proven, and does not change the verdict.
    """

    verdict: Literal["yes", "confounded", "unknown"]
    findings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.verdict if self.verdict == "yes" else f"{self.verdict}: {'; '.join(self.findings)}"


def prove_pairing(arm: Arm, baseline: Arm) -> Pairing:
    """Compares the finished runs of two arms seed by seed."""
    seeds = [seed for seed in arm.finished if seed in baseline.finished]
    if not seeds:
        return Pairing("unknown", ("no seed finished in both arms",))
    found: dict[tuple[str, str], list[str]] = {}
    for seed in seeds:
        for kind, sentence in compare_runs(arm.finished[seed], baseline.finished[seed]):
            found.setdefault((kind, sentence), []).append(str(seed))
    every = len(seeds)
    told = [(kind, s if len(at) == every else f"{s} (seed {', '.join(at)})") for (kind, s), at in found.items()]
    by_kind = {
        name: tuple(sentence for kind, sentence in told if kind == name) for name in ("differs", "missing", "note")
    }
    if by_kind["differs"]:
        return Pairing("confounded", by_kind["differs"] + by_kind["missing"], by_kind["note"])
    return Pairing("unknown" if by_kind["missing"] else "yes", by_kind["missing"], by_kind["note"])


def compare_runs(run: Run, other: Run) -> Iterator[tuple[str, str]]:
    """Yields (kind, sentence) for everything that is not provably equal in two runs.

    Kinds are ``differs``, ``missing`` (there is no proof) and ``note`` (it is the arm's own setting, or harmless).
    """
    if run.seed == other.seed:
        yield from _start(run, other)
    else:
        yield "note", "batches and initial weights differ, because the seeds do"
    yield from _code(run, other)
    versions, other_versions = _part(run.identity, "versions"), _part(other.identity, "versions")
    for package in sorted(versions.keys() | other_versions.keys()):
        if versions.get(package) != other_versions.get(package):
            pair = f"{versions.get(package, 'absent')}, baseline {other_versions.get(package, 'absent')}"
            yield "differs", f"version of {package} differs ({pair})"
    detectors = [one.identity.get("views") for one in (run, other)]
    if run.config.get("views") == other.config.get("views") and detectors[0] != detectors[1]:
        yield "differs", "weights of the detector that finds the views differ"
    for key, section in (("data_fingerprint", "data"), ("template_hash", "template")):
        if key == "data_fingerprint" and run.seed != other.seed and (told := _drawn_anew(run, other)) is not None:
            yield told
        elif run.config.get(section) == other.config.get(section):
            yield from _values(key.replace("_", " "), run.identity.get(key), other.identity.get(key))
        elif run.identity.get(key) != other.identity.get(key):
            yield "note", f"{key.replace('_', ' ')} differs, because the arm's {section} does"


def _drawn_anew(run: Run, other: Run) -> tuple[str, str] | None:
    """What another fingerprint of the same data says of runs with other seeds: nothing new where a source draws its
    samples from the seed, and names no file; None where the seed explains nothing.
    """
    ours, theirs = run.identity.get("data_fingerprint"), other.identity.get("data_fingerprint")
    data = run.config.get("data")
    drawn = list(_drawn(data))
    if ours is None or theirs is None or ours == theirs or data != other.config.get("data") or not any(drawn):
        return None
    if all(drawn):
        return "note", "data fingerprint differs, because the seeds do, from which the samples are drawn"
    return "missing", "data fingerprint differs, as it would with other seeds: that files are equal is not proven"


def _drawn(data: Any) -> Iterator[bool]:
    """Whether each source below ``data`` names no file, or lets the seed choose among its samples."""
    if not isinstance(data, Mapping):
        return
    inner = [found for value in data.values() for found in _drawn(value)]
    if inner or "_target_" not in data:
        yield from inner
    else:
        yield "seed" in data.values() or not any(isinstance(data.get(key), str) for key in FILES)


def _start(run: Run, other: Run) -> Iterator[tuple[str, str]]:
    """Compares what a seed decides: the order of the data, and the initial weights of what both runs have."""
    ours, theirs = _part(run.identity, "hashes"), _part(other.identity, "hashes")
    yield from _order(run, other, ours.get("data_order"), theirs.get("data_order"))
    mine, yours = _part(ours, "init"), _part(theirs, "init")
    if not mine or not yours:
        yield "missing", "initial weights not recorded"
    for component in sorted(mine.keys() & yours.keys()):
        if mine[component] == yours[component] or run.config.get(component) != other.config.get(component):
            continue
        if _size(run, component) != _size(other, component):
            yield "note", f"{component} has another size, because its neighbours differ"
        elif _source(run) != _source(other):
            yield "note", f"initial weights of {component} differ, because the arm's train.init_from does"
        else:
            yield "differs", f"initial weights of {component} differ"


def _code(run: Run, other: Run) -> Iterator[tuple[str, str]]:
    """Compares the code: by the hash of the files where both runs have it, which no other commit changes; else by the
    commit.
    """
    for one in (run, other):
        if one.identity.get("other_code"):
            yield "differs", f"{one.name} was resumed with other code"
    ours, theirs = run.identity.get("code"), other.identity.get("code")
    if ours is not None and theirs is not None:
        yield from _values("code", ours, theirs)
        return
    git, other_git = _part(run.identity, "git"), _part(other.identity, "git")
    if git.get("commit") is None and other_git.get("commit") is None:
        yield "note", "code ran outside a git checkout: only the version of beni identifies it"
    else:
        yield from _values("code (git commit)", git.get("commit"), other_git.get("commit"))
    if git.get("dirty") or other_git.get("dirty"):
        yield "note", "code has uncommitted changes: its equality is not proven"


def _order(run: Run, other: Run, ours: Any, theirs: Any) -> Iterator[tuple[str, str]]:
    """The batches: of which data (the first half of the hash), and in which order over all steps (the second half)."""
    if ours is None or theirs is None or ours == theirs:
        yield from _values("data order", ours, theirs)
        return
    (data, _, batches), (other_data, _, other_batches) = (plain(one).rpartition("-") for one in (ours, theirs))
    train, other_train = _part(run.config, "train"), _part(other.config, "train")
    keys = [f"train.{key}" for key in ("steps", "batch_size") if train.get(key) != other_train.get(key)]
    if run.config.get("schedule") != other.config.get("schedule"):
        keys.append("schedule")
    if data == other_data and keys:
        verb = "does" if len(keys) == 1 else "do"
        yield "note", f"batches differ, because the arm's {' and '.join(keys)} {verb}"
    elif data == other_data:
        yield from _values("data order", batches, other_batches)
    else:
        yield from _values("data order", ours, theirs)


def _values(what: str, ours: Any, theirs: Any) -> Iterator[tuple[str, str]]:
    if ours is None or theirs is None:
        yield "missing", f"{what} not recorded"
    elif ours != theirs:
        yield "differs", f"{what} differs ({plain(ours)[:12]}, baseline {plain(theirs)[:12]})"


def _source(run: Run) -> Any:
    return _part(run.config, "train").get("init_from")


def _size(run: Run, component: str) -> Any:
    counted = _part(_part(run.status, "parameters"), component)
    return sum(value for value in counted.values() if isinstance(value, int))


def _part(node: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = node.get(key)
    return value if isinstance(value, Mapping) else {}
