"""Fake run folders for the tests here."""

from support.run_folders import make_run  # noqa: F401
