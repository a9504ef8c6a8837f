"""Whether a value fits its annotation, and how that is said."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from beni.config.types import example, expectation, fits

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5)
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


@given(VALUES)
def test_exactly_the_integers_fit_int(value: Any) -> None:
    assert fits(value, "int") == (type(value) is int)


@given(VALUES)
def test_integers_and_floats_fit_float_and_booleans_do_not(value: Any) -> None:
    assert fits(value, "float") == (type(value) in (int, float))


@given(VALUES)
def test_exactly_the_booleans_fit_bool(value: Any) -> None:
    assert fits(value, "bool") == (type(value) is bool)


@given(VALUES)
def test_exactly_the_texts_fit_str(value: Any) -> None:
    assert fits(value, "str") == isinstance(value, str)


@given(VALUES)
def test_everything_fits_any_and_types_that_are_the_parts_own_business(value: Any) -> None:
    assert fits(value, "Any")
    assert fits(value, "torch.dtype")
    assert fits(value, "Callable[[int], int]")


@given(VALUES, st.sampled_from(["int", "float", "bool", "str", "None"]), st.sampled_from(["int", "str", "list[int]"]))
def test_a_union_takes_what_either_side_takes(value: Any, left: str, right: str) -> None:
    assert fits(value, f"{left} | {right}") == (fits(value, left) or fits(value, right))


@given(VALUES)
def test_none_fits_only_where_it_is_named(value: Any) -> None:
    assert fits(value, "None") == (value is None)
    assert fits(None, "int | None")
    assert not fits(None, "int")


@given(st.lists(SCALARS))
def test_a_list_fits_when_all_its_items_do(value: list[Any]) -> None:
    assert fits(value, "list[int]") == all(type(item) is int for item in value)
    assert not fits(tuple(value), "list[int]")


@given(st.lists(st.integers(), max_size=5))
def test_a_tuple_of_fixed_length_has_that_length(value: list[int]) -> None:
    assert fits(value, "tuple[int, int, int]") == (len(value) == 3)
    assert fits(value, "tuple[int, ...]")


@given(st.dictionaries(st.text(max_size=3), SCALARS))
def test_a_mapping_fits_when_all_its_values_do(value: dict[str, Any]) -> None:
    assert fits(value, "dict[str, int]") == all(type(item) is int for item in value.values())
    assert fits(value, "dict")
    assert not fits(value, "list")


@pytest.mark.parametrize(
    ("value", "annotation", "answer"),
    [
        ("fp32", "Literal['fp32', 'bf16']", True),
        ("fp16", "Literal['fp32', 'bf16']", False),
        (True, "Literal[1, 2]", False),
        (1, "Literal[1]", True),
        (1.0, "Literal[1]", False),
        ("auto", "int | Literal['auto']", True),
        ("car", "int | Literal['auto']", False),
        ([[1], [2]], "list[list[int]]", True),
        ([[1], ["2"]], "list[list[int]]", False),
        ({"a": [1]}, "dict[str, list[int]]", True),
        ({1: 2}, "dict[str, int]", False),
        ("x", "tuple[int, ...]", False),
        ("1", "int", False),
    ],
)
def test_a_value_against_an_annotation(value: Any, annotation: str, answer: bool) -> None:
    assert fits(value, annotation) is answer


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        ("int", "a whole number"),
        ("float | None", "a number or null"),
        ("bool", "true or false"),
        ("Literal['a', 'b']", "one of a, b"),
        ("int | Literal['auto']", "a whole number or auto"),
        ("list[float]", "a list (list[float])"),
    ],
)
def test_an_annotation_is_said_in_words(annotation: str, words: str) -> None:
    assert expectation(annotation) == words


@pytest.mark.parametrize(
    ("annotation", "value", "written"),
    [
        ("Literal['bf16', 'fp32']", "fp23", "fp32"),
        ("Literal['auto', 'frozen', 'full']", "froozen", "frozen"),
        ("bool", 1, "true"),
        ("int | None", "x", "1"),
        ("Something", 1, "..."),
    ],
)
def test_the_example_is_the_choice_most_like_the_value(annotation: str, value: Any, written: str) -> None:
    assert example(annotation, value) == written


@given(st.sampled_from(["int", "float", "bool"]))
def test_an_example_fits_its_own_annotation(annotation: str) -> None:
    import yaml

    assert fits(yaml.safe_load(example(annotation)), annotation)


BOUNDS = st.sampled_from([0, 1, 2, 0.0, 1.0, 2.0, float("nan"), float("inf"), float("-inf")])


@given(BOUNDS | st.floats() | st.integers())
def test_a_range_holds_exactly_between_its_bounds_and_never_for_what_is_not_finite(value: float) -> None:
    assert fits(value, "Annotated[float, AtLeast(0), Below(1)]") == (0 <= value < 1)
    assert fits(value, "Annotated[float, Above(0), AtMost(1)]") == (0 < value <= 1)
    assert fits(value, "Annotated[float, AtLeast(2)]") == (2 <= value < float("inf"))


@pytest.mark.parametrize(
    ("annotation", "words", "shown"),
    [
        ("Annotated[int, AtLeast(1)]", "a whole number of at least 1", "1 or more"),
        ("Annotated[int, AtLeast(0)] | Literal['auto']", "a whole number of at least 0 or auto", "0 or more"),
        ("Annotated[float, Above(0), Example('null')] | None", "a finite number above 0 or null", "null"),
        ("Annotated[float, AtLeast(0), Below(1), Example('0.5')]", "a number of at least 0 and below 1", "0.5"),
        ("Annotated[str, Marker('x')]", "text", "..."),
    ],
)
def test_a_range_is_part_of_what_is_expected(annotation: str, words: str, shown: str) -> None:
    assert expectation(annotation) == words
    assert example(annotation) == shown


def test_a_range_does_not_excuse_the_type() -> None:
    assert not fits(True, "Annotated[int, AtLeast(0)]")
    assert not fits("3", "Annotated[int, AtLeast(0)]")
    assert fits("auto", "Annotated[int, AtLeast(0)] | Literal['auto']")
