"""Hypothesis takes the same examples in every run; `pytest --hypothesis-profile=fuzz` looks for new ones."""

from hypothesis import settings

settings.register_profile("fixed", derandomize=True, deadline=None)
settings.register_profile("fuzz", max_examples=1000, deadline=None)
settings.load_profile("fixed")
