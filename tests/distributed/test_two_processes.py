"""Two processes train what one does, sharded or not, and each goes on from the other's checkpoint."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from beni.config.compose import compose
from support.processes import run_module, run_ranks, start_ranks

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("worker.py")
PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")
SETTINGS = (
    *("train.steps=3", "train.batch_size=4", "train.accumulation=2", "checkpoint.every=2"),
    *("optim.lr=1e-2", "optim.warmup_ratio=0", "data.text_share=0.5"),
)
"""With two ranks a micro-batch is one sample, so that one rank has no image while the other's has one."""
SECONDS = 300


@pytest.fixture(scope="module")
def launch(tiny_values, tmp_path_factory):
    """launch(world, folder, mode, *overrides, spoilt) -> what each rank saw; they are killed after ``SECONDS``."""
    root = tmp_path_factory.mktemp("distributed")

    def start(world, folder, mode, *overrides, **more):
        run = compose([*tiny_values, *SETTINGS, *PERCEIVER, f"fsdp={mode}", *overrides])
        out = root / f"seen-{len(list(root.glob('settings-*')))}"
        return run_ranks(WORKER, {"run": run, "folder": str(root / folder), **more}, out, world, SECONDS)

    start.root = root
    return start


@pytest.fixture(scope="module")
def one(launch):
    """What a single process sees."""
    (seen,) = launch(1, "one", "none")
    assert len(set(seen["losses"].values())) == 3
    return seen


@pytest.fixture(scope="module")
def sharded(launch):
    """What each of two processes sees that share the weights."""
    return launch(2, "two", "full")


def agree(ours, theirs):
    for step, loss in ours["losses"].items():
        assert loss == pytest.approx(theirs["losses"][step], rel=1e-5)
        assert ours["norms"][step] == pytest.approx(theirs["norms"][step], rel=1e-4)
    assert ours["evaluated"] == pytest.approx(theirs["evaluated"], rel=1e-4)


def test_two_sharded_processes_equal_one(one, sharded):
    pictured = list(zip(*(rank["pictured"] for rank in sharded), strict=True))
    assert any(a != b for a, b in pictured)  # an image on one rank while the other has none
    assert sharded[0]["losses"].keys() == one["losses"].keys()
    agree(sharded[0], one)
    assert sharded[0]["losses"] == sharded[1]["losses"]
    assert sharded[0]["evaluated"] == sharded[1]["evaluated"]


def test_two_replicas_equal_one_process(launch, one):
    ranks = launch(2, "replicas", "none")
    assert ranks[0]["losses"].keys() == one["losses"].keys()
    agree(ranks[0], one)


@pytest.mark.parametrize(
    ("mode", "world", "overrides"),
    [
        ("ddp", 2, ()),
        ("hybrid", 4, ("fsdp.shard_size=2", "train.accumulation=1")),
    ],
)
def test_every_mode_equals_one_process(launch, one, mode, world, overrides):
    ranks = launch(world, f"{mode}-{world}", mode, *overrides)
    assert len(ranks) == world
    for rank in ranks:
        agree(rank, one)


@pytest.mark.parametrize(("adapter", "quantization"), [("dora", "bnb_nf4"), ("pissa", "none")])
def test_sharded_frozen_weights_and_adapters_equal_one_process(launch, absent, adapter, quantization):
    if quantization == "bnb_nf4" and find_spec("bitsandbytes") is None:
        absent("needs bitsandbytes")
    base = (f"quantization={quantization}", "train.plan.vision=frozen", "train.plan.llm=lora")
    plan = (*base, f"adapter={adapter}", "checkpoint.export=true")
    (alone,) = launch(1, adapter, "none", *plan)
    ranks = launch(2, f"{adapter}-two", "full", "fsdp.frozen=shard", "fsdp.reshard_after_forward=false", *plan)
    for rank in ranks:
        agree(rank, alone)
    for file in ("parts.safetensors", "llm/adapter_model.safetensors"):
        ours, theirs = (load_file(launch.root / folder / "adapters" / file) for folder in (adapter, f"{adapter}-two"))
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("saved_by", "world"), [("one", 2), ("two", 1), ("two", 4)])
def test_a_checkpoint_of_one_world_size_resumes_at_another(launch, one, sharded, saved_by, world):
    cut = launch.root / f"{saved_by}-cut-{world}"
    shutil.copytree(launch.root / saved_by, cut)
    shutil.rmtree(cut / "step_00000003")  # as if killed before it was written
    assert len(list((cut / "step_00000002").glob("*.safetensors"))) == (1 if saved_by == "one" else 2)
    ranks = launch(world, cut.name, "full", *(("train.accumulation=1",) if world == 4 else ()))
    assert [rank["began"] for rank in ranks] == [2] * world
    assert ranks[0]["losses"].keys() == {"3"}
    agree(ranks[0], one)


@pytest.mark.parametrize("mode", ["full", "ddp"])
def test_what_is_saved_after_an_evaluation_is_all_of_it_and_goes_on_exactly(launch, mode):
    """An evaluation leaves gathered weights behind, and those are not what checkpoints, thaws and optimizers know."""
    settings = ("checkpoint.every=0", "checkpoint.keep=9", "checkpoint.keep_best=eval/loss", "eval.every=1")
    settings += ("train.thaw.llm=0.6",)
    (alone,) = launch(1, f"alone-{mode}", "none", *settings)
    whole = launch(2, f"scored-{mode}", mode, *settings)
    agree(whole[0], alone)
    ours, theirs = (
        {name for file in (launch.root / folder / "step_00000001").glob("*.safetensors") for name in load_file(file)}
        for folder in (f"scored-{mode}", f"alone-{mode}")
    )
    assert {name.split("@")[0] for name in ours} == {name.split("@")[0] for name in theirs}
    cut = launch.root / f"scored-{mode}-cut"
    shutil.copytree(launch.root / f"scored-{mode}", cut)
    for later in cut.glob("step_0000000[23]"):
        shutil.rmtree(later)
    (cut / "best.json").unlink()
    for rank, uncut in zip(launch(2, cut.name, mode, *settings), whole, strict=True):
        assert rank["began"] == 1
        assert rank["losses"] == {step: loss for step, loss in uncut["losses"].items() if step != "1"}


@pytest.mark.parametrize("mode", ["full", "ddp"])
def test_text_on_one_rank_and_pictures_on_the_other_have_the_norm_of_one_process(launch, mode):
    norm = ("fusion.out_norm=rmsnorm", "train.accumulation=1", "train.batch_size=2")
    (alone,) = launch(1, f"normed-{mode}", "none", *norm)
    ranks = launch(2, f"normed-two-{mode}", mode, *norm)
    assert any(a != b for a, b in zip(*(rank["pictured"] for rank in ranks), strict=True))
    for rank in ranks:
        agree(rank, alone)


@pytest.mark.parametrize(("mode", "every"), [("full", 2), ("ddp", 0)])
def test_ranks_that_go_back_over_a_spoilt_step_come_to_the_digits_of_leaving_it_out(launch, mode, every):
    settings = (f"checkpoint.every={every}", "train.steps=5", "train.thaw.llm=0.6", "train.ema=0.5", "eval.every=2")
    seen = {
        policy: launch(2, f"{policy}-{mode}-{every}", mode, f"train.guard.nonfinite={policy}", *settings, spoilt=4)
        for policy in ("skip", "rewind")
    }
    for skipped, back in zip(seen["skip"], seen["rewind"], strict=True):
        assert back["began"] == (2 if every else 0)
        del skipped["losses"]["4"], back["losses"]["4"]
        assert back["losses"] == skipped["losses"]
        assert len(set(back["losses"].values())) == 4
        assert back["evaluated"] == skipped["evaluated"]


def test_samples_that_one_rank_cannot_draw_end_all_ranks_with_the_reason(launch, tiny_values):
    out = launch.root / "bad"
    run = compose([*tiny_values, *SETTINGS, "fsdp=full"])
    settings = {"run": run, "folder": str(launch.root / "never"), "bad": 2}
    codes, _ = start_ranks(WORKER, settings, out, 2, SECONDS).end()
    assert codes == [1, 1]
    first, last = (Path(f"{out}.{rank}.said").read_text() for rank in range(2))
    assert "beni.errors.DataError: rank 1: the picture x.png is bad\n  fix: remove it" in first
    assert "beni.errors.DataError: the picture x.png is bad\n  fix: remove it" in last


def test_muon_updates_matrices_of_which_a_rank_has_nothing(launch):
    adapters = ("train.plan.vision=lora", "adapter=dora", "adapter.r=1", "optim=muon", "optim.min_lr=0")
    (alone,) = launch(1, "thin", "none", *adapters)
    ranks = launch(2, "thin-two", "full", *adapters)
    for rank in ranks:
        assert rank["losses"] == pytest.approx(alone["losses"], rel=1e-5)
        assert rank["evaluated"] == pytest.approx(alone["evaluated"], rel=1e-4)
    cut = launch.root / "thin-cut"
    shutil.copytree(launch.root / "thin-two", cut)
    shutil.rmtree(cut / "step_00000003")
    for rank, whole in zip(launch(2, cut.name, "full", *adapters), ranks, strict=True):
        assert rank["began"] == 2
        assert rank["losses"]["3"] == whole["losses"]["3"]


def test_replicas_end_with_a_gallery(tiny_overrides, tmp_path):
    done = run_module(
        "beni.train", *tiny_overrides, "train.steps=2", "eval.gallery=2", f"paths.runs={tmp_path}", world=2
    )
    assert done.returncode == 0, done.stderr
    (gallery,) = tmp_path.glob("*/*/gallery.jsonl")
    assert len(gallery.read_text().splitlines()) == 2


def test_tied_embeddings_stay_tied(launch):
    """Over 20 steps, and when the run is taken up from its checkpoint."""
    values = ("llm.architecture.tie_word_embeddings=true", "train.steps=20", "train.accumulation=1")
    (alone,) = launch(1, "tied", "none", *values)
    ranks = launch(2, "tied-two", "full", *values)
    again = launch(2, "tied-two", "full", *values)
    (pair,) = alone["tied"]
    assert {name.rpartition("model.")[2] for name in pair} == {"embed_tokens.weight", "lm_head.weight"}
    for rank in (*ranks, *again):
        assert rank["tied"] == [pair]
        assert rank["evaluated"] == pytest.approx(alone["evaluated"], rel=1e-3)
    assert [rank["began"] for rank in again] == [20, 20]
    assert again[0]["evaluated"] == ranks[0]["evaluated"]
