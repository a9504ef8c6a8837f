"""Property tests run without a time limit per example: two busy cores would make it fail now and then."""

from hypothesis import settings

settings.register_profile("beni", deadline=None)
settings.load_profile("beni")
