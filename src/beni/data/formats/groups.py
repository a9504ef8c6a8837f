"""Which rows belong together: those that show the same image, by what a row says of it, without an image being decoded.

Found in one pass over the rows, and kept in the cache: a million records of JSON take a minute.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
from filelock import FileLock
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from beni.data.records.base import Row, Rows
from beni.data.records.skim import skim
from beni.errors import DataError
from beni.nn.streams import numpy_stream
from beni.paths import cache_dir

VERSION = 1
CROWDED = 0.1
"""Share of the rows with an image that too many others have, above which whole images would misrepresent the data."""

Keys = Callable[[Row, int], Iterable[str]]
"""A row and its number -> what identifies its images."""


def groups_of(rows: Rows, keys: Keys, settings: str) -> np.ndarray | None:
    """The group of each row: rows that share an image, or share one with a third, are of one. int64, (rows,).

    Args:
        settings: everything else that decides what ``keys`` says, for the cache.

    Returns:
        None where rows cannot be read without reading all images.
    """
    said = f"{VERSION} {rows.fingerprint()} {len(rows)} {settings}"
    kept = cache_dir() / "groups" / f"{hashlib.sha256(said.encode()).hexdigest()[:20]}.npy"
    if not kept.is_file():
        kept.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(kept.with_suffix(".lock")):  # ranks of one machine wait for the one that reads
            if not kept.is_file():
                found = _grouped(rows, keys)
                if found is None:
                    return None
                _save(kept, found)
    return np.load(kept)


def whole_groups(groups: np.ndarray, count: int) -> np.ndarray | None:
    """At most ``count`` rows, the same for every seed, that make up whole groups; ascending.

    Rows are drawn as if there were no groups, and each brings its group along where there is still room for it; without
    a row that shares an image they are the very rows that would be drawn.

    Returns:
        None where too many rows are of groups larger than ``count``.
    """
    sizes = np.bincount(groups)
    if (sizes[groups] > count).mean() > CROWDED:
        return None
    drawn = groups[drawn_rows(len(groups))]
    first = np.sort(np.unique(drawn, return_index=True)[1])
    chosen, left = [], count
    for group in drawn[first].tolist():
        if left == 0:
            break
        if sizes[group] <= left:
            chosen.append(group)
            left -= int(sizes[group])
    return np.flatnonzero(np.isin(groups, chosen))


def drawn_rows(count: int) -> np.ndarray:
    """The order in which rows are held out; the same for every seed."""
    return numpy_stream(0, "data.heldout").permutation(count)


def _grouped(rows: Rows, keys: Keys) -> np.ndarray | None:
    skimmed = skim(rows)
    if skimmed is None:
        return None
    owners, hashes = array("q"), array("Q")
    for number, row in enumerate(skimmed):
        try:
            found = keys(row, number) if row is not None else ()
        except DataError:  # told when its turn comes
            continue
        for key in found:
            owners.append(number)
            digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
            hashes.append(int.from_bytes(digest, "little"))
    _, which = np.unique(np.array(hashes, dtype=np.uint64), return_inverse=True)
    size = len(rows) + int(which.max(initial=-1)) + 1  # rows, then images: an edge for each image of a row
    edges = coo_array((np.ones(len(which), dtype=np.int8), (np.array(owners), len(rows) + which)), (size, size))
    return connected_components(edges, directed=False)[1][: len(rows)].astype(np.int64)


def _save(path: Path, groups: np.ndarray) -> None:
    partial = path.with_suffix(f".{os.getpid()}.npy")
    np.save(partial, groups)
    os.replace(partial, path)
