"""A finished run leaves its folder: for transformers, and as programs that are compared with eager."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import jaxtyping
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoTokenizer

from beni.export import formats, torch_export, torchscript
from beni.export.__main__ import main
from beni.export.components import Component
from beni.export.programs import compared
from beni.run import train

pytestmark = pytest.mark.slow

SETTINGS = ("train.steps=4", "checkpoint.every=1", "checkpoint.keep=4", "optim.lr=1e-2", "train.ema=0.5")
SETTINGS += ("eval.examples=2", "eval.every=1", "checkpoint.keep_best=eval/loss", "checkpoint.export=true")
SETTINGS += ("llm.architecture.tie_word_embeddings=true", "train.thaw.llm=0.5")


@pytest.fixture(scope="module")
def folder(tiny_values, tmp_path_factory):
    from beni.config.compose import compose

    root = tmp_path_factory.mktemp("export")
    return train(compose([*tiny_values, *SETTINGS, f"paths.runs={root}"]))


def tensors(path):
    return AutoModel.from_pretrained(path).state_dict()


def same(ours, theirs):
    return all(tensor.equal(theirs[name]) for name, tensor in ours.items())


def test_the_newest_checkpoint_gives_the_model_that_the_run_exported(folder, tmp_path, capsys):
    assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    assert "EMA weights after step 4" in capsys.readouterr().out
    assert same(tensors(tmp_path / "out"), tensors(folder / "model"))
    model = AutoModel.from_pretrained(tmp_path / "out")
    assert model.llm.model.get_output_embeddings().weight is model.llm.model.get_input_embeddings().weight
    assert len(AutoTokenizer.from_pretrained(tmp_path / "out")) > 100


def test_weights_average_and_steps_are_told_apart(folder, tmp_path):
    for name, words in {
        "average": ["--average"],
        "weights": ["--no-average"],
        "third": ["--checkpoint", "3"],
        "best": ["--checkpoint", "best"],
    }.items():
        assert main([str(folder), "--out", str(tmp_path / name), *words]) == 0
    seen = {path.name: tensors(path) for path in tmp_path.iterdir()}
    assert same(seen["average"], tensors(folder / "model"))
    assert not same(seen["weights"], seen["average"])
    assert not same(seen["third"], seen["average"])
    best = json.loads((folder / "checkpoints" / "best.json").read_text())["step"]
    assert main([str(folder), "--out", str(tmp_path / "again"), "--checkpoint", str(best)]) == 0
    assert same(seen["best"], tensors(tmp_path / "again"))


@contextmanager
def without_saved_model(folder, tmp_path):
    (folder / "model").rename(tmp_path / "model")
    try:
        yield
    finally:
        (tmp_path / "model").rename(folder / "model")


def test_a_run_without_a_saved_model_is_built_anew(folder, tmp_path):
    with without_saved_model(folder, tmp_path):
        assert main([str(folder), "--out", str(tmp_path / "out")]) == 0
    assert same(tensors(tmp_path / "out"), tensors(folder / "model"))


def test_what_waited_for_its_thaw_is_as_it_was_built_not_as_the_run_left_it(folder, tmp_path):
    assert main([str(folder), "--out", str(tmp_path / "out"), "--checkpoint", "2"]) == 0
    with without_saved_model(folder, tmp_path):
        assert main([str(folder), "--out", str(tmp_path / "anew"), "--checkpoint", "2"]) == 0
    assert same(tensors(tmp_path / "out"), tensors(tmp_path / "anew"))


@pytest.fixture
def sizes_may_be_symbols(monkeypatch):
    """A tracer calls with symbols for sizes, which no ``int`` in a signature expects."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.mark.usefixtures("sizes_may_be_symbols")
@pytest.mark.parametrize("kind", ["torch_export", "torchscript"])
def test_every_component_becomes_a_program_that_takes_other_shapes(folder, tmp_path, kind, capsys):
    assert main([str(folder), "--format", kind, "--out", str(tmp_path / kind)]) == 0
    told = json.loads((tmp_path / kind / "parity.json").read_text())
    assert [one["component"] for one in told["components"]] == ["vision", "resampler", "connector", "llm", "whole"]
    for one in told["components"]:
        assert one["reason"] is None, one
        assert (tmp_path / kind / one["file"]).is_file()
        assert one["shapes"] != one["second_shapes"]
        assert max(one["max_rel"], one["second_rel"]) <= 1e-5, one
    assert "whole" in capsys.readouterr().out


class Counting(nn.Module):
    """Takes one shape only, or none."""

    def __init__(self, impossible):
        super().__init__()
        self.impossible = impossible

    def forward(self, x):
        if self.impossible and float(x.sum()) > 0:
            return x
        return x * len(x)


@pytest.mark.parametrize("kind", ["torch_export", "torchscript"])
def test_what_cannot_be_a_program_or_takes_one_shape_is_said_with_the_reason(tmp_path, kind):
    def written(impossible):
        example = (torch.ones(2, 3), torch.ones(4, 3))
        part = Component("part", Counting(impossible), (example[0],), (example[1],), ((0,),))
        if kind == "torch_export":
            return compared(part, tmp_path / "part.pt2", torch_export.exported)
        return compared(part, tmp_path / "part.ts", torchscript.traced)

    fixed = written(False)
    assert fixed.max_abs == 0
    if kind == "torch_export":
        assert fixed.second_abs is None
        assert "Constraints violated" in fixed.reason
        none = written(True)
        assert none.file is None
        assert none.reason
        assert list(tmp_path.iterdir()) == [tmp_path / "part.pt2"] or not list(tmp_path.iterdir())
    else:
        assert fixed.second_abs == 2  # a trace takes a number that it met for a constant


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--checkpoint", "7"], "has no checkpoint of step 7; there are: 1, 2, 3, 4"),
        (["--checkpoint", "first"], "checkpoint first, expected last, best or the number of a step"),
        (["--text", "1"], "--text=1, expected at least 3 tokens"),
    ],
)
def test_what_cannot_be_had_is_named(folder, words, said, capsys):
    assert main([str(folder), *words]) == 2
    assert said in capsys.readouterr().err


def test_a_folder_that_is_no_run_or_is_not_empty_is_refused(folder, tmp_path, capsys):
    assert main([str(tmp_path)]) == 2
    assert "has no config.yaml" in capsys.readouterr().err
    assert main([str(folder), "--out", str(folder)]) == 2
    assert "is not empty" in capsys.readouterr().err


def test_a_checkpoint_of_adapters_gives_their_folder_and_merged_weights(tiny_values, tmp_path, capsys):
    from beni.config.compose import compose

    values = ("train.steps=2", "optim.lr=1e-2", "train.plan.llm=lora", "adapter=dora", "checkpoint.export=true")
    run = train(compose([*tiny_values, *values, f"paths.runs={tmp_path}"]))
    assert main([str(run), "--format", "adapters"]) == 0
    for name in ("parts.safetensors", "llm/adapter_model.safetensors"):
        ours, theirs = load_file(run / "export" / "adapters-2" / name), load_file(run / "adapters" / name)
        assert ours.keys() == theirs.keys()
        assert same(ours, theirs)
    assert main([str(run), "--format", "merged"]) == 0
    merged = AutoModel.from_pretrained(run / "export" / "merged-2")
    assert not [name for name in merged.state_dict() if "lora" in name]
    ids = torch.arange(20, 26)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            merged(ids).logits, AutoModel.from_pretrained(run / "model")(ids).logits, rtol=1e-4, atol=1e-5
        )


def test_an_empty_name_and_a_folder_in_use_are_refused_without_advising_to_remove_anything(
    folder, tmp_path, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert main([str(folder), "--out", ""]) == 2
    assert "fix: leave --out out, or set it to a folder" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []
    assert main([str(folder), "--out", "/etc"]) == 2
    said = capsys.readouterr().err
    assert "fix: set --out to a folder that is empty or not there yet" in said
    assert "remove" not in said


def test_a_part_whose_module_is_not_there_names_pythonpath(folder, tmp_path, capsys, monkeypatch):
    frozen = yaml.safe_load((folder / "config.yaml").read_text())
    frozen["resampler"] = {"_target_": "my_absent_package.part.Part"}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(frozen))
    for name in ("checkpoints", "identity.json"):
        (tmp_path / name).symlink_to(folder / name)
    monkeypatch.setenv("BENI_TRUSTED", "my_absent_package")
    assert main([str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert "fix: set PYTHONPATH to the folder that holds my_absent_package" in capsys.readouterr().err


def test_a_prompt_that_was_not_trained_is_written_only_where_it_is_allowed(folder, tmp_path, capsys):
    frozen = yaml.safe_load((folder / "config.yaml").read_text())
    frozen["template"]["system"] = "Be brief."
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(frozen))
    for name in ("checkpoints", "identity.json", "model"):
        (tmp_path / name).symlink_to(folder / name)
    for form in ("pretrained", "native", "gguf"):
        assert main([str(tmp_path), "--format", form, "--out", str(tmp_path / "refused")]) == 2
        assert "Be brief." in capsys.readouterr().err.split("the prompt as given")[1]
    assert not (tmp_path / "refused").exists()
    assert main([str(tmp_path), "--out", str(tmp_path / "allowed"), "--other-prompt"]) == 0
    assert "Be brief." in AutoTokenizer.from_pretrained(tmp_path / "allowed").chat_template
    assert main([str(tmp_path), "--format", "adapters", "--out", str(tmp_path / "adapters")]) == 0
    assert main([str(tmp_path), "--format", "torchscript", "--other-prompt"]) == 2
    assert "which holds no prompt" in capsys.readouterr().err


def test_a_run_without_adapters_has_none_to_merge(folder, capsys):
    assert main([str(folder), "--format", "merged"]) == 2
    assert "fix: set --format pretrained" in capsys.readouterr().err


def test_where_nothing_can_be_written_is_said_before_the_model_is_built(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("beni.trained.restore", lambda *_: pytest.fail("built"))
    (tmp_path / "file").touch()
    assert main([str(folder), "--out", str(tmp_path / "file")]) == 2
    assert "file is no folder" in capsys.readouterr().err


def test_average_and_weights_have_folders_of_their_own(folder):
    assert main([str(folder), "--checkpoint", "2"]) == main([str(folder), "--checkpoint", "2", "--no-average"]) == 0
    assert {"pretrained-2", "pretrained-2-weights"} <= {path.name for path in (folder / "export").iterdir()}


def test_every_format_is_the_file_of_its_name_and_no_file_writes_without_being_listed():
    assert all(callable(formats.writer(name)) for name in formats.FORMATS)
    folder = Path(formats.__file__).parent
    writing = {path.stem for path in folder.glob("*.py") if "\ndef write(" in path.read_text()}
    writing |= {path.parent.name for path in folder.glob("*/__init__.py") if "import write\n" in path.read_text()}
    assert writing == set(formats.FORMATS)


def test_the_help_says_what_each_format_writes_without_torch():
    code = "import sys, beni.export.__main__ as e\ntry:\n e.main(['--help'])\nfinally: print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"
    said = " ".join(done.stdout.split())
    for name, form in formats.FORMATS.items():
        assert name in said
        assert form.what in said
