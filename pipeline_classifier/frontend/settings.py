"""Settings of the front end. Nothing heavy is imported: the config is checked before torch is loaded."""

from dataclasses import dataclass
from typing import Literal

BIN = 16  # samples in a sum
BLOCK_SAMPLES = 24576
"""Samples of an observation from which pages are made at once, by default."""


@dataclass(frozen=True)
class Cleaning:
    """What to clean.

    Attributes
    ----------
    baseline_window_s : length of the running mean that is subtracted from every channel, at least 80 samples; 0
        subtracts the mean alone. Pulses must be shorter: one of a tenth of the window loses about a tenth of its S/N.
    zero_dm : what is done about undispersed interference: "zdot" regresses every channel against the mean of all
        channels, "zero" subtracts that mean; both drop the samples of strong impulses. None: nothing.
    zap_threshold : inter-quartile ranges by which a channel's skewness, kurtosis and other figures may be off those
        of the band
    mask_threshold : robust sigmas by which a channel's figures may differ from those of near channels (IQRM)
    zaplist : [[f_low, f_high], ...] in MHz, bands that are never used.
    kadane_channels : neighbouring channels taken together to find long narrow-band signals; 0: not sought
    kadane_threshold : their S/N
    kadane_width_s : and least length
    td, fd : samples and channels that `downsample` averages before the cleaning
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
