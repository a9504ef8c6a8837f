"""The index and the lengths made of it, held against what the loader really makes of the samples."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image as PILImage

import beni.data.images as images_module
import beni.data.order.index as index_module
from beni.data.images import BadImage, Image
from beni.data.metric import LossOnly
from beni.data.order.index import Columns, Index
from beni.data.order.lengths import RunLengths
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import ConfigError, DataError
from beni.types import ImageLayout


class Words(SingleSource):
    """Sample i has i words in its answer and i mod 3 pictures; some are faulty when wished."""

    metric = LossOnly()

    def __init__(self, size=30, faulty=(), content=0, varies=False):
        self.size, self.faulty, self.content, self.varies = size, faulty, content, varies
        self.read = []

    def __len__(self):
        return self.size

    def train(self, index, epoch):
        self.read.append((index, epoch))
        images = tuple(Image(lambda: pytest.fail("no pixel is needed"), f"p{index}.{k}") for k in range(index % 3))
        answer = "\ufdd0" if index in self.faulty else "word " * (1 + index + 7 * epoch * self.varies)
        messages = (Message("user", (*images, "how many?")), Message("assistant", (answer,)))
        return Sample(str(index), messages, where=f"words.json, record {index}")

    def heldout(self):
        return []

    def fingerprint(self):
        return f"words {self.size} {self.content} {self.varies}"


class Tall:
    """An image takes as many tokens as it is high, and a text of its own."""

    def seen(self, size):
        return [ImageLayout(size, (size,))]

    def markup(self, layout):
        return (layout.size[0], "a text", 2)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("BENI_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index_module, "SHARD", 8)
    return tmp_path / "cache"


@pytest.fixture
def index(renderer_of):
    renderer = renderer_of("bos", "chatml")
    return lambda source, **fields: Index(source, renderer, **{"sized": False} | fields)


def test_columns_are_those_of_the_encoded_samples(index):
    made = index(Words())
    columns = made.columns(0)
    for i in range(30):
        encoded = made.renderer.encode(Words().train(i, 0), [()] * (i % 3))
        assert (columns.text[i], columns.labels[i], columns.images[i]) == (
            len(encoded.ids),
            (encoded.labels[1:] != -100).sum(),
            i % 3,
        )
    assert len(set(columns.digest.tolist())) == 30


def test_a_second_look_reads_no_sample(index):
    index(Words()).columns(0)
    again = Words()
    index(again).columns(5)
    assert again.read == []


def test_another_content_template_or_size_is_another_index(index, renderer_of):
    index(Words()).columns(0)
    other = Words(content=1)
    index(other).columns(0)
    assert len(other.read) == 30
    source = Words()
    Index(source, renderer_of("bos", "llava_v1"), False).columns(0)
    assert len(source.read) == 30


def test_a_source_that_varies_has_an_index_for_each_epoch(index):
    made = index(Words(varies=True))
    assert (made.columns(1).text > made.columns(0).text).all()


def test_a_build_that_was_killed_goes_on_with_what_is_missing(index, cache):
    index(Words()).columns(0)
    shards = sorted(cache.rglob("*.arrow"))
    assert len(shards) == 4
    shards[1].unlink()
    again = Words()
    columns = index(again).columns(0)
    assert sorted(i for i, _ in again.read) == list(range(8, 16))
    assert columns.images.tolist() == [i % 3 for i in range(30)]


@pytest.mark.parametrize("workers", [0, 2])
def test_columns_and_progress_are_the_same_for_any_number_of_workers(index, workers, cache):
    told = []
    columns = index(Words(), workers=workers, progress=lambda done, whole: told.append((done, whole))).columns(0)
    assert columns.images.tolist() == [i % 3 for i in range(30)]
    assert told == [(8, 30), (16, 30), (24, 30), (30, 30)]


def test_faulty_samples_are_all_counted_and_the_first_named_with_their_place(index, cache):
    with pytest.raises(DataError) as raised:
        index(Words(faulty=(3, 9, 10, 11, 12, 13, 20))).columns(0)
    text = str(raised.value)
    assert text.startswith("7 of the first 30 samples cannot be used")
    assert text.count("words.json, record") == 5
    assert "words.json, record 3" in text
    assert "... and 2 more" in text
    assert "set records.on_bad=skip" in text


def test_bad_samples_that_are_put_up_with_cost_what_a_good_one_does(index):
    made = index(Words(faulty=(3, 9)), max_bad=0.1)
    assert np.flatnonzero(made.columns(0).bad).tolist() == [3, 9]
    loads = RunLengths(made, Tall(), {"max_length": 1000, "overlong": "error"}, max_bad=0.1).loads(0)
    good = set(np.delete(loads.tokens, [3, 9]).tolist())
    assert {int(loads.tokens[3]), int(loads.tokens[9])} <= good
    with pytest.raises(DataError, match="2 of the first 30 samples cannot be used"):
        index(Words(faulty=(3, 9))).columns(0)  # what is kept in the cache hides nothing


def test_sizes_follow_the_files_that_were_measured(index, tmp_path, cache):
    class Album(Words):
        root = tmp_path

        def train(self, index, epoch):
            messages = (Message("user", (Image.from_path(self.root / "a.png"), "?")), Message("assistant", ("it",)))
            return Sample(str(index), messages)

        def located(self):
            return str(self.root)

    def sizes():
        return index(Album(3), sized=True).columns(0).sizes.tolist()

    assert sizes() == [[0, 0]] * 3  # not there yet
    PILImage.new("RGB", (4, 5)).save(tmp_path / "a.png")
    assert sizes() == [[5, 4]] * 3
    before = (tmp_path / "a.png").stat()
    PILImage.new("RGB", (5, 4)).save(tmp_path / "b.png")
    assert (tmp_path / "b.png").stat().st_size == before.st_size
    os.utime(tmp_path / "b.png", ns=(before.st_atime_ns, before.st_mtime_ns))
    os.replace(tmp_path / "b.png", tmp_path / "a.png")  # of equal size and time
    assert sizes() == [[4, 5]] * 3
    Album.root = tmp_path / "other"
    Album.root.mkdir()
    PILImage.new("RGB", (40, 50)).save(Album.root / "a.png")
    assert sizes() == [[50, 40]] * 3


def test_a_run_holds_its_index_against_the_files_once(index, tmp_path, monkeypatch):
    made = index(Words(4), sized=True)
    monkeypatch.setattr(index_module, "size_if_any", lambda image: (1, 1))
    made.columns(0)
    monkeypatch.setattr(index_module, "_unchanged", lambda seen: pytest.fail("looked at again"))
    made.columns(0)
    pickle.loads(pickle.dumps(made.trusted))


def test_sizes_stand_with_their_sample(index, monkeypatch):
    monkeypatch.setattr(index_module, "size_if_any", lambda image: (len(image.key), int(image.key[1:].split(".")[0])))
    columns = index(Words(), sized=True).columns(0)
    for i in (0, 1, 2, 29):
        rows = columns.sizes[columns.starts[i] : columns.starts[i + 1]]
        assert rows[:, 1].tolist() == [i] * (i % 3)
    chosen = columns.take(np.array([29, 0, 2]))
    assert chosen.sizes[:, 1].tolist() == [29, 29, 2, 2]
    joined = Columns.join([chosen, columns])
    assert joined.sizes[joined.starts[5] : joined.starts[6], 1].tolist() == [2, 2]


def test_a_picture_that_cannot_be_opened_has_no_size(index, monkeypatch):
    def broken(image):
        raise BadImage(image.key, "broken")

    monkeypatch.setattr(images_module, "size_of", broken)
    assert index(Words(4), sized=True).columns(0).sizes.tolist() == [[0, 0]] * 3


def test_loads_count_text_placeholders_and_the_texts_between(index, monkeypatch):
    monkeypatch.setattr(index_module, "size_if_any", lambda image: (10, 4))
    made = index(Words(), sized=True)
    template = {"max_length": 1000, "overlong": "error"}
    loads = RunLengths(made, Tall(), template).loads(0)
    columns, extra = made.columns(0), made.renderer.text_length("a text")
    assert loads.tokens.tolist() == (columns.text + columns.images * (10 + extra + 2)).tolist()
    assert loads.pixels.tolist() == (columns.images * 40).tolist()


def test_a_sample_that_is_too_long_is_an_error_or_is_cut(index):
    made = index(Words())
    with pytest.raises(DataError, match=r"template.max_length is 40, and \d+ of 30 are longer\n.*max_length=\d+"):
        RunLengths(made, Tall(), {"max_length": 40, "overlong": "error"}).loads(0)
    loads = RunLengths(made, Tall(), {"max_length": 40, "overlong": "truncate"}).loads(0)
    assert loads.tokens.max() == 40


def test_a_given_number_of_tokens_an_image_makes_lengths_independent_of_the_visual_path(index):
    made = index(Words())
    template = {"max_length": 1000, "overlong": "error"}
    loads = RunLengths(made, Tall(), template, tokens_per_image=50).loads(0)
    assert loads.tokens.tolist() == (made.columns(0).text + 50 * made.columns(0).images).tolist()
    with pytest.raises(ConfigError, match=r"(?s)tokens_per_image=1, but .* the same in all arms"):
        RunLengths(made, Tall(), template, tokens_per_image=1).loads(0)


@pytest.mark.parametrize(
    "overrides",
    [
        (),
        ("views=anyres", "views.canvases=[[1,2],[2,1]]"),
        ("resampler=m3", "vision.architecture.patch_size=6"),
        ("resampler=mqt", "resampler.max_queries=4", "resampler.num_queries=4", "resampler.num_heads=2"),
        ("data=mixture", "data.sources.shapes.image_size=24", "data.sources.texts.image_size=24"),
    ],
    ids=["single", "anyres", "m3", "mqt", "mixture"],
)
def test_a_pack_is_as_long_as_the_loader_makes_it(tiny_values, tiny_model, steps_of, overrides):
    from beni.config.compose import compose

    kept = [v for v in tiny_values if not (overrides and overrides[0] == "data=mixture" and v.startswith("data."))]
    run = compose([*kept, *overrides, "schedule=packs", "schedule.tokens=700", "train.batch_size=3"])
    from beni.model.build import build as build_model

    model = build_model(run)
    steps = steps_of(run, model)
    for step in range(3):
        units = steps.schedule.step(step)
        for epoch, unit in units:
            loads, batch = steps.schedule.loads(epoch), steps.batch([(epoch, int(i)) for i in unit])
            assert batch.input_ids.shape[1] <= 700
            if model.nested is None or model.nested.every:
                assert batch.input_ids.shape[1] == loads.tokens[unit].sum()
                assert batch.num_labels == loads.labels[unit].sum()
            else:
                assert batch.input_ids.shape[1] <= loads.tokens[unit].sum()
            assert len(batch.layouts) == loads.images[unit].sum() * (
                model.nested.drawn if model.nested and model.nested.every else 1
            )
    assert pickle.loads(pickle.dumps(steps))[1][0].ids == steps[1][0].ids
