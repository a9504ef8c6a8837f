"""A fusion with layers of its own around those of the llm, on ranks that share their weights."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from beni.config.compose import compose
from distributed.same_gradients import agree, gradients_of
from support.options import node
from support.processes import run_ranks
from support.shrink import shrink_stage
from support.small_model import together

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("worker.py")
SETTINGS = (
    *("data.text_share=0.5", "llm.architecture.num_hidden_layers=3"),
    *("llm.architecture.max_position_embeddings=2048", "template.max_length=2048"),
)


@pytest.fixture(
    params=["cross_fusion", "flamingo", "idefics", "mllama", "hyper", "hybrid", "deepstack", "deepstack_views", "sva"]
)
def crossing(request, tiny_values, monkeypatch):
    """crossing(*overrides) -> a run with the fusion."""
    monkeypatch.setenv("BENI_TRUSTED", "support.")

    def make(*overrides):
        run = compose([*tiny_values, *SETTINGS, *overrides])
        run["fusion"] = {"_target_": "support.cross_fusion.CrossFusion"}
        if (option := request.param) != "cross_fusion":
            run["fusion"] = shrink_stage("fusion", option, node("fusion", option))
        if option == "deepstack":
            run["vision"]["levels"] = [0]
        run |= together("fusion", option)
        return run

    return make


@pytest.mark.parametrize("plan", ["train.plan.llm=full", "train.plan.llm=frozen"])
@pytest.mark.parametrize("mode", ["none", "full", "selective"])
def test_two_ranks_with_opposite_modalities_have_the_gradients_of_one(crossing, tmp_path, mode, plan):
    alone = gradients_of(crossing(plan, "fsdp=none"), tmp_path / "one", 1, steps=4, **TURNS)
    recomputing = f"compute.activation_checkpointing={mode}"
    shared = gradients_of(crossing(plan, "fsdp=full", recomputing), tmp_path / "two", 2, steps=4, **TURNS)
    agree(alone, shared, 4, within=3e-6)


TURNS = {"turns": [[True, False], [False, False]], "alternate": True}
"""One rank has a picture while the other has none; then neither has one, or both."""


def test_a_run_goes_on_from_its_checkpoint_at_either_world_size(crossing, tmp_path):
    """A micro-batch of a rank is one sample, so that one has no image while the other has one."""
    seen = {}
    for world, mode in ((1, "none"), (2, "full")):
        run = crossing(
            *("train.steps=3", "train.batch_size=4", "train.accumulation=2", "checkpoint.every=2", "eval.every=0"),
            *("optim.lr=1e-2", "optim.warmup_ratio=0", f"fsdp={mode}"),
        )
        seen[world] = run_ranks(WORKER, {"run": run, "folder": str(tmp_path / mode)}, tmp_path / f"{world}", world, 300)
        cut = tmp_path / f"{mode}-cut"
        shutil.copytree(tmp_path / mode, cut)
        shutil.rmtree(cut / "step_00000003")
        again = run_ranks(WORKER, {"run": run, "folder": str(cut)}, tmp_path / f"{world}-again", world, 300)
        for rank, uncut in zip(again, seen[world], strict=True):
            assert rank["began"] == 2
            assert rank["losses"] == {"3": uncut["losses"]["3"]}
    (alone,), ranks = seen[1], seen[2]
    assert any(a != b for a, b in zip(*(rank["pictured"] for rank in ranks), strict=True))
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert rank["norms"] == pytest.approx(alone["norms"], rel=1e-4)
