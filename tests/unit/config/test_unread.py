"""The tables of config/unread.py say what the code of the parts does."""

from __future__ import annotations

import importlib
import inspect

import yaml

from beni.config.unread import AT_HAND, READS_LEVELS
from beni.paths import conf_dir

BEHIND = ("views", "selector", "resampler", "connector", "fusion")


def targets(*groups):
    files = [path for group in groups for path in (conf_dir() / group).glob("*.yaml")]
    return {yaml.safe_load(path.read_text(encoding="utf-8"))["_target_"] for path in files}


def source_of(target):
    return inspect.getsource(importlib.import_module(target.rpartition(".")[0]))


def test_the_parts_that_read_levels_are_those_whose_code_does():
    carry = {"beni.resampler.pixel_shuffle.PixelShuffle", "beni.views.s2.S2Views"}
    assert {t for t in targets(*BEHIND) if "tokens.levels" in source_of(t)} - carry == set(READS_LEVELS)


def test_sources_at_hand_open_no_pictures_of_records():
    at_hand = {t for t in targets("data") if "pictures_of" not in source_of(t) and "image_of" not in source_of(t)}
    assert set(AT_HAND) <= at_hand
