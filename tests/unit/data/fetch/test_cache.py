import json
import os
import time

import pytest
from filelock import FileLock

from beni.data.fetch.cache import DAY, HOUR, ImageCache


@pytest.fixture
def cache(tmp_path):
    return lambda cap=10_000: ImageCache(tmp_path, cap)


def test_what_was_put_is_there_for_every_process(cache):
    cache().put("http://a", b"one")
    assert cache().get("http://a") == b"one"
    assert cache().get("http://b") is None
    assert [cache().has(url) for url in ("http://a", "http://b")] == [True, False]


def test_equal_contents_are_kept_once(cache, tmp_path):
    for name in "abc":
        cache().put(f"http://{name}", b"same")
    assert len(list(tmp_path.glob("blobs/*/*"))) == 1
    assert cache().get("http://c") == b"same"


def test_a_damaged_content_is_none_and_can_be_put_again(cache, tmp_path):
    cache().put("http://a", b"one")
    (blob,) = tmp_path.glob("blobs/*/*")
    blob.write_bytes(b"two")
    assert cache().get("http://a") is None
    assert not blob.exists()
    cache().put("http://a", b"one")
    assert cache().get("http://a") == b"one"


def test_a_damaged_entry_is_none(cache, tmp_path):
    cache().put("http://a", b"one")
    (entry,) = tmp_path.glob("urls/*/*")
    for text in ("", "[]", '{"sha256": 3}', '{"sha', "null"):
        entry.write_text(text)
        assert cache().get("http://a") is None
        assert not cache().has("http://a")


def test_an_entry_cannot_lead_out_of_the_cache(cache, tmp_path):
    kept = tmp_path / "kept"
    kept.write_text("mine")
    cache().put("http://a", b"one")
    (entry,) = tmp_path.glob("urls/*/*")
    entry.write_text(json.dumps({"sha256": str(kept)}))
    assert cache().get("http://a") is None
    assert kept.read_text() == "mine"


def test_what_had_to_go_is_no_longer_there_and_can_be_asked_for(cache):
    made = cache(1000)
    made.put("http://a", b"a" * 600)
    made.put("http://b", b"b" * 600)
    assert [made.has(url) for url in ("http://a", "http://b")].count(True) == 1
    assert [made.get(url) is not None for url in ("http://a", "http://b")] == [
        made.has(url) for url in ("http://a", "http://b")
    ]


def test_beyond_the_cap_the_least_recently_used_go(cache, tmp_path):
    made = cache(1000)
    old = time.time() - 5 * HOUR
    for i in range(9):
        made.put(f"http://{i}", bytes([i]) * 100)
    for i, blob in enumerate(sorted(tmp_path.glob("blobs/*/*"), key=lambda path: path.read_bytes()[0])):
        os.utime(blob, (old + i, old + i))
    assert made.get("http://0") is not None  # used again
    for i in range(9, 12):
        made.put(f"http://{i}", bytes([i]) * 100)
    assert made.size() <= 1000
    assert made.get("http://0") is not None
    assert made.get("http://1") is None
    assert made.get("http://11") is not None


def test_nothing_half_written_is_left(cache, tmp_path, monkeypatch):
    made = cache()

    def full(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(OSError, match="No space"):
        made.put("http://a", b"one")
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


def walks(monkeypatch):
    """One item for each time that a folder of contents is walked over."""
    done, walk = [], ImageCache._shrink

    def counted(self):
        done.append(self)
        return walk(self)

    monkeypatch.setattr(ImageCache, "_shrink", counted)
    return done


def test_the_folder_is_walked_over_only_when_it_may_be_full(cache, monkeypatch, tmp_path):
    done = walks(monkeypatch)
    for i in range(50):
        cache(10_000).put(f"http://{i}", bytes([i]) * 100)  # each as if by another process
    assert len(done) == 1  # nobody knew the total at first
    assert json.loads((tmp_path / "total").read_text())["bytes"] == cache().size() == 5000
    for i in range(50, 110):
        cache(10_000).put(f"http://{i}", bytes([i]) * 100)
    assert len(done) == 2
    assert cache().size() <= 10_000


def test_a_total_is_not_believed_for_long_nor_when_it_is_damaged(cache, monkeypatch, tmp_path):
    cache().put("http://a", b"a" * 100)
    done = walks(monkeypatch)
    stale = [json.dumps({"bytes": 7, "walked": time.time() + shift}) for shift in (-2 * DAY, DAY)]
    for i, text in enumerate([*stale, "", "[]", '{"bytes": null}', '{"walked"']):
        (tmp_path / "total").write_text(text)
        cache().put(f"http://{i}", bytes([i]) * 100)
        assert len(done) == i + 1
        assert json.loads((tmp_path / "total").read_text())["bytes"] == cache().size()


def test_what_is_written_while_another_process_adds_up_is_not_forgotten(cache, tmp_path):
    made = cache()
    made.put("http://a", b"a" * 100)
    with FileLock(tmp_path / ".lock"):
        made.put("http://b", b"b" * 100)
    assert json.loads((tmp_path / "total").read_text())["bytes"] == 100
    made.put("http://c", b"c" * 100)
    assert json.loads((tmp_path / "total").read_text())["bytes"] == 300
