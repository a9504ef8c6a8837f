"""The processes of one evaluation: which batches are whose, what they tell each other, and how one ends that is left
alone.

Batches are dealt in turn, whole, so each is what it is in a single process. A process that fails ends at once with its
own error; the others hear of it when they next exchange rows, and end too. What any has scored is in its journal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, TypeVar, final

from beni.distributed.collectives import Peers
from beni.errors import ConfigError, ResourceError
from beni.evals.journal import unlike

Value = TypeVar("Value")


@final
class Sharing:
    """Made by all processes at once; a single process shares with nobody.

    Args:
        beat: of the watchdog: told of a phase and the part of the evaluation that this process has come to, or, without
            arguments, that it has moved on in the same one.

    Attributes:
        rank: of this process.
        world: number of processes.
    """

    def __init__(self, beat: Callable[..., None]) -> None:
        with self._reached():
            self._peers = Peers()
        self.rank, self.world = self._peers.rank, self._peers.world
        self._beat, self._part = beat, 0

    def mine(self, turn: int) -> bool:
        """Whether this process scores the batch of a turn, counted from 0."""
        return turn % self.world == self.rank

    def scores(self, part: int) -> None:
        """This process begins to score a part, counted from 0."""
        self._part = part
        self._beat("evaluate", part)

    def moved(self) -> None:
        """This process has done something of its part."""
        self._beat()

    def gather(self, value: Value) -> list[Value]:
        """What each process gave, in their order.

        Raises:
            ResourceError: when one has ended instead.
        """
        self._beat("end", self._part)
        with self._reached():
            return self._peers.gather(value)

    def from_main(self, make: Callable[[], Value]) -> Value:
        """What ``make`` returns on rank 0, where alone it is called.

        Raises:
            BeniError: what it raises there; on the others with the same text.
            ResourceError: when rank 0 has ended instead.
        """
        self._beat("end", self._part)
        if self.rank == 0:
            return self._peers.from_main(make)
        with self._reached():
            return self._peers.from_main(make)

    def require_alike(self, settings: Mapping[str, Any]) -> None:
        """Return when all processes are to score the same in the same way.

        Raises:
            ConfigError: when one has other settings: other versions, another device, other data on its machine.
        """
        first, *others = self.gather(dict(settings))
        for rank, theirs in enumerate(others, 1):
            if theirs != first:
                raise ConfigError(
                    f"processes 0 and {rank} would score otherwise: {unlike(first, theirs)} differ\n"
                    "  fix: start all of them with the same command, versions, data and kind of device"
                )

    @contextmanager
    def _reached(self) -> Iterator[None]:
        """Around what is exchanged, where a connection that is closed is torch's RuntimeError."""
        try:
            yield
        except RuntimeError as error:
            raise ResourceError(
                f"another process of this evaluation has ended before it was done ({str(error).splitlines()[0]})\n"
                "  fix: see what it said; the same command goes on with what is not scored yet"
            ) from error
