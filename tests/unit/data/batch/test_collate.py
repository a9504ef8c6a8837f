from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data._utils.pin_memory import pin_memory

from beni.data.batch.collate import Item, collate
from beni.data.render.template import Encoded
from beni.llm.segment_attention import SegmentPlan
from beni.types import IGNORE, ImageLayout, ViewedImage

PAD = 0


def make(rows, views=0):
    """Rows of (id, supervised) to items."""
    items = []
    for i, row in enumerate(rows):
        ids = np.array([token for token, _ in row], dtype=np.int64)
        labels = np.array([token if supervised else IGNORE for token, supervised in row], dtype=np.int64)
        view = torch.full((3, 2, 2), float(i))
        seen = [ViewedImage([view] * views, ImageLayout((2, 2), ((2, 2),) * views), (1,))] if views else []
        items.append(Item(f"s{i}", Encoded(ids, labels), seen))
    return items


rows = st.lists(st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=12), min_size=1, max_size=6)


def segments(batch):
    """Both layouts as a list of (ids, labels, positions) per sample."""
    if batch.cu_seqlens is not None:
        borders = batch.cu_seqlens.tolist()
        cuts = [(0, slice(a, b)) for a, b in pairwise(borders)]
    else:
        cuts = [(i, slice(0, int(n))) for i, n in enumerate(batch.attention_mask.sum(1))]
    return [
        tuple(values[row, cut].tolist() for values in (batch.input_ids, batch.labels, batch.position_ids))
        for row, cut in cuts
    ]


@given(rows)
def test_packed_and_padded_carry_the_same_tokens_labels_and_positions(rows):
    packed, padded = (collate(make(rows), layout, PAD) for layout in ("packed", "padded"))
    assert segments(packed) == segments(padded)
    assert packed.num_tokens == padded.num_tokens == sum(map(len, rows))
    assert packed.num_labels == padded.num_labels
    assert packed.ids == padded.ids == [f"s{i}" for i in range(len(rows))]


@given(rows)
def test_all_ids_and_all_labels_but_each_samples_first_arrive(rows):
    for (ids, labels, _), row in zip(segments(collate(make(rows), "packed", PAD)), rows, strict=True):
        assert ids == [token for token, _ in row]
        assert labels == [IGNORE] + [token if supervised else IGNORE for token, supervised in row[1:]]


@given(rows)
def test_positions_restart_with_every_sample(rows):
    for layout in ("packed", "padded"):
        for _, _, positions in segments(collate(make(rows), layout, PAD)):
            assert positions == list(range(len(positions)))


@given(rows)
def test_counts_of_tokens_and_labels_leave_padding_and_first_labels_out(rows):
    for layout in ("packed", "padded"):
        batch = collate(make(rows), layout, PAD)
        assert batch.num_tokens == sum(map(len, rows))
        assert batch.num_labels == sum(supervised for row in rows for _, supervised in row[1:])


def test_padding_is_masked_filled_and_never_supervised():
    batch = collate(make([[(5, True)] * 2, [(6, True)] * 4]), "padded", 9)
    assert batch.attention_mask.tolist() == [[1, 1, 0, 0], [1, 1, 1, 1]]
    assert batch.input_ids[0].tolist() == [5, 5, 9, 9]
    assert batch.labels[0].tolist() == [IGNORE, 5, IGNORE, IGNORE]
    assert batch.cu_seqlens is None


def test_a_real_token_that_equals_pad_is_not_masked():
    batch = collate(make([[(9, True), (9, True)], [(9, True)] * 3]), "padded", 9)
    assert batch.attention_mask.sum(1).tolist() == [2, 3]
    assert batch.num_labels == 3


def test_a_pack_is_one_row_without_padding_whose_borders_are_int32():
    batch = collate(make([[(5, True)] * 2, [(6, True)] * 4]), "packed", 9)
    assert batch.input_ids.tolist() == [[5, 5, 6, 6, 6, 6]]
    assert batch.cu_seqlens.tolist() == [0, 2, 6]
    assert batch.cu_seqlens.dtype == torch.int32
    assert batch.attention_mask is None


def test_collating_leaves_the_samples_labels_as_they_were():
    items = make([[(5, True)] * 3])
    collate(items, "packed", PAD)
    assert items[0].encoded.labels.tolist() == [5, 5, 5]


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_pixels_stand_in_reading_order_and_are_absent_without_images(layout):
    some = [make([[(1, True)]] * 3, views=2)[i] for i in range(3)]
    mixed = [some[0], make([[(1, True)]])[0], some[2]]
    assert collate(mixed, layout, PAD).pixels[:, 0, 0, 0].tolist() == [0, 0, 2, 2]
    assert collate(make([[(1, True)]]), layout, PAD).pixels is None


@given(rows)
def test_no_segment_is_longer_than_the_longest(some):
    batch = collate(make(some), "packed", PAD)
    assert batch.longest == max(batch.lengths)
    plan = SegmentPlan.build(batch.cu_seqlens, batch.num_tokens, longest=batch.longest)
    assert batch.longest <= plan.longest < 2 * batch.longest
    assert plan.longest & (plan.longest - 1) == 0
    assert SegmentPlan.build(batch.cu_seqlens, batch.num_tokens).longest >= batch.num_tokens


def test_a_loader_that_pins_pins_every_tensor(monkeypatch):
    """``DataLoader`` asks what it does not know for ``pin_memory``; without it a batch stays as it is."""
    met = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: met.append(tensor) or tensor.clone())
    batch = collate(make([[(5, True), (6, True)], [(7, True)]], views=1), "packed", PAD)
    kept = pin_memory([batch])[0]
    tensors = [value for value in vars(batch).values() if isinstance(value, torch.Tensor)]
    assert {id(tensor) for tensor in met} == {id(tensor) for tensor in tensors}
    assert kept.ids == batch.ids
    assert kept.pixels is not batch.pixels
