"""A run with adapters leaves them in a folder of their own, without the backbones."""

from __future__ import annotations

from beni.model.build import build
from beni.model.modeling import BeniForConditionalGeneration
from beni.run import train

ADAPTERS = ("adapter=dora", "train.plan.llm=lora", "train.plan.vision=frozen", "checkpoint.export=true")


def test_what_a_run_exports_as_adapters_makes_its_model_of_an_untrained_one(tiny_run):
    run = tiny_run(*ADAPTERS, "train.ema=0.5", "optim.lr=1e-2", "eval.examples=2")
    folder = train(run)
    exported = BeniForConditionalGeneration.from_pretrained(folder / "model")
    model = build(run)
    model.load_adapters(folder / "adapters")
    assert all(tensor.equal(model.state_dict()[name]) for name, tensor in exported.state_dict().items())
    files = {str(file.relative_to(folder / "adapters")) for file in (folder / "adapters").rglob("*.safetensors")}
    assert files == {"parts.safetensors", "llm/adapter_model.safetensors"}
