"""Named tensors as safetensors files, one a rank with that rank's part of every tensor; read at any world size.

- The layout is that of torch's distributed checkpoint for safetensors (``HuggingFaceStorageReader`` reads it): a tensor
  stands in a file under its name, and the file's header says at which offsets of the whole tensor it begins.
- What all ranks hold alike is written by one of them, dealt so that the files become about equally large.
- Nothing is pickled. Tensors are written from where they lie: torch's own writer serialises a whole file in memory
  first (measured on 1 GiB: twice the memory, 2.1 to 2.8 times the seconds).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

LAYOUT = "DCP_SHARDING_INFO"
"""Key of the header's metadata under which torch's distributed checkpoint keeps the offsets."""


@dataclass(frozen=True)
class Piece:
    """A rank's part of a tensor.

    Attributes:
        tensor: the values.
        offsets: where in the whole tensor they begin, a number for each dimension.
    """

    tensor: Tensor
    offsets: tuple[int, ...]


def own_pieces(tensors: Mapping[str, Tensor], rank: int, world: int) -> dict[str, Piece]:
    """What ``rank`` has to write, still where it is. All ranks give the same names in the same order."""
    written = [0] * world
    pieces: dict[str, Piece] = {}
    for name, tensor in tensors.items():
        if isinstance(tensor, DTensor):
            local = cast(DTensor, tensor.detach()).to_local()
            if local.numel() and _first_replica(tensor):
                pieces[name] = Piece(local, _offsets(tensor))
            continue
        writer = written.index(min(written))
        written[writer] += tensor.numel() * tensor.element_size()
        if writer == rank:
            pieces[name] = Piece(tensor.detach(), (0,) * tensor.ndim)
    return pieces


def staged(pieces: Mapping[str, Piece]) -> dict[str, Piece]:
    """Copies on the CPU, which training cannot change; those of a GPU are there once its stream is waited for."""
    return {name: Piece(_copied(piece.tensor), piece.offsets) for name, piece in pieces.items()}


def write(path: Path, pieces: Mapping[str, Piece]) -> None:
    """Writes pieces on the CPU as one file.

    Raises:
        OSError, safetensors.SafetensorError: when the disk does not take it.
    """
    offsets = {name: {"saved_offsets": piece.offsets} for name, piece in pieces.items()}
    header = {"format": "pt", "DCP_VERSION": "1.0", LAYOUT: json.dumps(offsets)}
    save_file({name: piece.tensor for name, piece in pieces.items()}, path, metadata=header)


class SavedTensors(Mapping[str, Tensor]):
    """The tensors of some files, read when they are asked for, whole (``saved[name]``) or in part (``like``).

    Args:
        files: as ``write`` has made them, of all ranks.

    Raises:
        KeyError: for a name that no file holds.
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self._pieces: dict[str, list[tuple[Any, tuple[int, ...], tuple[int, ...]]]] = {}
        for path in files:
            file: Any = safe_open(path, framework="pt")
            offsets = json.loads(file.metadata()[LAYOUT])
            for name in file.keys():  # noqa: SIM118 - a safetensors file is no mapping
                shape = tuple(file.get_slice(name).get_shape())
                begin = tuple(offsets[name]["saved_offsets"])
                self._pieces.setdefault(name, []).append((file, begin, shape))

    def __iter__(self) -> Iterator[str]:
        return iter(self._pieces)

    def __len__(self) -> int:
        return len(self._pieces)

    def __getitem__(self, name: str) -> Tensor:
        shape = self.shape(name)
        return self.part(name, (0,) * len(shape), shape)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the unsharded tensor."""
        ends = [[o + s for o, s in zip(begin, shape, strict=True)] for _, begin, shape in self._pieces[name]]
        return tuple(max(along) for along in zip(*ends, strict=True))

    def part(self, name: str, begin: Sequence[int], shape: Sequence[int]) -> Tensor:
        """The part of ``shape`` that starts at ``begin``, from whatever pieces hold it."""
        pieces = self._pieces[name]
        if not shape:
            return pieces[0][0].get_tensor(name)
        parts: list[tuple[tuple[slice, ...], Tensor]] = []
        for file, theirs, size in pieces:
            first = [max(a, b) for a, b in zip(begin, theirs, strict=True)]
            last = [min(a + n, b + m) for a, n, b, m in zip(begin, shape, theirs, size, strict=True)]
            if any(a >= b for a, b in zip(first, last, strict=True)):
                continue
            found = file.get_slice(name)[_slices(first, last, theirs)]
            if found.shape == tuple(shape):
                return found
            parts.append((_slices(first, last, begin), found))
        if not parts:  # a rank that has no row of a short tensor
            return pieces[0][0].get_tensor(name).new_empty(tuple(shape))
        whole = parts[0][1].new_empty(tuple(shape))
        for place, found in parts:
            whole[place] = found
        return whole

    def like(self, name: str, tensor: Tensor) -> Tensor:
        """A new tensor with the device, precision and sharding of ``tensor``; no more than this rank's part is read."""
        if not isinstance(tensor, DTensor):
            return self[name].to(tensor.device, tensor.dtype, copy=True)
        local = tensor.to_local()
        part = self.part(name, _offsets(tensor), tuple(local.shape)).to(local.device, local.dtype, copy=True)
        return DTensor.from_local(
            part, tensor.device_mesh, tensor.placements, run_check=False, shape=tensor.shape, stride=tensor.stride()
        )


def _slices(first: Sequence[int], last: Sequence[int], origin: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(first, last, origin, strict=True))


def _offsets(tensor: DTensor) -> tuple[int, ...]:
    (chunk,) = tensor.__create_chunk_list__()  # the protocol by which torch's distributed checkpoint asks
    return tuple(chunk.offsets)


def _first_replica(tensor: DTensor) -> bool:
    where = tensor.device_mesh.get_coordinate()
    placements = zip(tensor.placements, where or (), strict=True)
    return all(place == 0 for placement, place in placements if isinstance(placement, Replicate))


def _copied(tensor: Tensor) -> Tensor:
    if tensor.device.type != "cuda":
        return tensor.to("cpu", copy=True).contiguous()
    # page-locked, so that the copy waits in the stream before the next update and nobody waits for it here
    pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
    return pinned.copy_(tensor, non_blocking=True)
