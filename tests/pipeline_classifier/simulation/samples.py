"""Noise files, and brute-force dedispersion and boxcar search, for the tests of simulations."""

from pathlib import Path

import numpy as np

from pipeline_classifier.formats.sigproc import FilterbankWriter, Header


def noise(path: Path, header: Header, nsamples: int, dead: int | None = None) -> Path:
    """Write white noise whose level differs from channel to channel; channel ``dead`` of the file is constant."""
    rng = np.random.default_rng(1)
    channels = np.arange(header.nchans)
    highest = (1 << header.nbits) - 1
    sigma = {1: 0.6, 2: 0.8, 4: 2.0, 8: 10.0, 16: 900.0, 32: 3e-3}[header.nbits] * (1 + 0.3 * np.cos(channels))
    mean = highest / 2 if header.nbits < 32 and not header.signed else 0.0
    samples = rng.standard_normal((nsamples, header.nifs, header.nchans)) * sigma + mean
    if header.nbits < 32:
        limits = (-(highest + 1) // 2, highest // 2) if header.signed else (0, highest)
        samples = np.clip(np.rint(samples), *limits)
    if dead is not None:
        samples[:, :, dead] = 1
    with FilterbankWriter(path, header) as file:
        file.write(samples.astype(header.dtype))
    return path


def dedisperse(data: np.ndarray, dm: float, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """Roll every channel back by its delay, rounded to a sample, and sum."""
    delays = np.rint(4148.808 * dm * (frequencies**-2 - frequencies[0] ** -2) / tsamp).astype(int)
    return np.sum([np.roll(channel, -delay) for channel, delay in zip(data.T, delays)], axis=0)


def boxcar_search(profile: np.ndarray, widest: int) -> tuple[float, int, int]:
    """S/N (for a profile of unit noise), first sample and width of the best boxcar."""
    total = np.concatenate([[0], np.cumsum(profile)])
    snr, width = max((np.max(total[w:] - total[:-w]) / np.sqrt(w), w) for w in range(1, widest))
    return snr, int(np.argmax(total[width:] - total[:-width])), width
