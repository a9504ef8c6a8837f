"""MLflow: mirrors metrics.jsonl to an MLflow server, or to a SQLite file that ``mlflow ui`` shows.

- A run's MLflow run is found again by a tag, so a resumed or requeued run goes on in it.
- MLflow is sent the frozen run without its launcher, the metrics, and names of the study, the arm and its signature.
  Code, git state, command line, host and environment variables stay here.
- Nothing MLflow does may cost a run: a failure is said once, and the run goes on without the mirror.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from beni.errors import ConfigError
from beni.redact import redacted
from beni.tracker.base import Tracker, settings

logger = logging.getLogger(__name__)

QUIET = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",  # MLflow's own waits for minutes where no server answers
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
"""Environment of MLflow where the user has set no other: it reports usage to its makers otherwise."""
LONGEST = 6000
"""Characters of a parameter's value that MLflow takes."""
AT_ONCE = 100
"""Parameters that MLflow takes in one request."""
ENDS = {"finished": "FINISHED", "failed": "FAILED", "preempted": "KILLED"}
ID_TAG = "beni.run"


class MlflowTracker(Tracker):
    """An MLflow run for the run, in the experiment named after ``experiment`` or its study.

    Args:
        uri: of the server or database; null takes ``MLFLOW_TRACKING_URI`` from the environment, and where that is not
            set ``mlflow.db`` beside the studies.
        experiment: in MLflow; null names it like the study.
    """

    def __init__(self, *, uri: str | None, experiment: str | None) -> None:
        self.uri, self.experiment = uri, experiment
        self._client: Any = None
        self._id = ""
        self._last: dict[str, int] = {}

    def start(self, folder: Path, run: Mapping[str, Any], identity: Mapping[str, Any], step: int) -> None:
        """Begins the MLflow run, or goes on with the one that has the run's tag.

        Raises:
            ConfigError: when MLflow is not installed.
        """
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        try:
            import mlflow
        except ImportError as error:
            raise ConfigError(
                f"tracker=mlflow needs the package mlflow, which cannot be imported ({error})\n"
                "  fix: pip install 'beni[mlflow]', or set tracker=jsonl"
            ) from None
        del mlflow
        self._attempt(lambda: self._begin(folder, run, identity, step))

    def log(self, step: int, values: Mapping[str, float]) -> None:
        # A resumed run repeats the steps since its checkpoint, and MLflow keeps every value that it is given.
        new = {key: float(value) for key, value in values.items() if step > self._last.get(key, -1)}
        if self._client is not None and new:
            self._attempt(lambda: self._send(step, new))

    def finish(self, state: str) -> None:
        if self._client is not None:
            self._attempt(lambda: self._client.set_terminated(self._id, status=ENDS[state]))
            self._client = None

    def _attempt(self, action: Callable[[], None]) -> None:
        """``action``, and no MLflow from now on if it fails. Broad, since MLflow raises errors of all kinds."""
        try:
            action()
        except Exception as error:
            self._client = None
            logger.warning(
                "tracker=mlflow stops (%s: %s); the run continues and metrics.jsonl has everything",
                type(error).__name__,
                redacted(str(error)),
            )

    def _begin(self, folder: Path, run: Mapping[str, Any], identity: Mapping[str, Any], step: int) -> None:
        studies = folder.parent.parent.absolute()
        uri = self.uri or os.environ.get("MLFLOW_TRACKING_URI") or f"sqlite:///{studies / 'mlflow.db'}"
        study = run["study"]["name"]
        key = f"{study}/{identity['name']}/{identity['signature']}"
        with FileLock(studies / ".mlflow.lock"):  # arms that start together would each make the tables
            client = _client(uri)
            experiment = _experiment(client, self.experiment or study, studies / "mlartifacts")
            found = client.search_runs([experiment], f"tags.`{ID_TAG}` = '{key}'", max_results=1)
            if found and step == 0:  # the run begins anew, and MLflow could not take its steps back
                client.delete_run(found[0].info.run_id)
                found = []
            if not found:
                tags = {ID_TAG: key, "beni.study": study, "beni.signature": identity["signature"]}
                found = [client.create_run(experiment, run_name=identity["name"], tags=tags)]
        self._id = found[0].info.run_id
        self._last = _last_steps(client, found[0])
        client.update_run(self._id, status="RUNNING")
        if not found[0].data.params:
            _send_parameters(client, self._id, run)
        self._client = client

    def _send(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self._id, metrics=[Metric(key, value, now, step) for key, value in values.items()])


def _client(uri: str) -> Any:
    """A client whose database has its tables."""
    from mlflow import MlflowClient

    # It tells of every table that it makes.
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.WARNING)
    return MlflowClient(uri)


def _experiment(client: Any, name: str, artifacts: Path) -> str:
    """Its id in MLflow; made where there is none."""
    found = client.get_experiment_by_name(name)
    if found is not None:
        return found.experiment_id
    local = client.tracking_uri.startswith("sqlite:")
    return client.create_experiment(name, artifact_location=artifacts.as_uri() if local else None)


def _last_steps(client: Any, run: Any) -> dict[str, int]:
    """The newest step that MLflow has of each metric of a run."""
    histories = {key: client.get_metric_history(run.info.run_id, key) for key in run.data.metrics}
    return {key: max(point.step for point in history) for key, history in histories.items()}


def _send_parameters(client: Any, run_id: str, run: Mapping[str, Any]) -> None:
    """The frozen run as parameters ``group.key``; references to the environment stay references."""
    from mlflow.entities import Param

    params = [Param(key, str(value)[:LONGEST]) for key, value in _flat(settings(run), "")]
    for first in range(0, len(params), AT_ONCE):
        client.log_batch(run_id, params=params[first : first + AT_ONCE])


def _flat(tree: Any, path: str) -> Iterator[tuple[str, Any]]:
    if isinstance(tree, Mapping) and tree:
        for key, value in tree.items():
            yield from _flat(value, f"{path}.{key}" if path else str(key))
    else:
        yield path, tree
