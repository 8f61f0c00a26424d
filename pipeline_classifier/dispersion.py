"""The delay of a cold plasma."""

import numpy as np

DISPERSION_CONSTANT = 4148.808
"""s MHz^2 / (pc cm^-3); Lorimer & Kramer, Handbook of Pulsar Astronomy (2005), eq. 4.7."""


def dispersion_delay(dm: np.ndarray | float, frequency_mhz: np.ndarray | float, reference_mhz: float) -> np.ndarray:
    """Arrival time in seconds at ``frequency_mhz`` after that at ``reference_mhz`` for a pulse of ``dm`` pc cm^-3."""
    return DISPERSION_CONSTANT * dm * (np.square(1.0 / np.asarray(frequency_mhz)) - 1.0 / reference_mhz**2)
