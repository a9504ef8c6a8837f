"""What a run will need in memory, estimated before anything is allocated, and what the machine has.

An estimate: weights, gradients, AdamW moments and averages are exact; activations follow from widths and depths, as
counted in a Llama layer of this code, and are right within some 30 % (``WITHIN``). They are those of the llm: an
encoder that trains has its own beside them.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import psutil
import torch

from beni.errors import ResourceError

GIB = 1024**3

MOMENTS = {"adamw": 8, "adamw_8bit": 2, "muon": 4, "lion": 4, "adafactor": 0}
"""``optim.optimizer`` -> bytes of moments for each value of a matrix."""


KEPT = {("fp32", True): (12, 4), ("bf16", True): (20, 4), ("fp32", False): (6, 3), ("bf16", False): (9, 3)}
"""Precision, and whether a layer trains -> how many of its widths and of its intermediate widths it keeps for each
position; under bf16 what stands between the products stays in fp32 and counts twice."""
WITHIN = 1.3
"""Times what activations take, the estimate of them is at most."""
SELECTIVE = (4, 1)
"""What ``compute.activation_checkpointing=selective`` keeps beside a layer's input."""


@dataclass(frozen=True)
class Memory:
    """Bytes of one process by purpose, and what the machine under it holds.

    Attributes:
        weights: frozen and trained parameters where the process computes, as stored and as gathered for computing.
        loading: the most that the processes of one machine hold in its memory while they build (in fp32, packed weights
            too).
        optimizer: gradients, moments and the average of what trains, where the process computes.
        activations: of one micro-batch.
        offloaded: weights and optimizer state that the process keeps in the machine's memory instead.
        processes: of one machine.
    """

    weights: int
    loading: int
    optimizer: int
    activations: int
    offloaded: int = 0
    processes: int = 1

    @property
    def peak(self) -> int:
        """Bytes of one process, where it computes, while it trains."""
        return self.weights + self.optimizer + self.activations

    def needed(self, device: torch.device) -> dict[torch.device, int]:
        """Place -> bytes: what computes, and the machine's memory, which all of its processes share."""
        if device.type == "cpu":
            return {device: max(self.loading, self.processes * self.peak)}
        return {device: self.peak, torch.device("cpu"): max(self.loading, self.processes * self.offloaded)}

    def explain(self) -> str:
        parts = {"weights": self.weights, "gradients and moments": self.optimizer, "activations": self.activations}
        text = ", ".join(f"{name} {value / GIB:.1f}" for name, value in parts.items())
        if self.processes > 1:
            text += f", per process, {self.processes} processes per machine"
        if self.offloaded:
            text += f", offloaded per process {self.offloaded / GIB:.1f}"
        return text + (f"; CPU memory while building {self.loading / GIB:.1f}" if self.loading else "")


def estimate(
    *,
    frozen: int,
    trained: int,
    packed: int = 0,
    packed_bytes: int = 0,
    shards: int = 1,
    frozen_shards: int = 1,
    offloaded: Collection[str] = (),
    gathered: int = 0,
    loading: int | None = None,
    processes: int = 1,
    kept: int = 8,
    precision: str,
    positions: int,
    layers: int,
    width: int,
    intermediate: int,
    layers_train: bool = True,
    checkpointing: str = "none",
    budget: float = 1.0,
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
    offloaded: of ``trained`` and ``frozen``, what lives in the machine's memory.
    gathered: bytes of weights that are whole, for computing, beside the stored ones.
    loading: bytes that the processes of a machine hold while they build; one whole model in fp32 when None.
    processes: of one machine.
    kept: bytes of moments and averages for each parameter that trains.
    positions: llm positions of one micro-batch.
    layers: of the llm, whose activations the gradient needs.
    width: of the llm.
    intermediate: width of its feed-forward layers.
    layers_train: they keep the inputs of their products.
    checkpointing: ``compute.activation_checkpointing``.
    budget: share of all activations that ``memory_budget`` keeps.
    label_rows: positions of one micro-batch that predict a label, whose logits are held at once.
    """
    element = 2 if precision == "bf16" else 4
    weights = {
        "frozen": (frozen - packed) * element // frozen_shards,
        "trained": trained * 4 // shards,
    }
    optimizer = trained * (4 + kept) // shards
    away = sum(weights[name] for name in offloaded) + (optimizer if "trained" in offloaded else 0)
    of_width, of_intermediate = KEPT[precision, layers_train]
    whole = element * (of_width * width + of_intermediate * intermediate)
    each = _kept_by_layer(checkpointing, budget, whole, element, width, intermediate)
    again = 0 if checkpointing == "none" else whole  # of the layer whose backward pass runs
    return Memory(
        weights=sum(size for name, size in weights.items() if name not in offloaded) + packed_bytes + gathered,
        loading=(frozen + trained) * 4 if loading is None else loading,
        optimizer=0 if "trained" in offloaded else optimizer,
        activations=positions * (layers * each + again) + label_rows * vocabulary * 12,
        offloaded=away,
        processes=processes,
    )


def _kept_by_layer(checkpointing: str, budget: float, whole: int, element: int, width: int, intermediate: int) -> int:
    """Bytes that a layer keeps of one position from its forward to its backward pass, of ``whole`` that it has."""
    inputs = 4 * width
    if checkpointing == "selective":
        of_width, of_intermediate = SELECTIVE
        return inputs + element * (of_width * width + of_intermediate * intermediate)
    return {"none": whole, "full": inputs}.get(checkpointing, inputs + round(budget * (whole - inputs)))


def available(device: torch.device) -> int:
    """Free bytes on ``device``."""
    return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available


def require(memory: Memory, device: torch.device, remedies: Callable[[], Mapping[str, Memory]] = dict) -> list[str]:
    """What may not fit, since activations are estimated; empty where all of it does.

    Args:
        remedies: overrides -> what the run would need with them; those that help there are named.

    Raises:
        ResourceError: when ``memory`` does not fit even with the fewest activations that it may mean; says how much is
            lacking where.
    """
    doubts, others = [], None
    least = replace(memory, activations=round(memory.activations / WITHIN)).needed(device)
    for place, needed in memory.needed(device).items():
        free = available(place)
        if needed <= free:
            continue
        others = remedies() if others is None else others
        sizes = {name: other.needed(device)[place] for name, other in others.items()}
        helpful = [f"{name} (then {size / GIB:.1f} GiB)" for name, size in sizes.items() if size < 0.99 * needed]
        lacking = (
            f"this run needs about {needed / GIB:.1f} GiB ({memory.explain()}), {place} has {free / GIB:.1f} GiB "
            f"free: {(needed - free) / GIB:.1f} GiB too little"
        )
        fix = f"  fix: {'set ' + ' or '.join(helpful) if helpful else 'choose smaller parts or a larger machine'}"
        if least[place] > free:
            raise ResourceError(f"{lacking}\n{fix}")
        doubts.append(f"{lacking}; activations are an estimate, so the run starts anyway\n{fix}")
    return doubts


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
