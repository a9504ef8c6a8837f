import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from beni.nn.streams import derive, numpy_stream, torch_stream

parts = st.lists(st.one_of(st.text(st.characters(exclude_characters="\x1f"), max_size=6), st.integers()), max_size=3)


@given(seed=st.integers(0, 2**63), name=parts)
def test_a_stream_depends_on_nothing_but_seed_and_name(seed, name):
    before = derive(seed, *name)
    np.random.default_rng().random()
    assert derive(seed, *name) == before
    assert numpy_stream(seed, *name).random() == numpy_stream(seed, *name).random()


@given(one=parts, two=parts)
def test_different_names_give_different_seeds(one, two):
    assert (derive(0, *one) == derive(0, *two)) == (list(map(str, one)) == list(map(str, two)))


def test_parts_of_a_name_are_kept_apart():
    assert len({derive(0, "a", "bc"), derive(0, "ab", "c"), derive(0, "abc"), derive(0, "a", "b", "c")}) == 4
    assert derive(1, "1") != derive(11)


@given(st.integers(0, 2**31), st.text())
def test_seeds_fit_in_63_bits(seed, name):
    assert 0 <= derive(seed, name) < 2**63


def test_the_derivation_is_the_same_in_every_version_of_beni():
    # changing it would silently change every run: initial weights, order and noise
    assert derive(0, "data.order", 0) == 7419022127586077605
    assert numpy_stream(0, "data.order", 0).permutation(6).tolist() == [2, 1, 4, 3, 0, 5]


def test_seeds_are_spread_evenly():
    draws = np.array([derive(seed, "x") for seed in range(2000)], dtype=np.float64) / 2**63
    assert abs(draws.mean() - 0.5) < 4 * np.sqrt(1 / 12 / len(draws))
    assert abs(np.corrcoef(draws[:-1], draws[1:])[0, 1]) < 4 / np.sqrt(len(draws))


def test_inside_a_torch_stream_draws_repeat_and_outside_they_go_on_as_if_it_had_not_been():
    torch.manual_seed(5)
    expected = [torch.rand(2).tolist() for _ in range(2)]
    torch.manual_seed(5)
    seen = [torch.rand(2).tolist()]
    with torch_stream(0, "a"):
        first = torch.rand(3)
    with torch_stream(0, "a"):
        again = torch.rand(3)
    with torch_stream(0, "b"):
        other = torch.rand(3)
    seen.append(torch.rand(2).tolist())
    assert seen == expected
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_torch_streams_nest():
    with torch_stream(0, "outer"):
        torch.rand(1)
        uninterrupted = torch.rand(1)
    with torch_stream(0, "outer"):
        torch.rand(1)
        with torch_stream(0, "inner"):
            torch.rand(5)
        assert torch.equal(torch.rand(1), uninterrupted)
