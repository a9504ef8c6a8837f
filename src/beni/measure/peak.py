"""How fast a device could be: from a data sheet by its name, and as measured on one matrix product.

Utilisation (MFU, HFU) is a share of the data sheet's rate where the device is known, so that it compares with what
others publish; a device that is not known is measured, and said to be. Both numbers are kept: a good matrix product on
an H200 reaches some 80 % of its data sheet.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import cache

import torch

H100_SXM = {"bf16": 989.4e12, "tf32": 494.7e12, "fp32": 67e12}

RATES = {
    # the data sheets give the double, with sparsity:
    # resources.nvidia.com/en-us-tensor-core/nvidia-tensor-core-gpu-datasheet
    ("h200", "nvl"): {"bf16": 835.5e12},
    ("h200",): H100_SXM,
    ("h100", "pcie"): {"bf16": 756.5e12, "tf32": 378e12, "fp32": 51e12},
    ("h100", "nvl"): {"bf16": 835e12},
    ("h100",): H100_SXM,
    # nvidia.com/content/dam/en-zz/Solutions/Data-Center/a100/pdf/nvidia-a100-datasheet-us-nvidia-1758950-r4-web.pdf
    ("a100",): {"bf16": 312e12, "tf32": 156e12, "fp32": 19.5e12},
}
"""Words of a device's name -> dense FLOP/s by arithmetic; the first entry that fits counts."""

SIDE = {"cpu": 1024, "cuda": 8192}
SECONDS = 0.15
"""For which the product is repeated."""


@dataclass(frozen=True)
class Peak:
    """How fast one device can be.

    Attributes:
        device: its name.
        rate: FLOP/s that utilisation is a share of.
        measured: FLOP/s of a large matrix product.
        source: where ``rate`` is from: ``data sheet``, ``measured`` or ``log.peak_tflops``.
    """

    device: str
    rate: float
    measured: float
    source: str

    def describe(self) -> str:
        return (
            f"peak rate of {self.device}: {self.rate / 1e12:.4g} TFLOP/s ({self.source}); "
            f"measured matrix product: {self.measured / 1e12:.4g}"
        )


def find_peak(device: torch.device, precision: str, given: float | None) -> Peak:
    """Args:
    precision: ``bf16`` or ``fp32``, of the run.
    given: TFLOP/s that decide, or None.
    """
    threads = torch.get_num_threads()
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU with {threads} threads"
    measured = measure_peak(device, precision, threads)
    if given is not None:
        return Peak(name, given * 1e12, measured, "log.peak_tflops")
    sheet = known_rate(name, arithmetic(precision))
    return Peak(name, sheet or measured, measured, "data sheet" if sheet else "measured")


def arithmetic(precision: str) -> str:
    """What matrix products of a run are computed in: torch may take TF32 for fp32."""
    return "tf32" if precision == "fp32" and torch.get_float32_matmul_precision() != "highest" else precision


def known_rate(name: str, kind: str) -> float | None:
    """FLOP/s of a device by its name, None where it is not known."""
    words = name.lower()
    return next((rates.get(kind) for wanted, rates in RATES.items() if all(w in words for w in wanted)), None)


@cache
def measure_peak(device: torch.device, precision: str, threads: int) -> float:
    """FLOP/s of the fastest of some products of square matrices; of all ``threads`` on a CPU. Takes 0.2 s."""
    side = SIDE[device.type]
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    # random numbers: a GPU takes less power, and so less time, for constants
    own = torch.Generator(device).manual_seed(0)
    a, b = (torch.randn(side, side, dtype=dtype, device=device, generator=own) for _ in range(2))
    best, end = float("inf"), time.perf_counter() + SECONDS
    while time.perf_counter() < end or best == float("inf"):
        begun = time.perf_counter()
        torch.mm(a, b)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        best = min(best, time.perf_counter() - begun)
    return 2 * side**3 / best
