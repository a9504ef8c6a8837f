"""docs/zoo.md says what the code does."""

from __future__ import annotations

from reference import zoo


def test_the_page_of_the_zoo_is_current() -> None:
    assert zoo.stable(zoo.PAGE.read_text()) == zoo.stable(zoo.page()), "run make zoo, and commit docs/zoo.md"


def test_the_zoo_has_at_least_twenty_five_mechanisms_that_are_verified() -> None:
    assert sum(bool(row.cases) for row in zoo.rows()) >= 25
