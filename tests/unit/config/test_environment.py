"""What comes from the environment is used, and neither written nor shown."""

from __future__ import annotations

import pickle
from copy import deepcopy
from pathlib import Path

import pytest
import yaml

from beni.config.compose import compose
from beni.config.environment import FromEnvironment, resolved, unresolved
from beni.errors import ConfigError
from beni.runs.frozen import load_frozen, save_frozen
from beni.runs.identity import run_folder

SOURCE = "https://me:${oc.env:BENI_TEST_SECRET}@host/x"
VALUE = "https://me:s3cret@host/x"
OVERRIDES = ["data=captions", f"data.path={SOURCE}"]


@pytest.fixture(autouse=True)
def secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BENI_TEST_SECRET", "s3cret")


def test_a_run_uses_the_value_and_its_folder_keeps_the_source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = compose(OVERRIDES)
    assert run["data"]["path"] == VALUE
    save_frozen(tmp_path, run)
    text = (tmp_path / "config.yaml").read_text()
    assert "s3cret" not in text
    assert SOURCE in text
    assert load_frozen(tmp_path) == run
    assert run_folder(load_frozen(tmp_path)) == run_folder(run)
    monkeypatch.delenv("BENI_TEST_SECRET")
    with pytest.raises(ConfigError, match=r"(?s)data\.path.*BENI_TEST_SECRET.*fix: set the variable"):
        load_frozen(tmp_path)


def test_what_interpolates_a_value_of_the_environment_keeps_its_source_too() -> None:
    run = compose([*OVERRIDES, "data.images=${data.path}/images"])
    assert run["data"]["images"] == f"{VALUE}/images"
    assert "s3cret" not in yaml.safe_dump(run)
    assert resolved(yaml.safe_load(yaml.safe_dump(run))) == run
    assert "s3cret" not in str(unresolved(run))


def test_a_value_survives_copies() -> None:
    value = FromEnvironment(VALUE, SOURCE)
    assert pickle.loads(pickle.dumps(value)).source == deepcopy(value).source == SOURCE


@pytest.mark.parametrize(
    "override", ["train.steps=${oc.env:BENI_TEST_SECRET}", "study.name=/${oc.env:BENI_TEST_SECRET}"]
)
def test_an_error_names_the_source_and_not_the_value(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose([override])
    assert "s3cret" not in str(caught.value)
    assert "${oc.env:BENI_TEST_SECRET}" in str(caught.value)


@pytest.mark.parametrize("path", [VALUE, "https://host/x?token=s3cret", "hf_s3cret" + 16 * "a"])
def test_a_secret_that_stands_in_a_run_is_refused_and_the_fix_works(path: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["data=captions", f"data.path='{path}'"])
    assert "s3cret" not in str(caught.value)
    assert "fix: export it as a variable, and write it as in 'data.path=${oc.env:MY_SECRET}'" in str(caught.value)
    assert compose(OVERRIDES)["data"]["path"] == VALUE


SETUP = "launcher.setup=['export WANDB_API_KEY={}']"


@pytest.mark.parametrize(
    "override",
    [
        *(
            SETUP.format(value) for value in ("s3cret0123", "${oc.env:BENI_TEST_SECRET}")
        ),  # a job's script would hold it
        "launcher.srun_args=['--export=ALL,WANDB_API_KEY=s3cret']",
        "launcher.additional_parameters={export: 'ALL,HF_TOKEN=s3cret'}",
    ],
)
def test_a_secret_in_the_lines_of_a_job_is_refused(override: str) -> None:
    with pytest.raises(ConfigError) as caught:
        compose(["launcher=slurm_1gpu", override])
    assert "s3cret" not in str(caught.value)
    assert "fix: export it where the command is given, since jobs inherit its variables" in str(caught.value)


def test_what_reads_a_secret_elsewhere_may_stand_in_the_lines_of_a_job() -> None:
    lines = ["module load cuda", ". ~/that_file", "export WANDB_API_KEY=$(cat ~/.wandb)"]
    said = ", ".join(f"'{line}'" for line in lines)
    assert compose(["launcher=slurm_1gpu", f"launcher.setup=[{said}]"])["launcher"]["setup"] == lines


def test_a_value_that_a_part_does_not_take_is_a_users_error_and_not_hydras() -> None:
    from beni.config.build import build_stage
    from beni.types import TokenSpec

    node = compose(["connector=linear"])["connector"] | {"dropout": 1.5}  # which composing would have refused
    with pytest.raises(ConfigError, match=r"(?s)MlpConnector does not take its values: dropout probability.*fix: "):
        build_stage(node, tokens=TokenSpec(n=4, dim=8, grid=(2, 2)), dim_out=8)
