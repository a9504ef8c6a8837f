"""The bank gives back what the encoder made, bit for bit, and says so when it cannot."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import nn

from beni.data.batch.collate import pixel_key
from beni.errors import ResourceError
from beni.types import TokenSpec, VisualTokens
from beni.vision import feature_bank
from beni.vision.base import VisionEncoder
from beni.vision.feature_bank import FeatureBank, describe, fingerprint
from beni.vision.feature_shards import leaves

SIDE = 4


class Encoder(VisionEncoder):
    """A patch is a pixel; counts the views it is given. ``rich`` adds levels and the tokens of two encoders."""

    transform = patches = blocks = serve = dry_run = load_pretrained = resolved = None

    def __init__(self, rich=False, seed=0):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, generator=torch.Generator().manual_seed(seed)))
        self.rich, self.seen = rich, 0

    def spec(self, size=None):
        return TokenSpec(n=SIDE**2, dim=5, grid=(SIDE, SIDE))

    def forward(self, pixels):
        self.seen += len(pixels)
        maps = pixels.permute(0, 2, 3, 1) @ self.weight
        tokens = VisualTokens.dense(maps.flatten(1, 2), (maps.shape[1], maps.shape[2]))
        if not self.rich:
            return tokens
        half = tokens.x.to(torch.bfloat16)
        one, two = replace(tokens, x=half), replace(tokens, x=tokens.x.transpose(0, 1).contiguous().transpose(0, 1))
        return replace(tokens, levels=torch.cat([tokens.x, -tokens.x], -1), sources=(one, two))


def views(count, seed=0, side=SIDE):
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(seed))


def keys(pixels):
    return [pixel_key(view) for view in pixels]


@pytest.fixture
def opened(tmp_path):
    """opened(encoder) -> (a bank of it, as another process would open it; what it said)."""

    banks = []

    def open_bank(encoder, precision="fp32"):
        said = []
        description = describe(encoder, {"rich": encoder.rich}, precision)
        banks.append(FeatureBank(tmp_path, description, said.append))
        return banks[-1], said

    yield open_bank
    for bank in banks:
        bank.close()


def same(ours, theirs):
    a, b = leaves(ours), leaves(theirs)
    return (
        len(a) == len(b)
        and all(x.dtype == y.dtype and x.equal(y) for x, y in zip(a, b, strict=True))
        and (ours.grid, len(ours.sources)) == (theirs.grid, len(theirs.sources))
    )


@pytest.fixture(params=[False, True], ids=["plain", "rich"])
def encoder(request):
    return Encoder(request.param).eval()


@torch.no_grad()
def test_views_come_back_bit_for_bit_without_a_call_of_the_encoder(opened, encoder):
    pixels = views(6)
    expected = encoder(pixels)
    first, _ = opened(encoder)
    assert same(first.encode(encoder, pixels, keys(pixels)), expected)
    encoder.seen = 0
    for bank in (first, opened(encoder)[0]):
        assert same(bank.encode(encoder, pixels, keys(pixels)), expected)
        shuffled = torch.tensor([4, 0, 0, 5])
        again = bank.encode(encoder, pixels[shuffled], keys(pixels[shuffled]))
        assert same(again, expected.select(shuffled))
    assert encoder.seen == 0


@torch.no_grad()
def test_it_counts_what_it_was_asked_for(opened, encoder):
    bank, _ = opened(encoder)
    pixels = views(4)
    bank.encode(encoder, pixels[:3], keys(pixels[:3]))
    bank.encode(encoder, pixels, keys(pixels))
    assert (bank.hits, bank.misses, bank.encoded, len(bank)) == (3, 4, 7, 4)
    assert encoder.seen == 7  # the batch with one new view was encoded whole


@torch.no_grad()
def test_a_view_that_is_known_keeps_its_features_in_a_batch_with_new_ones(opened, encoder):
    bank, _ = opened(encoder)
    pixels = views(3)
    before = bank.encode(encoder, pixels[:2], keys(pixels[:2]))
    with torch.no_grad():
        encoder.weight.mul_(1 + 1e-6)  # as if the larger batch had rounded otherwise
    after = bank.encode(encoder, pixels, keys(pixels))
    assert same(after.select(torch.tensor([0, 1])), before)
    assert after.x[2].equal(encoder(pixels[2:]).x[0])


@torch.no_grad()
def test_views_of_several_sizes_live_in_one_bank(opened, encoder):
    small, large = views(2), views(2, side=6)
    bank, _ = opened(encoder)
    expected = [bank.encode(encoder, pixels, keys(pixels)) for pixels in (small, large)]
    encoder.seen = 0
    for again in (bank, opened(encoder)[0]):
        for pixels, tokens in zip((small, large), expected, strict=True):
            assert same(again.encode(encoder, pixels, keys(pixels)), tokens)
    assert encoder.seen == 0


@torch.no_grad()
def test_processes_that_write_at_once_see_each_others_views(opened, encoder):
    ours, theirs = opened(encoder)[0], opened(encoder)[0]
    a, b = views(2, seed=1), views(2, seed=2)
    ours.encode(encoder, a, keys(a))
    theirs.encode(encoder, b, keys(b))
    encoder.seen = 0
    ours.encode(encoder, b, keys(b))
    theirs.encode(encoder, a, keys(a))
    assert encoder.seen == 0
    assert len(list(ours.path.glob("*.index"))) == 2


def test_another_encoder_weight_precision_or_version_has_a_folder_of_its_own(monkeypatch):
    def name(encoder, precision="fp32"):
        return fingerprint(describe(encoder, {"rich": encoder.rich}, precision))

    base = name(Encoder())
    assert base == name(Encoder())
    moved = Encoder()
    with torch.no_grad():
        moved.weight[0, 0] += 1e-3
    others = [name(Encoder(rich=True)), name(Encoder(seed=1)), name(Encoder(), "bf16"), name(moved)]
    monkeypatch.setattr(feature_bank.importlib.metadata, "version", lambda _: "0.0")
    assert len({base, *others, name(Encoder())}) == 6


@torch.no_grad()
def test_it_stays_out_of_training_and_of_another_precision(opened, encoder):
    bank, _ = opened(encoder)
    pixels = views(2)
    bank.encode(encoder.train(), pixels, keys(pixels))
    with torch.autocast("cpu", torch.bfloat16):
        bank.encode(encoder.eval(), pixels, keys(pixels))
    assert len(bank) == 0
    assert encoder.seen == 4


@pytest.mark.parametrize("damage", ["flipped", "truncated", "gone"])
@torch.no_grad()
def test_a_damaged_row_is_encoded_again_and_reported(opened, encoder, damage):
    pixels = views(3)
    bank, _ = opened(encoder)
    expected = bank.encode(encoder, pixels, keys(pixels))
    (path,) = bank.path.glob("*.data")
    data = bytearray(path.read_bytes())
    row = len(data) // 3
    if damage == "flipped":
        data[row + 1] ^= 1  # in the second view
        path.write_bytes(data)
    elif damage == "truncated":
        path.write_bytes(data[: 2 * row + 5])
    else:
        path.unlink()
    encoder.seen = 0
    again, said = opened(encoder)
    assert same(again.encode(encoder, pixels, keys(pixels)), expected)
    assert encoder.seen == 3
    assert any("damaged row" in text for text in said)
    encoder.seen = 0
    assert same(opened(encoder)[0].encode(encoder, pixels, keys(pixels)), expected)  # it was written anew
    assert encoder.seen == 0


@pytest.mark.parametrize("at", ["a line", "the header"])
@torch.no_grad()
def test_a_damaged_index_is_left_out_and_reported(opened, encoder, at):
    pixels = views(3)
    bank, _ = opened(encoder)
    expected = bank.encode(encoder, pixels, keys(pixels))
    (path,) = bank.path.glob("*.index")
    text = bytearray(path.read_bytes())
    text[-20 if at == "a line" else 20] ^= 1
    path.write_bytes(text)
    again, said = opened(encoder)
    assert len(again) == (2 if at == "a line" else 0)
    assert said
    assert same(again.encode(encoder, pixels, keys(pixels)), expected)


@torch.no_grad()
def test_what_a_killed_process_left_unfinished_is_not_read(opened, encoder):
    pixels = views(3)
    bank, _ = opened(encoder)
    expected = bank.encode(encoder, pixels, keys(pixels))
    (path,) = bank.path.glob("*.index")
    path.write_bytes(path.read_bytes()[:-30])  # within the last line
    again, said = opened(encoder)
    assert (len(again), said) == (2, [])
    assert same(again.encode(encoder, pixels, keys(pixels)), expected)


@torch.no_grad()
def test_a_full_disk_costs_time_and_not_the_run(opened, encoder, monkeypatch):
    bank, said = opened(encoder)
    pixels = views(2)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    for _ in range(2):
        assert same(bank.encode(encoder, pixels, keys(pixels)), encoder(pixels))
    assert len(said) == 1
    assert "No space left" in said[0]
    assert len(bank) == 0


def test_a_folder_that_cannot_be_written_to_is_an_error_that_names_it(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ResourceError, match=r"compute\.feature_bank=.*file cannot be used"):
        FeatureBank(file, describe(Encoder(), {}, "fp32"), print)


def test_as_many_keys_as_views_are_needed(opened, encoder):
    bank, _ = opened(encoder)
    with pytest.raises(ValueError, match="1 pixel keys for 2 views"):
        bank.encode(encoder, views(2), keys(views(1)))


def test_the_folder_says_for_a_person_what_it_holds(opened, encoder):
    bank, _ = opened(encoder)
    told = json.loads((Path(bank.path) / "encoder.json").read_text())
    assert told["encoder"] == {"rich": encoder.rich}
    assert told["versions"]["torch"] == version("torch")


def test_a_pixel_key_depends_on_every_bit_the_dtype_and_the_shape():
    view = torch.zeros(3, 4, 4)
    other = view.clone()
    other[0, 0, 0] = -0.0
    assert pixel_key(view) == pixel_key(view.clone())
    assert len({pixel_key(view), pixel_key(other), pixel_key(view.half()), pixel_key(view.view(3, 2, 8))}) == 4
