import logging
import sys

import pytest

from beni.errors import ConfigError
from beni.tracker.tensorboard import TensorboardTracker

# tensorboard and the protobuf it is built on warn when they are imported
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning:tensorboard")


def scalars(folder, tag):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(tag)]


def test_the_event_file_has_the_scalars(tmp_path):
    tracker = TensorboardTracker()
    tracker.start(tmp_path, {}, {}, 0)
    tracker.log(1, {"loss": 2.0, "lr": 0.5})
    tracker.log(10, {"loss": 1.0})
    tracker.log(10, {"eval/accuracy": 0.25})
    tracker.finish("finished")
    assert scalars(tmp_path, "loss") == [(1, 2.0), (10, 1.0)]
    assert scalars(tmp_path, "lr") == [(1, 0.5)]
    assert scalars(tmp_path, "eval/accuracy") == [(10, 0.25)]


def test_a_resumed_run_replaces_the_steps_it_repeats(tmp_path):
    first, second = TensorboardTracker(), TensorboardTracker()
    first.start(tmp_path, {}, {}, 0)
    for step in (1, 10, 20, 30):
        first.log(step, {"loss": float(step)})
    first.finish("preempted")
    second.start(tmp_path, {}, {}, 10)
    second.log(20, {"loss": 0.5})
    second.finish("finished")
    assert scalars(tmp_path, "loss") == [(1, 1.0), (10, 10.0), (20, 0.5)]


def test_without_the_package_the_error_names_the_fix(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ConfigError, match=r"pip install 'beni\[tensorboard\]'"):
        TensorboardTracker().start(tmp_path, {}, {}, 0)


def test_a_full_disk_stops_the_tracker_and_not_the_run(tmp_path, monkeypatch, caplog):
    tracker = TensorboardTracker()
    tracker.start(tmp_path, {}, {}, 0)
    writer = tracker._writer

    def full(*_):
        raise OSError("No space left on device")

    monkeypatch.setattr(writer, "add_scalar", full)
    with caplog.at_level(logging.WARNING):
        tracker.log(1, {"loss": 1.0})
        tracker.log(2, {"loss": 1.0})
    tracker.finish("finished")
    writer.close()
    assert len(caplog.records) == 1
    assert "No space left on device" in caplog.text
