"""No selection: every visual token is kept."""

from __future__ import annotations

from beni.stage import PassThrough
from beni.types import TokenSpec


class NoSelector(PassThrough):
    """``(i, n, d) -> (i, n, d)``."""

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()
