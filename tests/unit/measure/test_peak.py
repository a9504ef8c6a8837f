"""How fast a device could be."""

from __future__ import annotations

import pytest
import torch

from beni.measure import peak
from beni.measure.peak import find_peak, known_rate, measure_peak

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "kind", "rate"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4e12),
        ("NVIDIA H100 PCIe", "bf16", 756.5e12),
        ("NVIDIA H100 NVL", "bf16", 835e12),
        ("NVIDIA H100 NVL", "fp32", None),
        ("NVIDIA H200", "tf32", 494.7e12),
        ("NVIDIA H200 NVL", "bf16", 835.5e12),
        ("NVIDIA A100-SXM4-40GB", "fp32", 19.5e12),
        ("Some Card 9000", "bf16", None),
    ],
)
def test_a_device_is_known_by_its_name(name, kind, rate):
    assert known_rate(name, kind) == rate


def test_a_device_that_is_not_known_is_measured_and_said_to_be():
    found = find_peak(CPU, "fp32", None)
    assert found.rate == found.measured > 1e8
    assert "measured" in found.describe()


def test_a_given_rate_decides_and_the_measured_one_is_kept():
    found = find_peak(CPU, "fp32", 2.5)
    assert (found.rate, found.source) == (2.5e12, "log.peak_tflops")
    assert found.measured == measure_peak(CPU, "fp32", torch.get_num_threads())


def test_fp32_may_be_computed_in_tf32(monkeypatch):
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "high")
    assert [peak.arithmetic(p) for p in ("fp32", "bf16")] == ["tf32", "bf16"]
    monkeypatch.setattr(torch, "get_float32_matmul_precision", lambda: "highest")
    assert peak.arithmetic("fp32") == "fp32"
