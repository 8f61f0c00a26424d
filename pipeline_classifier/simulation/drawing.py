"""Random draws that all kinds of simulated interference share."""

from typing import Any

import numpy as np

from pipeline_classifier.formats.sigproc import Header
from pipeline_classifier.simulation.pulses import FWHM_PER_SIGMA

LEAST_DEVIATION = 1.0
"""Least deviation of a sweep from the best f^-2 law, root mean square, in full widths at half maximum. Nothing would
distinguish downward sweeps far below it from pulses; upward ones are as rare, so that interference looks the same
backwards in time, on average. Chosen by hand; not tuned on data."""


def deviation_from_dispersion(times: np.ndarray, frequencies: np.ndarray, weights: np.ndarray) -> float:
    """Root mean square difference between times and the f^-2 law, of any DM, that fits best.

    Parameters
    ----------
    times, frequencies, weights : (n,) ndarray
        Arrival time, frequency and amplitude of each channel.

    Returns
    -------
    deviation : float
        In the unit of ``times``.
    """
    law = frequencies**-2.0
    law, times = law - np.average(law, weights=weights), times - np.average(times, weights=weights)
    slope = (weights * law) @ times / max((weights * law) @ law, 1e-300)
    return float(np.sqrt(np.average((times - slope * law) ** 2, weights=weights)))


class Draw:
    """Draws numbers, samples and spectra for one observation.

    Parameters
    ----------
    header : Header
        Geometry of the observation.
    nsamples : int
        Length of the observation.
    rng : numpy.random.Generator
        Source of the random numbers.
    """

    def __init__(self, header: Header, nsamples: int, rng: np.random.Generator):
        self.nsamples, self.rng = nsamples, rng
        self.nchans, self.tsamp, self.frequencies = header.nchans, header.tsamp, header.frequencies
        self.minutes = nsamples * header.tsamp / 60
        self.relative_frequencies = header.frequencies / header.frequencies.mean()

    def log_uniform(self, low: float, high: float, size: int | None = None) -> Any:
        return np.exp(self.rng.uniform(np.log(low), np.log(high), size))

    def samples(self, size: int) -> np.ndarray:
        return self.rng.integers(0, self.nsamples, size)

    def spectrum(self, amplitude: float) -> np.ndarray:
        """Power law over the band with a random index and mean ``amplitude``."""
        slope = self.relative_frequencies ** self.rng.uniform(-4, 4)
        return (amplitude * slope / slope.mean()).astype(np.float32)

    def follows_dispersion(self, times: np.ndarray, first: int, weights: np.ndarray, sigma: float) -> bool:
        """Whether a sweep, down or up, follows the f^-2 law to within `LEAST_DEVIATION` of its width in a channel.

        Parameters
        ----------
        times, weights : (n,) ndarray
            Arrival time in samples and amplitude in channels from ``first`` on.
        first : int
            First channel.
        sigma : float
            Standard deviation in samples; the sweep within a channel adds to it.
        """
        fwhm = FWHM_PER_SIGMA * np.hypot(sigma, np.ptp(times) / len(times) / np.sqrt(12))
        frequencies = self.frequencies[first : first + len(times)]
        return bool(deviation_from_dispersion(times, frequencies, weights) < LEAST_DEVIATION * fwhm)
