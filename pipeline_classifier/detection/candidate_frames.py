"""Candidate files of FETCH, ``your`` and MeerTRAP as the cutouts that the candidate classifier gets."""

import numpy as np

from pipeline_classifier.detection.candidate_cutouts import BRIGHTEST_SNR, SIDE, column_of, sub_bands_of
from pipeline_classifier.detection.frequency_time import brightest_rows
from pipeline_classifier.detection.listed_candidates import measured_snr
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.candidate_files import PLANE, CandidateFile, samples_per_column
from pipeline_classifier.frontend.pages import ROBUST_RANGE

LEAST_SPREAD = 1e-6
"""Noise, as a fraction of the largest value of a plane, below which a channel is constant: masked."""


def cutouts_of(candidate: CandidateFile) -> tuple[np.ndarray, np.ndarray]:
    """Bring both planes of a candidate to the geometry of `candidate_cutouts.cutout` and `FrequencyTime.cutouts`.

    The times of a file are longer than the columns of a cutout, and its trial DMs may be further apart than the rows:
    the nearest value is taken, and the noise is measured before. Trial DMs outside the file have the lowest value of
    `ROBUST_RANGE`, times outside it are 0. The view that is not dedispersed has the channels delayed as they were.

    Parameters
    ----------
    candidate : CandidateFile

    Returns
    -------
    dm_time : (SIDE, SIDE) ndarray of float32
        Row 0 = lowest DM.
    frequency_time : (2, SIDE, SIDE) ndarray of float32
        Row 0 = lowest frequency.
    """
    width = max(1, round(candidate.width_samples))
    column = column_of(width)
    offsets = np.arange(SIDE) - SIDE // 2
    times, ratio = offsets * column, samples_per_column(width)  # in samples after the arrival; samples per time
    frequencies = channel_frequencies(candidate)
    delays = dispersion_delay(1.0, frequencies, frequencies[0]) / float(candidate.attributes["tsamp"])

    dms = candidate.dm + offsets * column / max(float(delays[-1]), 1e-12)
    rows = np.rint(dms * (PLANE - 1) / max(2 * candidate.dm, 1e-12)).clip(-1, PLANE).astype(int)
    plane = in_units_of_noise(candidate.dm_time)
    dm_time = plane[rows.clip(0, PLANE - 1)][:, nearest(times, ratio)]

    channels = in_units_of_noise_by_channel(candidate.freq_time)
    dedispersed = sub_bands(channels[:, nearest(times, ratio)])
    bright = len(frequencies) * (brightest_rows(dedispersed[None])[0] + 0.5) / SIDE
    shifts = candidate.dm * (delays[min(len(frequencies) - 1, int(bright))] - delays)
    before = np.rint((times + shifts[:, None]) / ratio) + PLANE // 2
    inside = (before >= 0) & (before < PLANE)
    undispersed = np.take_along_axis(channels, before.clip(0, PLANE - 1).astype(int), axis=1)
    undispersed[~inside & np.isfinite(undispersed)] = 0
    views = np.stack([dedispersed, sub_bands(undispersed)])[:, ::-1]

    scale = np.float32(max(1.0, measured_snr(dm_time[SIDE // 2], width) / BRIGHTEST_SNR))
    dm_time, views = dm_time / scale, np.nan_to_num(views / scale, nan=ROBUST_RANGE[0])
    dm_time[(rows < 0) | (rows >= PLANE)] = ROBUST_RANGE[0]
    return dm_time, views


def channel_frequencies(candidate: CandidateFile) -> np.ndarray:
    """Centres of the rows of ``freq_time`` in MHz, highest first; programs may average the channels to fewer."""
    fch1, foff = float(candidate.attributes["fch1"]), float(candidate.attributes["foff"])
    top = max(fch1, fch1 + foff * (candidate.attributes["nchans"] - 1)) + abs(foff) / 2
    n = len(candidate.freq_time)
    step = abs(foff) * float(candidate.attributes["nchans"]) / n
    return np.maximum(top - step * (np.arange(n) + 0.5), 1e-3)


def nearest(times: np.ndarray, samples_per_time: int) -> np.ndarray:
    """Columns of a file (n,) that are nearest to times in samples after the arrival."""
    return (np.rint(times / samples_per_time).astype(int) + PLANE // 2).clip(0, PLANE - 1)


def in_units_of_noise(plane: np.ndarray) -> np.ndarray:
    """Subtract the median of each row and divide by the noise of the plane, float32; what is not finite becomes 0."""
    values = np.nan_to_num(plane.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    values -= np.median(values, axis=1, keepdims=True)
    noise = 1.4826 * np.median(np.abs(values)) or values.std() or 1.0
    return (values / noise).astype(np.float32)


def in_units_of_noise_by_channel(channels: np.ndarray) -> np.ndarray:
    """Do the same for each channel by itself; constant channels are NaN."""
    values = np.nan_to_num(channels.astype(np.float64), nan=0.0, posinf=0.0, neginf=0.0)
    largest = np.abs(values).max()
    values -= np.median(values, axis=1, keepdims=True)
    noise = 1.4826 * np.median(np.abs(values), axis=1, keepdims=True)
    noise = np.where(noise > 0, noise, values.std(axis=1, keepdims=True))
    noise[noise <= LEAST_SPREAD * largest] = np.nan
    return (values / noise).astype(np.float32)


def sub_bands(channels: np.ndarray) -> np.ndarray:
    """Sum channels (n, columns) in units of the noise to `SIDE` sub-bands; NaN without a channel that is not NaN."""
    used = np.isfinite(channels)
    total = np.zeros((len(channels) + 1, channels.shape[1]))
    total[1:] = np.where(used, channels, 0).cumsum(axis=0)
    number = np.zeros(total.shape)
    number[1:] = used.cumsum(axis=0)
    first, end = sub_bands_of(len(channels)).T
    n = number[end] - number[first]
    values = (total[end] - total[first]) / np.sqrt(np.maximum(n, 1))
    return np.where(n > 0, values, np.nan).astype(np.float32)
