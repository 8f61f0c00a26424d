"""What an observation is like before it is read as a whole: warnings, unused channels, changes of the bandpass."""

import numpy as np

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.joined import JoinedFilterbank
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend.baseline import bin_sums
from pipeline_classifier.frontend.blanking import in_float_range
from pipeline_classifier.frontend.cleaning import FEWEST_SAMPLES, downsample, zapped
from pipeline_classifier.frontend.impulses import runs_of
from pipeline_classifier.frontend.settings import Cleaning, FrontEndSettings
from single_pulse_classifier_training.cli import InputError

NOISE_SAMPLES = 4096
"""Samples read on either side of a cutout, or of a short part of a file, to measure the noise of its channels."""
BANDPASS_CHANGE, GAIN_CHANGE = 0.3, 1.0
"""Scatter over the channels, and median, of the step of their means where two files were joined, in sigma: above
either, each file has statistics of its own. The noise of `NOISE_SAMPLES` samples gives a scatter of 0.02. Chosen by
hand."""
FEWEST_DMS = 32
"""Smallest number of trial DMs with which the included models find as many pulses as with 256. Of 100 simulated pulses
(S/N 7 to 30, DM 54 to 58, mild interference) they found 99 with 32 to 512 trial DMs in steps of 0.5, but 60 with 16 and
32 with 8; with other steps, from 1024 times 0.125 to 64 times 2, they found 99 or 100."""
STRETCHES, STRETCH_SAMPLES = 4, 512
"""Parts of a file in all of which a channel must be constant or not finite to count as dead. Chosen by hand."""


def input_warnings(
    file: Filterbank | JoinedFilterbank, frequencies: np.ndarray, settings: FrontEndSettings
) -> list[str]:
    """Return what may be wrong with a header or with settings for it; ``frequencies`` after `Cleaning.fd`."""
    warnings = file.header.warnings() + [
        f"the zaplist band {low:g} to {high:g} MHz contains the centre of no channel"
        for low, high in settings.cleaning.zaplist
        if not zapped(frequencies, ((low, high),)).any()
    ]
    if len(settings.dms) < FEWEST_DMS:
        warnings.append(f"with fewer than {FEWEST_DMS} trial DMs pulses are missed, and there are {len(settings.dms)}")
    duration_s = file.nsamples // settings.cleaning.td * settings.cleaning.td * file.tsamp
    sweeps_s = dispersion_delay(np.asarray(settings.dms), frequencies[-1], frequencies[0])
    if (beyond := sweeps_s > duration_s).any():
        dm = np.asarray(settings.dms)[beyond][0]
        warnings.append(f"from DM {dm:g} on, the sweep is longer than the observation")
    return warnings


def bandpass_changes(file: Filterbank | JoinedFilterbank, sample: int) -> bool:
    """Decide whether the levels of the channels differ before and after a sample, the first one of another file."""
    start = max(0, sample - NOISE_SAMPLES)
    sides = [file.read(start, sample - start), file.read(sample, NOISE_SAMPLES)]
    if min(len(side) for side in sides) < FEWEST_SAMPLES:
        return False
    factor = in_float_range(sides[0])[1]
    before, after = (bin_sums(side * side.dtype.type(factor)) for side in sides)
    used = before.level > 0
    step = after.centre + after.means.mean(axis=0) - before.centre - before.means.mean(axis=0)
    steps = step[used] / before.level[used]
    if not len(steps):
        return False
    common = float(np.median(steps))
    return abs(common) > GAIN_CHANGE or 1.4826 * float(np.median(np.abs(steps - common))) > BANDPASS_CHANGE


def dead_channels(file: Filterbank | JoinedFilterbank, cleaning: Cleaning) -> np.ndarray:
    """Find the channels (nchans // fd,) that are constant or not finite in `STRETCHES` parts of an observation."""
    dead = np.full(file.nchans // cleaning.fd, file.nsamples >= STRETCH_SAMPLES)
    for start in np.linspace(0, max(0, file.nsamples - STRETCH_SAMPLES), STRETCHES).astype(int).tolist():
        block, _ = in_float_range(file.read(start, STRETCH_SAMPLES))
        block, _, _ = downsample(block, file.frequencies, file.tsamp, 1, cleaning.fd)
        dead &= ~(np.fmax.reduce(block) > np.fmin.reduce(block))
    return dead


def unused_bands(
    frequencies: np.ndarray, dead: np.ndarray, zaplist: tuple[tuple[float, float], ...]
) -> tuple[tuple[float, float], ...]:
    """Return the zaplist, and bands [low, high] in MHz of adjacent unused channels that no band of it contains.

    These bands of dead channels, or of channels that the zaplist names one by one, reach to the centres of the next
    channels in use.

    Parameters
    ----------
    frequencies : (nchans,) ndarray
        Channel centres in MHz, highest first.
    dead : (nchans,) ndarray of bool
    zaplist : tuple of (low, high)
    """
    unused = dead | zapped(frequencies, zaplist)
    if unused.all():
        return zaplist
    bands = []
    for first, end in runs_of(unused).tolist():
        width = float(frequencies[0] - frequencies[1])
        low, high = float(frequencies[end - 1]), float(frequencies[first])
        if not any(zapped_low <= low and high <= zapped_high for zapped_low, zapped_high in zaplist):
            bands.append((low - width, high + width))
    return (*zaplist, *bands)


def check_zaplist(file: Filterbank | JoinedFilterbank, frequencies: np.ndarray, cleaning: Cleaning) -> None:
    """Raise InputError if the zaplist removes every channel; ``frequencies`` after `Cleaning.fd`."""
    if zapped(frequencies, cleaning.zaplist).all():
        raise InputError(
            f"{file.path}: the zaplist must leave at least one of its {len(frequencies)} channels, "
            f"got {list(cleaning.zaplist)}"
        )


def after_downsampling(file: Filterbank | JoinedFilterbank, cleaning: Cleaning) -> tuple[np.ndarray, float, int]:
    """Return frequencies, sampling time and length of an observation averaged by `Cleaning.td` and `Cleaning.fd`.

    Returns
    -------
    frequencies : (nchans // fd,) ndarray
        MHz.
    tsamp : float
        Seconds.
    nsamples : int

    Raises
    ------
    InputError
        If the observation is shorter than one sample of the search, or has fewer channels than one of the search.
    """
    nsamples = file.nsamples // cleaning.td
    if not nsamples:
        raise InputError(f"{file.path}: must have at least {cleaning.td} samples (td), got {file.nsamples}")
    if cleaning.fd > file.nchans:
        raise InputError(f"{file.path}: must have at least {cleaning.fd} channels (fd), got {file.nchans}")
    nothing = np.empty((0, file.nchans), file.header.dtype)
    _, frequencies, tsamp = downsample(nothing, file.frequencies, file.tsamp, cleaning.td, cleaning.fd)
    return frequencies, tsamp, nsamples
