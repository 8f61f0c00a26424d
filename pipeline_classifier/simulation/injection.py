"""Injection of simulated pulses into the samples of an existing observation."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline_classifier.formats.sigproc import Filterbank, FilterbankWriter, Header
from pipeline_classifier.frontend.baseline import bin_sums
from pipeline_classifier.frontend.cleaning import FEWEST_SAMPLES
from pipeline_classifier.simulation.pulses import Injector, Pulse
from single_pulse_classifier_training.cli import InputError

BLOCK_VALUES = 1 << 22  # samples times IFs times channels per block; chosen by hand
MIN_BLOCK_SAMPLES = 1024  # enough to measure the noise of a channel to a few per cent
MIN_HEADROOM = 0.25  # fraction of samples below the top of their range; limits the compensation to 4, chosen by hand


def inject(
    path: str | Path,
    output: str | Path,
    pulses: Sequence[Pulse],
    seed: int,
    ifs: int | str = "sum",
    progress: bool = False,
) -> Injector:
    """Copy a filterbank file and add pulses, in units of the local noise of each channel.

    The noise is measured in blocks of about four million values (`baseline.bin_sums`); a channel without noise gets no
    signal. A pulse has the requested S/N if the noise is white and equal in all channels. For integer samples the
    signal is rounded up or down at random, which preserves fractions of a count on average, and the result is clipped
    to the range of the samples. With one or two bits a signal that exceeds the noise in a single sample saturates, as
    in a receiver, and the pulse has a lower S/N than requested. Samples outside the pulses are unchanged.

    Parameters
    ----------
    path : str or Path
        The observation; samples of any type that `Filterbank` reads.
    output : str or Path
        The file to write; must not be ``path``.
    pulses : sequence of Pulse
        The pulses to add, such as those of `observation.random_pulses`.
    seed : int
        Seed of the scintillation and the rounding.
    ifs : int or "sum"
        The IFs that will be searched. With ``"sum"`` every IF gets the same signal in units of its own noise, such that
        the sum of all has the S/N of the pulse; with a number that IF gets the whole signal.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    injector : Injector
        Its ``pulses`` are in order of time and have their ``boxcar_widths_ms``.

    Raises
    ------
    InputError
        As in `Filterbank`; also if the file is too short to measure its noise.
    """
    files = [Filterbank(path, number) for number in range(Filterbank(path, ifs).header.nifs)]
    header, nsamples = files[0].header, files[0].nsamples
    if nsamples < FEWEST_SAMPLES:
        raise InputError(f"{path}: observation must have at least {FEWEST_SAMPLES} samples, got {nsamples}")
    chosen = list(range(header.nifs)) if ifs == "sum" else [int(ifs)]
    rows = max(MIN_BLOCK_SAMPLES, BLOCK_VALUES // (header.nifs * header.nchans))
    injector = Injector(pulses, header.frequencies, header.tsamp, seed)
    rng = np.random.default_rng([seed, 5])

    bar = tqdm(total=nsamples, unit=" samples", desc="injection", disable=None if progress else True)
    with FilterbankWriter(output, header) as writer, bar:
        for first in range(0, nsamples, rows):
            blocks = [file.read(first, rows) for file in files]
            signal = np.zeros(blocks[0].shape, np.float32)
            injector.add(signal, first)
            if signal.any():
                # The last block may be too short to measure its noise; earlier samples are then included.
                around = min(first, max(0, nsamples - rows))
                windows = [blocks[i] if around == first else files[i].read(around, rows) for i in chosen]
                for i, gain in zip(chosen, counts_per_sigma(windows, header), strict=True):
                    add_to_samples(blocks[i], signal * gain, header, rng)
            block = np.stack(blocks, axis=1)
            writer.write(block[:, :, ::-1] if header.ascending else block)
            bar.update(len(block))
    return injector


def counts_per_sigma(windows: Sequence[np.ndarray], header: Header) -> np.ndarray:
    """Compute the counts to add to each IF for one sigma of the sum of these IFs.

    Parameters
    ----------
    windows : sequence of (n, nchans) ndarray
        Samples of each IF that gets part of the signal.
    header : Header
        Type of the samples.

    Returns
    -------
    gains : (n_ifs, nchans) ndarray of float32
    """
    levels = np.stack([bin_sums(window).level for window in windows])
    total = levels.sum(axis=0)
    gains = levels * np.sqrt((levels**2).sum(axis=0)) / np.where(total > 0, total, 1)
    if header.nbits < 8:
        # With few levels many samples are at the top of the range; the others compensate for those.
        headroom = [(window < header.sample_range[1]).mean(axis=0) for window in windows]
        gains /= np.maximum(headroom, MIN_HEADROOM)
    return gains.astype(np.float32)


def add_to_samples(samples: np.ndarray, counts: np.ndarray, header: Header, rng: np.random.Generator) -> None:
    """Add ``counts`` (n, nchans) >= 0 in place to ``samples`` (n, nchans) of the header's dtype, as `inject` says."""
    touched = counts > 0
    rise = counts[touched]
    if header.dtype.kind != "f":
        rise = np.floor(rise + rng.random(len(rise), dtype=np.float32))
        rise = np.clip(samples[touched] + rise, *header.sample_range)
        samples[touched] = rise.astype(header.dtype)
    else:
        samples[touched] += rise
