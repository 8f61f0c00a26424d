"""Peaks: every pulse of a plane once, however close to the next one; noise, ripples and scattering tails give none."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.detection.event_merging import merge_duplicates
from pipeline_classifier.detection.peak_kernels import claim_bow_tie, mark_connected
from pipeline_classifier.detection.peaks import Peak, find_peaks, maxima, parts_of, sub_pulses
from pipeline_classifier.frontend.boxcar import best_boxcar, boxcar_search, boxcar_widths
from pipeline_classifier.frontend.pages import PageGrid
from tests.pipeline_classifier.detection.planes import FREQUENCIES, GRID, N_TIME, dispersed_pulse, find, plane

DISPERSED = PageGrid(0.5 * np.arange(256), 256, 2e-3, 59000.0, FREQUENCIES[0], FREQUENCIES[-1])
WIDTH = 8


def test_a_peak_is_searched_for_only_in_the_given_columns():
    values = plane(3, [(20, 10, 2, 60.0), (12, 90, 2, 20.0)])
    [peak] = find_peaks(boxcar_search(values, 32), GRID, N_TIME, 2 * N_TIME, most=3)
    assert (peak.row, peak.column) == (12, 90)


def test_a_plane_of_zeros_and_nans_has_no_pulse():
    values = np.zeros((32, 200), np.float32)
    values[3, 5] = np.nan
    for peak in find_peaks(boxcar_search(values, 32), GRID, 0, 200, most=2):
        assert np.isfinite(peak.snr) and peak.snr <= 0


@pytest.mark.parametrize("nchans, snr, found", [(4, 16.0, 1), (4, 36.0, 2), (256, 16.0, 2), (0, 16.0, 2)])
def test_a_peak_in_the_bow_tie_must_be_brighter_than_one_channel_of_the_pulse(nchans, snr, found):
    """Of a pulse of S/N 40 in four channels, one has S/N 20, and may have 30; 0 channels: not known."""
    grid = replace(GRID, nchans=nchans)
    for row, column, expected in [(25, 90 - round(0.5 * float(GRID.sweep(20.0))), found), (5, 105, 2)]:
        values = plane(3, [(5, 90, 2, 40.0), (row, column, 2, snr)])
        assert len(find_peaks(boxcar_search(values, 32), grid, 64, 128, most=3)) == expected, "any at the same DM"


@pytest.mark.parametrize("apart", [8, 12, 20])
def test_sub_pulses_closer_than_a_page_are_events_each(apart):
    events = find(plane(3, [(20, 100, 2, 30.0), (20, 100 + apart, 2, 18.0)]), [1], 10)
    assert [event.dm_pc_cm3 for event in events] == [20.0, 20.0]
    assert [event.time_s for event in events] == pytest.approx([0.101, 0.101 + 1e-3 * apart], abs=1.1e-3)
    assert [event.snr for event in events] == pytest.approx([30, 18], rel=0.25)
    merged = merge_duplicates(events, GRID)
    assert len(merged) == 2


@pytest.mark.parametrize("width, snr", [(2, 8.0), (2, 100.0), (16, 60.0)])
def test_one_pulse_has_no_sub_pulses(width, snr):
    for seed in range(20):
        assert len(find(plane(3, [(20, 100, width, snr)], seed), [1], 10)) == 1


def test_a_scattering_tail_has_no_sub_pulses():
    for seed in range(20):
        values = plane(3, [], seed)
        values[20, 80:] += 30 * np.exp(-np.arange(values.shape[1] - 80) / 12)
        assert len(find(values, [1], 10)) == 1


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_maxima_of_a_profile_are_those_of_scipy(data):
    """The rule is scipy's prominence, which costs half a second and 48 MB to import."""
    from scipy.signal import find_peaks as peaks_of

    width = data.draw(st.integers(1, 6))
    profile = np.random.default_rng(data.draw(st.integers(0, 1000))).standard_normal(120)
    for _ in range(data.draw(st.integers(0, 5))):
        start, length = data.draw(st.integers(0, 100)), data.draw(st.integers(1, 12))
        profile[start : start + length] += data.draw(st.floats(0, 15))
    total = np.concatenate([[0], np.cumsum(profile)]).astype(np.float32)
    snr = (total[width:] - total[:-width]) / np.float32(width**0.5)
    columns, shapes = peaks_of(snr, height=6.0, prominence=4.0)
    expected = columns[shapes["prominences"] >= np.float32(0.5) * snr[columns]]
    if np.diff(expected).min(initial=width) >= width:
        assert [column for column, _ in maxima(total, width, 0, len(total))] == expected.tolist()


def two_pulses(apart: int) -> np.ndarray:
    """Two pulses of DM 60, 8 samples wide, in columns 250 and later, S/N 30 and 24, without noise."""
    first, second = (
        dispersed_pulse(DISPERSED, 600, 60.0, column, WIDTH, snr) for column, snr in [(250, 30.0), (250 + apart, 24.0)]
    )
    return first + second


@pytest.mark.parametrize("apart", [14, 18, 24])
def test_two_pulses_that_sweep_into_each_other_are_two_at_their_dm(apart):
    """They are brightest together at a neighbouring trial DM, where the residual sweep joins them."""
    noise = np.random.default_rng(1).standard_normal((256, 600)).astype(np.float32)
    searched = boxcar_search(noise + two_pulses(apart), 128)
    peaks = sorted(find_peaks(searched, DISPERSED, 100, 500, most=1), key=lambda peak: peak.column)
    assert len(peaks) == 2
    for peak, start, snr in zip(peaks, (250, 250 + apart), (30.0, 24.0)):
        assert DISPERSED.sweep(abs(DISPERSED.dms[peak.row] - 60.0)) <= 2
        assert abs(peak.column - start) <= 3 and abs(peak.width - WIDTH) <= 3
        assert peak.snr == pytest.approx(snr, rel=0.2)


@pytest.mark.parametrize("trial_dm", [13.0, 43.0, 77.0, 108.0])
def test_two_pulses_joined_at_a_wrong_dm_are_separated_at_a_higher_or_a_lower_one(trial_dm):
    values = two_pulses(13)
    total = np.concatenate([np.zeros((256, 1), np.float32), np.cumsum(values, axis=1)], axis=1)
    row = int(np.searchsorted(DISPERSED.dms, trial_dm))
    snr, column, width = best_boxcar(total[row], boxcar_widths(128).tolist())
    joined = Peak(row, column, width, snr)
    assert width > 2 * WIDTH and sub_pulses(total[row], joined) == [joined]
    first, second = parts_of(total, DISPERSED, joined)
    for part, start, snr in ((first, 250, 30.0), (second, 263, 24.0)):
        assert abs(DISPERSED.dms[part.row] - 60.0) <= 2 and part.snr == pytest.approx(snr, rel=0.02)
        assert abs(part.column - start) <= 1 and part.width == WIDTH


@pytest.mark.parametrize("seed", range(20))
def test_samples_connected_with_a_maximum_are_those_of_scipy(seed):
    from scipy.ndimage import label

    values = np.random.default_rng(seed).standard_normal((12, 17)).astype(np.float32)
    row, column = np.unravel_index(int(values.argmax()), values.shape)
    numbers, _ = label(values >= np.float32(-0.2))
    connected = np.zeros(values.shape, bool)
    mark_connected(values, np.float32(-0.2), int(row), int(column), connected)
    np.testing.assert_array_equal(connected, numbers == numbers[row, column])


@pytest.mark.parametrize("seed", range(20))
def test_a_bow_tie_is_marked_and_what_is_bright_in_it_stays(seed):
    rng, begin, centre, width = np.random.default_rng(seed), seed, 40 + seed, 1 + seed % 5
    best, widths = rng.uniform(0, 20, (9, 50)).astype(np.float32), rng.integers(1, 30, (9, 90), np.int32)
    reach, least = rng.uniform(-30, 30, 9), rng.uniform(5, 15, 9)
    claimed = rng.random((9, 50)) < 0.1
    columns, margin = begin + np.arange(50), 2 * width + widths[:, begin : begin + 50]
    inside = columns >= centre + np.minimum(reach, 0)[:, None] - margin
    inside &= columns <= centre + np.maximum(reach, 0)[:, None] + margin
    expected = np.where(inside & (best < least[:, None]), -np.inf, best), claimed | inside
    claim_bow_tie(best, claimed, begin, widths, reach, least, centre, width)
    np.testing.assert_array_equal(best, expected[0])
    np.testing.assert_array_equal(claimed, expected[1])


def test_a_pulse_in_the_bow_tie_of_interference_is_found_once_this_is_rejected():
    """The bow tie has an S/N of 16 at the DM of the pulse, so that it does not stand apart."""
    grid = PageGrid(np.arange(0, 64, 0.5), 256, 1e-4, 59000.0, FREQUENCIES[0], FREQUENCIES[-1], nchans=len(FREQUENCIES))
    values = np.random.default_rng(0).standard_normal((128, 1200)).astype(np.float32)
    values += dispersed_pulse(grid, 1200, 5.0, 600, 4, 120.0) + dispersed_pulse(grid, 1200, 40.0, 500, 6, 26.0)
    searched = boxcar_search(values, 128)

    def near_the_pulse(peaks: list[Peak]) -> list[Peak]:
        return [peak for peak in peaks if abs(grid.dms[peak.row] - 40) < 3 and abs(peak.column - 500) < 8]

    (interference, *others) = find_peaks(searched, grid, 0, 1200, 10)
    assert interference.row == 10 and not near_the_pulse(others)
    assert not near_the_pulse(find_peaks(searched, grid, 0, 1200, 10, [(interference, False)]))
    more = find_peaks(searched, grid, 0, 1200, 10, [(interference, True)])
    assert len(near_the_pulse(more)) == 1 and near_the_pulse(more)[0].snr > 24
    assert interference not in more and len(more) < 6
    for column in (20, 1190):
        assert find_peaks(searched, grid, 300, 900, 10, [(Peak(40, column, 4, 30.0), False)])[0] == interference
