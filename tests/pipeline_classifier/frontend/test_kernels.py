"""Compiled loops against a reference in numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.frontend import kernels


@given(
    n=st.integers(1, 40),
    columns=st.integers(1, 60),
    origin=st.integers(0, 30),
    stretch=st.integers(1, 20),
    shifts=st.lists(st.integers(0, 25), min_size=2, max_size=2),
    inside=st.integers(0, 6),
    kind=st.sampled_from([np.int16, np.int32]),
)
@settings(deadline=None)
def test_samples_are_added_at_their_delays_where_the_plane_has_columns(
    n, columns, origin, stretch, shifts, inside, kind
):
    """One sub-band of three channels, of which the first two are summed before; two trial DMs with different shifts."""
    data = np.random.default_rng(0).integers(-128, 128, (3, n)).astype(np.int8)
    plane = np.random.default_rng(1).integers(-100, 100, (2, columns)).astype(kind)
    expected = plane.copy()
    for row, shift in zip(expected, shifts, strict=True):
        for channel, delay in enumerate((shift, shift + inside, shift)):
            for t in range(n):
                if 0 <= origin + t - delay < columns:
                    row[origin + t - delay] += data[channel, t]
    pitch = stretch + inside
    sub_bands = np.array([[0, 3, inside, min(shifts), max(shifts), pitch, 1]])
    additions = np.array([[0, pitch + inside, 3 * pitch, stretch]])
    summands = np.array([[[3 * pitch, 2 * pitch, shift] for shift in shifts]])
    memory = np.full(3 * pitch + stretch, 999, np.int16)
    kernels.dedisperse(data, plane, origin, sub_bands, additions, summands, memory, stretch)
    np.testing.assert_array_equal(plane, expected)


@pytest.mark.parametrize(("first", "width"), [(0, 5), (-3, 10), (-20, 10), (7, 10), (30, 4), (-2, 12)])
def test_samples_outside_the_data_are_zeros(first, width):
    data = np.arange(1, 21, dtype=np.int8).reshape(2, 10)
    memory = np.full(40, 99, np.int16)
    kernels._copy_samples(data, first, width, 15, memory)
    padded = np.pad(data, ((0, 0), (50, 50)))[:, 50 + first : 50 + first + width]
    for channel in range(2):
        np.testing.assert_array_equal(memory[15 * channel :][:width], padded[channel])
    assert (memory[15 + width :] == 99).all() and (memory[width:15] == 99).all()
