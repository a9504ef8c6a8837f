import pickle

import numpy as np
import pytest
import torch
from PIL import Image as PILImage

from beni.data.batch.loader import Steps, load
from beni.data.images import Augment, Image
from beni.data.metric import LossOnly
from beni.data.sample import Message, Sample
from beni.data.source import SingleSource
from beni.errors import ConfigError
from beni.nn.pixels import ImageTransform
from beni.types import ImageLayout, ViewedImage

TRANSFORM = ImageTransform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


AUGMENT = Augment(flip=0.5, crop=0.3, colour=0.5, rotate=20)


class Noise(SingleSource):
    """Twenty pictures of noise, one or two a sample, heavily augmented."""

    metric = LossOnly()
    varies = False

    def __init__(self, content: int = 0) -> None:
        self.content = content

    def __len__(self) -> int:
        return 20

    def train(self, index: int, epoch: int) -> Sample:
        images = tuple(Image(lambda i=i: noise(index, i), f"{index}.{i}") for i in range(1 + index % 2))
        messages = (Message("user", (*images, f"number {index}?")), Message("assistant", ("word " * (1 + index % 5),)))
        return Sample(f"{epoch}-{index}", messages, augment=AUGMENT)

    def heldout(self) -> list[Sample]:
        return [self.train(index, 0) for index in range(3)]

    def fingerprint(self) -> str:
        return str(self.content)


def noise(*name):
    return PILImage.fromarray(np.random.default_rng(name).integers(0, 255, (16, 16, 3), dtype=np.uint8))


class OneView:
    """A picture is one view; three visual tokens stand for it, or fewer at the scales that training draws."""

    def __init__(self, drawn=(0,), every=False):
        self.drawn, self.every = drawn, every

    def __call__(self, picture, scale=0):
        layout = ImageLayout(picture.size[::-1], (TRANSFORM.shape,), scale=scale)
        return ViewedImage([TRANSFORM(picture)], layout, (3 - scale,))

    def scales(self, rng):
        return self.drawn if self.every else (int(rng.choice(self.drawn)),)


@pytest.fixture
def steps(renderer_of, schedule_of):
    """steps(**fields) -> Steps over ``Noise``."""
    renderer = renderer_of("bos", "chatml")

    def make(**changes):
        values = {"viewer": OneView(), "accumulation": 2, "layout": "packed"}
        schedule = schedule_of(changes.pop("seed", 0), 20, changes.pop("batch_size", 6))
        return Steps(Noise(), renderer, schedule=schedule, **values | changes)

    return make


def tensors(batch):
    return {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}


def identical(one, two):
    """Bit-identical micro-batches of several steps."""
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert [batch.ids for batch in first] == [batch.ids for batch in second]
        for a, b in zip(first, second, strict=True):
            assert tensors(a).keys() == tensors(b).keys()
            assert all(torch.equal(value, tensors(b)[name]) for name, value in tensors(a).items())
    return True


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_batches_are_bit_identical_for_no_and_for_two_workers(layout, steps):
    made = steps(layout=layout)
    assert identical(list(load(made, 0, 5, 0, False)), list(load(made, 0, 5, 2, False)))


def test_starting_in_the_middle_gives_the_tail_of_the_whole(steps):
    whole = list(load(steps(), 0, 6, 0, False))
    assert identical(list(load(steps(), 4, 6, 2, False)), whole[4:])
    assert identical([steps()[5]], whole[5:])


def test_loading_leaves_torchs_global_generator_alone(steps):
    torch.manual_seed(3)
    expected = torch.rand(4)
    for workers in (0, 1):
        torch.manual_seed(3)
        list(load(steps(), 0, 1, workers, False))
        assert torch.equal(torch.rand(4), expected)


def pixels_by_sample(made, count):
    """Sample id -> the pixels of its pictures, over ``count`` steps."""
    seen = {}
    for step in range(count):
        for batch in made[step]:
            pixels = iter(batch.pixels)
            for name in batch.ids:
                images = 1 + int(name.split("-")[1]) % 2
                seen[name] = torch.stack([next(pixels) for _ in range(images)])
    return seen


def test_a_picture_is_augmented_alike_wherever_its_sample_stands(steps):
    together = pixels_by_sample(steps(batch_size=20, accumulation=1), 2)
    alone = pixels_by_sample(steps(batch_size=1, accumulation=1, layout="padded"), 40)
    assert together.keys() == alone.keys() == {f"{epoch}-{index}" for epoch in range(2) for index in range(20)}
    assert all(torch.equal(pixels, alone[name]) for name, pixels in together.items())


def test_augmentation_differs_between_epochs_seeds_and_the_pictures_of_a_sample(steps):
    zero, one = (pixels_by_sample(steps(seed=seed, batch_size=20, accumulation=1), 2) for seed in (0, 1))
    for index in range(20):
        assert not torch.equal(zero[f"0-{index}"], zero[f"1-{index}"])
        assert not torch.equal(zero[f"0-{index}"], one[f"0-{index}"])


@pytest.mark.parametrize(("world", "accumulation"), [(1, 1), (1, 3), (2, 1), (3, 2)])
def test_all_ranks_together_see_the_same_samples_with_the_same_pixels(world, accumulation, steps):
    alone = pixels_by_sample(steps(accumulation=1), 3)
    shared = {}
    for rank in range(world):
        mine = pixels_by_sample(steps(world=world, rank=rank, accumulation=accumulation), 3)
        assert not mine.keys() & shared.keys()
        shared |= mine
    assert shared.keys() == alone.keys()
    assert all(torch.equal(pixels, alone[name]) for name, pixels in shared.items())


def test_a_batch_too_small_for_its_parts_is_found_before_anything_is_loaded(steps):
    with pytest.raises(ConfigError, match=r"set train\.batch_size to at least 8"):
        steps(world=4, accumulation=2)


def test_steps_can_be_handed_to_spawned_processes(steps):
    made = steps()
    assert identical([pickle.loads(pickle.dumps(made))[1]], [made[1]])


def scales_of(batches):
    return [layout.scale for batch in batches for layout in batch.layouts]


def test_a_sample_is_seen_at_the_scale_that_its_own_stream_draws(steps):
    made = steps(viewer=OneView((0, 1, 2)))
    drawn = [scales_of(made[step]) for step in range(6)]
    assert {scale for step in drawn for scale in step} == {0, 1, 2}
    assert drawn == [scales_of(steps(viewer=OneView((0, 1, 2)))[step]) for step in range(6)]
    other = steps(viewer=OneView((0, 1, 2)), accumulation=1)
    for step in range(6):  # by sample, however they are laid out
        pairs = [dict(zip(b.ids, _first_scales(b), strict=True)) for b in made[step]]
        (together,) = [dict(zip(b.ids, _first_scales(b), strict=True)) for b in other[step]]
        assert {k: v for part in pairs for k, v in part.items()} == together


def _first_scales(batch):
    owners = batch.owners.tolist()
    return [batch.layouts[owners.index(sample)].scale for sample in range(len(batch.ids))]


def test_a_sample_is_seen_once_at_every_scale_where_all_are_trained(steps):
    once, each = steps(), steps(viewer=OneView((1, 2), every=True))
    for plain, nested in zip(once[0], each[0], strict=True):
        assert nested.ids == [name for name in plain.ids for _ in range(2)]
        assert len(nested.pixels) == 2 * len(plain.pixels)
        assert set(scales_of([nested])) == {1, 2}
        assert nested.num_labels == 2 * plain.num_labels
