"""Named random streams: every source of randomness is derived from (run seed, name) and from nothing else.

Swapping one component therefore leaves the initial weights of all others, and every batch, bit-identical. The idea is
that of ``jax.random.fold_in``; here a SHA-256 of the name gives the seed, so names need no registry and no order.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def derive(seed: int, *name: str | int) -> int:
    """(seed, name parts) -> a 63-bit seed. Parts are separated, so ("a", "bc") and ("ab", "c") differ."""
    text = "\x1f".join([str(int(seed)), *map(str, name)])
    return int.from_bytes(hashlib.sha256(text.encode(errors="surrogatepass")).digest()[:8], "big") >> 1


def numpy_stream(seed: int, *name: str | int) -> np.random.Generator:
    """A numpy generator for the stream ``name``."""
    return np.random.Generator(np.random.Philox(derive(seed, *name)))


@contextmanager
def torch_stream(seed: int, *name: str | int) -> Iterator[None]:
    """Inside the block torch's global generator is the stream ``name``; outside it is as it was before.

    Library code (Hugging Face initialisers, dropout) draws from the global generator, so this is the one way to give
    it a stream of its own without touching anybody else's.
    """
    with torch.random.fork_rng():
        torch.manual_seed(derive(seed, *name))
        yield
