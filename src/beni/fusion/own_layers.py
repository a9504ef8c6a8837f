"""The layers that a fusion puts around those of the llm, by the number of the layer that each belongs to."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from beni.errors import CompositionError
from beni.fusion.base import Decoder


class OwnLayers(nn.ModuleDict):
    """A layer for each of the llm's layers ``first``, ``first + every``, ..., named by its number.

    Args:
        first: number of the first, from 0 on.
        every: layers of the llm from one to the next.
    """

    def __init__(self, first: int, every: int) -> None:
        super().__init__()
        self.first, self.every = first, every

    def install(self, llm: Decoder, make: Callable[[], nn.Module], behind: bool = False) -> None:
        """Makes them for an llm, not drawn yet.

        Args:
            behind: they change what layers give at positions of images, so that one behind the last reaches no text.

        Raises:
            CompositionError: E-PLACE when the llm has no layer ``first``, or none that follows it where it should.
        """
        depth = len(llm.layers())
        last = depth - 2 if behind else depth - 1
        if self.first > last:
            follows = ", and what is changed behind the last one reaches no text" if behind else ""
            raise CompositionError(
                "E-PLACE",
                f"fusion.first={self.first}, but the llm has the layers 0 to {depth - 1}{follows}",
                groups=("fusion", "llm"),
                fix=f"set fusion.first to at most {last}" if last >= 0 else "choose an llm of more layers",
            )
        for index in range(self.first, last + 1, self.every):
            self[str(index)] = make()
