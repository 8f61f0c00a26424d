"""Every kind of interference of the levels "field" and "hard" has the property that defines it."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.simulation.drawing import LEAST_DEVIATION, deviation_from_dispersion
from pipeline_classifier.simulation.field_interference import NEAR_DISPERSION, POWERS, RATES, SNR, FieldDraw
from pipeline_classifier.simulation.interference import Rfi, random_rfi
from pipeline_classifier.simulation.interferers import ChirpTrain, MovingLine, Sweep, Switched
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate

HEADER = replace(EFFELSBERG, nchans=64, foff=-5.0, tsamp=1e-3)
LOW = replace(HEADER, fch1=190.0, foff=-1.25, tsamp=1e-2)
NARROW = replace(HEADER, fch1=3500.0, foff=-1.0)
NSAMPLES = 60_000
KINDS = [kind for kind in RATES if kind != "packet_losses"]


def drawn(kind, seed, header=HEADER, factor=1.0):
    return list(getattr(FieldDraw(header, NSAMPLES, np.random.default_rng(seed)), kind)(factor))


def block_of(interferer, nchans=64):
    """The whole signal, and the first sample of the block."""
    start = interferer.start
    block = np.zeros((interferer.stop - start, nchans), np.float32)
    interferer.add(block, start)
    return block, start


@pytest.mark.parametrize("kind, widest", [("part_impulses", 1.0), ("bursts", 0.05)])
def test_impulses_and_bursts_are_undispersed_and_only_in_their_channels(kind, widest):
    parts = set()
    for impulse in (i for seed in range(4) for i in drawn(kind, seed)):
        block, _ = block_of(impulse)
        last = impulse.first_channel + len(impulse.spectrum)
        assert len(impulse.spectrum) <= max(1, round(widest * 64)) and last <= 64
        assert not np.delete(block, np.s_[impulse.first_channel : last], axis=1).any()
        own = block[:, impulse.first_channel : last]
        assert own.min() >= 0 and own.max() > 0
        np.testing.assert_allclose(own * own.max(), own[:, [own.max(axis=0).argmax()]] * own.max(axis=0), rtol=1e-4)
        parts.add((impulse.first_channel, len(impulse.spectrum)))
    assert len(parts) > 20


def test_several_parts_of_the_band_have_an_impulse_at_once_with_soft_edges():
    impulses = [i for seed in range(4) for i in drawn("part_impulses", seed)]
    at_once = np.unique([i.start for i in impulses], return_counts=True)[1]
    assert at_once.max() >= 3 and (at_once == 1).any()
    wide = [i.spectrum for i in impulses if len(i.spectrum) > 20]
    assert np.median([max(s[0], s[-1]) / s.max() for s in wide]) < 0.3


def test_impulses_have_the_signal_to_noise_ratio_of_pulses():
    draw = FieldDraw(EFFELSBERG, NSAMPLES, np.random.default_rng(0))
    snrs = np.array([draw.height(200.0) * 200 / 16 for _ in range(100)])
    assert SNR[0] <= snrs.min() < 10 and 100 < snrs.max() <= SNR[1]


@pytest.mark.parametrize("header", [HEADER, LOW, NARROW], ids=["1.4 GHz", "150 MHz", "3.5 GHz"])
def test_sweeps_run_up_and_down_and_do_not_follow_the_law_of_dispersion(header):
    upwards = []
    for sweep in (s for seed in range(6) for s in drawn("sweeps", seed, header)):
        block, start = block_of(sweep)
        inside = slice(sweep.first_channel, sweep.first_channel + len(sweep.times))
        assert not np.delete(block, np.s_[inside], axis=1).any()
        own = block[:, inside].astype(np.float64)
        bright = sweep.amplitudes > 1e-3 * sweep.amplitudes.max()
        centroids = (np.arange(start, sweep.stop) @ own[:, bright]) / own[:, bright].sum(axis=0)
        np.testing.assert_allclose(centroids, sweep.times[bright], atol=0.2)
        deviation = deviation_from_dispersion(centroids, header.frequencies[inside][bright], sweep.amplitudes[bright])
        upwards.append(sweep.times[0] > sweep.times[-1])
        # Narrower Gaussians have a width of one sample.
        assert deviation > 0.8 * LEAST_DEVIATION * 2.3548 * sweep.sigmas.min() or sweep.sigmas.min() <= 0.45
    assert len(upwards) > 5 and 0.2 < np.mean(upwards) < 0.8


def test_only_powers_near_minus_2_follow_the_law_of_dispersion():
    draw = FieldDraw(HEADER, NSAMPLES, np.random.default_rng(0))
    for power in np.arange(-6, 1.1, 0.5):
        law = HEADER.frequencies**power if power else np.log(1 / HEADER.frequencies)
        delays = 1000 * (law - law[0]) / (law[-1] - law[0])
        if power == -2 or abs(power + 2) > 1:
            assert draw.follows_dispersion(delays, 0, np.ones(64), sigma=1.0) == (power == -2)
            assert draw.follows_dispersion(-delays, 0, np.ones(64), sigma=1.0) == (power == -2)


@given(st.integers(0, 10_000))
@settings(max_examples=100, deadline=None)
def test_the_delays_of_a_sweep_without_a_bend_are_a_power_of_the_frequency_not_near_minus_2(seed):
    rng = np.random.default_rng(seed)
    delays = FieldDraw(LOW, NSAMPLES, rng).course(LOW.frequencies)
    powers = np.array([p for p in np.arange(POWERS[0], POWERS[1], 0.01) if abs(p) > 5e-3])
    laws = LOW.frequencies[None, :] ** powers[:, None]
    laws = (laws - laws[:, :1]) / (laws[:, -1:] - laws[:, :1])
    differences = np.abs(laws - delays).max(axis=1)
    best = differences.argmin()
    assert delays.min() == 0
    if differences[best] < 2e-3:
        assert abs(powers[best] + 2) > NEAR_DISPERSION - 0.02


def test_a_radar_repeats_its_linear_chirp():
    for train in (t for seed in range(6) for t in drawn("radars", seed)):
        steps = np.diff(train.delays)
        assert len(steps) < 2 or np.ptp(steps) < 1e-9 * np.abs(steps).max() + 1e-9
        assert train.period >= 8 and np.ptp(train.delays) <= 0.6 * train.period + 2
    for period in (40, 12.5):
        train = ChirpTrain(100, 100 + 20 * 40, period, 8 + np.linspace(0, 5, 10), 1.0, 0.0, 30, np.ones(10, np.float32))
        block, _ = block_of(train)
        assert not block[:, :30].any() and not block[:, 40:].any()
        twice = round(2 * period)
        np.testing.assert_allclose(block[twice:], block[:-twice], atol=1e-4)
        assert abs(block[period.__ceil__() : 2 * period.__ceil__(), 39].argmax() - 13 % period) <= 1
        assert block.max() == pytest.approx(1, abs=0.15)


def test_a_satellite_band_is_on_or_off():
    on = []
    for band in (b for seed in range(8) for b in drawn("satellites", seed)):
        block, start = block_of(band)
        own = block[:, band.first_channel : band.first_channel + len(band.spectrum)]
        is_on = own.max(axis=1) > 0
        np.testing.assert_array_equal(own[is_on], np.broadcast_to(band.spectrum, own[is_on].shape))
        assert not own[~is_on].any() and own.any(axis=0).any() and block.any(axis=0).sum() <= len(band.spectrum)
        on.append(is_on.mean())
    assert min(on) < 0.5 < max(on)
    block, _ = block_of(Switched(np.array([10, 13, 17, 18]), 5, np.ones(2, np.float32)))
    assert block[:, 5].tolist() == [1, 1, 1, 0, 0, 0, 0, 1]


def test_moving_lines_are_narrow_and_follow_their_drift():
    for line in (one for seed in range(8) for one in drawn("moving_lines", seed)):
        samples = np.arange(line.start, min(line.stop, line.start + 2000), 50)
        centre = line.channels_at(samples)
        inside = (centre > 8) & (centre < 55)
        for sample, channel in zip(samples[inside], centre[inside]):
            block = np.zeros((1, 64), np.float32)
            line.add(block, sample)
            touched = np.flatnonzero(block[0])
            assert len(touched) <= 14
            if line.sigma > 0.5:
                assert block[0] @ np.arange(64) / block[0].sum() == pytest.approx(channel, abs=0.05)
        assert abs(line.drift) / 1e-3 / 64 <= 0.3, "of the band per second"
    line = MovingLine(0, 5000, 60.0, 0.01, (0.0, 1.0), 0.5, 1.0)
    block = np.zeros((1000, 64), np.float32)
    line.add(block, 2000)
    assert not block.any(), "it has left the band"


def test_lost_packets_are_constant_and_change_nothing_else(tmp_path):
    losses = np.array([[100, 164, 16, 32], [4000, 4700, 0, 64], [0, 8, 60, 64]])
    rfi = Rfi(losses=losses, loss_counts=np.array([0, 77, 255], np.uint8))
    data = {}
    for name, interference in (("with", rfi), ("without", Rfi())):
        simulate(tmp_path / f"{name}.fil", HEADER, 6000, [], interference, seed=1)
        data[name] = Filterbank(tmp_path / f"{name}.fil").read(0, 6000).copy()
    for (begin, end, first, last), count in zip(losses, rfi.loss_counts):
        assert (data["with"][begin:end, first:last] == count).all()
        data["without"][begin:end, first:last] = count
    np.testing.assert_array_equal(data["with"], data["without"])


def test_packets_are_aligned_parts_of_the_band():
    constants = []
    for seed in range(10):
        blocks, counts = FieldDraw(HEADER, NSAMPLES, np.random.default_rng(seed)).packet_losses(1.0)
        begin, end, first, last = blocks.T
        assert len(blocks) == len(counts) and (begin >= 0).all() and (first >= 0).all() and (last <= 64).all()
        assert not ((end - begin) & (end - begin - 1)).any() and not (begin % (end - begin)).any()
        assert not (first % (last - first)).any()
        constants += counts.tolist()
    assert 0 in constants and len(set(constants)) > 2


@given(st.sampled_from(KINDS), st.integers(0, 1000), st.integers(100, 5000))
@settings(max_examples=25, deadline=None)
def test_blocks_of_any_size_hold_the_same_interference(kind, seed, rows):
    rfi = Rfi(drawn(kind, seed))
    n = min(NSAMPLES, 6 * rows)
    whole = np.zeros((n, 64), np.float32)
    rfi.add(whole, 0)
    blocks = [np.zeros((min(rows, n - first), 64), np.float32) for first in range(0, n, rows)]
    for i, block in enumerate(blocks):
        rfi.add(block, rows * i)
    # Gaussians are cut at 4 sigma, 3e-4 of their maximum, or up to the edge of a block beyond.
    np.testing.assert_allclose(np.concatenate(blocks), whole, atol=1e-2 + 1e-5 * whole.max())


@pytest.mark.parametrize("header", [HEADER, replace(HEADER, nchans=1), replace(HEADER, nchans=5, foff=1.0), LOW])
@pytest.mark.parametrize("nsamples", [1, 300, 20_000])
def test_any_geometry_has_finite_interference_that_depends_on_the_seed(header, nsamples):
    sums = []
    for seed in (1, 1, 2):
        rfi = random_rfi("hard", header, nsamples, seed)
        block = np.zeros((min(nsamples, 2000), header.nchans), np.float32)
        rfi.add(block, nsamples // 2)
        assert np.isfinite(block).all()
        sums.append((block.sum(), len(rfi.interferers), rfi.losses.tolist(), rfi.loss_counts.tolist()))
    assert sums[0] == sums[1] and (nsamples < 20_000 or sums[1] != sums[2])


def test_field_has_every_kind_and_strong_none_of_them():
    kinds = {ChirpTrain, MovingLine, Sweep, Switched}
    assert {type(one) for one in random_rfi("field", HEADER, 5 * NSAMPLES, 1).interferers} > kinds
    assert not {type(one) for one in random_rfi("strong", HEADER, NSAMPLES, 1).interferers} & kinds
    assert len(random_rfi("field", HEADER, 5 * NSAMPLES, 1).losses)


@pytest.mark.parametrize("kind", RATES)
def test_rates_differ_by_a_factor_of_ten(kind):
    counts = [FieldDraw(HEADER, 50 * NSAMPLES, np.random.default_rng(seed)).count(kind, 1.0) for seed in range(100)]
    assert RATES[kind][1] >= 10 * RATES[kind][0]
    assert 0.5 * RATES[kind][0] < min(counts) / 50 < 2 * RATES[kind][0]
    assert 0.5 * RATES[kind][1] < max(counts) / 50 < 1.5 * RATES[kind][1]


@pytest.mark.parametrize(
    "level, number, total, spread, dead",
    [
        ("mild", 8, 5946.632644314319, 0.122266066069284, 2),
        ("strong", 100, 24851.014149177267, 0.400715530006233, 124),
        ("extreme", 256, 64444.642169519524, 0.8042346933025933, 124),
    ],
)
def test_the_levels_of_stored_observations_keep_their_numbers(level, number, total, spread, dead):
    rfi = random_rfi(level, HEADER, NSAMPLES, 5)
    block = np.zeros((4000, 64), np.float32)
    rfi.add(block, 20_000)
    block *= rfi.gain(20_000, 4000)[:, None]
    assert len(rfi.interferers) == number and rfi.dead_channels.sum() == dead and len(rfi.losses) == 0
    assert block.sum(dtype=float) == pytest.approx(total, rel=1e-6)
    assert block.std(dtype=float) == pytest.approx(spread, rel=1e-6)
