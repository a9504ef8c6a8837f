"""The schedule: which samples make up which optimizer step, as a pure function.

Nothing is stored and nothing is drawn along the way: ``(seed, step)`` alone gives the samples of a step. So data state
is one number, resuming is exact at any world size and worker count, and two runs with one seed see the same samples in
the same order whatever their model.

An epoch is cut into *units*: single samples, or packs. The units of all epochs follow each other without a gap, and
step ``k`` takes ``batch_size`` of them. With ``schedule.modality=grouped`` there are two such streams, of samples with
and without pictures: a step takes from one of them, or from both in the shares of ``schedule.cycle``. Dealing the units
of a step to ranks and micro-batches comes last, so that no number of processes can change what a step learns from.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Any, Protocol, TypeVar

import numpy as np

from beni.data.order.lengths import Loads
from beni.data.order.pack import Capacity, Units, pack
from beni.errors import ConfigError, DataError
from beni.nn.streams import numpy_stream

Samples = list[tuple[int, int]]
"""(epoch, index) of samples, in order."""

Unit = tuple[int, np.ndarray]
"""An epoch and the indices of its samples that stay together."""

EVERYTHING = "mixed"
PATIENCE = 64
"""Epochs searched for samples of a modality before it is called absent."""

T = TypeVar("T")


class Lengths(Protocol):
    """What the samples of an epoch cost (data/order/lengths.py)."""

    def loads(self, epoch: int) -> Loads:
        """What each sample of an epoch costs."""
        ...


@lru_cache(maxsize=32)  # a mixture has one for each source
def epoch_order(seed: int, epoch: int, size: int) -> np.ndarray:
    """Permutation of the ``size`` samples in this epoch, read-only."""
    order = numpy_stream(seed, "data.order", epoch).permutation(size)
    order.flags.writeable = False  # callers share the cached array
    return order


def needs_lengths(settings: Mapping[str, Any]) -> bool:
    """Whether a schedule with these settings must know what its samples cost."""
    return (
        settings["unit"] == "pack"
        or settings["group"] == "length"
        or settings["modality"] == "grouped"
        or bool(settings["balance"])
    )


def require_division(batch_size: int, world: int, accumulation: int, cycle: Sequence[str]) -> None:
    """Return when steps of ``batch_size`` can be divided over so many processes and micro-batches.

    Raises:
        ConfigError: naming the smallest batch size, or the accumulation that the cycle needs.
    """
    turns = len(cycle)
    if turns and accumulation % turns:
        raise ConfigError(
            f"train.accumulation={accumulation} is no multiple of the {turns} places of "
            f"schedule.cycle={[*cycle]}\n  fix: set train.accumulation={-(-accumulation // turns) * turns}"
        )
    if batch_size < world * accumulation:
        raise ConfigError(
            f"train.batch_size={batch_size} cannot be divided over {world} ranks x "
            f"train.accumulation={accumulation}\n  fix: set train.batch_size to at least {world * accumulation}"
        )


class Schedule:
    """Steps of a run.

    Args:
        seed: of the run.
        size: samples of an epoch.
        batch_size: units of an optimizer step.
        settings: the ``schedule`` section.
        lengths: what samples cost; None where ``needs_lengths`` is false.

    Raises:
        ConfigError: when ``batch_size`` cannot be divided as ``schedule.cycle`` demands.
    """

    def __init__(
        self, seed: int, size: int, batch_size: int, settings: Mapping[str, Any], lengths: Lengths | None = None
    ) -> None:
        self.seed, self.size, self.batch_size = seed, size, batch_size
        self.settings, self.lengths = settings, lengths
        self.cycle: list[str] = list(settings["cycle"])
        if self.cycle and batch_size % len(self.cycle):
            raise ConfigError(
                f"train.batch_size={batch_size} is no multiple of the {len(self.cycle)} places of "
                f"schedule.cycle={self.cycle}\n"
                f"  fix: set train.batch_size={-(-batch_size // len(self.cycle)) * len(self.cycle)}"
            )
        self._plans: OrderedDict[tuple[int, str], Units] = OrderedDict()
        self._loads: OrderedDict[int, Loads] = OrderedDict()
        self._before: dict[str, list[int]] = {}  # of each stream, units before each epoch

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be computed again."""
        return self.__dict__ | {"_plans": OrderedDict(), "_loads": OrderedDict()}

    def step(self, step: int) -> list[Unit]:
        """The units of optimizer step ``step`` (from 0), in order."""
        return [unit for _, units in self._draw(step) for unit in units]

    def parts(self, step: int, world: int, accumulation: int) -> list[list[Samples]]:
        """Step ``step`` as ``[rank][micro-batch] -> samples``; together they are exactly those of ``step``.

        With lengths, the pixels that an encoder sees in any two parts of one modality differ by no more than those of
        the step's largest unit, and the numbers of units by no more than one.

        Raises:
            ConfigError: when the step has fewer units than ranks times micro-batches.
        """
        self.require(world, accumulation)
        ranks: list[list[Samples]] = [[[] for _ in range(accumulation)] for _ in range(world)]
        for modality, units in self._draw(step):
            slots = [i for i in range(accumulation) if not self.cycle or self.cycle[i % len(self.cycle)] == modality]
            dealt = self._deal(units, world * len(slots))
            for part, mine in enumerate(dealt):
                rank, slot = divmod(part, len(slots))
                ranks[rank][slots[slot]] = [(epoch, int(i)) for epoch, samples in mine for i in samples]
        return ranks

    def require(self, world: int, accumulation: int) -> None:
        """Return when steps can be divided so.

        Raises:
            ConfigError: see ``require_division``.
        """
        require_division(self.batch_size, world, accumulation, self.cycle)

    def loads(self, epoch: int) -> Loads:
        """What the samples of an epoch cost.

        Raises:
            DataError: when one does not fit into a pack.
        """
        if self.lengths is None:
            raise DataError("this schedule knows no lengths")
        lengths = self.lengths
        return _remembered(self._loads, epoch, lambda: self._checked(lengths.loads(epoch)), most=3)

    def fill(self, epochs: int = 1) -> float:
        """Share of the positions of all packs of the first epochs that hold a token; 1.0 for single samples."""
        if self.settings["unit"] != "pack":
            return 1.0
        plans = [(self.loads(e), self._plan(e, m)) for e in range(epochs) for m in self._streams()]
        held = sum(int(loads.tokens[plan.samples].sum()) for loads, plan in plans)
        return held / (self.settings["tokens"] * sum(len(plan) for _, plan in plans))

    def samples(self, steps: int) -> int:
        """How many samples so many steps take."""
        if self.settings["unit"] == "sample":
            return steps * self.batch_size
        return sum(len(samples) for step in range(steps) for _, samples in self.step(step))

    def hash(self, steps: int) -> str:
        """A hash of the data order of so many steps: which sample of which epoch stands where."""
        digest = hashlib.sha256()
        for step in range(steps):
            digest.update(self.step_hash(step))
        return digest.hexdigest()[:16]

    def step_hash(self, step: int) -> bytes:
        """A hash of the units of one step, 16 bytes."""
        digest = hashlib.blake2b(digest_size=16)
        for epoch, samples in self.step(step):
            digest.update(np.array([epoch, len(samples), *samples], dtype=np.int64).tobytes())
        return digest.digest()

    # ------------------------------------------------------------------ which units

    def _draw(self, step: int) -> list[tuple[str, list[Unit]]]:
        """(stream, its units) of a step."""
        if self.cycle:
            drawn = []
            for modality in dict.fromkeys(self.cycle):
                count = self.batch_size * self.cycle.count(modality) // len(self.cycle)
                drawn.append((modality, self._units(modality, step * count, count)))
            return drawn
        if self.settings["modality"] == "grouped":
            modality, number = self._turn(step)
            return [(modality, self._units(modality, number * self.batch_size, self.batch_size))]
        return [(EVERYTHING, self._units(EVERYTHING, step * self.batch_size, self.batch_size))]

    def _turn(self, step: int) -> tuple[str, int]:
        """Whose turn a step is, and how many steps that stream had before.

        Each epoch holds as many steps of a stream as it completes, in a drawn order.
        """
        epoch, first = 0, 0
        streams = self._streams()
        while True:
            had = {m: self._units_before(m, epoch) // self.batch_size for m in streams}
            new = {m: self._units_before(m, epoch + 1) // self.batch_size - had[m] for m in streams}
            if step < first + sum(new.values()):
                break
            epoch, first = epoch + 1, first + sum(new.values())
        turns = np.repeat(np.arange(len(streams)), list(new.values()))
        turns = numpy_stream(self.seed, "data.modality", epoch).permutation(turns)[: step - first + 1]
        return streams[turns[-1]], had[streams[turns[-1]]] + int((turns[:-1] == turns[-1]).sum())

    def _streams(self) -> list[str]:
        if self.settings["modality"] == EVERYTHING:
            return [EVERYTHING]
        present = self.loads(0).images > 0
        return [m for m, there in (("image", present.any()), ("text", not present.all())) if there]

    def _units(self, stream: str, first: int, count: int) -> list[Unit]:
        """Units ``first`` to ``first + count`` - 1 of a stream."""
        epoch, units = self._epoch_of(stream, first), []
        while len(units) < count:
            plan, start = self._plan(epoch, stream), self._units_before(stream, epoch)
            for unit in range(first + len(units) - start, min(len(plan), first + count - start)):
                units.append((epoch, plan[unit]))
            epoch += 1
        return units

    def _epoch_of(self, stream: str, position: int) -> int:
        """The epoch that holds a unit of a stream."""
        if self._constant(stream):
            return position // self.size
        epoch = 0
        while self._units_before(stream, epoch + 1) <= position:
            epoch += 1
            if epoch % PATIENCE == 0 and self._units_before(stream, epoch) == 0:
                raise DataError(
                    f"schedule.cycle={self.cycle} asks for {stream} samples, but the data has none\n"
                    "  fix: set schedule.cycle=[] or choose other data"
                )
        return epoch

    def _units_before(self, stream: str, epoch: int) -> int:
        if self._constant(stream):
            return epoch * self.size
        before = self._before.setdefault(stream, [0])
        while len(before) <= epoch:
            before.append(before[-1] + self._count(stream, len(before) - 1))
        return before[epoch]

    def _constant(self, stream: str) -> bool:
        return stream == EVERYTHING and self.settings["unit"] == "sample"

    def _count(self, stream: str, epoch: int) -> int:
        if self.settings["unit"] == "pack":
            return len(self._plan(epoch, stream))
        return int(((self.loads(epoch).images > 0) == (stream == "image")).sum())

    def _plan(self, epoch: int, stream: str) -> Units:
        """All units of an epoch, in order."""
        return _remembered(self._plans, (epoch, stream), lambda: self._make(epoch, stream), most=6)

    def _make(self, epoch: int, stream: str) -> Units:
        order, s = epoch_order(self.seed, epoch, self.size), self.settings
        if self.lengths is None:
            return Units.single(order)
        loads = self.loads(epoch)
        if stream != EVERYTHING:
            order = order[(loads.images[order] > 0) == (stream == "image")]
        if s["unit"] == "pack":
            packs = pack(order, loads.tokens, loads.images, Capacity(s["tokens"], s["images"]), s["window"])
            return packs.take(numpy_stream(self.seed, "data.packs", epoch, stream).permutation(len(packs)))
        if s["group"] == "length":
            return Units.single(self._by_length(order, loads, epoch, stream))
        return Units.single(order)

    def _by_length(self, order: np.ndarray, loads: Loads, epoch: int, stream: str) -> np.ndarray:
        """Windows of the order sorted by length and cut into steps, the steps shuffled.

        What a step over the border of two epochs still lacks comes first, and what is left over for the next such step
        last, so that no other step mixes lengths.
        """
        count = self.batch_size
        if self.cycle:
            count = count * self.cycle.count(stream) // len(self.cycle)
        lacking = -self._units_before(stream, epoch) % count
        whole = max(0, len(order) - lacking) // count * count
        head, middle, tail = np.split(order, [min(lacking, len(order)), min(lacking, len(order)) + whole])
        window = max(1, self.settings["window"] // count) * count
        steps: list[np.ndarray] = []
        for start in range(0, whole, window):
            some = middle[start : start + window]
            some = some[np.argsort(-loads.tokens[some], kind="stable")]
            steps += np.split(some, len(some) // count)
        shuffled = numpy_stream(self.seed, "data.steps", epoch, stream).permutation(len(steps))
        return np.concatenate([head, *(steps[i] for i in shuffled), tail])

    def _checked(self, loads: Loads) -> Loads:
        if self.settings["unit"] == "pack":
            for name, of in (("tokens", loads.tokens), ("images", loads.images)):
                most = int(of.max(initial=0))
                if most > self.settings[name]:
                    raise DataError(
                        f"training sample {int(of.argmax())} has {most} {name}, a pack holds "
                        f"schedule.{name}={self.settings[name]}\n  fix: set schedule.{name}={most} or more"
                        + (", or template.max_length and template.overlong=truncate" if name == "tokens" else "")
                    )
        return loads

    # ------------------------------------------------------------------ who gets them

    def _deal(self, units: Sequence[Unit], parts: int) -> list[list[Unit]]:
        """Each unit to one of ``parts``: in rounds, from the costliest on, the costliest to who has the least."""
        if self.lengths is None:
            return [list(units[part::parts]) for part in range(parts)]
        costs = [self._cost(unit) for unit in units]
        ordered = sorted(range(len(units)), key=lambda i: (-costs[i][0], -costs[i][1], i))
        dealt: list[list[Unit]] = [[] for _ in range(parts)]
        loads = [(0, 0, part) for part in range(parts)]
        for start in range(0, len(ordered), parts):
            loads.sort()
            for place, i in enumerate(ordered[start : start + parts]):
                pixels, tokens, part = loads[place]
                dealt[part].append(units[i])
                loads[place] = (pixels + costs[i][0], tokens + costs[i][1], part)
        return dealt

    def _cost(self, unit: Unit) -> tuple[int, int]:
        epoch, samples = unit
        loads = self.loads(epoch)
        return int(loads.pixels[samples].sum()), int(loads.tokens[samples].sum())


def _remembered(memo: OrderedDict[Any, T], key: Any, make: Callable[[], T], most: int) -> T:
    """``make()``, kept with the few others that were asked for last."""
    if key not in memo:
        memo[key] = make()
        while len(memo) > most:
            memo.popitem(last=False)
    memo.move_to_end(key)
    return memo[key]
