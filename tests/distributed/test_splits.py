"""A step is the same step, however its samples are split over ranks and micro-batches."""

from __future__ import annotations

import shutil

import pytest

from beni.config.compose import compose
from distributed.same_gradients import agree, gradients_of

pytestmark = pytest.mark.slow

STEPS = 3
SPLITS = [(1, 2, "none"), (1, 8, "none"), (2, 1, "full"), (2, 4, "full"), (2, 2, "ddp"), (4, 2, "hybrid")]
"""Ranks, micro-batches, and how ranks share; 8 samples a step."""


@pytest.fixture(scope="module")
def step(tiny_values, tmp_path_factory):
    """step(world, accumulation, mode, layout, *overrides) -> losses and gradients."""
    folder = tmp_path_factory.mktemp("splits")

    def run(world, accumulation, mode, layout="packed", *overrides, steps=STEPS):
        values = ["data.text_share=0.3", "train.plan.vision=full", "train.batch_size=8", f"compute.layout={layout}"]
        values += [f"fsdp={mode}", *(("fsdp.shard_size=2",) if mode == "hybrid" else ())]
        composed = compose([*tiny_values, *values, f"train.accumulation={accumulation}", *overrides])
        name = "-".join([str(world), str(accumulation), mode, layout, *(word.partition("=")[2] for word in overrides)])
        return gradients_of(composed, folder / name, world, steps=steps)

    return run


@pytest.fixture(scope="module")
def whole(step):
    """One process, one micro-batch a step."""
    return step(1, 1, "none")


@pytest.mark.parametrize(("world", "accumulation", "mode"), SPLITS)
def test_a_split_step_has_the_gradients_of_a_whole_one(step, whole, world, accumulation, mode):
    agree(whole, step(world, accumulation, mode), STEPS)


@pytest.mark.parametrize(("mode", "checkpointing"), [("full", "selective"), ("ddp", "full")])
def test_layers_computed_again_on_two_ranks_have_the_gradients_of_kept_ones(step, whole, mode, checkpointing):
    agree(whole, step(2, 2, mode, "packed", f"compute.activation_checkpointing={checkpointing}"), STEPS)


@pytest.mark.skipif(shutil.which("g++") is None, reason="the compiler of CPU code needs g++")
def test_compiled_layers_on_two_ranks_have_the_gradients_of_plain_ones(step, whole):
    settings = ("compute.compile=true", "compute.activation_checkpointing=selective")
    compiled = step(2, 1, "full", "packed", *settings, steps=1)  # other lengths would be compiled anew
    agree((whole[0][:1], whole[1][:1]), compiled, 1, 1e-4)


def test_packed_samples_have_the_gradients_of_padded_ones(step, whole):
    agree(whole, step(1, 1, "none", "padded"), STEPS)


def test_packed_samples_have_the_gradients_of_single_ones(step, whole):
    agree(whole, step(1, 8, "none", "padded"), STEPS)


def test_texts_without_a_picture_have_the_gradients_of_one_process_on_two(tiny_values, tmp_path):
    """No rank calls the encoder, whose weights are sharded too, and gradients add up before they are summed."""
    text = tmp_path / "text.txt"
    text.write_text("".join(f"A line that is not like the others, number {i * i}.\n" for i in range(200)))
    values = [value for value in tiny_values if not value.startswith("data.")]
    values += ["data=text", f"data.path={text}", "data.piece=32", "template=plain", "train.plan.connector=frozen"]

    def run(world, mode, *more):
        composed = compose([*values, f"fsdp={mode}", *more])
        return gradients_of(composed, tmp_path / f"{world}-{mode}", world, steps=STEPS)

    agree(run(1, "none"), run(2, "full", "fsdp.frozen=shard", "train.accumulation=2"), STEPS)
