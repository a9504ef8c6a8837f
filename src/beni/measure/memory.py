"""What a run will need in memory, estimated before anything is allocated, and what the machine has.

An estimate: weights, gradients, AdamW moments and averages are exact; activations follow from widths and depths (about
14 widths and 4 intermediate widths a position and layer, as in a Llama layer without checkpointing) and are right
within some 30 %.
"""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

from beni.errors import ResourceError

GIB = 1024**3

MOMENTS = {"adamw": 8, "adamw_8bit": 2, "muon": 4, "lion": 4, "adafactor": 0}
"""``optim.optimizer`` -> bytes of moments for each value of a matrix."""


@dataclass(frozen=True)
class Memory:
    """Bytes by purpose.

    Attributes:
        weights: frozen and trained parameters as stored while training.
        loading: the most that is held at once while building (random weights are drawn in fp32).
        optimizer: gradients, moments and the average of what trains.
        activations: of one micro-batch.
    """

    weights: int
    loading: int
    optimizer: int
    activations: int

    @property
    def peak(self) -> int:
        return max(self.loading, self.weights + self.optimizer + self.activations)

    def explain(self) -> str:
        parts = {"weights": self.weights, "gradients and moments": self.optimizer, "activations": self.activations}
        return ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts.items())


def estimate(
    *,
    frozen: int,
    trained: int,
    packed: int = 0,
    packed_bytes: int = 0,
    shards: int = 1,
    frozen_shards: int = 1,
    kept: int = 8,
    precision: str,
    positions: int,
    layers: int,
    width: int,
    intermediate: int,
    label_rows: int,
    vocabulary: int,
) -> Memory:
    """Args:
    frozen: parameters that do not train.
    trained: parameters that do.
    packed: parameters among the frozen ones that are quantized, whole on every process.
    packed_bytes: what these take.
    shards: processes that share what trains.
    frozen_shards: processes that share what does not.
    positions: llm positions of one micro-batch.
    kept: bytes of moments and averages for each parameter that trains.
    layers: of the llm, whose activations the gradient needs.
    width: of the llm.
    intermediate: width of its feed-forward layers.
    label_rows: positions of one micro-batch that predict a label, whose logits are held at once.
    """
    element = 2 if precision == "bf16" else 4
    return Memory(
        weights=(frozen - packed) * element // frozen_shards + packed_bytes + trained * 4 // shards,
        loading=(frozen + trained) * 4,
        optimizer=trained * (4 + kept) // shards,
        activations=positions * layers * (14 * width + 4 * intermediate) * element + label_rows * vocabulary * 12,
    )


def available(device: torch.device) -> int:
    """Free bytes on ``device``."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def require(memory: Memory, device: torch.device) -> None:
    """Raises ResourceError when ``memory`` does not fit, saying how much is lacking."""
    free = available(device)
    if memory.peak > free:
        raise ResourceError(
            f"this run needs about {memory.peak / GIB:.1f} GiB ({memory.explain()}), {device} has {free / GIB:.1f} GiB "
            f"free: {(memory.peak - free) / GIB:.1f} GiB are lacking\n"
            "  fix: raise train.accumulation, lower train.batch_size, or set train.precision=bf16"
        )


def peak_gib(device: torch.device) -> float:
    """Most memory this process has held at once, in GiB: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / GIB
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB


def usage(device: torch.device) -> dict[str, float]:
    """GiB of this process: the most it has held, and resident now on a CPU, the most reserved by torch on a GPU."""
    if device.type == "cuda":
        return {"peak_gib": peak_gib(device), "reserved_gib": torch.cuda.max_memory_reserved(device) / GIB}
    return {"peak_gib": peak_gib(device), "rss_gib": psutil.Process().memory_info().rss / GIB}
