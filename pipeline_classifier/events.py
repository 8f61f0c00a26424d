"""An event: one pulse that a search found, one row of the catalogue."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Event:
    """One pulse.

    Attributes
    ----------
    time_s : from the first sample of the observation, at the top channel, centre of the best boxcar
    mjd : the same as MJD (topocentric); empty in the CSV when unknown, as every unknown number
    dm_pc_cm3 : trial DM of the highest S/N
    snr : of the best boxcar on the sum over channels
    width_ms : of that boxcar
    probability : of the second look; without one, the highest of the pages of the event
    first_page, last_page : the adjacent positive pages it was found in
    width_samples : width in columns of the page
    time_downsample : samples of the observation in a column of those pages
    dm_stack : number of their stack of trial DMs
    mjd_infinite : topocentric MJD at which it would have come at infinite frequency
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
