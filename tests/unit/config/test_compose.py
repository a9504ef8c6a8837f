"""From overrides to a frozen run."""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from beni.config.build import build
from beni.config.compose import compose
from beni.errors import ConfigError
from beni.paths import conf_dir


def test_a_run_is_plain_data_that_yaml_gives_back() -> None:
    run = compose(["resampler=perceiver"])
    assert yaml.safe_load(yaml.safe_dump(run)) == run
    assert "hydra" not in run


def test_composing_needs_no_torch() -> None:
    code = (
        "import sys; from beni import compose; compose([]); print(sorted({'torch', 'transformers'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "[]"


def test_two_compositions_share_nothing() -> None:
    first = compose([])
    first["train"]["plan"]["llm"] = "changed"
    assert compose([])["train"]["plan"]["llm"] == "full"


@pytest.mark.parametrize(
    ("overrides", "vision", "llm"),
    [
        ([], "full", "full"),
        (["vision=siglip"], "frozen", "full"),
        (["llm=smollm2_gguf", "vision=efficientnet_lite0"], "frozen", "frozen"),
        (["vision=efficientnet_lite0", "vision.weights=random"], "full", "full"),
        (["vision=siglip", "train.plan.vision=full"], "full", "full"),
    ],
)
def test_auto_freezes_what_has_pretrained_weights(overrides: list[str], vision: str, llm: str) -> None:
    plan = compose(overrides)["train"]["plan"]
    assert (plan["vision"], plan["llm"]) == (vision, llm)


def test_a_config_dir_adds_options_and_keeps_beni_s_own(tmp_path: Path) -> None:
    (tmp_path / "optim").mkdir()
    ours = (conf_dir() / "optim" / "adamw.yaml").read_text()
    (tmp_path / "optim" / "slow.yaml").write_text(ours.replace("lr: 1.0e-3", "lr: 1.0e-5").replace("5.0e-5", "0.0"))
    run = compose(["optim=slow", "resampler=perceiver"], config_dir=tmp_path)
    assert run["optim"]["lr"] == 1e-5
    assert run["choices"]["optim"] == "slow"
    assert run["resampler"]["num_latents"] == 64


def test_build_refuses_a_target_that_is_not_trusted() -> None:
    with pytest.raises(ConfigError, match="not trusted"):
        build({"_target_": "os.getcwd"})


def test_build_raises_a_parts_own_error_unwrapped() -> None:
    from beni.errors import DataError

    with pytest.raises(DataError, match=r"data\.path"):
        build(compose(["data=text"])["data"], 0)


@pytest.mark.parametrize(("template", "settled"), [("plain", "drop"), ("chat", "keep"), ("llava_v1", "keep")])
def test_instructions_of_captions_are_dropped_by_the_plain_template_alone(template, settled):
    assert compose(["data=llava_pretrain", f"template={template}"])["data"]["instructions"] == settled
    asked = compose(["data=llava_pretrain", f"template={template}", "data.instructions=keep"])
    assert asked["data"]["instructions"] == "keep"
    assert compose(["data=llava_instruct", f"template={template}"])["data"]["instructions"] == "keep"


def preset(folder, text):
    path = folder / "experiment" / "mine.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"# @package _global_\n{text}", encoding="utf-8")
    return folder


PERCEIVER = """
defaults:
  - override /resampler: perceiver
  - override /optim: adamw
resampler: {num_latents: 9, depth: 2}
optim: {betas: [0.9, 0.95], lr: 0.002}
"""


def test_a_presets_values_for_an_option_that_was_replaced_are_left_out_and_told(tmp_path):
    from beni.config.foreign import dropped_notices

    folder = preset(tmp_path, PERCEIVER)
    whole = compose(["experiment=mine"], folder)
    assert (whole["resampler"]["num_latents"], "dropped" in whole) == (9, False)

    run = compose(["experiment=mine", "resampler=avg_pool", "optim=adafactor"], folder)
    assert run["dropped"] == {
        "optim.betas": "adamw",
        "resampler.depth": "perceiver",
        "resampler.num_latents": "perceiver",
    }
    assert run["resampler"] == compose(["resampler=avg_pool"])["resampler"]
    assert run["optim"]["lr"] == 0.002  # every optimizer reads it
    notices = list(dropped_notices(run))
    assert "resampler.num_latents" in notices[2]
    assert "value of resampler=perceiver, and this run has resampler=avg_pool" in notices[2]


def test_values_of_the_command_line_are_never_left_out(tmp_path):
    folder = preset(tmp_path, PERCEIVER)
    with pytest.raises(ConfigError, match=r"unknown key resampler.num_latents"):
        compose(["experiment=mine", "resampler=avg_pool", "resampler.num_latents=4"], folder)


@pytest.mark.parametrize("overrides", [[], ["resampler=avg_pool"]])
def test_a_presets_key_that_no_option_has_is_an_error(tmp_path, overrides):
    folder = preset(tmp_path, PERCEIVER.replace("depth", "dephts"))
    with pytest.raises(ConfigError, match=r"unknown key resampler.dephts"):
        compose(["experiment=mine", *overrides], folder)


def test_what_is_left_out_is_no_part_of_what_a_run_is(tmp_path):
    from beni.runs.identity import signature

    folder = preset(tmp_path, "defaults:\n  - override /resampler: perceiver\nresampler: {num_latents: 9}\n")
    run = compose(["experiment=mine", "resampler=avg_pool"], folder)
    assert run["dropped"]
    assert signature(run) == signature(compose(["resampler=avg_pool"]))
