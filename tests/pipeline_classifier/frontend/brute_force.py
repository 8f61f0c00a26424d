"""Dedispersion without a tree: the reference."""

import numpy as np

from pipeline_classifier.frontend.dedispersion import accumulator_dtype


def brute_force(data: np.ndarray, delays: np.ndarray, n: int) -> np.ndarray:
    """Compute ``out[i, t] = sum_c data[c, t + delays[i, c]]`` term by term: the reference for the tree.

    Parameters
    ----------
    data : (nchans, n + largest delay) ndarray
        int8 or float samples.
    delays : (n_dm, nchans) ndarray of int
        Delays in samples.
    n : int
        Samples to return.

    Returns
    -------
    (n_dm, n) ndarray
        The dtype is `accumulator_dtype` for int8 samples, otherwise that of ``data``.
    """
    out = np.zeros((len(delays), n), accumulator_dtype(len(data)) if data.dtype.kind == "i" else data.dtype)
    for row, shifts in zip(out, delays, strict=True):
        for channel, shift in zip(data, shifts, strict=True):
            row += channel[shift : shift + n]
    return out
