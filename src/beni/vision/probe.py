"""Where the patches are in what a vision model returns, read off one dry run instead of a list of known models.

Models return ``(i, n, d)`` with prefix tokens (CLS, registers) or without, hierarchical ones also maps ``(i, d, h, w)``
or ``(i, h, w, d)``, and those that pack pictures end to end one row ``(1, i * n, d)`` (Pixtral) or ``(i * n, d)``
(MoonViT). A count of tokens alone never decides: 24x32 patches would pass for a square. What decides is, in this order,
a map that the model returns, and its patch size (doubled for every stage of a hierarchical one) with the size of the
input.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import _lru_cache_wrapper
from types import FunctionType
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.overrides import TorchFunctionMode

from beni.nn.batch_norm import flattened

MAX_PREFIX = 2
"""CLS and a distillation token."""

MORE_PREFIX = ("num_register_tokens", "num_registers", "num_cls_tokens")
"""Fields of configs that say how many tokens stand in front of the patches besides."""


@contextmanager
def dry_run(model: nn.Module) -> Iterator[None]:
    """Around calls of a model on the meta device: afterwards nothing of them is left in caches of its classes.

    transformers keeps what some methods return by the shape alone (BEiT's relative positions), so a tensor without
    values would turn up in the next call with values, which are then whatever lies in memory. Models that take a mask
    of patches (Idefics2 and 3, SmolVLM) look whether it is full, unless they are being traced: fake tensors say so.
    Before transformers 5.23 they take the patches that it holds, whose number fake tensors do not know: all.
    """
    masked = "patch_attention_mask" in inspect.signature(model.forward).parameters
    try:
        with FakeTensorMode(allow_non_fake_inputs=True) if masked else nullcontext(), FullMasks():
            yield
    finally:
        for kind in {type(module) for module in model.modules()}:
            for value in vars(kind).values():
                function = value.__func__ if isinstance(value, staticmethod | classmethod) else value
                for cached in _closed_over(function):
                    if isinstance(cached, _lru_cache_wrapper):
                        cached.cache_clear()


class FullMasks(TorchFunctionMode):
    """Inside the block, ``x[mask]`` and ``x[mask] = value`` of a boolean mask without values take it to be full."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func not in (Tensor.__getitem__, Tensor.__setitem__) or not _valueless_mask(args[1]):
            return func(*args, **kwargs or {})
        if func is Tensor.__setitem__:
            return None  # there are no values to put anywhere
        return args[0].flatten(0, args[1].ndim - 1)


def _valueless_mask(index: object) -> bool:
    return isinstance(index, Tensor) and index.dtype == torch.bool and index.ndim > 0 and index.is_meta


def _closed_over(function: object) -> list[object]:
    return [cell.cell_contents for cell in function.__closure__ or ()] if isinstance(function, FunctionType) else []


@dataclass(frozen=True)
class Layout:
    """What the tokens of a model are at one input size.

    Attributes:
        rows, columns: of the patch grid.
        prefix: tokens before the patches.
    """

    rows: int
    columns: int
    prefix: int

    @property
    def grid(self) -> tuple[int, int]:
        return self.rows, self.columns

    @property
    def n(self) -> int:
        """Tokens, prefix included."""
        return self.prefix + self.rows * self.columns

    def tokens(self, x: Tensor, images: int) -> Float[Tensor, "i n d"]:
        """A hidden state of any of the forms as one row of tokens an image, prefix included."""
        if x.ndim == 4:
            return x.flatten(1, 2) if self.grid == x.shape[1:3] != x.shape[2:] else flattened(x)
        return x if x.shape[0] == images else x.reshape(images, -1, x.shape[-1])


def find_layout(out: Mapping[str, Any], fields: Mapping[str, Any], size: tuple[int, int], images: int) -> Layout | None:
    """What a dry run on ``images`` pictures of ``size`` (height, width) returned -> where the patches are.

    Args:
        out: the model's output, with ``last_hidden_state``.
        fields: the model's config.

    Returns:
        None when nothing explains the number of tokens.
    """
    last = out["last_hidden_state"]
    if last.ndim == 4:
        return Layout(*_map_grid(last, size), prefix=0)
    count = last.shape[:-1].numel() // images
    allowed = range(MAX_PREFIX + 1 + sum(fields.get(name) or 0 for name in MORE_PREFIX))
    for rows, columns in (*_returned_grids(out, size), *_strided_grids(fields.get("patch_size"), size)):
        if rows * columns and count - rows * columns in allowed:
            return Layout(rows, columns, count - rows * columns)
    return None


def _returned_grids(out: Mapping[str, Any], size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Grids of the last hidden state where it comes as a map too."""
    for name in ("reshaped_hidden_states", "hidden_states"):
        states = out.get(name)
        if states and isinstance(states[-1], Tensor) and states[-1].ndim == 4:
            yield _map_grid(states[-1], size)


def _map_grid(features: Tensor, size: tuple[int, int]) -> tuple[int, int]:
    """The grid of a map with its channels before or behind it: the axes whose ratio is that of the input."""

    def skew(first: int) -> float:
        rows, columns = features.shape[first : first + 2]
        ratio = rows * size[1] / (columns * size[0])
        return max(ratio, 1 / ratio)

    first = 1 if skew(1) < skew(2) else 2
    return features.shape[first], features.shape[first + 1]


def _strided_grids(patch: object, size: tuple[int, int]) -> Iterator[tuple[int, int]]:
    """Grids that a patch size explains, smallest stride first; every stride where the config names none."""
    if isinstance(patch, int):
        patch = (patch, patch)
    if isinstance(patch, list | tuple) and len(patch) == 2:
        strides = [(int(patch[0]) << k, int(patch[1]) << k) for k in range(6)]
    else:
        strides = [(s, s) for s in range(1, max(size) + 1)]
    for down, right in strides:
        yield size[0] // down, size[1] // right
        yield -(-size[0] // down), -(-size[1] // right)
