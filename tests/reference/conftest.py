"""What the tests of this folder share."""

from __future__ import annotations

import pytest

from reference.harness import scramble


@pytest.fixture
def scrambled():
    """Draws every tensor of a module anew: ``scrambled(module, seed)``."""
    return scramble
