"""Pretrained weights are read by the first process alone, and every process trains on them as a single one does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from beni.config.compose import compose
from beni.model.build import build
from support.processes import run_ranks

pytestmark = pytest.mark.slow

PROGRAM = Path(__file__).with_name("pretrained.py")
SETTINGS = (
    *("train.steps=3", "train.batch_size=4", "data.text_share=0.5", "optim.lr=1e-2", "optim.warmup_ratio=0"),
    *(
        "eval.every=0",
        "eval.examples=2",
        "eval.gallery=2",
        "checkpoint.export=true",
        "checkpoint.every=0",
        "optim.eps=1e-3",
    ),
)
CASES = {
    "all trains": ("train.plan.vision=full", "train.plan.llm=full"),
    "frozen and sharded": ("train.plan.vision=frozen", "train.plan.llm=frozen", "fsdp.frozen=shard"),
    "replicas with adapters": ("train.plan.vision=frozen", "train.plan.llm=lora", "adapter=pissa", "fsdp=ddp"),
    "packed": ("train.plan.vision=frozen", "train.plan.llm=frozen", "quantization=bnb_nf4"),
    "tied, in bf16": ("llm.architecture.tie_word_embeddings=true", "train.plan.llm=full", "compute.precision=bf16"),
}


@pytest.fixture(scope="module")
def folders(tiny_values, tmp_path_factory):
    """folders(*overrides) -> overrides that read the vision encoder and the llm of such a run from disk."""
    root = tmp_path_factory.mktemp("pretrained")

    def make(*overrides):
        where = root / str(len(list(root.iterdir())))
        model = build(compose([*tiny_values, *overrides, "train.seed=7"]))
        for part in ("vision", "llm"):
            getattr(model, part).model.save_pretrained(where / part)
        pretrained = [
            f"{part}.{key}" for part in ("vision", "llm") for key in (f"name={where / part}", "weights=pretrained")
        ]
        return [*pretrained, "vision.architecture=null", "llm.architecture=null", "llm.tokenizer=embedded"]

    return make


@pytest.mark.parametrize("case", CASES)
def test_every_process_trains_on_the_weights_that_the_first_has_read(folders, tiny_values, tmp_path, case):
    tied = [value for value in CASES[case] if "tie_word" in value]
    values = [value for value in CASES[case] if value not in tied]
    read = folders(*tied)
    seen, looked = {}, {}
    for world in (1, 2):
        mode = "none" if world == 1 else "full"
        mine = [f"fsdp={mode}", *(v for v in values if world == 2 or not v.startswith("fsdp"))]
        sizes = [value for value in tiny_values if ".architecture." not in value]
        run = compose([*sizes, *SETTINGS, f"paths.runs={tmp_path / str(world)}", *read, *mine])
        ranks = run_ranks(PROGRAM, {"run": run}, tmp_path / f"seen-{world}", world, 300)
        assert [len(rank["reads"]) for rank in ranks] == [2, *[0] * (world - 1)]
        folder = Path(ranks[0]["folder"])
        lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        (file,) = (folder / "model").glob("*.safetensors")
        shown = [json.loads(line) for line in (folder / "gallery.jsonl").read_text().splitlines()]
        assert all((folder / image).is_file() for line in shown for image in line["images"])
        losses = [line["train/loss"] for line in lines if "train/loss" in line]
        seen[world] = losses, load_file(file), [(line["id"], line["prediction"]) for line in shown]
        looked[world] = [line["attention"] for line in shown]
    bf16 = "compute.precision=bf16" in values
    assert len(seen[1][0]) == 3
    assert seen[2][0] == pytest.approx(seen[1][0], rel=1e-2 if bf16 else 1e-5)
    assert [name for name, _ in seen[2][2]] == [name for name, _ in seen[1][2]]
    assert len(seen[1][2]) == 2
    assert bf16 or seen[2][2] == seen[1][2]
    assert looked[2] == pytest.approx(looked[1], rel=5e-2 if bf16 else 1e-3)
    assert seen[2][1].keys() == seen[1][1].keys()
    for name, tensor in seen[1][1].items():
        apart = (seen[2][1][name].float() - tensor.float()).norm()
        assert apart <= (5e-2 if bf16 else 1e-3) * tensor.float().norm() + 1e-6, name
