from beni.tracker.jsonl import JsonlTracker


def test_the_jsonl_tracker_writes_nothing_of_its_own(tmp_path):
    tracker = JsonlTracker()
    tracker.start(tmp_path, {}, {}, 0)
    tracker.log(1, {"loss": 1.0})
    tracker.finish("finished")
    assert list(tmp_path.iterdir()) == []
