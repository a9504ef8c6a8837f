"""No resampling: every visual token goes on as it is."""

from __future__ import annotations

from beni.stage import PassThrough
from beni.types import TokenSpec


class NoResampler(PassThrough):
    """``(i, n, d) -> (i, n, d)``."""

    def __init__(self, tokens: TokenSpec) -> None:
        super().__init__()
