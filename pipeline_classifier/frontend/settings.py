"""Settings of the front end: plain data, so that a config can be checked before torch is loaded."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

BIN = 16
"""Samples per bin; noise and baseline are measured from the sums over bins."""
BLOCK_SAMPLES = 24576
"""Largest length of the chunks in which an observation is read, in samples, unless the config has another."""


@dataclass(frozen=True)
class Cleaning:
    """Settings of the cleaning.

    Attributes
    ----------
    baseline_window_s : float
        Length in seconds of the running mean that is subtracted from every channel, at least 80 samples; 0 subtracts
        the mean of the block. Pulses must be shorter: one of a tenth of the window loses about a tenth of its S/N.
    zero_dm : {"zdot", "zero"} or None
        Treatment of undispersed interference: ``zdot`` regresses every channel against the mean of all channels,
        ``zero`` subtracts that mean. Both also set the samples of strong impulses to zero.
    zap_threshold : float
        A channel is masked if a statistic lies more than this many inter-quartile ranges beyond the quartiles of the
        band.
    mask_threshold : float
        A channel is masked if a statistic differs by more than this many robust standard deviations from that of
        neighbouring channels (IQRM).
    zaplist : tuple of (low, high)
        Frequency bands in MHz that are never used.
    kadane_channels : int
        Neighbouring channels that are averaged in the search for long narrow-band signals; 0 switches it off.
    kadane_threshold : float
        Minimum S/N of such a signal to be removed.
    kadane_width_s : float
        Shortest such signal in seconds.
    td, fd : int
        Samples and channels that are averaged before the cleaning.
    """

    baseline_window_s: float = 0.2
    zero_dm: Literal["zdot", "zero"] | None = "zdot"
    zap_threshold: float = 3.0
    mask_threshold: float = 7.0
    zaplist: tuple[tuple[float, float], ...] = ()
    kadane_channels: int = 0
    kadane_threshold: float = 10.0
    kadane_width_s: float = 0.05
    td: int = 1
    fd: int = 1


@dataclass(frozen=True, eq=False)
class FrontEndSettings:
    """How an observation becomes pages.

    Attributes
    ----------
    dms : (n_dm,) ndarray
        Trial DMs in pc cm^-3, ascending and evenly spaced. Stacks of 256 of them have pages of their own.
    cleaning : Cleaning
        Settings of the cleaning.
    n_time : int
        Columns of a page.
    overlap : float
        Fraction of a page that the next one repeats, from 0 to below 1.
    time_downsample : tuple of int
        Samples that are averaged to one column, powers of two; each factor gives pages of its own.
    exact : bool
        Dedisperse with the sum over rounded delays instead of the faster tree.
    ifs : int or "sum"
        Which IF is searched, or the sum of all.
    block_samples : int
        Largest length of the chunks in which an observation is read, in samples. Memory grows with it.
    max_memory_mb : float, optional
        Memory of the whole process in MiB, from which the length of the chunks and the number of those that are
        processed at the same time follow; by default a quarter of the machine's memory, at most 2048.
    device : {"cpu", "cuda"}
        Where pages are made and searched; see `filterbank_pages.pages_of`.
    """

    dms: np.ndarray
    cleaning: Cleaning = Cleaning()
    n_time: int = 256
    overlap: float = 0.0
    time_downsample: tuple[int, ...] = (1,)
    exact: bool = False
    ifs: int | str = "sum"
    block_samples: int = BLOCK_SAMPLES
    max_memory_mb: float | None = None
    device: Literal["cpu", "cuda"] = "cpu"
