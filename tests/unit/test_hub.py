"""What a run needs from outside is asked for before anything is built."""

from __future__ import annotations

import importlib.util

import pytest

from beni.errors import WeightsError
from beni.hub import OPTIMIZER_PACKAGES, require_weights
from beni.run import plan


@pytest.mark.parametrize("name", OPTIMIZER_PACKAGES)
def test_an_optimizer_whose_package_is_absent_is_refused_with_the_command_that_installs_it(tiny_run, monkeypatch, name):
    run, package = tiny_run(f"optim={name}"), OPTIMIZER_PACKAGES[name]
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted, *a: None if wanted == package else find(wanted, *a))
    with pytest.raises(WeightsError, match=rf"optim={name} needs the package {package}\n  fix: pip install 'beni\[opt"):
        plan(run)


@pytest.mark.parametrize("name", ["adamw", "muon", "adafactor"])
def test_torchs_optimizers_need_no_package(tiny_run, name):
    require_weights(tiny_run(f"optim={name}"))
