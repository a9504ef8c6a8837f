"""Fake run folders for every test here."""

from support.run_folders import make_run  # noqa: F401
