"""Keys and rates: who may ask, how often, and how many at once."""

from __future__ import annotations

import pytest

from beni.errors import ConfigError
from beni.serve.access import ASKERS, Keys, Places, Rates
from beni.serve.refused import Refused

KEY = "0123456789abcdef"


def keys(tmp_path, text):
    path = tmp_path / "keys"
    path.write_text(text)
    return Keys.read(path)


def test_a_key_is_known_by_its_name_and_kept_nowhere(tmp_path):
    found = keys(tmp_path, f"# people\n\nann {KEY}1\n{KEY}2\n")
    assert found.owner(f"Bearer {KEY}1", "10.0.0.1") == "ann"
    assert found.owner(f"bearer  {KEY}2 ", "10.0.0.1") == "key 4"
    assert KEY not in repr(vars(found))


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", KEY, f"Basic {KEY}1", f"Bearer {KEY}", f"Bearer {KEY}1 x", "Bearer \udcff"]
)
def test_anything_else_is_refused(tmp_path, header):
    with pytest.raises(Refused) as refused:
        keys(tmp_path, f"ann {KEY}1\n").owner(header, "10.0.0.1")
    assert refused.value.status == 401


def test_without_keys_everybody_is_known_by_address():
    assert Keys({}).owner(None, "10.0.0.1") == "10.0.0.1"


@pytest.mark.parametrize(
    ("text", "says"),
    [("", "holds no key"), ("# none\n", "holds no key"), ("ann short\n", "line 1"), (f"a b {KEY}\n", "line 1")],
)
def test_a_file_that_holds_no_keys_is_refused_without_showing_any(tmp_path, text, says):
    with pytest.raises(ConfigError, match=says) as error:
        keys(tmp_path, text)
    assert KEY not in str(error.value)


def test_a_rate_lets_so_many_through_and_says_when_the_next_one_may_come():
    rates = Rates(6)
    for _ in range(6):
        rates.take("ann", now=0.0)
    with pytest.raises(Refused) as refused:
        rates.take("ann", now=0.0)
    assert refused.value.wait == pytest.approx(10.0)
    rates.take("bob", now=0.0)
    with pytest.raises(Refused):
        rates.take("ann", now=9.0)
    rates.take("ann", now=10.5)
    with pytest.raises(Refused):
        rates.take("ann", now=10.6)


def test_a_rate_of_nothing_is_no_limit_and_strangers_are_forgotten():
    for _ in range(1000):
        Rates(0).take("ann", now=0.0)
    rates = Rates(1)
    for number in range(ASKERS + 10):
        rates.take(str(number), now=0.0)
    assert len(rates._left) == ASKERS


def test_places_are_given_back():
    places = Places(2)
    places.enter()
    places.enter()
    with pytest.raises(Refused):
        places.enter()
    places.leave()
    places.enter()
