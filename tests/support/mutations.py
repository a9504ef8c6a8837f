"""Seeded nonsense: values of a configuration replaced by others, and what becomes of each.

    python tests/support/mutations.py --cases 500 --seed 0

A case is a composition of a few random options in which one value is replaced. It is sound where the run composes and
can be built on the meta device, refused where a ``BeniError`` says so with a fix, and wrong otherwise: another
exception, an error without a fix, or a case that takes too long.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import random
import signal
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from beni.config.compose import compose
from beni.errors import BeniError
from beni.paths import conf_dir

NONSENSE = (
    *("null", "true", "''", "abc", "auto", "none", "-1", "0", "1", "3", "0.5", "-0.5", "1.5", "1000000000", "1e300"),
    *("nan", "inf", "-inf", "[]", "{}", "[1]", "[null]", "[a,b]", "{a: 1}", "[[1,2],[3]]", "???", "${nowhere}", "'  '"),
)
GROUPS = ("views", "resampler", "connector", "fusion", "optim", "schedule", "template", "adapter", "data", "fsdp")
SECONDS = 40
"""Longer than this a case is a hang."""


@dataclass(frozen=True)
class Outcome:
    """What became of a case.

    Attributes:
        kind: ``sound``, ``refused`` or ``wrong``.
        said: the message, or the end of the traceback.
    """

    overrides: tuple[str, ...]
    kind: str
    said: str


class _Hang(BaseException):
    pass


def leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """Dotted keys of all values of a run that can be set."""
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if key in ("choices", "_target_"):
            continue
        if isinstance(value, Mapping) and value:
            yield path
            yield from leaves(value, f"{path}.")
        else:
            yield path


def cases(seed: int) -> Iterator[tuple[str, ...]]:
    """Overrides of one case after another."""
    rng = random.Random(seed)
    options = {group: sorted(path.stem for path in (conf_dir() / group).glob("*.yaml")) for group in GROUPS}
    known: dict[tuple[str, ...], list[str]] = {}
    while True:
        chosen = [f"{group}={rng.choice(options[group])}" for group in rng.sample(GROUPS, rng.randrange(3))]
        chosen = [one for one in chosen if one not in ("data=stamps",)]
        base = tuple(sorted(chosen))
        if base not in known:
            try:
                known[base] = sorted(leaves(compose(list(base))))
            except BeniError:
                known[base] = []
        if known[base]:
            yield (*base, f"{rng.choice(known[base])}={rng.choice(NONSENSE)}")


def outcome(overrides: tuple[str, ...]) -> Outcome:
    """Composes and plans a case."""
    from beni.model.costing.table import propagate

    def hang(*_: Any) -> None:
        raise _Hang

    before = signal.signal(signal.SIGALRM, hang)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            propagate(compose(list(overrides)))
    except BeniError as error:
        signal.alarm(0)
        said = str(error)
        lines = said.splitlines()
        bad = "fix:" not in said or len(said) > 4000 or any(len(line) > 1500 for line in lines)
        return Outcome(overrides, "wrong" if bad else "refused", said)
    except _Hang:
        return Outcome(overrides, "wrong", f"still busy after {SECONDS} s")
    except Exception:
        return Outcome(overrides, "wrong", "".join(traceback.format_exc().splitlines(keepends=True)[-3:]))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return Outcome(overrides, "sound", "")


def main() -> int:
    command = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    command.add_argument("--cases", type=int, default=500)
    command.add_argument("--seed", type=int, default=0)
    arguments = command.parse_args()
    found, source, started = Counter(), cases(arguments.seed), time.perf_counter()
    for _ in range(arguments.cases):
        one = outcome(next(source))
        found[one.kind] += 1
        if one.kind == "wrong":
            print(" ".join(one.overrides), "\n    " + one.said.strip().replace("\n", "\n    "), flush=True)
    print(f"{dict(found)} of {arguments.cases} cases, seed {arguments.seed}, {time.perf_counter() - started:.0f} s")
    return 1 if found["wrong"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
