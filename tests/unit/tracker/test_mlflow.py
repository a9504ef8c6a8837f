import logging
import sys
from pathlib import Path

import pytest

from beni.config.environment import FromEnvironment
from beni.errors import ConfigError
from beni.tracker.mlflow import MlflowTracker

# of mlflow and of what it is built on, when they are imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")

RUN = {"study": {"name": "pair"}, "train": {"seed": 3}, "llm": {"depth": 2, "layers": []}}
IDENTITY = {"name": "tiny_vit-perceiver-s3-0a1b2c3d", "signature": "0a1b2c3d"}


@pytest.fixture(autouse=True)
def quiet(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for name in ("MLFLOW_DISABLE_TELEMETRY", "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "MLFLOW_HTTP_REQUEST_TIMEOUT"):
        monkeypatch.setenv(name, "true" if name.endswith("TELEMETRY") else "1")


@pytest.fixture
def folder(tmp_path):
    made = tmp_path / "runs" / "pair" / IDENTITY["name"]
    made.mkdir(parents=True)
    return made


def mirrored(folder: Path, step: int, points, state, run=RUN, **options):
    tracker = MlflowTracker(**{"uri": None, "experiment": None} | options)
    tracker.start(folder, run, IDENTITY, step)
    for at, values in points:
        tracker.log(at, values)
    tracker.finish(state)
    return tracker


def kept(folder: Path, name="pair"):
    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{folder.parents[1] / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    points = [
        {
            key: [(one.step, one.value) for one in client.get_metric_history(run.info.run_id, key)]
            for key in run.data.metrics
        }
        for run in runs
    ]
    return runs, points


def test_a_run_that_goes_on_is_one_run_with_every_step_once(folder, monkeypatch):
    monkeypatch.setenv("SECRET_TOKEN", "hunter2hunter2")
    run = RUN | {"data": {"key": FromEnvironment("hunter2hunter2", "${oc.env:SECRET_TOKEN}")}}
    mirrored(folder, 0, [(1, {"loss": 2.0}), (2, {"loss": 1.5}), (2, {"eval/accuracy": 0.5})], "preempted", run)
    runs, _ = kept(folder)
    assert runs[0].info.status == "KILLED"
    mirrored(folder, 1, [(2, {"loss": 1.5}), (3, {"loss": 1.0})], "finished", run)
    [one], [points] = kept(folder)
    assert points == {"loss": [(1, 2.0), (2, 1.5), (3, 1.0)], "eval/accuracy": [(2, 0.5)]}
    assert one.info.status == "FINISHED"
    assert one.info.run_name == IDENTITY["name"]
    assert one.data.params["llm.depth"] == "2"
    assert one.data.params["llm.layers"] == "[]"
    assert one.data.tags["beni.study"] == "pair"
    written = (folder.parents[1] / "mlflow.db").read_bytes()
    assert b"SECRET_TOKEN" in written
    assert b"hunter2hunter2" not in written


def test_a_run_that_begins_anew_takes_the_place_of_the_old_one(folder):
    mirrored(folder, 0, [(1, {"loss": 2.0})], "failed", experiment="mine")
    mirrored(folder, 0, [(1, {"loss": 3.0})], "finished", experiment="mine")
    [one], points = kept(folder, "mine")
    assert points == [{"loss": [(1, 3.0)]}]
    assert one.info.status == "FINISHED"


def test_a_server_that_does_not_answer_costs_no_run(folder, caplog):
    with caplog.at_level(logging.WARNING):
        mirrored(folder, 0, [(1, {"loss": 2.0}), (2, {"loss": 2.0})], "finished", uri="http://me:hunter22@127.0.0.1:9")
    [said] = [record.getMessage() for record in caplog.records if record.name == "beni.tracker.mlflow"]
    assert said.startswith("tracker=mlflow stops (MlflowException: ")
    assert "metrics.jsonl has everything" in said
    assert "hunter22" not in caplog.text


def test_without_the_package_the_error_names_the_fix(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(ConfigError, match=r"pip install 'beni\[mlflow\]'"):
        mirrored(folder, 0, [], "finished")
