"""What vLLM cannot be told is refused; tests/support/vllm_parity.py compares its answers, where it is installed."""

from __future__ import annotations

import sys
import types
from pathlib import Path

import pytest
import torch

from beni.data.render.template import Renderer
from beni.errors import CompositionError, ConfigError, ResourceError
from beni.llm.tokenizer import load_tokenizer
from beni.model.build import build
from beni.model.processing import BeniProcessor
from beni.model.saving import describe
from beni.serve.vllm_engine import VllmEngine, require_plain, save_llm
from beni.trained import Trained
from support.hostile import noise

ASKED = [
    {"role": "user", "content": [{"type": "image", "image": noise(1, (64, 48))}, {"type": "text", "text": "what?"}]}
]


@pytest.fixture
def random_model(tiny_run):
    """Opens a model with random weights: ``random_model("fusion=flamingo")``."""

    def make(*overrides):
        run = tiny_run("llm.architecture.max_position_embeddings=2048", *overrides)
        model, renderer = build(run).eval(), Renderer(load_tokenizer(run["llm"]), run["template"])
        describe(model, renderer)
        processor = BeniProcessor(renderer.tokenizer, model.config, model.viewer)
        return Trained(Path(), model, processor, run, None, torch.device("cpu"), "fp32")

    return make


def test_a_plain_sequence_is_taken(random_model):
    require_plain(random_model().prompt(ASKED))


@pytest.mark.parametrize(
    ("override", "why"),
    [
        ("fusion.image_attention=image", "its tokens look ahead"),
        ("fusion=flamingo", "something stands between its layers"),
        ("pruner=fastv llm.architecture.num_hidden_layers=4", "tokens leave between its layers"),
    ],
)
def test_what_embeddings_do_not_tell_is_refused(random_model, override, why):
    with pytest.raises(CompositionError, match=rf"^E-VLLM .*{why}\n  fix: serve it with --engine transformers"):
        require_plain(random_model(*override.split()).prompt(ASKED))


def test_an_llm_that_is_no_class_of_transformers_is_refused(random_model, monkeypatch, tmp_path):
    trained = random_model()
    monkeypatch.setattr(trained.model.llm, "model", torch.nn.Linear(1, 1))
    with pytest.raises(CompositionError, match=r"^E-VLLM \[llm\]: .*no class of transformers"):
        save_llm(trained, tmp_path)


def test_without_vllm_the_way_to_it_is_named(random_model, monkeypatch):
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(ConfigError, match=r"needs the package vllm.*\n  fix: make vllm"):
        VllmEngine(random_model(), "tiny", 1, 1)


def test_an_engine_that_does_not_start_is_told_and_leaves_no_files(random_model, monkeypatch):
    def failing(*_):
        raise RuntimeError("no memory")

    stand_in = types.SimpleNamespace(
        AsyncEngineArgs=lambda **given: folders.append(Path(given["model"])),
        AsyncLLM=types.SimpleNamespace(from_engine_args=failing),
    )
    folders = []
    for name in (
        "vllm",
        "vllm.engine",
        "vllm.engine.arg_utils",
        "vllm.v1",
        "vllm.v1.engine",
        "vllm.v1.engine.async_llm",
    ):
        monkeypatch.setitem(sys.modules, name, stand_in)
    with pytest.raises(ResourceError, match=r"has not started .*no memory.*\n  fix: .*--engine transformers"):
        VllmEngine(random_model(), "tiny", 1, 1)
    assert len(folders) == 1
    assert not folders[0].exists()
