"""Adapters saved without the weights they stand beside: read back, and by plain peft."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel

from beni.errors import ResumeError
from unit.model.test_lora import BOTH, KINDS, TAKES_OUT, disturb, logits

PERCEIVER = ("resampler=perceiver", "resampler.num_latents=3", "resampler.num_heads=2", "resampler.head_dim=8")

HALF = ("train.plan.llm=lora", "train.plan.vision=frozen", "adapter.r=4")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_saved_alone_come_back_exactly(tiny_run, tiny_model, steps_of, tmp_path, kind):
    overrides = (f"adapter={kind}", *BOTH, *PERCEIVER)
    model = disturb(tiny_model(*overrides))
    batch = steps_of(tiny_run(*overrides), model)[0][0]
    model.save_adapters(tmp_path)
    again = tiny_model(*overrides)
    assert not logits(again, batch).equal(logits(model, batch))
    again.load_adapters(tmp_path)
    assert all(tensor.equal(again.state_dict()[name]) for name, tensor in model.state_dict().items())
    files = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*.safetensors")}
    assert files == {"parts.safetensors", "llm/adapter_model.safetensors", "vision/adapter_model.safetensors"}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("component", ["llm", "vision"])
def test_plain_peft_puts_them_beside_the_bare_backbone(tiny_run, tiny_model, tmp_path, kind, component):
    model = disturb(tiny_model(f"adapter={kind}", *BOTH))
    model.save_adapters(tmp_path)
    bare = getattr(tiny_model(), component).model
    plain = PeftModel.from_pretrained(bare, tmp_path / component).eval()
    ours = getattr(model, component).model
    ours.config.return_dict = plain.config.return_dict = True
    generator = torch.Generator().manual_seed(0)
    inputs = (
        {"input_ids": torch.arange(12)[None]}
        if component == "llm"
        else {"pixel_values": torch.randn(1, 3, 24, 24, generator=generator)}
    )
    with torch.no_grad():
        expected, found = ours(**inputs)[0], plain(**inputs)[0]
    exact = {"rtol": 0, "atol": 0} if kind not in TAKES_OUT else {"rtol": 1e-5, "atol": 1e-5}
    torch.testing.assert_close(found, expected, **exact)


@pytest.mark.parametrize("kind", TAKES_OUT)
def test_another_decomposition_of_the_same_weights_does_not_matter(tiny_run, tiny_model, steps_of, tmp_path, kind):
    """Another machine may find singular vectors of the other sign."""
    model = disturb(tiny_model(f"adapter={kind}", *BOTH))
    batch = steps_of(tiny_run(), model)[0][0]
    model.save_adapters(tmp_path)
    other = tiny_model(f"adapter={kind}", *BOTH)
    layer = other.llm.model.model.layers[0].self_attn.q_proj
    with torch.no_grad():
        moved = 0.1 * torch.ones_like(layer.lora_initial_A)
        layer.base_layer.weight.sub_(layer.scaling["default"] * layer.lora_initial_B @ moved)
        layer.lora_initial_A.add_(moved)
    other.load_adapters(tmp_path)
    torch.testing.assert_close(logits(other, batch), logits(model, batch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("words", "overrides"),
    [
        (r"vision holds other adapters[^$]*fix: set adapter", ("adapter=lora", *BOTH, "adapter.targets=[q_proj]")),
        (r"vision holds other adapters[^$]*fix: set adapter", ("adapter=dora", *BOTH)),
        (r"parts.safetensors is of another model", ("adapter=lora", *BOTH, *PERCEIVER)),
        (
            r"vision holds other adapters[^$]*lora_alpha=32, [^$]* 16[^$]*fix: set adapter",
            ("adapter=lora", *BOTH, "adapter.alpha=16"),
        ),
        (
            r"vision holds other adapters[^$]*use_rslora=False, [^$]* True[^$]*fix: set adapter",
            ("adapter=rslora", *BOTH),
        ),
        (r"vision holds other adapters[^$]*r=4[^$]*fix: set adapter", ("adapter=lora", *BOTH, "adapter.r=2")),
        (
            r"adapters of vision[^$]*train.plan.vision=frozen[^$]*fix: [^$]*train.plan.vision=lora",
            ("adapter=lora", *HALF),
        ),
    ],
)
def test_adapters_of_another_model_are_refused(tiny_model, tmp_path, words, overrides):
    tiny_model("adapter=lora", *BOTH).save_adapters(tmp_path)
    with pytest.raises(ResumeError, match=words):
        tiny_model(*overrides).load_adapters(tmp_path)


def test_adapters_that_the_folder_lacks_are_asked_for(tiny_model, tmp_path):
    tiny_model("adapter=lora", *HALF).save_adapters(tmp_path)
    with pytest.raises(ResumeError, match=r"vision holds no adapters[^$]*fix: set adapter and train.plan"):
        tiny_model("adapter=lora", *BOTH).load_adapters(tmp_path)


def test_a_folder_without_adapters_is_refused(tiny_model, tmp_path):
    with pytest.raises(ResumeError, match=r"has no parts\.safetensors"):
        tiny_model("adapter=lora", *BOTH).load_adapters(tmp_path)
