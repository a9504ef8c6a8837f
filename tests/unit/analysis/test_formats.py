import pytest

from beni.analysis import formats


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (0, "0"),
        (9_999, "9,999"),
        (19_763_712, "19.8M"),
        (999_990, "1.0M"),
        (123_456_789, "123M"),
        (2.5, "2.5"),
    ],
)
def test_counts_are_short(value, text):
    assert formats.count(value) == text


@pytest.mark.parametrize(("value", "text"), [(4.25, "4.2 s"), (272.4, "4 min 32 s"), (3599.7, "1 h 00 min")])
def test_durations_carry_over(value, text):
    assert formats.duration(value) == text


def test_a_difference_carries_its_sign_and_error():
    assert formats.signed(0.0312, 0.008) == "+0.031 ± 0.008"
    assert formats.signed(-0.2) == "-0.200"
