"""The plan of the tree: delays of its rows, memory layout, and runs of additions."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_classifier.frontend.dedispersion import channel_delays, delay_quanta
from pipeline_classifier.frontend.dedispersion_plan import Band, Schedule, plan_tree, progressions

DMS = 0.5 * np.arange(256)
FREQUENCIES = 1510 - (np.arange(256) + 0.5) * 300 / 256


def bands(root: Band) -> list[Band]:
    """The band and all bands below it."""
    return [root] + [band for half in root.halves or () for band in bands(half)]


def test_known_plan():
    """Two trial DMs over four channels share the row of the upper half, which has the same delays in both."""
    wanted = np.array([[0, 1, 2, 3], [0, 1, 3, 5]])
    root, row = plan_tree(wanted, None)
    np.testing.assert_array_equal(root.delays[row], wanted)
    upper, lower = root.halves
    assert (len(upper.rows), len(lower.rows), root.past, root.additions) == (1, 2, 5, 2 + 1 + 2)
    np.testing.assert_array_equal(lower.delays, [[0, 1], [0, 2]])
    assert root.half_widths(100) == [100, 103]


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("nchans", [1, 2, 3, 31, 64, 256])
def test_every_row_is_the_sum_of_one_row_of_either_half(nchans, exact):
    frequencies = np.linspace(1500, 1200, nchans)
    delays, quanta = channel_delays(DMS, frequencies, 1e-3), delay_quanta(DMS, frequencies, 1e-3)
    root, row = plan_tree(np.rint(delays).astype(int) if exact else delays, None if exact else quanta)
    assert row.shape == (256,)
    for band in bands(root):
        assert band.delays.shape == (len(band.rows), band.hi - band.lo) and band.delays.min() == 0
        if band.halves is None:
            assert band.hi == band.lo + 1
            continue
        upper, lower = band.halves
        assert (upper.lo, upper.hi, lower.hi) == (band.lo, lower.lo, band.hi)
        for k, half in enumerate(band.halves):
            part = band.delays[:, half.lo - band.lo : half.hi - band.lo]
            np.testing.assert_array_equal(part, half.delays[band.rows[:, k, 0]] + band.rows[:, k, 1:])
    assert root.delays.max() <= root.past <= root.delays.max() + 2
    assert root.additions == sum(len(band.rows) for band in bands(root) if band.halves)


@pytest.mark.parametrize("tsamp", [54.6e-6, 128e-6, 1e-3])
def test_delays_of_the_fast_tree_are_right_to_within_the_quantum(tsamp):
    """An error that all channels share shifts a pulse in time and costs no S/N; the scatter about it does."""
    delays, quanta = channel_delays(DMS, FREQUENCIES, tsamp), delay_quanta(DMS, FREQUENCIES, tsamp)
    root, row = plan_tree(delays, quanta)
    assert root.delays.min() == 0
    error = root.delays[row] - delays
    assert (error.std(axis=1) <= 0.5 * quanta).all()
    assert (np.abs(error - error.mean(axis=1, keepdims=True)).max(axis=1) <= 1.5 * quanta).all()
    assert (np.abs(error.mean(axis=1)) <= 1.25 * quanta).all()


def test_equal_delays_share_a_row():
    delays = np.zeros((10, 8), int)
    delays[5:] = np.arange(8)
    root, row = plan_tree(delays, None)
    assert len(root.rows) == 2 and row.tolist() in ([0] * 5 + [1] * 5, [1] * 5 + [0] * 5)


def overlaps(schedule: Schedule) -> bool:
    """Whether an addition writes to memory that it reads."""
    for count, width, upper, upper_step, lower, lower_step, total, total_step in schedule.additions.tolist():
        written = (total + total_step * np.arange(count))[:, None] + np.arange(width)
        for first, step in ((upper, upper_step), (lower, lower_step)):
            if np.intersect1d(written, (first + step * np.arange(count))[:, None] + np.arange(width)).size:
                return True
    return False


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("stretch", [1, 100, 1000])
def test_additions_stay_inside_the_memory_and_give_every_row(stretch, exact):
    """Run on samples that identify their channel: every element of a row then is the sum over all channels."""
    delays, quanta = channel_delays(DMS[:70], FREQUENCIES, 1e-3), delay_quanta(DMS[:70], FREQUENCIES, 1e-3)
    root, _ = plan_tree(np.rint(delays).astype(int) if exact else delays, None if exact else quanta)
    schedule = Schedule(root, stretch)
    assert not overlaps(schedule)
    memory = np.zeros(schedule.size, np.int64)
    offset, pitch = schedule.data.offset, schedule.data.pitch
    rng = np.random.default_rng(0)
    weights = rng.integers(1, 1 << 40, 256)
    for channel, weight in enumerate(weights):
        first = offset + channel * pitch
        memory[first : first + stretch + root.past] = weight
    for count, width, upper, upper_step, lower, lower_step, total, total_step in schedule.additions.tolist():
        for k in range(count):
            sums = [memory[start : start + width] for start in (upper + k * upper_step, lower + k * lower_step)]
            place = total + k * total_step
            assert len(sums[0]) == len(sums[1]) == width and 0 <= place <= schedule.size - width
            memory[place : place + width] = sums[0] + sums[1]
    rows = schedule.rows
    assert rows.kept == len(root.rows)
    for row in range(rows.kept):
        first = rows.offset + row * rows.pitch
        assert (memory[first : first + stretch] == weights.sum()).all()


def test_wide_bands_keep_a_row_only_as_long_as_it_is_needed():
    """The memory is that of the samples and of all sums of 32 channels and the result, and a little for the rest."""
    root, _ = plan_tree(channel_delays(DMS, FREQUENCIES, 1e-3), delay_quanta(DMS, FREQUENCIES, 1e-3))
    stretch = 10_000
    everything = 256 + sum(len(band.rows) for band in bands(root) if band.halves)
    always = 256 + len(root.rows) + sum(len(band.rows) for band in bands(root) if band.hi - band.lo == 32)
    size = Schedule(root, stretch).size / stretch
    assert always <= size < 1.2 * always < 0.6 * everything


@given(
    st.lists(st.lists(st.integers(0, 6), min_size=3, max_size=3), min_size=1, max_size=60),
    st.booleans(),
)
def test_progressions_contain_every_row_once_at_constant_forward_steps(starts, ascending):
    starts = np.array(starts)
    starts = np.cumsum(starts, axis=0) if ascending else starts
    runs = progressions(starts)
    rows = [first + step * k for first, count, step in runs for k in range(count)]
    assert sorted(rows) == list(range(len(starts)))
    for first, count, step in runs:
        steps = np.diff(starts[first : first + count * step : step], axis=0)
        assert (steps >= 0).all() and (steps == steps[:1]).all()


def test_progressions_find_interleaved_runs():
    """Rows of two kinds that alternate, each at a constant step, are two runs."""
    starts = np.array([[100 * (k % 2) + 7 * (k // 2)] * 3 for k in range(40)])
    assert progressions(starts) == [(0, 20, 2), (1, 20, 2)]
