"""Compiled loops of the cleaning, as those of `kernels`."""

import numpy as np

from pipeline_classifier.frontend.kernels import kernel
from pipeline_classifier.frontend.settings import BIN

WRITE_TILE = 64
"""Samples that `write_samples` turns to the order of channels at once: a cache line of each; a power of two."""


@kernel
def _add_four(
    rows: np.ndarray, reference: np.ndarray, scale: np.ndarray, first: np.ndarray, second: np.ndarray
) -> None:
    """Add scaled samples and their squares, of four rows at a time to load and store each sum less often."""
    a, b, c, d = rows[0], rows[1], rows[2], rows[3]
    for j in range(len(scale)):
        w = (np.float32(a[j]) - reference[j]) * scale[j]
        x = (np.float32(b[j]) - reference[j]) * scale[j]
        y = (np.float32(c[j]) - reference[j]) * scale[j]
        z = (np.float32(d[j]) - reference[j]) * scale[j]
        first[j] += (w + x) + (y + z)
        second[j] += (w * w + x * x) + (y * y + z * z)


@kernel
def bin_statistics(
    raw: np.ndarray, centre: np.ndarray, std: np.ndarray, means: np.ndarray, variances: np.ndarray
) -> None:
    """Compute mean and variance of each channel in bins of `BIN` samples.

    Parameters
    ----------
    raw : (n, nchans) ndarray
        Samples as read.
    centre, std : (nchans,) ndarray of float32
        Values near the mean and the standard deviation of each channel.
    means : (n // BIN, nchans) ndarray of float32
        Gets the means minus ``centre``.
    variances : (n // BIN, nchans) ndarray of float32
        Gets the variances, with BIN - 1 degrees of freedom; exactly zero where all samples are equal.
    """
    scale, reference = np.float32(1) / std, np.empty(len(std), np.float32)
    for number in range(len(means)):
        first, second = means[number], variances[number]
        for j in range(len(std)):
            reference[j] = raw[number * BIN, j]
            first[j] = second[j] = 0
        for sample in range(number * BIN, (number + 1) * BIN, 4):
            _add_four(raw[sample : sample + 4], reference, scale, first, second)
        for j in range(len(std)):
            mean = first[j] * np.float32(1 / BIN)
            variance = (second[j] - first[j] * mean) * np.float32(1 / (BIN - 1))
            first[j] = mean * std[j] + (reference[j] - centre[j])
            second[j] = max(variance, np.float32(0)) * std[j] * std[j]


@kernel
def raw_moments(rows: np.ndarray, centre: np.ndarray, std: np.ndarray, moments: np.ndarray) -> None:
    """Compute the means of the first four powers of the samples.

    Parameters
    ----------
    rows : (n, nchans) ndarray
        Samples as read; n must be even.
    centre, std : (nchans,) ndarray of float32
        Subtracted from the samples, and divided by.
    moments : (4, nchans) ndarray of float32
        Gets the moments.
    """
    scale, shift, factor = np.float32(1) / std, -centre / std, np.float32(1 / len(rows))
    first, second, third, fourth = moments[0], moments[1], moments[2], moments[3]
    moments[:] = 0
    for sample in range(0, len(rows), 2):
        even, odd = rows[sample], rows[sample + 1]
        for j in range(len(std)):
            x = np.float32(even[j]) * scale[j] + shift[j]
            y = np.float32(odd[j]) * scale[j] + shift[j]
            xx, yy = x * x, y * y
            first[j] += (x + y) * factor
            second[j] += (xx + yy) * factor
            third[j] += (x * xx + y * yy) * factor
            fourth[j] += (xx * xx + yy * yy) * factor


@kernel
def step_means(
    bins: np.ndarray, median: np.ndarray, limit: np.ndarray, weight: np.ndarray, step: int, nodes: np.ndarray
) -> None:
    """Average bins over each step of the baseline, clipped, without bins in which the whole band deviates.

    Parameters
    ----------
    bins : (n_steps * step, nchans) ndarray of float32
        Means of the bins.
    median : (n_steps, nchans) ndarray of float32
        Values from which the bins are clipped.
    limit : (nchans,) ndarray of float32
        Largest deviation.
    weight : (nchans,) ndarray of float32
        Weights of the deviations in their sum, which is at most 0.5 in bins that count.
    step : int
        Bins in a step.
    nodes : (n_steps, nchans) ndarray of float32
        Gets the averages.
    """
    deviation = np.empty(len(limit), np.float32)
    factor = np.float32(1 / step)
    for number in range(len(median)):
        middle, node = median[number], nodes[number]
        for j in range(len(limit)):
            node[j] = middle[j]
        for row in range(number * step, (number + 1) * step):
            values, total = bins[row], np.float32(0)
            for j in range(len(limit)):
                deviation[j] = min(max(values[j] - middle[j], -limit[j]), limit[j])
                total += deviation[j] * weight[j]
            if abs(total) <= 0.5:
                for j in range(len(limit)):
                    node[j] += deviation[j] * factor


@kernel
def quiet_powers(
    residuals: np.ndarray,
    variances: np.ndarray,
    weight: np.ndarray,
    limits: tuple[np.float32, np.float32, np.float32],
    powers: np.ndarray,
) -> None:
    """Average the powers of each channel over the bins in which the whole band is quiet.

    Parameters
    ----------
    residuals, variances : (n_bins, nchans) ndarray of float32
        Means of the bins minus the baseline, and variances within the bins.
    weight : (2, nchans) ndarray of float32
        Factor of the squared residuals, and weights in their sum over the channels.
    limits : (float32, float32, float32)
        Limit of a power in that sum; of the sum in a quiet bin; of a power in the last average.
    powers : (3, nchans) ndarray of float32
        Gets the averages of the variances, of the powers, and of the powers up to their limit.
    """
    factor, share = weight[0], weight[1]
    clip, loudest, highest = limits
    within, between, limited = powers[0], powers[1], powers[2]
    powers[:] = 0
    count = 0
    power = np.empty(len(factor), np.float32)
    for number in range(len(residuals)):
        values, variance, total = residuals[number], variances[number], np.float32(0)
        for j in range(len(factor)):
            power[j] = values[j] * values[j] * factor[j]
            total += min(power[j], clip) * share[j]
        if total < loudest:
            count += 1
            for j in range(len(factor)):
                within[j] += variance[j]
                between[j] += power[j]
                limited[j] += min(power[j], highest)
    for j in range(len(factor)):
        within[j] *= factor[j] / np.float32(max(count, 1))
        between[j] /= np.float32(max(count, 1))
        limited[j] /= np.float32(max(count, 1))


@kernel
def _nodes_around(sample: int, step: int, n_nodes: int) -> tuple[int, int, np.float32]:
    """Nodes before and after a sample, and the weight of the latter; node k is at sample (k + 1/2) * step."""
    position = min(max((sample + 0.5) / step - 0.5, 0.0), n_nodes - 1.0)
    before = int(position)
    return before, min(before + 1, n_nodes - 1), np.float32(position - before)


@kernel
def band_series(raw: np.ndarray, weight: np.ndarray, nodes: np.ndarray, step: int, series: np.ndarray) -> None:
    """Compute the weighted sum over the channels of each sample, minus its baseline.

    Parameters
    ----------
    raw : (n, nchans) ndarray
        Samples as read.
    weight : (nchans,) ndarray of float32
    nodes : (n_nodes,) ndarray of float32
        Weighted sum of the baseline at the nodes.
    step : int
        Samples between two nodes.
    series : (n,) ndarray of float32
        Gets the sums.
    """
    for sample in range(len(raw)):
        before, after, late = _nodes_around(sample, step, len(nodes))
        row, total = raw[sample], np.float32(0)
        for j in range(len(weight)):
            total += np.float32(row[j]) * weight[j]
        series[sample] = total - (nodes[before] + late * (nodes[after] - nodes[before]))


@kernel
def regression_products(
    raw: np.ndarray, instrument: np.ndarray, step: int, product: np.ndarray, node_sums: np.ndarray
) -> None:
    """Compute the products of a series with every channel and with the interpolation of the baseline.

    Parameters
    ----------
    raw : (n, nchans) ndarray
        Samples as read.
    instrument : (n,) ndarray of float32
        The series.
    step : int
        Samples between two nodes of the baseline.
    product : (nchans,) ndarray of float64
        Gets the sums of samples times ``instrument``.
    node_sums : (n_nodes,) ndarray of float64
        Gets the sums of the weights of each node times ``instrument``.
    """
    part = np.empty(len(product), np.float32)
    product[:] = 0
    node_sums[:] = 0
    for first in range(0, len(raw), 1024):
        part[:] = 0
        for sample in range(first, min(first + 1024, len(raw))):
            row, value = raw[sample], instrument[sample]
            before, after, late = _nodes_around(sample, step, len(node_sums))
            node_sums[before] += (np.float32(1) - late) * value
            node_sums[after] += late * value
            for j in range(len(part)):
                part[j] += np.float32(row[j]) * value
        for j in range(len(part)):
            product[j] += part[j]


@kernel
def clipped_sums(
    raw: np.ndarray,
    samples: np.ndarray,
    nodes: np.ndarray,
    step: int,
    scale: np.ndarray,
    limit: np.float32,
    group: np.ndarray,
    sums: np.ndarray,
) -> None:
    """Compute sums over groups of channels in some samples, each channel normalised and clipped.

    Parameters
    ----------
    raw : (n, nchans) ndarray
        Samples as read.
    samples : (k,) ndarray of int64
        Which samples.
    nodes : (n_nodes, nchans) ndarray of float32
        Baseline in counts.
    step : int
        Samples between two nodes.
    scale : (nchans,) ndarray of float32
        Factor of the samples after the baseline is subtracted.
    limit : float32
        Largest size of a normalised sample.
    group : (nchans,) ndarray of int64
        Group of each channel.
    sums : (k, n_groups) ndarray of float32
        Gets the sums.
    """
    sums[:] = 0
    for number in range(len(samples)):
        sample = samples[number]
        before, after, late = _nodes_around(sample, step, len(nodes))
        for j in range(len(scale)):
            base = nodes[before, j] + late * (nodes[after, j] - nodes[before, j])
            value = (np.float32(raw[sample, j]) - base) * scale[j]
            sums[number, group[j]] += min(max(value, -limit), limit)


@kernel
def _cleaned_row(
    row: np.ndarray, scale: np.ndarray, before: np.ndarray, after: np.ndarray, late: np.float32,
    coefficient: np.ndarray, signal: np.float32, limit: np.float32, out: np.ndarray,
) -> None:  # fmt: skip
    """Normalise one sample of all channels, and round it if there is a limit."""
    for j in range(len(scale)):
        base = before[j] + late * (after[j] - before[j])
        value = np.float32(row[j]) * scale[j] - base - signal * coefficient[j]
        out[j] = np.rint(min(max(value, -limit), limit)) if limit > 0 else value


@kernel
def _interleave(early: np.ndarray, late: np.ndarray, out: np.ndarray) -> None:
    """Write the values of two halves in turn."""
    for j in range(len(early)):
        out[2 * j] = early[j]
        out[2 * j + 1] = late[j]


@kernel
def write_samples(
    raw: np.ndarray,
    nodes: np.ndarray,
    step: int,
    scale: np.ndarray,
    coefficient: np.ndarray,
    series: np.ndarray,
    blanked: np.ndarray,
    limit: np.float32,
    out: np.ndarray,
) -> None:
    """Normalise samples, subtract baseline and zero-DM signal, and write them in the order of channels.

    Parameters
    ----------
    raw : (n, nchans) ndarray
        Samples as read.
    nodes : (n_nodes, nchans) ndarray of float32
        Baseline at the nodes, times ``scale``.
    step : int
        Samples between two nodes.
    scale, coefficient : (nchans,) ndarray of float32
        Factors of the samples and of the series that is subtracted from them.
    series : (n,) ndarray of float32
        Zero-DM series.
    blanked : (n,) ndarray of bool
        Samples to set to zero.
    limit : float32
        The result is rounded to whole numbers, half to even, up to this one; 0 for no rounding.
    out : (nchans, >= n) ndarray of int8 or float32
        Gets the result.

    Notes
    -----
    A tile of 2^k samples is turned to the order of channels by k perfect shuffles of its two halves, which the compiler
    makes of vector instructions: twice as fast as single bytes.
    """
    n, nchans = raw.shape
    half = WRITE_TILE * nchans // 2
    tile, other = np.zeros(2 * half, out.dtype), np.zeros(2 * half, out.dtype)
    for first in range(0, n, WRITE_TILE):
        length = min(WRITE_TILE, n - first)
        for j in range(length):
            sample, row = first + j, tile[j * nchans : (j + 1) * nchans]
            before, after, late = _nodes_around(sample, step, len(nodes))
            _cleaned_row(raw[sample], scale, nodes[before], nodes[after], late, coefficient, series[sample], limit, row)
            if blanked[sample]:
                row[:] = 0
        width = 1
        while width < WRITE_TILE:
            _interleave(tile[:half], tile[half:], other)
            tile, other = other, tile
            width *= 2
        for channel in range(nchans):
            line, values = out[channel, first : first + length], tile[channel * WRITE_TILE :]
            for j in range(length):
                line[j] = values[j]


@kernel
def long_runs(flags: np.ndarray, fewest: int) -> np.ndarray:
    """Keep the runs of at least ``fewest`` flags along the first axis of (n, m) bool."""
    n, m = flags.shape
    kept = np.empty((n, m), np.bool_)
    length = np.zeros(m, np.int32)
    for row in range(n):
        for j in range(m):
            length[j] = (length[j] + 1) * flags[row, j]
            kept[row, j] = length[j] >= fewest
    for row in range(n - 2, -1, -1):
        for j in range(m):
            kept[row, j] |= kept[row + 1, j] & flags[row, j]
    return kept
