"""Incoherent dedispersion: for every trial DM, the sum over channels delayed by the cold-plasma law."""

import numpy as np

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.frontend import kernels
from pipeline_classifier.frontend.dedispersion_plan import Schedule, plan_sub_bands

LEVELS_PER_SIGMA = 8
"""Quantisation steps per standard deviation of a channel. Rounding adds a variance of 1/12 step^2, 0.13 %."""

STRETCH = 2048
"""Samples summed at once. Of 512, 1024, 2048 and 4096 the fastest in most of the cases named at
`dedispersion_plan.MOST_ROWS`, on a core with 1 MB of L2 cache: of shorter rows, more samples are summed twice."""

FINEST_QUANTUM = 0.5
"""Smallest delay quantum in samples; see `delay_quanta`."""

PART_OF_SMEARING = 0.45
"""Delay quantum divided by the smearing inside a channel; see `delay_quanta`."""


FEW_CHANNELS = 16
"""Largest number of channels for which no difference in delay above `FINEST_QUANTUM` is neglected. Their additions are
fewer than those of 256 channels with the quanta of `delay_quanta`. With 4 and 8 channels of 300 MHz at 1.4 GHz, pulses
of 0.5 ms that are not smeared inside a channel would lose up to half of their S/N."""


def channel_delays(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """Compute the delay of every channel relative to the top channel.

    Parameters
    ----------
    dms : (n_dm,) ndarray
        Trial DMs in pc cm^-3.
    frequencies : (nchans,) ndarray
        Channel centres in MHz, highest first.
    tsamp : float
        Sampling time in seconds.

    Returns
    -------
    (n_dm, nchans) ndarray of float64
        Delays in samples.
    """
    return dispersion_delay(np.asarray(dms)[:, None], frequencies[None, :], frequencies[0]) / tsamp


def delays_in_samples(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """Round `channel_delays` to whole samples, int64."""
    return np.rint(channel_delays(dms, frequencies, tsamp)).astype(np.int64)


def delay_quanta(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """Compute the differences in delay that the tree may neglect at each trial DM.

    The parameters are those of `channel_delays`.

    Returns
    -------
    (n_dm,) ndarray
        In samples: `PART_OF_SMEARING` of the mean smearing inside a channel, but at least `FINEST_QUANTUM`; this
        minimum for up to `FEW_CHANNELS`.

    Notes
    -----
    The sweep over the band divided by nchans - 1 is the mean delay across one channel. Incoherent dedispersion smears
    every pulse by that much, so each band of the tree may share one partial sum between trial DMs whose sweeps over the
    band differ by a fraction of it. The shared sum has their mean delays, which are wrong by about half a quantum at
    most.

    The S/N of noiseless boxcar pulses relative to exact dedispersion (the worst of five phases; 256 channels from 1210
    to 1510 MHz, 256 trial DMs in steps of 0.5 pc cm^-3, pulses at DM 30, 57 and 120, sampling of 54.6 and 128 us): with
    0.45, pulses of two samples keep 0.959 and pulses of 1 ms 0.99, for 0.4 of the additions; with 0.7, 0.92 and 0.98.
    A minimum quantum of 2 samples would keep 0.83 of two-sample pulses at DM 30 and 128 us. One of 1 sample keeps 0.94
    at DM 10 and 256 us, and lowers the candidate probability of a giant pulse of the Crab pulsar (S/N 7.7, four samples
    of 512 us, Parkes, 4 bits) from 0.8 to 0.2; that of 0.5 takes 15 per cent longer at 102 us.
    """
    if len(frequencies) <= FEW_CHANNELS:
        return np.full(len(dms), FINEST_QUANTUM)
    smearing = channel_delays(dms, frequencies, tsamp)[:, -1] / (len(frequencies) - 1)
    return np.maximum(FINEST_QUANTUM, PART_OF_SMEARING * smearing)


def accumulator_dtype(nchans: int) -> np.dtype:
    """Smallest integer type that holds the sum of ``nchans`` samples made by `quantise`."""
    return np.dtype(np.int16 if nchans <= 1024 else np.int32)


def largest_level(nchans: int) -> int:
    """Largest size of a rounded sample of which no sum over ``nchans`` channels overflows `accumulator_dtype`."""
    return min(127, np.iinfo(accumulator_dtype(nchans)).max // nchans)


def quantise(data: np.ndarray, nchans: int, out: np.ndarray) -> np.ndarray:
    """Round samples of unit noise to `LEVELS_PER_SIGMA` steps per sigma.

    Samples are clipped so that no sum over the channels overflows `accumulator_dtype`.

    Parameters
    ----------
    data : float32 ndarray
        Samples in any order.
    nchans : int
        Channels that will be summed.
    out : int8 ndarray
        Memory for the result, of the shape of ``data``.

    Returns
    -------
    ndarray of int8
        ``out``.
    """
    limit = largest_level(nchans)
    np.copyto(out, np.clip(np.rint(data * np.float32(LEVELS_PER_SIGMA)), -limit, limit), casting="unsafe")
    return out


class DedispersionTree:
    """Dedispersion in which trial DMs share partial sums.

    The band is divided into sub-bands with a short sweep. In each of them adjacent bands of channels are merged in
    pairs, and each band has only the rows that the DM grid needs: the tree of Taylor (1974, A&AS 15, 367), generalised
    to the exact cold-plasma delays of any DM grid.

    Parameters
    ----------
    delays : (n_dm, nchans) ndarray
        Delays in samples, from `channel_delays`.
    quanta : (n_dm,) ndarray, optional
        Delay quanta in samples, from `delay_quanta`: trial DMs whose sweeps over a band differ by less share its
        partial sum, which sacrifices a little S/N of the shortest pulses for fewer additions. Without quanta the
        rounded delays are exact.
    stretch : int
        Samples summed at once.

    Attributes
    ----------
    delays : (n_dm, nchans) ndarray of int64
        Delays that the sums really have.
    max_delay : int
        The largest of them.
    additions : int
        Additions of rows per stretch.
    memory_bytes : int
        Memory that each thread needs while it sums, besides samples and result.
    """

    def __init__(self, delays: np.ndarray, quanta: np.ndarray | None = None, stretch: int = STRETCH) -> None:
        sub_bands = plan_sub_bands(np.rint(delays).astype(np.int64) if quanta is None else delays, quanta)
        self.delays = np.concatenate([sub_band.delays for sub_band in sub_bands], axis=1)
        self.max_delay = int(self.delays.max())
        schedules = [Schedule(sub_band.band, stretch) for sub_band in sub_bands]
        self._additions = np.concatenate([schedule.additions for schedule in schedules])
        ends = np.cumsum([len(schedule.additions) for schedule in schedules])
        self._sub_bands = np.array(
            [
                (s.band.lo, s.band.hi, s.band.past, s.shift.min(), s.shift.max(), schedule.pitch, end)
                for s, schedule, end in zip(sub_bands, schedules, ends, strict=True)
            ]
        )
        self._summands = np.array(
            [np.column_stack([t.starts[s.row], s.shift]) for s, t in zip(sub_bands, schedules, strict=True)]
        )
        self.additions = len(self._additions) + 2 * len(sub_bands) * len(delays)
        self._stretch, self._size = stretch, max(schedule.size for schedule in schedules)
        self.memory_bytes = self._size * np.dtype(np.int16).itemsize
        self._free: list[np.ndarray] = []

    def __call__(self, data: np.ndarray, n: int) -> np.ndarray:
        """Dedisperse a block. Several threads may call this at the same time; each uses a separate workspace.

        Parameters
        ----------
        data : (nchans, >= n + max_delay) ndarray of int8
            Samples from `quantise`; missing ones at the end count as zeros.
        n : int
            Samples to return.

        Returns
        -------
        (n_dm, n) ndarray of `accumulator_dtype`
        """
        plane = np.zeros((len(self.delays), n), accumulator_dtype(len(data)))
        self.add(data, plane, 0)
        return plane

    def add(self, data: np.ndarray, plane: np.ndarray, origin: int | None = None) -> None:
        """Add the dedispersed samples of one chunk to a plane, which other chunks may overlap.

        ``plane[i, origin + t - delays[i, c]] += data[c, t]`` for all trial DMs i, channels c and samples t for which
        the plane has this column. Several threads may call this at the same time for separate planes; each uses a
        separate workspace.

        Parameters
        ----------
        data : (nchans, n) ndarray of int8
            Samples from `quantise`, C-contiguous.
        plane : (n_dm, columns) ndarray of int16 or int32
            Type at least `accumulator_dtype`; C-contiguous.
        origin : int, optional
            Column of the first sample without delay; by default `max_delay`, for planes of max_delay + n columns.
        """
        origin = self.max_delay if origin is None else origin
        try:
            memory = self._free.pop()
        except IndexError:
            memory = np.zeros(self._size, np.int16)
        tables = self._sub_bands, self._additions, self._summands
        kernels.dedisperse(data, plane, origin, *tables, memory, self._stretch)
        self._free.append(memory)

    def release(self) -> None:
        """Free the workspaces, which are otherwise kept for the next call."""
        self._free.clear()
