"""Runs a test for every option of its module's groups, and makes their parts."""

from __future__ import annotations

import pytest

from beni.nn.streams import torch_stream
from support.options import DIM, STAGES, needed, node, options


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """``option`` in a test's arguments runs it for every option of its module's ``GROUPS``."""
    if "option" in metafunc.fixturenames:
        cases = [(group, name) for group in metafunc.module.GROUPS for name in options(group)]
        params = [pytest.param((group, name), id=f"{group}={name}", marks=needed(group, name)) for group, name in cases]
        metafunc.parametrize("option", params)


@pytest.fixture
def make(absent):
    """make(option, *args, seed=0): the part, its weights drawn from a stream of its own, in evaluation mode.

    A stage takes its incoming spec and, where it asks for it, the llm's width.
    """
    from beni.config.build import build, build_stage
    from beni.errors import WeightsError

    def build_part(option, *args, seed=0):
        with torch_stream(seed, *option):
            try:
                if option[0] in STAGES:
                    part = build_stage(node(*option), tokens=args[0], dim_out=DIM)
                else:
                    part = build(node(*option), *args)
            except WeightsError as error:
                absent(str(error))
            if hasattr(part, "init_weights"):
                part.init_weights()
        return part.eval()

    return build_part
