"""Frequency-time cutouts of candidates: whether a peak follows the dispersion law in every part of the band.

On a DM-time plane, interference in a part of the band, sweeps of another law and band-limited pulses look alike; in
the channels they do not. The cutouts are made from samples before zero-DM regression, which spreads undispersed signals
over all channels.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from pipeline_classifier.detection.candidate_cutouts import BRIGHTEST_SNR, SIDE, column_of, sub_bands_of
from pipeline_classifier.detection.peaks import Peak
from pipeline_classifier.frontend import kernels
from pipeline_classifier.frontend.pages import ROBUST_RANGE
from pipeline_classifier.frontend.sources import Channels, ChannelSource, Layer

PULSE_COLUMNS = slice(SIDE // 2 - 1, SIDE // 2 + 2)
"""Columns of a cutout that a pulse fills; two others are half full."""
VALUES_AT_ONCE = 1 << 23
"""Largest number of samples times channels that are cleaned at once, so that memory is bounded; 32 MB of float32."""


class FrequencyTime:
    """Makes the frequency-time cutouts of the peaks of a layer.

    Parameters
    ----------
    source : ChannelSource
    layer : Layer
        Layer in whose planes the peaks are found.
    """

    def __init__(self, source: ChannelSource, layer: Layer) -> None:
        self._source, self._layer = source, layer
        self._bands = sub_bands_of(len(source.frequencies))

    def cutouts(self, peaks: Sequence[Peak], origin: int) -> np.ndarray:
        """Cut out the surroundings of peaks, in units of the noise.

        Parameters
        ----------
        peaks : sequence of Peak
        origin : int
            First sample of the plane in which they were found, in samples of the layer.

        Returns
        -------
        (n, 2, SIDE, SIDE) ndarray of float32
            Rows are sub-bands, row 0 the lowest; columns are a quarter of the peak's width, as in
            `candidate_cutouts.cutout`. First image: dedispersed at the DM of the peak. Second image: not dedispersed,
            about the time at which the peak passes the middle of the band in which it is bright. Above `BRIGHTEST_SNR`
            all values are scaled such that the peak has this S/N. Values outside the observation are 0, those of
            sub-bands without a channel in use the lowest of `ROBUST_RANGE`.
        """
        factor = self._layer.time_downsample
        columns = np.array([column_of(peak.width) for peak in peaks])
        centres = [origin + round(peak.column + (peak.width - n) / 2) for peak, n in zip(peaks, columns, strict=True)]
        columns *= factor
        starts = np.array(centres) * factor - SIDE // 2 * columns
        dms = self._layer.grid.dms[[peak.row for peak in peaks]]
        delays = np.rint(dms[:, None] * self._source.delay_per_dm).astype(np.int64)
        end = int((starts + delays.max(axis=1) + SIDE * columns).max())
        samples = range(max(0, int(starts.min())), min(self._source.nsamples, end))
        # Both images are in the same samples, which are cleaned once if they fit into the memory.
        held = list(parts_of(self._source, samples)) if len(samples) <= samples_at_once(self._source) else None
        dedispersed = self._sums(held or parts_of(self._source, samples), starts[:, None] + delays, columns)
        channel = self._bands.mean(axis=1).astype(int)[brightest_rows(dedispersed)]
        delay = delays[np.arange(len(peaks)), channel]
        undispersed_starts = np.broadcast_to((starts + delay)[:, None], delays.shape)
        undispersed = self._sums(held or parts_of(self._source, samples), undispersed_starts, columns)
        scale = np.array([min(1.0, BRIGHTEST_SNR / peak.snr) for peak in peaks], np.float32)
        values = np.stack([dedispersed, undispersed], axis=1) * scale[:, None, None, None]
        return np.nan_to_num(values, nan=ROBUST_RANGE[0])[:, :, ::-1]

    def _sums(self, parts: Iterable[tuple[int, Channels]], starts: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Sum the samples of each sub-band and column.

        Parameters
        ----------
        parts : iterable of (int, Channels)
            The samples of the observation that all cutouts are in, as `parts_of` yields them.
        starts : (n, nchans) ndarray of int64
            Sample of each channel at which the first column begins.
        columns : (n,) ndarray of int64
            Samples in a column.

        Returns
        -------
        (n, SIDE, SIDE) ndarray of float32
            In units of the noise, row 0 = highest frequency; NaN in sub-bands without a channel in use.
        """
        sums, counts = np.zeros((2, len(starts), SIDE, SIDE), np.float32)
        used = np.zeros(SIDE, bool)
        for begin, (data, good) in parts:
            used |= np.array([good[low:high].any() for low, high in self._bands])
            for number, column in enumerate(columns.tolist()):
                kernels.add_to_cutout(
                    data, good, starts[number] - begin, column, self._bands, sums[number], counts[number]
                )
        values = sums / np.sqrt(np.maximum(counts, 1))
        values[:, ~used] = np.nan
        return values


def samples_at_once(source: ChannelSource) -> int:
    """Return how many samples of a source are cleaned at once; see `VALUES_AT_ONCE`."""
    return max(1, VALUES_AT_ONCE // len(source.frequencies))


def parts_of(source: ChannelSource, samples: range) -> Iterator[tuple[int, Channels]]:
    """Yield samples in parts that fit into the memory: the first sample of each, and its channels."""
    at_once = samples_at_once(source)
    for begin in samples[::at_once]:
        data, good = source.channels(begin, min(at_once, samples.stop - begin))
        yield begin, Channels(np.ascontiguousarray(data), good)


def brightest_rows(dedispersed: np.ndarray) -> np.ndarray:
    """Row of each cutout (n, rows, columns) with half of the power of the pulse above it and half below, (n,)."""
    pulse = np.nan_to_num(dedispersed[:, :, PULSE_COLUMNS].sum(axis=2))
    power = np.cumsum(np.square(np.maximum(pulse, 0)), axis=1)
    return (power < power[:, -1:] / 2).sum(axis=1).clip(0, dedispersed.shape[1] - 1)
