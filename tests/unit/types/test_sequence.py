"""A sequence is the same in each of its layouts: packed, padded behind, padded in front."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from beni.types import IGNORE, Sequence

LENGTHS = (5, 3, 7)
LAYOUTS = ("packed", "padded", "left")
FIELDS = ("embeds", "position_ids", "images", "labels", "blocks", "log_gate")


def samples():
    """Of each sample its fields, position by position; positions have a gap, as fusion leaves it."""
    made, count = [], 0
    for number, length in enumerate(LENGTHS):
        order = torch.arange(length)
        made.append(
            {
                "embeds": (order + count).float()[:, None].expand(length, 2),
                "position_ids": order + (order > 2) * 4,
                "images": torch.where((order > 0) & (order < 3), number, -1),
                "labels": torch.where(order > 2, order + 10 * number, IGNORE),
                "blocks": torch.where(order < 2, 0, -1),
                "log_gate": -(order + count).float(),
            }
        )
        count += length
    return made


def laid_out(layout, own=None):
    """The samples as one sequence; rubbish stands in the padding."""
    own = samples() if own is None else own
    lengths = [len(sample["images"]) for sample in own]
    if layout == "packed":
        fields = {name: torch.cat([sample[name] for sample in own])[None] for name in FIELDS}
        borders = F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).int()
        return Sequence(**fields, cu_seqlens=borders, longest=max(lengths))
    width = max(lengths) + 1
    fields = {}
    for name in FIELDS:
        like = own[0][name]
        rows = torch.full((len(own), width, *like.shape[1:]), 77, dtype=like.dtype)
        if name in ("images", "labels"):
            rows.fill_(-1 if name == "images" else IGNORE)
        for row, sample, length in zip(rows, own, lengths, strict=True):
            row[slice(width - length, None) if layout == "left" else slice(length)] = sample[name]
        fields[name] = rows
    mask = torch.zeros(len(own), width, dtype=torch.long)
    for row, length in zip(mask, lengths, strict=True):
        row[slice(width - length, None) if layout == "left" else slice(length)] = 1
    return Sequence(**fields, mask=mask, left_padded=layout == "left")


def read(sequence, name):
    """A field, sample by sample."""
    values = getattr(sequence, name)
    if sequence.packed:
        return [piece.tolist() for piece in values[0].split(sequence.cu_seqlens.diff().tolist())]
    return [row[real].tolist() for row, real in zip(values, sequence.real, strict=True)]


def places(sequence, chosen):
    """(b, t) of what is chosen of each sample."""
    kept = torch.zeros_like(sequence.real)
    kept[sequence.real] = torch.cat(chosen)
    return kept


CHOSEN = (
    [torch.tensor([1, 0, 0, 1, 1]), torch.tensor([1, 1, 1]), torch.tensor([1, 0, 1, 1, 0, 1, 1])],
    [torch.tensor([1, 1, 1, 1, 1]), torch.tensor([1, 0, 1]), torch.tensor([0, 0, 0, 0, 0, 0, 1])],
    [torch.ones(length, dtype=torch.long) for length in LENGTHS],
)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("chosen", CHOSEN, ids=["some", "most of one", "all"])
def test_what_is_kept_keeps_all_that_belongs_to_it(layout, chosen):
    sequence = laid_out(layout)
    chosen = [one.bool() for one in chosen]
    kept = sequence.keep(places(sequence, chosen))
    for name in FIELDS:
        expected = [sample[name][one].tolist() for sample, one in zip(samples(), chosen, strict=True)]
        assert read(kept, name) == expected, name
    lengths = [int(one.sum()) for one in chosen]
    assert kept.lengths().tolist() == lengths
    assert (kept.packed, kept.left_padded) == (layout == "packed", layout == "left")
    if not kept.packed:
        assert kept.mask.shape[1] == max(lengths)  # no column that is padding in every row
        assert (kept.images[~kept.real] == -1).all()
        assert (kept.labels[~kept.real] == IGNORE).all()
        order = kept.mask.diff(dim=1)
        assert (order >= 0).all() if layout == "left" else (order <= 0).all()
    else:
        assert kept.cu_seqlens.dtype == torch.int32


@pytest.mark.parametrize("layout", LAYOUTS)
def test_padding_is_never_kept(layout):
    sequence = laid_out(layout)
    everywhere = sequence.keep(torch.ones_like(sequence.real))
    assert everywhere.lengths().tolist() == list(LENGTHS)


def test_fields_that_are_not_there_stay_away():
    sequence = replace(laid_out("padded"), labels=None, blocks=None, log_gate=None)
    kept = sequence.keep(sequence.position_ids != 1)
    assert (kept.labels, kept.blocks, kept.log_gate) == (None, None, None)


@pytest.mark.parametrize("layout", ["padded", "left"])
def test_padded_rows_end_to_end_are_the_packed_row(layout):
    sequence = laid_out(layout)
    packed, where = sequence.end_to_end()
    for name in FIELDS:
        assert read(packed, name) == read(laid_out("packed"), name)
    assert packed.cu_seqlens.tolist() == [0, 5, 8, 15]
    assert (packed.mask, packed.left_padded) == (None, False)
    assert packed.embeds[0, where[sequence.real]].equal(sequence.embeds[sequence.real])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_asked_is_what_stands_before_the_first_supervised_position_of_each_sample(layout):
    own = samples()
    own[1]["labels"] = torch.full((3,), IGNORE)  # nothing supervised: all of it
    sequence = laid_out(layout, own)
    asked = sequence.asked
    assert [row.sum() for row in asked[sequence.real].split(LENGTHS)] == [3, 3, 3]
    assert not asked[~sequence.real].any()
    assert replace(sequence, labels=None).asked.equal(sequence.real)


def test_asked_begins_anew_at_every_border():
    labels = torch.tensor([[IGNORE, 1, IGNORE, IGNORE, 2, IGNORE]])
    sequence = Sequence(torch.zeros(1, 6, 1), labels * 0, labels * 0 - 1, labels, cu_seqlens=torch.tensor([0, 3, 6]))
    assert sequence.asked.tolist() == [[True, False, False, True, False, False]]
    assert sequence.begins.tolist() == [[True, False, False, True, False, False]]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_label_is_predicted_from_the_position_before_it_and_belongs_to_its_sample(layout):
    own = samples()
    sequence = laid_out(layout, own)
    (rows, columns), labels = sequence.predicted()
    expected = [(label, number) for number, sample in enumerate(own) for label in sample["labels"] if label != IGNORE]
    found = zip(labels, sequence.samples((rows, columns)), strict=True)
    assert [(int(a), int(b)) for a, b in found] == [(int(a), b) for a, b in expected]
    before = [float(sample["embeds"][i - 1, 0]) for sample in own for i in range(3, len(sample["images"]))]
    assert sequence.embeds[rows, columns, 0].tolist() == before


def test_nothing_is_predicted_without_labels():
    with pytest.raises(ValueError, match="without any"):
        Sequence.plain(torch.zeros(2, 3, 1)).predicted()


def test_plain_rows_are_text_without_padding():
    plain = Sequence.plain(torch.zeros(2, 3, 1))
    assert plain.lengths().tolist() == [3, 3]
    assert plain.position_ids.tolist() == [[0, 1, 2]] * 2
    assert not plain.is_image.any()
