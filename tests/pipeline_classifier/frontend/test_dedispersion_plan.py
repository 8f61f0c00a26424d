"""The plan of the tree: delays of its rows, memory layout and additions."""

import numpy as np
import pytest

from pipeline_classifier.frontend.dedispersion import channel_delays, delay_quanta
from pipeline_classifier.frontend.dedispersion_plan import Band, Schedule, plan_sub_bands, plan_tree

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
    error, quanta = root.delays[row] - delays, np.maximum(quanta, 1.0)  # the delays are whole samples
    assert (error.std(axis=1) <= 0.5 * quanta).all()
    assert (np.abs(error - error.mean(axis=1, keepdims=True)).max(axis=1) <= 1.5 * quanta).all()
    assert (np.abs(error.mean(axis=1)) <= 1.25 * quanta).all()


def test_equal_delays_share_a_row():
    delays = np.zeros((10, 8), int)
    delays[5:] = np.arange(8)
    root, row = plan_tree(delays, None)
    assert len(root.rows) == 2 and row.tolist() in ([0] * 5 + [1] * 5, [1] * 5 + [0] * 5)


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("nchans", [1, 2, 3, 5, 100, 256, 300])
def test_sub_bands_have_short_sweeps_and_the_delays_of_the_band(nchans, exact):
    frequencies = np.linspace(1500, 1200, nchans)
    delays, quanta = channel_delays(DMS, frequencies, 1e-4), delay_quanta(DMS, frequencies, 1e-4)
    wanted = np.rint(delays).astype(int) if exact else delays
    sub_bands = plan_sub_bands(wanted, None if exact else quanta)
    assert [s.band.lo for s in sub_bands] == [0, *(s.band.hi for s in sub_bands[:-1])]
    assert sub_bands[-1].band.hi == nchans and all(s.shift.min() >= 0 for s in sub_bands)
    widths = [s.band.hi - s.band.lo for s in sub_bands]
    assert max(widths) <= 256 and (nchans < 5 or max(s.band.past for s in sub_bands) <= 1500 or max(widths) <= 3)
    planned = np.concatenate([s.delays for s in sub_bands], axis=1)
    if exact:
        np.testing.assert_array_equal(planned, wanted)
        return
    error, quanta = planned - delays, np.maximum(quanta, 1.0)  # the delays are whole samples
    assert (error.std(axis=1) <= 0.5 * quanta).all()
    assert (np.abs(error - error.mean(axis=1, keepdims=True)).max(axis=1) <= 1.5 * quanta).all()


def overlaps(schedule: Schedule) -> bool:
    """Whether an addition writes to memory that it reads."""
    return any(
        total < first + width and first < total + width
        for *summands, total, width in schedule.additions.tolist()
        for first in summands
    )


@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("stretch", [1, 100, 1000])
@pytest.mark.parametrize("nchans", [1, 2, 7, 128])
def test_additions_stay_inside_the_memory_and_give_every_row(nchans, stretch, exact):
    """Run on samples that identify their channel: every element of a row then is the sum over all channels."""
    frequencies = np.linspace(1500, 1400, nchans)
    delays, quanta = channel_delays(DMS[:70], frequencies, 1e-3), delay_quanta(DMS[:70], frequencies, 1e-3)
    root, _ = plan_tree(np.rint(delays).astype(int) if exact else delays, None if exact else quanta)
    schedule = Schedule(root, stretch)
    assert not overlaps(schedule)
    memory = np.zeros(schedule.size, np.int64)
    weights = np.random.default_rng(0).integers(1, 1 << 40, nchans)
    for channel, weight in enumerate(weights):
        memory[channel * schedule.pitch :][: stretch + root.past] = weight
    for upper, lower, total, width in schedule.additions.tolist():
        assert nchans * schedule.pitch <= total <= schedule.size - width
        memory[total : total + width] = memory[upper : upper + width] + memory[lower : lower + width]
    assert len(schedule.starts) == len(root.rows)
    for upper, lower in schedule.starts.tolist():
        row = memory[upper : upper + stretch] + memory[lower : lower + stretch]
        assert len(row) == stretch and (row == weights.sum()).all()


def test_memory_of_summed_bands_is_used_again():
    root, _ = plan_tree(channel_delays(DMS, FREQUENCIES, 1e-3), delay_quanta(DMS, FREQUENCIES, 1e-3))
    stretch = 10_000
    everything = 256 + sum(len(band.rows) for band in bands(root) if band.halves) - len(root.rows)
    assert Schedule(root, stretch).size / stretch < 0.45 * everything
