import os
import time

import pytest

from beni.data.image_cache import HOUR, ImageCache


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
