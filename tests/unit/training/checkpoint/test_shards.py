"""Files of any number of ranks hold each tensor once, and any rank reads its part from them."""

from __future__ import annotations

import pytest
import torch
import torch.distributed.checkpoint as dcp

from beni.training.checkpoint.shards import Piece, SavedTensors, own_pieces, staged, write


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {
        "matrix": torch.randn(7, 3, generator=generator),
        "strided": torch.randn(4, 6, generator=generator).t(),
        "half": torch.randn(5, generator=generator).bfloat16(),
        "number": torch.tensor(3.5),
        "count": torch.tensor(12345678901, dtype=torch.int64),
        "flags": torch.tensor([True, False]),
        "bytes": torch.arange(9, dtype=torch.uint8),
        "nothing": torch.zeros(0, 4),
    }


def equal(ours, theirs):
    return ours.dtype == theirs.dtype and ours.shape == theirs.shape and torch.equal(ours, theirs)


@pytest.mark.parametrize("world", [1, 2, 3])
def test_what_all_ranks_hold_alike_is_written_once_and_read_back(tmp_path, world):
    expected = tensors()
    for rank in range(world):
        write(tmp_path / f"{rank}.safetensors", staged(own_pieces(expected, rank, world)))
    each = [set(own_pieces(expected, rank, world)) for rank in range(world)]
    assert sum(map(len, each)) == len(expected) == len(set.union(*each))
    saved = SavedTensors(sorted(tmp_path.iterdir()))
    assert set(saved) == set(expected)
    for name, tensor in expected.items():
        assert equal(saved[name], tensor), name
        assert saved.shape(name) == tuple(tensor.shape)
        assert equal(saved.like(name, torch.empty_like(tensor)), tensor), name


def test_files_become_about_equally_large():
    many = {f"{i}": torch.zeros(100 + i) for i in range(64)}
    sizes = [sum(p.tensor.numel() for p in own_pieces(many, rank, 4).values()) for rank in range(4)]
    assert max(sizes) < 1.1 * min(sizes)


@pytest.fixture
def sharded(tmp_path):
    """(the whole, its rows and its columns in files of three ranks)."""
    whole = torch.arange(35.0).reshape(7, 5)
    for rank, (first, last) in enumerate([(0, 3), (3, 6), (6, 7)]):
        pieces = {"rows": Piece(whole[first:last].clone(), (first, 0))}
        if rank < 2:
            pieces["columns"] = Piece(whole[:, 3 * rank : 3 * rank + 3].contiguous(), (0, 3 * rank))
        write(tmp_path / f"{rank}.safetensors", pieces)
    return whole, SavedTensors(sorted(tmp_path.iterdir()))


@pytest.mark.parametrize("name", ["rows", "columns"])
@pytest.mark.parametrize(
    ("begin", "shape"),
    [((0, 0), (7, 5)), ((2, 0), (3, 5)), ((3, 1), (3, 2)), ((6, 4), (1, 1)), ((1, 2), (5, 2)), ((7, 0), (0, 5))],
)
def test_any_part_is_read_from_the_pieces_that_hold_it(sharded, name, begin, shape):
    whole, saved = sharded
    assert saved.shape(name) == (7, 5)
    expected = whole[begin[0] : begin[0] + shape[0], begin[1] : begin[1] + shape[1]]
    assert equal(saved.part(name, begin, shape), expected)


def test_torchs_distributed_checkpoint_reads_the_files(sharded, tmp_path):
    whole, _ = sharded
    ours = {"rows": torch.zeros(7, 5), "columns": torch.zeros(7, 5)}
    with pytest.warns(UserWarning, match="single process"):
        dcp.load(ours, storage_reader=dcp.HuggingFaceStorageReader(str(tmp_path)), no_dist=True)
    assert torch.equal(ours["rows"], whole)
    assert torch.equal(ours["columns"], whole)


def test_a_name_that_no_file_holds_is_a_key_error(sharded):
    with pytest.raises(KeyError):
        sharded[1]["lines"]
