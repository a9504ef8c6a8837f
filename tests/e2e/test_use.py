"""The page on using a trained model works as it stands: each of its programs in a fresh process, after its command."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[2] / "docs" / "use.md"
PROGRAMS = ("ask.py", "converse.py", "pipe.py", "several.py", "trainer.py")


def shown(language: str) -> dict[str, str]:
    return dict(re.findall(rf'```{language} title="([^"]+)"\n(.*?)```', PAGE.read_text(encoding="utf-8"), re.S))


def ran(words: list[str], folder: Path) -> str:
    done = subprocess.run(words, cwd=folder, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def trained(tiny_values, tmp_path_factory):
    """A folder in which the command of the page has been given."""
    folder = tmp_path_factory.mktemp("use")
    command = shown("bash")["train"].strip().split()
    assert command[:3] == ["python", "-m", "beni.train"]
    own = {word.partition("=")[0] for word in command} | {"checkpoint.export"}
    ran([sys.executable, *command[1:], *(value for value in tiny_values if value.partition("=")[0] not in own)], folder)
    return folder


def test_the_page_shows_these_programs():
    assert tuple(shown("python")) == PROGRAMS


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_program_of_the_page_runs_in_a_fresh_process(trained, program):
    assert ran([sys.executable, "-c", shown("python")[program]], trained)  # an answer of this model may be empty


def test_the_folder_and_its_export_hold_the_runs_template_end_tokens_and_processor(trained):
    from beni.export.__main__ import main

    model = next(trained.glob("runs/use/*/model"))
    assert main([str(model.parent), "--out", str(trained / "out")]) == 0
    files = {path.name for path in model.iterdir()}
    assert {"chat_template.jinja", "generation_config.json", "processor_config.json", "tokenizer.json"} <= files
    for name in ("chat_template.jinja", "generation_config.json", "processor_config.json"):
        assert (trained / "out" / name).read_text() == (model / name).read_text()
    template = json.loads((model / "config.json").read_text())["template"]
    assert template == json.loads((trained / "out" / "config.json").read_text())["template"]
    assert template["hash"] == json.loads((model.parent / "identity.json").read_text())["template_hash"]


@pytest.mark.parametrize("auto", ["AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoProcessor"])
def test_importing_beni_is_enough_for_each_auto_class_before_and_after_transformers(trained, auto):
    folder = next(trained.glob("runs/use/*/model"))
    opened = f"print(type(transformers.{auto}.from_pretrained({str(folder)!r})).__name__)"
    for imports in ("import beni, transformers", f"import transformers; transformers.{auto}; import beni"):
        assert ran([sys.executable, "-c", f"{imports}; {opened}"], trained).strip().startswith("Beni")


def test_importing_beni_imports_neither_torch_nor_transformers():
    code = "import beni, sys; print('torch' in sys.modules, 'transformers' in sys.modules)"
    assert ran([sys.executable, "-c", code], Path.cwd()).split() == ["False", "False"]
