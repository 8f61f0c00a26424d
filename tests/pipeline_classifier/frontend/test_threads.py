"""Threads that work ahead."""

import threading

import numpy as np
import pytest

from pipeline_classifier.frontend.sources import ArrayPages
from pipeline_classifier.frontend.threads import begun


def test_the_first_item_is_computed_at_once_and_the_others_when_they_are_asked_for():
    is_computed, done = threading.Event(), []

    def noted(number):
        done.append(number)
        is_computed.set()
        return number

    iterator = begun(map(noted, range(3)))
    assert is_computed.wait(10) and done == [0]
    assert list(iterator) == [0, 1, 2] == done
    assert list(begun(iter(()))) == []


def test_an_error_in_the_first_item_is_raised_where_it_is_asked_for():
    iterator = begun(1 / number for number in (0, 1))
    with pytest.raises(ZeroDivisionError):
        next(iterator)


def test_pages_are_the_same_after_an_early_start(tmp_path):
    """Only once: later the source is read from its start."""
    pages = np.random.default_rng(0).standard_normal((300, 16, 16)).astype(np.float32)
    np.save(tmp_path / "pages.npy", pages)
    source = ArrayPages(tmp_path / "pages.npy", np.arange(16.0), 16)
    source.begin(1)
    for _ in range(2):
        batches = list(source.planes_once_begun(1))
        np.testing.assert_array_equal(np.concatenate([batch.pages for batch in batches]), pages)
