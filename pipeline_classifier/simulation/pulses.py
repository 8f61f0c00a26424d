"""Dispersed, scattered and scintillating single pulses, in units of the noise of a channel.

A pulse is a Gaussian in time, smeared by the dispersion within a channel and convolved with the exponential of
thin-screen scattering. Integrated over a sample, that is a difference of two values of the cumulative distribution of
an exponentially modified Gaussian (Lorimer & Kramer 2005, Handbook of Pulsar Astronomy, ch. 4; McKinnon 2014, PASP 126,
476).
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from pipeline_classifier.dispersion import DISPERSION_CONSTANT, dispersion_delay
from pipeline_classifier.frontend.boxcar import best_boxcar
from single_pulse_classifier_training.cli import InputError

FWHM_PER_SIGMA = 2 * np.sqrt(2 * np.log(2))
MAX_SIGNAL_VALUES = 1 << 27  # samples times channels of one pulse: half a gigabyte of float32


@dataclass(frozen=True)
class Pulse:
    """Parameters of one pulse.

    Attributes
    ----------
    time_s : float
        Arrival time of the peak of the unscattered profile at the centre of the highest channel, from the start of
        sample 0.
    dm_pc_cm3 : float
        Dispersion measure.
    snr : float
        S/N as defined in `pulse_signal`.
    width_ms : float
        Full width at half maximum of the intrinsic Gaussian.
    scattering_ms : float
        1/e time of the scattering tail at 1 GHz; scales with frequency to the power -4.
    spectral_index : float
        Power of the frequency to which the amplitude is proportional.
    scintillation_bandwidth_mhz : float
        Half width at half maximum of the autocorrelation of the spectrum; 0 for no scintillation.
    centre_mhz, bandwidth_mhz : float, optional
        Centre and full width at half maximum of the Gaussian envelope of a band-limited burst.
    coherent_dm_pc_cm3 : float
        DM at which the data were dedispersed coherently in each channel; pulses of this DM are not smeared in it.
    """

    time_s: float
    dm_pc_cm3: float
    snr: float
    width_ms: float
    scattering_ms: float = 0.0
    spectral_index: float = 0.0
    scintillation_bandwidth_mhz: float = 0.0
    centre_mhz: float | None = None
    bandwidth_mhz: float | None = None
    coherent_dm_pc_cm3: float = 0.0


class PulseSignal(NamedTuple):
    """Signal of a pulse; ``signal[c, k]`` belongs to channel ``c`` and sample ``starts[c] + k``.

    The rows start at the delays of their channels, rounded to a sample, so ``signal.sum(axis=0)`` is the dedispersed
    profile.

    Attributes
    ----------
    starts : (nchans,) ndarray of int64
    signal : (nchans, n) ndarray of float32
    boxcar_width_ms : float
        Width of the boxcar with the highest S/N on the dedispersed profile.
    """

    starts: np.ndarray
    signal: np.ndarray
    boxcar_width_ms: float


class _Shape(NamedTuple):
    """Delay, Gaussian width and scattering time per channel (nchans,), and extent around the peak, in samples."""

    delay: np.ndarray
    sigma: np.ndarray
    tau: np.ndarray
    before: int
    after: int


def _shape(pulse: Pulse, frequencies: np.ndarray, tsamp: float) -> _Shape:
    foff = frequencies[0] - frequencies[1] if len(frequencies) > 1 else 0.0
    smearing = 2 * DISPERSION_CONSTANT * abs(pulse.dm_pc_cm3 - pulse.coherent_dm_pc_cm3) * foff * frequencies**-3.0
    intrinsic = pulse.width_ms * 1e-3 / FWHM_PER_SIGMA
    # The sweep within a channel is a boxcar, approximated by a Gaussian of the same variance, smearing^2 / 12.
    sigma = np.maximum(np.sqrt(intrinsic**2 + smearing**2 / 12) / tsamp, 1e-3)
    tau = np.maximum(pulse.scattering_ms * 1e-3 * (frequencies / 1000) ** -4.0 / tsamp, 1e-6 * sigma)
    # Less than 1e-4 of the flux lies beyond 5 sigma and 10 scattering times.
    reach = 5 * sigma.max()
    delay = dispersion_delay(pulse.dm_pc_cm3, frequencies, frequencies[0]) / tsamp
    return _Shape(delay, sigma, tau, int(np.ceil(reach)) + 1, int(np.ceil(reach + 10 * tau.max())) + 2)


def pulse_extent(pulse: Pulse, frequencies: np.ndarray, tsamp: float) -> tuple[int, int]:
    """First sample of a pulse, in the highest channel, and the one after its last sample, in the lowest channel."""
    shape = _shape(pulse, frequencies, tsamp)
    peak = int(np.floor(pulse.time_s / tsamp))
    return peak - shape.before, peak + int(np.rint(shape.delay[-1])) + shape.after


def with_short_sweeps(
    pulses: Sequence[Pulse],
    fraction: float,
    frequencies: np.ndarray,
    dms: tuple[float, float],
    widths_ms: tuple[float, float],
    rng: np.random.Generator,
) -> list[Pulse]:
    """Change pulses at random such that their sweeps over the band are 1 to 3 widths.

    The width is changed and, where it reaches its limit, the DM; the scattering time changes with the width.

    Parameters
    ----------
    pulses : sequence of Pulse
        The pulses.
    fraction : float
        Fraction of pulses to change.
    frequencies : (nchans,) ndarray
        Channel centres in MHz, descending.
    dms, widths_ms : (float, float)
        Limits; pulses whose DM would be outside stay as they are.
    rng : numpy.random.Generator
        Source of the choice and of the ratios.
    """
    changed = []
    for pulse in pulses:
        chosen, widths = rng.random() < fraction, rng.uniform(1, 3)
        sweep_ms = 1e3 * float(dispersion_delay(pulse.dm_pc_cm3, frequencies[-1], frequencies[0]))
        if chosen and sweep_ms > 0:
            width_ms = float(np.clip(sweep_ms / widths, *widths_ms))
            dm, tail = pulse.dm_pc_cm3 * width_ms * widths / sweep_ms, pulse.scattering_ms * width_ms / pulse.width_ms
            if dms[0] <= dm <= dms[1]:
                pulse = replace(pulse, dm_pc_cm3=dm, width_ms=width_ms, scattering_ms=tail)
        changed.append(pulse)
    return changed


def _scattered_cdf(t: np.ndarray, sigma: np.ndarray, tau: np.ndarray) -> np.ndarray:
    """Cumulative distribution of a Gaussian of standard deviation sigma convolved with an exponential of mean tau."""
    from scipy.special import erfcx, ndtr

    z = (sigma / tau - t / sigma) / np.sqrt(2)
    # Two forms of the same term; each is used only where its exponent is negative and cannot overflow.
    rising = 0.5 * np.exp(-0.5 * (t / sigma) ** 2) * erfcx(np.maximum(z, 0))
    tail = np.exp(np.minimum(0.5 * (sigma / tau) ** 2 - t / tau, 0)) * ndtr(-np.sqrt(2) * z)
    return ndtr(t / sigma) - np.where(z > 0, rising, tail)


def scintillation(frequencies: np.ndarray, bandwidth_mhz: float, rng: np.random.Generator) -> np.ndarray:
    """Draw the gains of a thin screen: mean 1, autocorrelation a Lorentzian of half width ``bandwidth_mhz``.

    The electric field is the Fourier transform of a random impulse response of exponentially decaying power, with
    ``2 pi tau bandwidth = 1`` (Cordes & Rickett 1998, ApJ 507, 846); its intensity is averaged over each channel.

    Parameters
    ----------
    frequencies : (nchans,) ndarray
        Channel centres in MHz, descending, evenly spaced.
    bandwidth_mhz : float
        Above 0.
    rng : numpy.random.Generator
        Source of the random impulse response.

    Returns
    -------
    gains : (nchans,) ndarray of float64
    """
    nchans = len(frequencies)
    foff = frequencies[0] - frequencies[1] if nchans > 1 else 1.0
    # Four points per scintillation bandwidth; more than 64 per channel make no visible difference to its average.
    per_channel = int(np.clip(np.ceil(4 * foff / bandwidth_mhz), 1, 64))
    n = 2 * nchans * per_channel
    delay_us = np.arange(n) * per_channel / (n * foff)
    response = (rng.standard_normal(n) + 1j * rng.standard_normal(n)) * np.exp(-np.pi * bandwidth_mhz * delay_us)
    intensity = np.abs(np.fft.fft(response)[: n // 2]) ** 2
    return intensity.reshape(nchans, per_channel).mean(axis=1) / (
        2 * np.sum(np.exp(-2 * np.pi * bandwidth_mhz * delay_us))
    )


def _spectrum(pulse: Pulse, frequencies: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Relative amplitudes of the channels, (nchans,)."""
    spectrum = (frequencies / np.mean(frequencies)) ** pulse.spectral_index
    if pulse.scintillation_bandwidth_mhz > 0:
        spectrum = spectrum * scintillation(frequencies, pulse.scintillation_bandwidth_mhz, rng)
    if pulse.centre_mhz is not None:
        assert pulse.bandwidth_mhz is not None  # both are given, or neither
        distance = (frequencies - pulse.centre_mhz) / pulse.bandwidth_mhz * FWHM_PER_SIGMA
        spectrum = spectrum * np.exp(-0.5 * distance**2)
    return spectrum


def profile_snr(profile: np.ndarray) -> tuple[float, int]:
    """Find the boxcar with the highest S/N on a profile (n,) of unit noise per sample.

    Every width up to some tens of samples is tried; wider boxcars in steps of a few per cent.

    Returns
    -------
    snr : float
        The largest ``sum / sqrt(width)``.
    width : int
        Width of that boxcar in samples.
    """
    total = np.concatenate([[0.0], np.cumsum(profile, dtype=np.float64)])
    snr, _, width = best_boxcar(total, np.unique(np.rint(np.geomspace(1, len(profile), 400)).astype(int)).tolist())
    return snr, width


def pulse_signal(pulse: Pulse, frequencies: np.ndarray, tsamp: float, rng: np.random.Generator) -> PulseSignal:
    """Compute the signal of a pulse in units of the noise of each channel.

    Each channel is delayed by ``4148.808 s * DM * (nu**-2 - nu_top**-2)``, without rounding, and integrated over each
    sample. The signal is scaled such that ``pulse.snr`` is the S/N of the best boxcar on the noise-free profile,
    dedispersed with delays rounded to a sample and summed over *all* channels, each of unit noise: the largest
    ``sum(profile[a:b]) / sqrt((b - a) * nchans)``. A search in which channels are masked or noisier finds less.

    Parameters
    ----------
    pulse : Pulse
        Parameters of the pulse.
    frequencies : (nchans,) ndarray
        Channel centres in MHz, descending, evenly spaced.
    tsamp : float
        Sampling time in seconds.
    rng : numpy.random.Generator
        Used for scintillation only.

    Raises
    ------
    InputError
        If the pulse is so long that its signal would exceed half a gigabyte, or has no flux in the band.
    """
    shape = _shape(pulse, frequencies, tsamp)
    n = shape.before + shape.after
    if n * len(frequencies) > MAX_SIGNAL_VALUES:
        raise InputError(
            f"a pulse with width_ms {pulse.width_ms:g} and scattering_ms {pulse.scattering_ms:g} must have at most "
            f"{MAX_SIGNAL_VALUES} values, got {n} samples in {len(frequencies)} channels"
        )
    rounded = np.rint(shape.delay).astype(np.int64)
    peak = int(np.floor(pulse.time_s / tsamp))
    arrival = pulse.time_s / tsamp - peak + shape.delay - rounded
    edges = np.arange(-shape.before, shape.after + 1) - arrival[:, None]
    signal = np.diff(_scattered_cdf(edges, shape.sigma[:, None], shape.tau[:, None]), axis=1)
    signal *= _spectrum(pulse, frequencies, rng)[:, None]
    unscaled, width = profile_snr(signal.sum(axis=0))
    if not unscaled > 0:
        raise InputError(
            f"centre_mhz of a band-limited pulse must be near the band of {frequencies[-1]:g} to "
            f"{frequencies[0]:g} MHz, got {pulse.centre_mhz}"
        )
    signal *= pulse.snr * np.sqrt(len(frequencies)) / unscaled
    return PulseSignal(rounded + peak - shape.before, signal.astype(np.float32), width * tsamp * 1e3)


def add_signal(block: np.ndarray, first_sample: int, starts: np.ndarray, signal: np.ndarray) -> None:
    """Add the part of a signal that lies within a block, in place.

    Parameters
    ----------
    block : (m, nchans) ndarray of float32
        Samples ``first_sample`` to ``first_sample + m``.
    first_sample : int
        Number of the first sample of the block.
    starts, signal : (nchans,) and (nchans, n) ndarray
        As in `PulseSignal`.
    """
    starts = starts - first_sample
    channels = np.flatnonzero((starts < len(block)) & (starts + signal.shape[1] > 0))
    if len(channels) == 0:
        return
    # Columns of the signal that are inside the block in at least one channel.
    begin = max(0, -int(starts[channels].max()))
    end = min(signal.shape[1], len(block) - int(starts[channels].min()))
    rows = starts[channels, None] + np.arange(begin, end)
    inside = (rows >= 0) & (rows < len(block))
    columns = np.broadcast_to(channels[:, None], rows.shape)
    block[rows[inside], columns[inside]] += signal[channels, begin:end][inside]


class Injector:
    """Adds pulses to consecutive blocks of an observation, keeping only the signals that reach into the next block.

    Parameters
    ----------
    pulses : sequence of Pulse
        In any order.
    frequencies, tsamp
        As in `pulse_signal`.
    seed : int
        Seed of the scintillation.

    Attributes
    ----------
    pulses : list of Pulse
        In order of time.
    boxcar_widths_ms : (n_pulses,) ndarray of float64
        Width of the best boxcar of each of `pulses`; NaN for those that were not added yet.
    """

    def __init__(self, pulses: Sequence[Pulse], frequencies: np.ndarray, tsamp: float, seed: int):
        self.pulses = sorted(pulses, key=lambda pulse: pulse.time_s)
        self.frequencies, self.tsamp, self.seed = frequencies, tsamp, seed
        self.boxcar_widths_ms = np.full(len(self.pulses), np.nan)
        self._extents = np.array([pulse_extent(p, frequencies, tsamp) for p in self.pulses]).reshape(-1, 2)
        self._active: dict[int, PulseSignal] = {}

    def add(self, block: np.ndarray, first_sample: int) -> None:
        """Add all pulses to a block (m, nchans) float32 in units of channel noise, in place; call in order of time."""
        begin, end = self._extents.T
        for i in np.flatnonzero((begin < first_sample + len(block)) & (end > first_sample)).tolist():
            if i not in self._active:
                rng = np.random.default_rng([self.seed, 4, i])
                self._active[i] = pulse_signal(self.pulses[i], self.frequencies, self.tsamp, rng)
                self.boxcar_widths_ms[i] = self._active[i].boxcar_width_ms
            add_signal(block, first_sample, self._active[i].starts, self._active[i].signal)
        self._active = {i: signal for i, signal in self._active.items() if end[i] > first_sample + len(block)}
