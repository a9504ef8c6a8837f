"""A trained run as a class of transformers: read in a process that has no beni, it says what the run says."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModel, LlavaForConditionalGeneration

from beni.export.__main__ import main
from beni.export.native import comparing, writing
from beni.paths import PACKAGE
from beni.run import train

pytestmark = pytest.mark.slow

SETTINGS = ("recipe=llava15", "vision.weights=random", "vision.architecture.num_hidden_layers=3", "train.steps=6")
SETTINGS += ("optim.lr=1e-2", "train.plan.vision=full", "train.plan.connector=full", "train.plan.llm=full")
SETTINGS += ("checkpoint.export=true", "data.image_size=48", "eval.examples=2")

WITHOUT_BENI = """
import json, sys
sys.modules["beni"] = None  # whoever imports it fails
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, LlavaForConditionalGeneration

folder, pictures, out = sys.argv[1:]
model = LlavaForConditionalGeneration.from_pretrained(folder)
processor = AutoProcessor.from_pretrained(folder)
told, logits = [], {}
for number, (file, question) in enumerate(json.load(open(pictures))):
    parts = [{"type": "image", "image": Image.open(file)}, {"type": "text", "text": question}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": parts}],
        add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
    )
    with torch.no_grad():
        logits[str(number)] = model(**inputs).logits
    said = model.generate(**inputs, max_new_tokens=8)[0, inputs["input_ids"].shape[1]:]
    told.append([inputs["input_ids"][0].tolist(), processor.decode(said, skip_special_tokens=True)])
save_file(logits, out)
print(json.dumps(told))
assert not [name for name in sys.modules if name.startswith("beni.")]
"""


@pytest.fixture(scope="module")
def folder(tiny_values, tmp_path_factory):
    """A trained run of LLaVA-1.5's recipe at tiny sizes."""
    from beni.config.compose import compose

    own = {value.partition("=")[0] for value in SETTINGS}
    tiny = [value for value in tiny_values if value.partition("=")[0] not in own]
    return train(compose([*tiny, *SETTINGS, f"paths.runs={tmp_path_factory.mktemp('native')}"]))


@pytest.fixture(scope="module")
def exported(folder):
    """Its folder for transformers, cut into several files of weights."""
    assert main([str(folder), "--format", "native", "--shard-size", "100KB"]) == 0
    (out,) = (folder / "export").glob("native-*")
    return out


def test_it_loads_without_beni_and_has_the_ids_logits_and_text_of_the_run(folder, exported, tmp_path):
    asked = []
    for number in (0, 3, 6):  # squares, which LLaVA's image processor and beni's bring to the same pixels
        comparing.picture(number).save(tmp_path / f"{number}.png")
        asked.append([str(tmp_path / f"{number}.png"), f"what colour is shape {number}?"])
    (tmp_path / "asked.json").write_text(json.dumps(asked))
    words = [str(exported), str(tmp_path / "asked.json"), str(tmp_path / "logits.safetensors")]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_BENI, *words],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
    )
    assert done.returncode == 0, done.stderr
    logits = load_file(tmp_path / "logits.safetensors")
    model = AutoModel.from_pretrained(folder / "model")
    for number, ((file, question), (ids, text)) in enumerate(zip(asked, json.loads(done.stdout), strict=True)):
        batch = model.processor.apply_chat_template(
            [model.processor.question(file, question)], add_generation_prompt=True, tokenize=True
        )
        assert batch["input_ids"][0].tolist() == ids
        with torch.no_grad():
            ours = model(**batch).logits
        assert ours.std() > 0.1
        assert (ours - logits[str(number)][..., : ours.shape[-1]]).abs().max() <= 1e-5
        assert model.answer(file, question, max_new_tokens=8) == text


def test_the_program_of_the_page_answers_without_beni(folder, exported, tmp_path):
    page = (PACKAGE.parent.parent / "docs" / "export.md").read_text(encoding="utf-8")
    (program,) = re.findall(r'```python title="ask_native.py"\n(.*?)```', page, re.S)
    comparing.picture(0).save(tmp_path / "0.png")
    blocked = "import sys; sys.modules['beni'] = None\n"
    words = [str(exported), str(tmp_path / "0.png"), "what is it?"]
    done = subprocess.run([sys.executable, "-c", blocked + program, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    own = AutoModel.from_pretrained(folder / "model").answer(tmp_path / "0.png", "what is it?")
    assert done.stdout.removesuffix("\n") == own


def test_its_weights_are_safetensors_in_shards_with_an_index(exported):
    shards = sorted(path.name for path in exported.glob("*.safetensors"))
    assert len(shards) > 1
    index = json.loads((exported / "model.safetensors.index.json").read_text())
    assert set(index["weight_map"].values()) == set(shards)
    names = []
    for shard in shards:
        with safe_open(exported / shard, "pt") as file:
            names += list(file.keys())
    assert sorted(names) == sorted(index["weight_map"])
    assert not [path for path in exported.iterdir() if path.suffix in (".bin", ".pt", ".pth")]


def test_it_has_the_end_tokens_and_the_template_of_the_run(folder, exported):
    saved = json.loads((exported / "generation_config.json").read_text())
    own = json.loads((folder / "model" / "generation_config.json").read_text())
    assert saved["eos_token_id"] == own["eos_token_id"]
    assert saved["do_sample"] is False
    assert "USER: " in (exported / "chat_template.jinja").read_text()


def test_a_class_that_says_something_else_is_refused_with_the_difference(folder, tmp_path, capsys, monkeypatch):
    built = writing.built

    def spoilt(*given):
        native = built(*given)
        bias = native.model.multi_modal_projector.linear_2.bias
        bias.data = bias.data + 0.1  # elsewhere: the memory is that of the run's model
        return native

    monkeypatch.setattr(writing, "built", spoilt)
    assert main([str(folder), "--format", "native", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "E-NATIVE: LlavaForConditionalGeneration is not this run: its logits differ by" in " ".join(said.split())
    assert list((tmp_path / "out").iterdir()) == []


def test_a_size_of_shards_that_nothing_reads_is_refused(folder, capsys):
    assert main([str(folder), "--shard-size", "5GB"]) == 2
    assert "--format native" in capsys.readouterr().err


def test_adapters_are_merged_and_averaged_weights_are_those_that_the_run_scores(tiny_values, tmp_path):
    from beni.config.compose import compose

    values = (*SETTINGS, "train.plan.llm=lora", "adapter=dora", "train.ema=0.5")
    own = {value.partition("=")[0] for value in values}
    tiny = [value for value in tiny_values if value.partition("=")[0] not in own]
    run = train(compose([*tiny, *values, f"paths.runs={tmp_path}"]))
    assert main([str(run), "--format", "native"]) == 0
    native = LlavaForConditionalGeneration.from_pretrained(run / "export" / "native-6")
    assert not [name for name in native.state_dict() if "lora" in name]
    model = AutoModel.from_pretrained(run / "model")
    batch = model.processor.apply_chat_template(
        [model.processor.question(comparing.picture(0), "what is it?")], add_generation_prompt=True, tokenize=True
    )
    with torch.no_grad():
        ours = model(**batch).logits
        theirs = native(input_ids=batch["input_ids"], pixel_values=batch["pixels"]).logits
    assert (
        ours - theirs
    ).abs().max() <= 1e-4  # the model adds what its adapters say, the class has them in its weights
    card = (run / "export" / "native-6" / "README.md").read_text()
    assert "EMA weights after step" in card
    assert "| accuracy, with the image |" in card


def test_a_run_that_is_no_class_is_told_what_differs_and_what_works(tiny_values, tmp_path, capsys):
    from beni.config.compose import compose

    run = train(compose([*tiny_values, "resampler=perceiver", "resampler.num_latents=4", f"paths.runs={tmp_path}"]))
    assert main([str(run), "--format", "native"]) == 2
    said = " ".join(capsys.readouterr().err.split())
    assert "resampler is Perceiver, expected NoResampler (resampler=none)" in said
    assert "fix: set --format pretrained (transformers with beni), merged (a run with adapters) or torch_export" in said
