"""Looking ahead: a process that draws steps tells the fetcher which pictures its next steps will need.

The schedule is a pure function, so what is needed is known long before it is needed.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol


class Asks(Protocol):
    """Who fetches (data/fetch/fetcher.py).

    Attributes:
        notices: what a person should know; told once, by whoever empties it.
    """

    notices: list[str]

    def want(self, urls: Sequence[str]) -> None:
        """Asks for pictures ahead of time; returns at once."""
        ...


class LookAhead:
    """Asks for the pictures of coming steps.

    Args:
        fetcher: who is told.
        pictures: that are asked for beyond the step that is drawn.
        last: the step at which the run ends.
    """

    def __init__(self, fetcher: Asks, pictures: int, last: int) -> None:
        self.fetcher, self.pictures, self.last = fetcher, pictures, last
        self._asked: deque[tuple[int, int]] = deque()  # step, its pictures

    def at(self, step: int, stride: int, urls_of: Callable[[int], list[str]]) -> None:
        """Called with each step that this process draws, ``stride`` apart; asks for each coming step once.

        Args:
            urls_of: step -> URLs of its pictures.
        """
        while self._asked and self._asked[0][0] < step:
            self._asked.popleft()
        if self._asked and (self._asked[0][0] - step) % stride:
            self._asked.clear()  # another sequence of steps than before
        waiting = sum(count for _, count in self._asked)
        following = self._asked[-1][0] + stride if self._asked else step
        while waiting < self.pictures and following < self.last:
            urls = urls_of(following)
            self.fetcher.want(urls)
            self._asked.append((following, max(1, len(urls))))  # a step without pictures must not be searched past
            waiting += max(1, len(urls))
            following += stride
