"""Numbers as people read them, the same in the terminal, in Markdown and in the report. ``None`` is a dash."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"


def score(value: float | None) -> str:
    """0.91234 -> '0.912'; large values (a loss of 12.3) keep four digits."""
    if value is None or not math.isfinite(value):
        return MISSING if value is None else str(value)
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.4g}"


def mean_sd(mean: float | None, sd: float | None) -> str:
    """Mean and standard deviation over seeds; the deviation is left out where there is one seed."""
    return score(mean) if sd is None else f"{score(mean)} ± {sd:.3f}"


def signed(value: float | None, se: float | None = None) -> str:
    """A difference with its sign and, where known, its standard error."""
    if value is None:
        return MISSING
    return f"{value:+.3f}" + ("" if se is None else f" ± {se:.3f}")


def count(value: float | None) -> str:
    """19763712 -> '19.8M'; below 10,000 every digit is shown."""
    if value is None:
        return MISSING
    if abs(value) < 10_000:
        return f"{value:,.0f}" if float(value).is_integer() else f"{value:.3g}"
    for size, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            digits = value / size
            return f"{digits:.{0 if digits >= 99.95 else 1}f}{letter}"
    return f"{value:,.0f}"


def tokens(value: float | None, fixed: bool = True, mean: float | None = None) -> str:
    """How many tokens there are: '64', or '≤ 64, mean 20' where the picture decides."""
    if value is None or fixed:
        return count(value)
    return f"≤ {count(value)}" + ("" if mean is None else f", mean {count(round(mean, 1))}")


def duration(seconds: float | None) -> str:
    """272.4 -> '4 min 32 s'."""
    if seconds is None:
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def gib(value: float | None) -> str:
    """GiB with two digits behind the point."""
    return MISSING if value is None else f"{value:.2f} GiB"


def share(value: float | None) -> str:
    """0.4123 -> '41.2 %'."""
    return MISSING if value is None else f"{100 * value:.1f} %"


def grid(value: Sequence[int] | None) -> str:
    """[8, 8] -> '8×8'."""
    return "×".join(str(side) for side in value) if value else MISSING
