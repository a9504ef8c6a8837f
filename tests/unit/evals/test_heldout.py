"""Which held-out samples are evaluated, and which are shown."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from beni.data.fetch.fetcher import Fetcher
from beni.data.images import BadImage, Image, decode
from beni.data.sample import Message, Sample
from beni.evals.heldout import evenly, reachable, spread


class Server:
    """A fetcher that has all but some URLs, and keeps account."""

    def __init__(self, missing=()):
        self.missing, self.wanted, self.got = missing, [], []

    def want(self, urls):
        self.wanted.append(list(urls))

    def get(self, url):
        self.got.append(url)
        if url in self.missing:
            raise BadImage(url, "http 404")
        return b""

    def bind(self, sample):
        return Sample(sample.id, sample.messages, where="bound")


def shown(i, *urls):
    return Sample(f"s{i}", (Message("user", (*map(Image.from_url, urls), "?")), Message("assistant", ("it",))))


def chosen(samples, count, fetcher, ahead=2, between=lambda: None, tell=pytest.fail):
    return reachable(samples, range(min(count, len(samples))), fetcher, ahead, between, tell)


class Lazy(list):
    """Counts what is read."""

    def __init__(self, values):
        super().__init__(values)
        self.read = []

    def __getitem__(self, at):
        self.read.append(at)
        return super().__getitem__(at)


@pytest.mark.parametrize("period", [2, 3, 5, 8, 10])
def test_a_few_samples_of_a_sorted_or_a_periodic_file_are_spread_over_it(period):
    few = np.array(evenly(40, 1000))
    assert len(set(few.tolist())) == 40
    assert np.bincount(few * period // 1000).min() >= 40 // period - 1  # sorted into so many classes
    assert np.bincount(few % period).min() >= 40 // period // 2  # these classes in turn
    assert evenly(1000, 40) == evenly(40, 40) == list(range(40))


@settings(deadline=None)
@given(st.integers(1, 300), st.integers(0, 300), st.integers(0, 300))
def test_fewer_samples_are_among_more_and_the_same_in_every_run(of, some, others):
    fewer, more = sorted((some, others))
    assert set(evenly(fewer, of)) <= set(evenly(more, of))
    assert evenly(more, of) == sorted(evenly(more, of)) == evenly(more, of)
    assert len(evenly(more, of)) == min(more, of)


def test_samples_are_taken_where_they_stand_and_bound_when_they_are_asked_for():
    samples = Lazy(shown(i) for i in range(6))
    made = chosen(samples, 4, Server())
    assert len(made) == 4
    assert len(chosen(samples, 9, Server())) == 6
    samples.read.clear()
    assert (made[3].id, made[3].where) == ("s3", "bound")
    assert samples.read == [3, 3]
    assert [sample.id for sample in made[1:3]] == ["s1", "s2"]
    assert [sample.id for sample in made] == ["s0", "s1", "s2", "s3"]


def test_pictures_are_asked_for_ahead_and_nothing_of_what_is_not_evaluated():
    server, begun = Server(), []
    samples = [shown(i, f"http://x/{i}a", f"http://x/{i}b") for i in range(6)]
    chosen(samples, 5, server, ahead=2, between=lambda: begun.append(len(server.got)))
    assert server.got == [f"http://x/{i}{k}" for i in range(5) for k in "ab"]
    assert [[url[-2:] for url in some] for some in server.wanted] == [
        ["0a", "0b", "1a", "1b", "2a", "2b", "3a", "3b"],
        ["2a", "2b", "3a", "3b", "4a", "4b"],
        ["4a", "4b"],
    ]
    assert begun == [0, 4, 8]


def test_a_sample_whose_picture_cannot_be_fetched_is_left_out_and_told():
    said = []
    samples = [shown(i, f"http://x/{i}") for i in range(4)]
    made = chosen(samples, 4, Server({"http://x/1", "http://x/3"}), tell=said.append)
    assert [sample.id for sample in made] == ["s0", "s2"]
    (line,) = said
    assert line.startswith("2 held-out samples are left out: image http://x/1: http 404")


def test_samples_behind_a_bad_one_keep_their_places():
    samples = [shown(i, f"http://x/{i}") for i in range(6)]
    made = reachable(samples, [1, 3, 5], Server({"http://x/3"}), 2, lambda: None, lambda text: None)
    assert [sample.id for sample in made] == ["s1", "s5"]


def test_a_real_fetcher_is_asked_for_nothing_where_pictures_are_at_hand(fetcher, mixed):
    made = chosen(mixed, 7, fetcher)
    assert [sample.id for sample in made] == [sample.id for sample in mixed]
    assert (fetcher.counts.requests, isinstance(fetcher, Fetcher)) == (0, True)
    assert decode(made[0].images[0]).size == (24, 24)


def test_what_is_shown_is_spread_over_the_kinds_and_has_a_picture(make_sample):
    kinds = ["a", "a", "a", "b", "", "b", "c"]
    samples = [make_sample(i, [] if kind == "c" else [(4, 4)], kind=kind) for i, kind in enumerate(kinds)]
    assert [sample.kind for sample in spread(samples, 5)] == ["a", "b", "", "a", "b"]
    assert [sample.kind for sample in spread(samples, 2)] == ["a", "b"]
    answers = [make_sample(i, [(4, 4)], answer="red" if i < 50 else "blue") for i in range(100)]
    assert 4 <= sum(sample.answer == "red" for sample in spread(answers, 10)) <= 6
    assert len(spread(samples, 50)) == 6
    assert spread(Lazy(samples), 0) == []
