"""What is known of visual tokens before any exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class TokenSpec:
    """What is known of an image's visual tokens before any exists.

    Attributes:
        n: visual tokens of one row: of one view, or of one image where the views of an image have been joined. The most
            that there can be, unless ``fixed``.
        dim: their width.
        grid: (rows, columns) while the tokens form a dense row-major grid, else None.
        space: ``vision`` until something maps the tokens to the llm's width, then ``llm``.
        levels: width of the features of further encoder layers that come along (``VisualTokens.levels``), 0 for none.
        sources: of each encoder where several look at one picture (``VisualTokens.sources``).
        scale: which of a stage's nested lengths is meant (``Nested``).
        fixed: every picture has all ``n``. Else a stage keeps as many as the picture deserves
            (``VisualTokens.dropped``), the text is laid out for ``n``, and fusion takes the others out.
        mean: tokens of a row that are to be expected, where that is known and not all are there.
        gated: the tokens come with a ``log_gate``.
        deep: width of the features for deeper layers of the llm (``VisualTokens.deep``), 0 for none.
        attn: the encoder's attention to each token comes along (``VisualTokens.attn``), since a part reads it.
        keys: width of the encoder's keys that come along (``VisualTokens.keys``), 0 for none.
        parted: the tokens of views of the whole picture are told from those of its parts (``VisualTokens.whole``).
    """

    n: int
    dim: int
    grid: tuple[int, int] | None = None
    space: Literal["vision", "llm"] = "vision"
    levels: int = 0
    sources: tuple[TokenSpec, ...] = ()
    scale: int = 0
    fixed: bool = True
    mean: float | None = None
    gated: bool = False
    deep: int = 0
    attn: bool = False
    keys: int = 0
    parted: bool = False


@dataclass(frozen=True)
class Nested:
    """Several numbers of tokens that a stage can make of a row, the fewer contained in the more.

    Scale 0 is that of evaluation and generation, 1 to ``drawn`` are those of training.

    Attributes:
        drawn: scales of training.
        every: training sees each sample at all of them, instead of at one that is drawn for it.
    """

    drawn: int
    every: bool
