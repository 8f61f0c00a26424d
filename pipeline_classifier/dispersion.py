"""The cold-plasma dispersion law."""

import numpy as np

DISPERSION_CONSTANT = 4148.808
"""In s MHz^2 / (pc cm^-3); Lorimer & Kramer, Handbook of Pulsar Astronomy (2005), eq. 4.7."""


def dispersion_delay(dm: np.ndarray | float, frequency_mhz: np.ndarray | float, reference_mhz: float) -> np.ndarray:
    """Compute the delay of a pulse at one frequency relative to another.

    Parameters
    ----------
    dm : ndarray or float
        Dispersion measure in pc cm^-3.
    frequency_mhz : ndarray or float
        Frequency in MHz.
    reference_mhz : float
        Reference frequency in MHz.

    Returns
    -------
    ndarray
        Arrival time at ``frequency_mhz`` minus that at ``reference_mhz``, in seconds; ``dm`` and ``frequency_mhz`` are
        broadcast against each other.
    """
    return DISPERSION_CONSTANT * dm * (np.square(1.0 / np.asarray(frequency_mhz)) - 1.0 / reference_mhz**2)
