"""Every case in cases/: outputs and input gradients equal to the published implementation's, in fp32 and fp64."""

from __future__ import annotations

import pytest
import torch

from beni.paths import conf_dir
from reference.harness import ReferenceCase, all_cases, difference

CASES = all_cases()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["fp32", "fp64"])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_equals_its_reference(case: ReferenceCase, dtype: torch.dtype) -> None:
    if case.missing:
        pytest.skip(f"{case.needs} is not installed")
    assert len(case.shapes) >= 3
    for seed, shape in enumerate(case.shapes):
        found = difference(case, shape, dtype, seed)
        assert found.output <= case.tolerances[dtype], (shape, found)
        assert found.gradient <= case.tolerances[dtype], (shape, found)


def test_every_case_has_a_name_of_its_own() -> None:
    names = [case.name for case in CASES]
    assert sorted(set(names)) == sorted(names)


def test_every_mechanism_has_a_case_that_runs_without_further_packages() -> None:
    groups = ("selector", "connector", "resampler", "fusion")
    options = {f"{g}={path.stem}" for g in groups for path in (conf_dir() / g).glob("*.yaml")}
    nothing = {"connector=auto", "connector=identity", "resampler=none", "fusion=inline"}
    nothing |= {"selector=none", "selector=chain", "selector=random", "resampler=roi_random"}  # nothing, others, noise
    nothing.add("fusion=hyper")  # no release can be loaded: tests/unit/fusion/test_hyper.py derives it anew
    assert options - nothing == {case.option for case in CASES if case.needs is None}
