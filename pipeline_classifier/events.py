"""An event: one pulse that a search found, one row of the catalogue."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Event:
    """One pulse. A number that is not known is NaN, and an empty field in the CSV file.

    Attributes
    ----------
    time_s : float
        Centre of the best boxcar at the top channel, from the first sample of the observation, seconds.
    mjd : float
        The same time as a topocentric MJD.
    dm_pc_cm3 : float
        Trial DM of the highest S/N, pc cm^-3.
    snr : float
        S/N of the best boxcar on the sum over channels.
    width_ms : float
        Width of that boxcar, milliseconds.
    probability : float
        Candidate probability; without a candidate classifier, the highest probability of its pages.
    first_page, last_page : int
        Run of adjacent pages in which the event was found.
    width_samples : int
        Width of that boxcar in columns of the page.
    time_downsample : int
        Samples of the observation in a column of those pages.
    dm_stack : int
        Index of their stack of trial DMs; 0 has the lowest DMs.
    mjd_infinite : float
        Topocentric MJD of the arrival at infinite frequency.
    """

    time_s: float
    mjd: float
    dm_pc_cm3: float
    snr: float
    width_ms: float
    probability: float
    first_page: int
    last_page: int
    width_samples: int
    time_downsample: int = 1
    dm_stack: int = 0
    mjd_infinite: float = np.nan
