import numpy as np
import pytest

from beni.data.batch.preview import histogram, preview, runs
from beni.nn.pixels import ImageTransform


@pytest.fixture
def shown(tiny_run, tiny_model, steps_of):
    model = tiny_model()
    steps = steps_of(tiny_run("schedule=packs", "schedule.tokens=400", "train.batch_size=2"), model)
    return steps, preview(steps, (0, 1), model.viewer.transform.shown, lambda layout: {"vision": 4})


def test_samples_stand_where_the_batch_has_them(shown):
    steps, seen = shown
    for number in (0, 1):
        for part, batch in zip(seen["steps"][number]["parts"], steps[number], strict=True):
            starts = [sample["start"] for sample in part["samples"]]
            assert [*starts, part["positions"]] == batch.cu_seqlens.tolist()
            assert [sample["id"] for sample in part["samples"]] == batch.ids
            assert part["labels"] == batch.num_labels
            assert sum(sample["labels"] for sample in part["samples"]) == batch.num_labels
            assert sum(len(sample["images"]) for sample in part["samples"]) == len(batch.layouts)


def test_runs_cover_every_token_once_and_what_is_supervised_is_what_the_labels_say(shown):
    steps, seen = shown
    for sample in seen["steps"][0]["parts"][0]["samples"]:
        assert sum(run["count"] for run in sample["runs"]) == sample["tokens"]
        assert sum(run["count"] for run in sample["runs"] if run["trained"]) == sample["labels"]
        assert not any(run["trained"] for run in sample["runs"] if run["kind"] == "image")
        answers = [m.content[0] for m in steps.source.train(sample["index"], sample["epoch"]).messages[1::2]]
        said = [run["text"].strip() for run in sample["runs"] if run["trained"] and run["kind"] == "text"]
        assert said == answers
        pictures = sum(run["count"] for run in sample["runs"] if run["kind"] == "image")
        assert pictures == sum(image["markup"][0] for image in sample["images"])


def test_runs_tell_text_special_tokens_and_images_apart(renderer_of, talk):
    renderer = renderer_of("bos", "chatml")
    encoded = renderer.encode(talk("s", "#what?", "that"))
    kinds = [(run["kind"], run["trained"]) for run in runs(encoded.ids, encoded.labels, renderer)]
    assert kinds[0] == ("special", False)
    assert ("image", False) in kinds
    assert kinds[-3:-1] == [("text", True), ("special", True)]


def test_a_shown_view_is_the_picture_that_was_normalised():
    from PIL import Image as PILImage

    noise = PILImage.fromarray(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    transform = ImageTransform(8, (0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    assert np.array_equal(np.asarray(transform.shown(transform(noise))), np.asarray(noise))


@pytest.mark.parametrize("lengths", [[5], [3, 3, 3], list(range(1000)), [1, 10_000]])
def test_every_sample_is_in_one_bar(lengths):
    bars = histogram(lengths)
    assert sum(bar["count"] for bar in bars) == len(lengths)
    for bar in bars:
        assert bar["count"] == sum(bar["from"] <= n < bar["to"] for n in lengths)
    assert histogram([]) == []
