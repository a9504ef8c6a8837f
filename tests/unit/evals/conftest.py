"""A model with weights so large that its answers vary, and samples without, with one and with several pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from beni.config.compose import compose
from beni.data.fetch.fetcher import Fetcher
from beni.data.images import Image
from beni.data.sample import Message, Sample
from beni.evals.subject import Subject
from beni.model.build import build

WORDS = ["left", "a red star", "the one of the two that is above", "2", "no, there is none", "blue"]


def noise(seed, height, width):
    pixels = np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)
    return Image(lambda: PILImage.fromarray(pixels), f"noise {seed}")


def sample(i, pictures=(), answer="red", **fields):
    """Sample ``i``: (height, width) of each of its pictures, a question of its own length, and its answer."""
    images = [noise(10 * i + k, *size) for k, size in enumerate(pictures)]
    asked = f"what is it, {' or '.join(WORDS[: 1 + i % len(WORDS)])}?"
    return Sample(f"s{i}", (Message("user", (*images, asked)), Message("assistant", (answer,))), **fields)


SIZES = [[(24, 24)], [], [(24, 60), (60, 24)], [(50, 24)], [(24, 24)], [(24, 48), (24, 24), (70, 60)], []]
"""Of the pictures of each sample: wide and high ones become other numbers of views."""


@pytest.fixture
def make_sample():
    return sample


@pytest.fixture
def mixed():
    return [sample(i, sizes) for i, sizes in enumerate(SIZES)]


@pytest.fixture
def subject_of(tiny_run, steps_of):
    """subject_of("views=anyres", batch_size=4) -> a Subject; ``llm`` is the architecture of another llm."""

    def make(*overrides, llm=None, std=0.3, **fields):
        run = tiny_run(*overrides)
        if llm is not None:
            run["llm"] |= {"architecture": llm, "attn_implementation": "eager"}
        model = build(run).eval()
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.copy_(torch.randn_like(parameter) * std)
        steps = steps_of(run, model)
        how = {"layout": "packed", "precision": "fp32", "batch_size": 4, "device": torch.device("cpu")}
        return Subject(model, steps.renderer, steps.viewer, **how | fields)

    return make


@pytest.fixture
def fetcher():
    return Fetcher(compose([])["images"])
