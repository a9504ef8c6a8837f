"""vLLM, where ``make vllm`` has made its environment: with beni's embeddings, and alone on an export."""

from __future__ import annotations

import json
import os
import subprocess

import pytest

from beni.export.formats import Export
from beni.export.native import comparing, writing
from beni.paths import PACKAGE
from support.native_runs import as_trained, native_run, scrambled_model, tagged_tokenizer

ROOT = PACKAGE.parent.parent
HEADS = {"hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 32}
"""The narrowest heads that vLLM's attention has on a CPU."""
NEW = 12

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vllm(absent):
    """The python of vLLM's environment."""
    python = ROOT / ".venv-vllm" / "bin" / "python"
    if not python.is_file():
        absent("make vllm has not made .venv-vllm")
    return python


def outcome(python, program, *words):
    """The last line of JSON that a program prints."""
    paths = os.pathsep.join(str(ROOT / name) for name in ("src", "tests"))
    env = os.environ | {"PYTHONPATH": paths, "VLLM_LOGGING_LEVEL": "ERROR", "CI": ""}
    done = subprocess.run(
        [python, ROOT / "tests" / "support" / program, *words], capture_output=True, text=True, env=env
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads([line for line in done.stdout.splitlines() if line.startswith(("{", "["))][-1])


def test_recipes_answer_through_vllm_with_the_ids_of_beni(vllm):
    told = outcome(vllm, "vllm_parity.py", "--random", "0", "--only", "llava15")
    assert told["same"] == told["asked"] == 3, told


@pytest.mark.parametrize("name", ["idefics3", "smolvlm"])
def test_vllm_alone_answers_from_an_export_as_the_run_does(vllm, name, tmp_path):
    run = native_run(name, tagged_tokenizer(tmp_path / "tagged"))
    run["llm"]["architecture"] |= HEADS | {"max_position_embeddings": 2048}
    run["template"]["max_length"] = 2048
    trained, out, asked, own = as_trained(scrambled_model(run), run, tmp_path), tmp_path / "out", [], []
    out.mkdir()
    writing.write(Export(trained, False, 16, out, lambda *_, **__: None))
    model, processor = trained.model, trained.processor
    for number in (0, 3):
        file, text = tmp_path / f"{number}.png", f"what colour is shape {number}?"
        comparing.picture(number).save(file)
        asked.append({"images": [str(file)], "text": text})
        question = [processor.question(file, text)]
        batch = processor.apply_chat_template(question, add_generation_prompt=True, tokenize=True)
        said = model.generate(**batch, max_new_tokens=NEW, do_sample=False)
        own.append(said[0, batch["input_ids"].shape[1] :].tolist())
    (tmp_path / "asked.json").write_text(json.dumps({"folder": str(out), "new": NEW, "asked": asked}))
    assert outcome(vllm, "vllm_alone.py", tmp_path / "asked.json") == own


def test_the_environment_has_none_of_what_breaks_transformers(vllm):
    listed = subprocess.run([vllm, "-m", "pip", "list"], capture_output=True, text=True, check=True).stdout
    assert not {line.split()[0] for line in listed.splitlines()[2:]} & {"torchvision", "torchaudio", "torchcodec"}
