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
