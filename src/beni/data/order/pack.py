"""Packing: samples to packs of bounded size, so that no position is spent on padding.

Best-fit decreasing in windows of the shuffled order (``num_bins`` open at once is what first-fit peers bound; a window
bounds the distance a sample travels instead). A pack has two capacities, tokens and images, since a pack of many small
conversations about pictures would otherwise cost an encoder far more than its neighbour. Packs that a window leaves
poorly filled are opened again and their samples join the next window, so only the last window of an epoch pays.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from dataclasses import dataclass

import numpy as np

FULL = 0.96
"""A pack filled to this share, in tokens or in images, is not opened again. 1.0 would carry nearly everything along."""


@dataclass(frozen=True)
class Units:
    """What a step is dealt in: packs, or single samples. In compressed rows, since an epoch may have millions.

    Attributes:
        samples: indices of all units, one after another.
        starts: unit ``u`` is ``samples[starts[u]:starts[u + 1]]``; one more than there are units.
    """

    samples: np.ndarray
    starts: np.ndarray

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, unit: int) -> np.ndarray:
        return self.samples[self.starts[unit] : self.starts[unit + 1]]

    @staticmethod
    def single(samples: np.ndarray) -> Units:
        """Each sample a unit of its own."""
        return Units(samples, np.arange(len(samples) + 1))

    @staticmethod
    def of(groups: list[list[int]]) -> Units:
        """Units from lists of indices."""
        flat = np.fromiter((index for group in groups for index in group), dtype=np.int64)
        return Units(flat, np.cumsum([0, *map(len, groups)]))

    def take(self, order: np.ndarray) -> Units:
        """The units in another order."""
        lengths = np.diff(self.starts)[order]
        starts = np.concatenate([[0], np.cumsum(lengths)])
        places = np.repeat(self.starts[:-1][order] - starts[:-1], lengths) + np.arange(starts[-1])
        return Units(self.samples[places], starts)


@dataclass(frozen=True)
class Capacity:
    """What a pack may hold at most.

    Attributes:
        tokens: positions, visual ones included.
        images: pictures.
    """

    tokens: int
    images: int


def pack(order: np.ndarray, tokens: np.ndarray, images: np.ndarray, capacity: Capacity, window: int) -> Units:
    """Samples in ``order`` -> packs, each sample in exactly one.

    Args:
        order: indices of the samples to pack.
        tokens: of every sample, by index.
        images: of every sample, by index.
        capacity: of a pack.
        window: samples that are packed together.

    Raises:
        ValueError: when a sample exceeds the capacity by itself; the schedule refuses it before.
    """
    if len(order) and (tokens[order].max() > capacity.tokens or images[order].max() > capacity.images):
        raise ValueError(f"a sample exceeds {capacity} by itself")
    done: list[list[int]] = []
    carried: list[int] = []
    start = 0
    while start < len(order):
        fresh = order[start : start + window - len(carried)]
        start += len(fresh)
        packs = _best_fit([*carried, *fresh.tolist()], tokens, images, capacity)
        carried = []
        if start < len(order):
            packs.sort(key=lambda p: -p.fill(capacity))  # stable: equal fills stay in the order they were opened
            # half a window at most travels on, so every window takes new samples in
            while packs and packs[-1].fill(capacity) < FULL and len(carried) + len(packs[-1].samples) <= window // 2:
                carried += packs.pop().samples
        done += [p.samples for p in packs]
    return Units.of(done)


@dataclass
class _Pack:
    samples: list[int]
    tokens: int
    images: int

    def fill(self, capacity: Capacity) -> float:
        """The larger share of its two capacities."""
        return max(self.tokens / capacity.tokens, self.images / capacity.images)


def _best_fit(samples: list[int], tokens: np.ndarray, images: np.ndarray, capacity: Capacity) -> list[_Pack]:
    """The longest first, each into the pack that it leaves the least room in."""
    lengths, pictures = tokens[samples], images[samples]
    packs: list[_Pack] = []
    room: list[tuple[int, int]] = []  # (tokens left, pack), ascending
    for place in np.argsort(-lengths, kind="stable").tolist():
        length, count = int(lengths[place]), int(pictures[place])
        at = bisect_left(room, (length, -1))
        while at < len(room) and packs[room[at][1]].images + count > capacity.images:
            at += 1
        if at == len(room):
            packs.append(_Pack([], 0, 0))
            number = len(packs) - 1
        else:
            number = room.pop(at)[1]
        chosen = packs[number]
        chosen.samples.append(samples[place])
        chosen.tokens += length
        chosen.images += count
        insort(room, (capacity.tokens - chosen.tokens, number))
    return packs
