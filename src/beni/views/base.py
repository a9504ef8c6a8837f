"""Views: how one picture becomes one or several encoder inputs, and how their tokens are put together again."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable

from PIL.Image import Image as Picture
from torch import Tensor

from beni.stage import Stage


class Views(Stage):
    """A stage with a half that runs in the data loader. Subclasses are final."""

    @abstractmethod
    def split(self, picture: Picture, transform: Callable[[Picture], Tensor]) -> list[Tensor]:
        """A decoded picture -> the pixels ``(3, height, width)`` of its views, in token order."""
