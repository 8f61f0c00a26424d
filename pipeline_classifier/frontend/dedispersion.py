"""Incoherent dedispersion: for every trial DM, the sum over channels delayed by the cold-plasma law."""

import threading
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.frontend.compiled_additions import additions
from pipeline_classifier.frontend.dedispersion_plan import Schedule, plan_tree

LEVELS_PER_SIGMA = 8
"""Quantisation steps per standard deviation of a channel. Rounding adds a variance of 1/12 step^2, 0.13 %."""

STRETCH = 32768
"""Samples summed at once. Long rows make few calls, which benefits several threads more than the cache would."""

COMPILED_STRETCH = 4096
"""The same for compiled additions, whose calls have no overhead."""

FINEST_QUANTUM = 1.0
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
    0.45, pulses of two samples keep 0.957 and pulses of 1 ms 0.99, for 0.38 of the additions; with 0.7, 0.91 and 0.97.
    A minimum quantum of 2 samples would keep 0.89 of two-sample pulses at DM 30 and 128 us. The minimum of 1 sample
    costs most where samples are long for the sweep: 0.93 is kept at DM 10 and 256 us.
    """
    if len(frequencies) <= FEW_CHANNELS:
        return np.full(len(dms), FINEST_QUANTUM)
    smearing = channel_delays(dms, frequencies, tsamp)[:, -1] / (len(frequencies) - 1)
    return np.maximum(FINEST_QUANTUM, PART_OF_SMEARING * smearing)


def accumulator_dtype(nchans: int) -> np.dtype:
    """Smallest integer type that holds the sum of ``nchans`` samples made by `quantise`."""
    return np.dtype(np.int16 if nchans <= 1024 else np.int32)


def quantise(data: torch.Tensor, nchans: int, out: np.ndarray) -> np.ndarray:
    """Round samples of unit noise to `LEVELS_PER_SIGMA` steps per sigma.

    Samples are clipped so that no sum over the channels overflows `accumulator_dtype`.

    Parameters
    ----------
    data : float32 tensor
        Samples in any order; overwritten.
    nchans : int
        Channels that will be summed.
    out : int8 ndarray
        Memory for the result, of the shape of ``data``.

    Returns
    -------
    ndarray of int8
        ``out``.
    """
    limit = min(127, np.iinfo(accumulator_dtype(nchans)).max // nchans)
    np.copyto(out, data.mul_(LEVELS_PER_SIGMA).round_().clamp_(-limit, limit).numpy(), casting="unsafe")
    return out


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


class DedispersionTree:
    """Dedispersion in which trial DMs share partial sums.

    Adjacent bands of channels are merged in pairs, and each band has only the rows that the DM grid needs: the tree of
    Taylor (1974, A&AS 15, 367), generalised to the exact cold-plasma delays of any DM grid.

    Parameters
    ----------
    delays : (n_dm, nchans) ndarray
        Delays in samples, from `channel_delays`.
    quanta : (n_dm,) ndarray, optional
        Delay quanta in samples, from `delay_quanta`: trial DMs whose sweeps over a band differ by less share its
        partial sum, which sacrifices a little S/N of the shortest pulses for fewer additions. Without quanta the result
        equals `brute_force` over the rounded delays to the bit.
    device : torch.device or str
        Device of the additions.
    stretch : int, optional
        Samples summed at once. A shorter remainder at the end of a block takes as long as a whole stretch.
    compiled : bool
        On a CPU, use additions compiled by a C compiler: faster, with the same result.
    at_once : int, optional
        Threads that may sum at the same time; the others wait. Default: no limit.

    Attributes
    ----------
    delays : (n_dm, nchans) ndarray of int64
        Delays that the sums really have.
    max_delay : int
        Samples needed after the last one of the result.
    additions : int
        Additions of rows per stretch.
    """

    def __init__(
        self,
        delays: np.ndarray,
        quanta: np.ndarray | None = None,
        device: torch.device | str = "cpu",
        stretch: int | None = None,
        compiled: bool = False,
        at_once: int | None = None,
    ) -> None:
        wanted = np.rint(delays).astype(np.int64) if quanta is None else delays
        root, self._row_of_dm = plan_tree(wanted, quanta)
        self.delays = root.delays[self._row_of_dm]
        self.max_delay = root.past
        self.additions = root.additions
        self.device = torch.device(device)
        self.stretch = stretch or max(STRETCH, 4 * self.max_delay) * (16 if self.device.type == "cuda" else 1)
        self.compiled = compiled and self.device.type == "cpu"
        if self.compiled:
            self.stretch = min(self.stretch, max(COMPILED_STRETCH, 2 * self.max_delay))
            additions(accumulator_dtype(delays.shape[1]))
        self._schedule = Schedule(root, self.stretch)
        self._turn = threading.BoundedSemaphore(at_once) if at_once else nullcontext()
        self._free: list[_Workspace] = []

    @property
    def memory_bytes(self) -> int:
        """Memory that each thread needs while it sums."""
        return self._schedule.size * accumulator_dtype(self.delays.shape[1]).itemsize

    def __call__(self, data: np.ndarray, n: int, out: np.ndarray | None = None) -> np.ndarray:
        """Dedisperse a block. Several threads may call this at the same time; each uses a separate workspace.

        Parameters
        ----------
        data : (nchans, >= n + max_delay) ndarray of int8
            Samples from `quantise`.
        n : int
            Samples to return.
        out : (n_dm, n) ndarray, optional
            Memory for the result.

        Returns
        -------
        (n_dm, n) ndarray of `accumulator_dtype`
        """
        if out is None:
            out = np.empty((len(self._row_of_dm), n), dtype=accumulator_dtype(len(data)))
        with self._turn:
            try:
                workspace = self._free.pop()
            except IndexError:
                workspace = _Workspace(self._schedule, accumulator_dtype(len(data)), self.device, self.compiled)
            self._sum(workspace, data, n, out)
            self._free.append(workspace)
        return out

    def release(self) -> None:
        """Free the workspaces, which are otherwise kept for the next call."""
        self._free.clear()

    def _sum(self, workspace: "_Workspace", data: np.ndarray, n: int, out: np.ndarray) -> None:
        for start in range(0, n, self.stretch):
            length = min(self.stretch, n - start)
            samples = data[:, start : start + length + self.max_delay]
            workspace.data[:, : samples.shape[1]].copy_(torch.from_numpy(samples))
            workspace.add_all()
            rows = workspace.rows[:, :length]
            # In very fine grids several trial DMs have the same delays and share a row.
            rows = rows if len(rows) == len(out) else rows[self._row_of_dm]
            torch.from_numpy(out)[:, start : start + length].copy_(rows)


class _Workspace:
    """Memory for one stretch of samples, and the additions in it."""

    def __init__(self, schedule: Schedule, dtype: np.dtype, device: torch.device, compiled: bool) -> None:
        kind = torch.from_numpy(np.empty(0, dtype)).dtype
        memory = torch.zeros(schedule.size, dtype=kind, device=device)
        self.data, self.rows = (
            memory.as_strided((place.kept, place.pitch), (place.pitch, 1), place.offset)
            for place in (schedule.data, schedule.rows)
        )
        if compiled:
            table = schedule.additions
            self.add_all = partial(additions(dtype), memory.data_ptr(), table.ctypes.data, len(table))
            return
        views = []
        for count, width, *places in schedule.additions.tolist():
            pairs = zip(places[::2], places[1::2], strict=True)
            views.append([memory.as_strided((count, width), (step, 1), first) for first, step in pairs])
        if device.type == "cpu":  # numpy adds short rows faster than torch
            self.add_all = partial(_add_numpy, [[view.numpy() for view in three] for three in views])
        else:
            self.add_all = partial(_add_torch, views)


def _add_numpy(views: list[list[np.ndarray]]) -> None:
    for upper, lower, total in views:
        np.add(upper, lower, total)


def _add_torch(views: list[list[torch.Tensor]]) -> None:
    for upper, lower, total in views:
        torch.add(upper, lower, out=total)
