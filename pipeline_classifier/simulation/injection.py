"""Pulses that are known, added to the raw samples of an observation that somebody has."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from pipeline_classifier.formats.sigproc import Filterbank, FilterbankWriter, Header
from pipeline_classifier.frontend.baseline import bin_sums
from pipeline_classifier.frontend.cleaning import FEWEST_SAMPLES
from pipeline_classifier.simulation.pulses import Injector, Pulse
from single_pulse_classifier_training.cli import InputError

BLOCK_VALUES = 1 << 22
SHORTEST_BLOCK = 1024  # samples; fewer do not tell the noise of a channel to a few per cent
LEAST_ROOM = 0.25


def inject(
    path: str | Path,
    output: str | Path,
    pulses: Sequence[Pulse],
    seed: int,
    ifs: int | str = "sum",
    progress: bool = False,
) -> Injector:
    """Copy a filterbank file and add pulses, in units of the noise that each channel has at that time.

    The noise is measured in blocks of about four million values (`baseline.bin_sums`), so that a pulse has its S/N in
    noise that is white and alike in all channels; a channel without noise gets nothing. Integers rise by the signal
    rounded up or down at random, so that fractions of a count add up to what they should, and are clipped to their
    range: of one or two bits, a signal of about the noise or more in a single sample and channel saturates, as it does
    in a receiver, and the pulse has less than its S/N. Samples that no pulse touches are the same bits as before.

    Parameters
    ----------
    path
        The observation; samples of any type that `Filterbank` reads.
    output
        The file to write, whole or not at all; must not be ``path``.
    pulses
        See `simulation.random_pulses`.
    seed
        Of scintillation and rounding.
    ifs
        IFs that the search takes: with ``"sum"`` every IF gets the same signal in units of its own noise, such that the
        sum of all has the pulse's S/N; with a number that IF gets all of it.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    Injector
        With ``pulses`` in order of time and their ``boxcar_widths_ms``.

    Raises
    ------
    InputError
        As `Filterbank`; also when the file is too short to tell its noise.
    """
    files = [Filterbank(path, number) for number in range(Filterbank(path, ifs).header.nifs)]
    header, nsamples = files[0].header, files[0].nsamples
    if nsamples < FEWEST_SAMPLES:
        raise InputError(f"{path}: holds {nsamples} samples; valid for an injection: at least {FEWEST_SAMPLES}")
    chosen = list(range(header.nifs)) if ifs == "sum" else [int(ifs)]
    rows = max(SHORTEST_BLOCK, BLOCK_VALUES // (header.nifs * header.nchans))
    injector = Injector(pulses, header.frequencies, header.tsamp, seed)
    rng = np.random.default_rng([seed, 5])

    bar = tqdm(total=nsamples, unit=" samples", desc="injection", disable=None if progress else True)
    with FilterbankWriter(output, header) as writer, bar:
        for first in range(0, nsamples, rows):
            blocks = [file.read(first, rows) for file in files]
            signal = np.zeros(blocks[0].shape, np.float32)
            injector.add(signal, first)
            if signal.any():
                # The last block may be short: its noise is that of the samples before it, too.
                around = min(first, max(0, nsamples - rows))
                windows = [blocks[i] if around == first else files[i].read(around, rows) for i in chosen]
                for i, gain in zip(chosen, counts_per_sigma(windows, header), strict=True):
                    add_to_samples(blocks[i], signal * gain, header, rng)
            block = np.stack(blocks, axis=1)
            writer.write(block[:, :, ::-1] if header.ascending else block)
            bar.update(len(block))
    return injector


def counts_per_sigma(windows: Sequence[np.ndarray], header: Header) -> np.ndarray:
    """Counts to add in each IF for one sigma of the sum of the IFs, (n_ifs, nchans) float32.

    Parameters
    ----------
    windows : (n, nchans) samples of each IF that gets a share
    """
    levels = np.stack([bin_sums(torch.from_numpy(window)).level.numpy() for window in windows])
    shares = levels.sum(axis=0)
    gains = levels * np.sqrt((levels**2).sum(axis=0)) / np.where(shares > 0, shares, 1)
    if header.nbits < 8:
        # A sample at the top of so small a range cannot rise: those below it rise for it.
        room = [(window < header.sample_range[1]).mean(axis=0) for window in windows]
        gains /= np.maximum(room, LEAST_ROOM)
    return gains.astype(np.float32)


def add_to_samples(samples: np.ndarray, counts: np.ndarray, header: Header, rng: np.random.Generator) -> None:
    """Add ``counts`` (n, nchans), 0 or more, to ``samples`` of the header's type in place; see `inject`."""
    touched = counts > 0
    rise = counts[touched]
    if header.dtype.kind != "f":
        rise = np.floor(rise + rng.random(len(rise), dtype=np.float32))
        rise = np.clip(samples[touched] + rise, *header.sample_range)
        samples[touched] = rise.astype(header.dtype)
    else:
        samples[touched] += rise
