"""Optimizers, thawing and averaged weights in two processes that share the weights: as in one, and resumed exactly."""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

import pytest

from beni.config.compose import compose
from beni.hub import OPTIMIZER_PACKAGES
from support.processes import run_ranks

pytestmark = pytest.mark.slow

WORKER = Path(__file__).with_name("worker.py")
SETTINGS = (
    *("train.steps=4", "train.batch_size=4", "train.accumulation=2", "checkpoint.every=1", "checkpoint.keep=9"),
    *("optim.warmup_ratio=0", "data.text_share=0.5", "llm.architecture.tie_word_embeddings=true"),
    *("train.thaw.llm=0.5", "train.thaw.vision=0.75", "train.ema=0.8", "eval.every=1"),
)
"""Scored after every step: the root then holds whole weights, which must not outlive the exchange with the average."""
RATES = {"adamw": "1e-2", "muon": "1e-2", "lion": "1e-3"}
CUTS = {"before a thaw": 1, "at a thaw": 2}
SECONDS = 300


@pytest.fixture(scope="module", params=RATES)
def name(request, absent):
    """An optimizer that runs sharded."""
    if (package := OPTIMIZER_PACKAGES.get(request.param)) and find_spec(package) is None:
        absent(f"optim={request.param} needs {package}")
    return request.param


@pytest.fixture(scope="module")
def launch(name, tiny_values, tmp_path_factory):
    """launch(world, folder) -> what each rank saw."""
    root = tmp_path_factory.mktemp(f"phases-{name}")

    def start(world, folder):
        mode = "full" if world > 1 else "none"
        run = compose(
            [*tiny_values, f"optim={name}", f"optim.lr={RATES[name]}", "optim.min_lr=0", *SETTINGS, f"fsdp={mode}"]
        )
        out = root / f"seen-{len(list(root.glob('settings-*')))}"
        return run_ranks(WORKER, {"run": run, "folder": str(root / folder)}, out, world, SECONDS)

    start.root = root
    return start


@pytest.fixture(scope="module")
def sharded(launch):
    """What each of two processes sees that share the weights."""
    return launch(2, "two")


def test_two_sharded_processes_train_thaw_and_average_as_one_does(launch, sharded):
    (one,) = launch(1, "one")
    for rank in sharded:
        assert rank["losses"] == pytest.approx(one["losses"], rel=1e-5)
        assert rank["evaluated"] == pytest.approx(one["evaluated"], rel=1e-4)
    assert len(set(one["losses"].values())) == 4


@pytest.mark.parametrize("done", CUTS.values(), ids=CUTS)
def test_two_processes_go_on_with_the_digits_of_an_uninterrupted_run(launch, sharded, done):
    cut = launch.root / f"cut-{done}"
    shutil.copytree(launch.root / "two", cut)
    for later in range(done + 1, 5):
        shutil.rmtree(cut / f"step_{later:08d}")
    for rank, whole in zip(launch(2, cut.name), sharded, strict=True):
        assert rank["began"] == done
        assert rank["losses"] == {step: loss for step, loss in whole["losses"].items() if int(step) > done}
        assert rank["evaluated"] == whole["evaluated"]


def test_gradients_of_what_thaws_are_summed_in_fp32_under_bf16(tiny_values, tmp_path):
    """A unit that is frozen when it is first used knows no dtype for them, and fails on the first bf16 gradient."""
    run = compose([*tiny_values, *SETTINGS, "train.accumulation=1", "compute.precision=bf16", "fsdp=full"])
    ranks = run_ranks(WORKER, {"run": run, "folder": str(tmp_path / "two")}, tmp_path / "seen", 2, SECONDS)
    assert [rank["dtypes"] for rank in ranks] == [["torch.float32"]] * 2
