"""The scaling of images on disk, recognised from their grey levels."""

import numpy as np

ROBUST_LEVEL = 51.0
"""Grey level of the median of every page scaled by ``robust``, which maps -5 to +20 sigma to 0 to 255."""
# How images are recognised as scaled by ``robust``; chosen by hand. Rounding, and a median taken from a part of the
# page, change the level by less than two. Of 30 pages with a pulse scaled by ``minmax``, three had a median within
# three levels too, and the included model recognised these pulses with either scaling.
IMAGES_EXAMINED, LEVELS_FROM_MEDIAN, MOST_IMAGES = 64, 3.0, 0.9


def scaling_of(images: np.ndarray) -> str | None:
    """Recognise the normaliser of images (N, H, W) of uint8: "robust" (also for ``noise``), "minmax" or None.

    ``robust`` puts the median of every page at the same grey level, and ``minmax`` its extremes at 0 and 255.
    """
    robust, minmax = [], []
    for image in images[:: 1 + len(images) // IMAGES_EXAMINED]:
        lowest, highest = int(image.min()), int(image.max())
        if highest > lowest:  # a page that cannot be scaled is black in every set
            robust.append(abs(float(np.median(image)) - ROBUST_LEVEL) <= LEVELS_FROM_MEDIAN)
            minmax.append((lowest, highest) == (0, 255))
    if robust and np.mean(robust) >= MOST_IMAGES:
        return "robust"
    return "minmax" if minmax and all(minmax) else None


def contradicts(scaling: str | None, normaliser: str) -> bool:
    """Return whether images of a recognised scaling cannot be those of a normaliser."""
    return scaling is not None and (scaling == "minmax") != (normaliser == "minmax")
