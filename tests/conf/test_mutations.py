"""Nonsense in the place of values of a configuration: it is refused with a fix, or the run can be planned.

``BENI_MUTATIONS=500 python -m pytest tests/conf/test_mutations.py`` draws so many cases, and
``python tests/support/mutations.py`` prints each that is wrong.
"""

from __future__ import annotations

import os
from itertools import islice

from support.mutations import cases, outcome

CASES = int(os.environ.get("BENI_MUTATIONS", "40"))


def test_nonsense_is_refused_with_a_fix_or_can_be_planned():
    outcomes = [outcome(case) for case in islice(cases(7), CASES)]
    assert {one.kind for one in outcomes} >= {"refused"}
    assert [one for one in outcomes if one.kind == "wrong"] == []
