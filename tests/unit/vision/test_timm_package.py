"""timm is optional, and installs nothing that it imports beside it."""

from __future__ import annotations

import importlib

import pytest

from beni.errors import WeightsError
from beni.vision.timm import import_timm


@pytest.mark.parametrize("missing", ["timm", "torchvision"])
def test_the_package_that_is_missing_is_the_one_to_install(missing, monkeypatch):
    def fails(name):
        raise ModuleNotFoundError(f"No module named '{missing}'", name=missing)

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(WeightsError, match=f"fix: pip install {missing}$"):
        import_timm()
