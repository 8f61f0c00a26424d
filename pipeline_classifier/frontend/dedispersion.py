"""Incoherent dedispersion: for every trial DM the sum over channels, delayed by the cold-plasma law."""

import threading
from contextlib import nullcontext
from functools import partial

import numpy as np
import torch

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.frontend.compiled_additions import additions
from pipeline_classifier.frontend.dedispersion_plan import Schedule, plan_tree

LEVELS_PER_SIGMA = 8
"""Steps of a quantised sample in one standard deviation of a channel: rounding adds 0.13 % to the variance."""

STRETCH = 32768
"""Samples summed at once: rows long enough to pay for a call, which matters more to several threads than the cache."""

COMPILED_STRETCH = 4096
"""The same for compiled additions, of which a call costs nothing."""

FINEST_QUANTUM = 1.0
PART_OF_SMEARING = 0.45


def channel_delays(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """Delay of every channel at every trial DM behind the top channel, in samples, (n_dm, nchans) float64.

    Parameters
    ----------
    dms : (n_dm,) pc cm^-3
    frequencies : (nchans,) MHz, highest first
    tsamp : seconds
    """
    return dispersion_delay(np.asarray(dms)[:, None], frequencies[None, :], frequencies[0]) / tsamp


def delays_in_samples(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """`channel_delays` rounded to whole samples, int64."""
    return np.rint(channel_delays(dms, frequencies, tsamp)).astype(np.int64)


def delay_quanta(dms: np.ndarray, frequencies: np.ndarray, tsamp: float) -> np.ndarray:
    """How far delays may be off without a loss that counts, for each trial DM, (n_dm,) samples.

    A pulse is smeared over the delay inside a channel whatever is done: half of that may be added in each band, but no
    pulse is taken for shorter than two samples.
    """
    smearing = channel_delays(dms, frequencies, tsamp)[:, -1] / max(1, len(frequencies) - 1)
    return np.maximum(FINEST_QUANTUM, PART_OF_SMEARING * smearing)


def accumulator_dtype(nchans: int) -> np.dtype:
    """Smallest integer type that holds the sum of ``nchans`` samples made by `quantise`."""
    return np.dtype(np.int16 if nchans <= 1024 else np.int32)


def quantise(data: torch.Tensor, nchans: int, out: np.ndarray) -> np.ndarray:
    """Round unit-noise samples to `LEVELS_PER_SIGMA` steps a sigma, clipped so that no `accumulator_dtype` overflows.

    Parameters
    ----------
    data : float32 samples in any order, changed in place
    nchans : channels that will be summed
    out : int8 of the same shape
    """
    limit = min(127, np.iinfo(accumulator_dtype(nchans)).max // nchans)
    np.copyto(out, data.mul_(LEVELS_PER_SIGMA).round_().clamp_(-limit, limit).numpy(), casting="unsafe")
    return out


def brute_force(data: np.ndarray, delays: np.ndarray, n: int) -> np.ndarray:
    """The defining sum ``out[i, t] = sum_c data[c, t + delays[i, c]]``: the reference for every faster way.

    Parameters
    ----------
    data : (nchans, n + largest delay) int8, or float
    delays : (n_dm, nchans) samples
    n : samples to return

    Returns
    -------
    (n_dm, n) of `accumulator_dtype`, or float
    """
    out = np.zeros((len(delays), n), accumulator_dtype(len(data)) if data.dtype.kind == "i" else data.dtype)
    for row, shifts in zip(out, delays, strict=True):
        for channel, shift in zip(data, shifts, strict=True):
            row += channel[shift : shift + n]
    return out


class DedispersionTree:
    """Dedispersion with every partial sum that several trial DMs share computed once.

    Neighbouring channels are merged two by two, and a band keeps only the rows that the DM grid needs (the tree of
    Taylor 1974, A&AS 15, 367, for the delays of any grid).

    Parameters
    ----------
    delays : (n_dm, nchans) from `channel_delays`, samples
    quanta : (n_dm,) from `delay_quanta`: trial DMs whose sweeps over a band differ by less share its partial sum, which
        costs a little S/N of the shortest pulses and saves most additions. None: the sum over the rounded delays,
        equal to `brute_force` to the bit.
    device : where the sums are done
    compiled : on a CPU, let a C compiler make the additions faster; the result is the same
    at_once : threads that sum at the same time, while others wait; None: all
    stretch : samples summed at once; a block that is not of whole stretches takes the time of the next longer one
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
        self._free: list[_Room] = []

    @property
    def memory_bytes(self) -> int:
        """Memory that each thread takes while it sums."""
        return self._schedule.size * accumulator_dtype(self.delays.shape[1]).itemsize

    def __call__(self, data: np.ndarray, n: int, out: np.ndarray | None = None) -> np.ndarray:
        """Dedisperse ``data`` (nchans, >= n + max_delay) int8 to (n_dm, n) of `accumulator_dtype`.

        Several threads may call; each has memory of its own while it sums.
        """
        if out is None:
            out = np.empty((len(self._row_of_dm), n), dtype=accumulator_dtype(len(data)))
        with self._turn:
            try:
                room = self._free.pop()
            except IndexError:
                room = _Room(self._schedule, accumulator_dtype(len(data)), self.device, self.compiled)
            self._sum(room, data, n, out)
            self._free.append(room)
        return out

    def release(self) -> None:
        """Give back the memory of the sums, which is otherwise kept for the next call."""
        self._free.clear()

    def _sum(self, room: "_Room", data: np.ndarray, n: int, out: np.ndarray) -> None:
        for start in range(0, n, self.stretch):
            length = min(self.stretch, n - start)
            piece = data[:, start : start + length + self.max_delay]
            room.data[:, : piece.shape[1]].copy_(torch.from_numpy(piece))
            room.add_all()
            rows = room.rows[:, :length]
            # Grids so fine that two trial DMs have the same delays share a row.
            rows = rows if len(rows) == len(out) else rows[self._row_of_dm]
            torch.from_numpy(out)[:, start : start + length].copy_(rows)


class _Room:
    """Memory for one stretch of samples, and what does the additions in it."""

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
        if device.type == "cpu":  # numpy adds short rows faster than torch, in the same memory
            self.add_all = partial(_add_numpy, [[view.numpy() for view in three] for three in views])
        else:
            self.add_all = partial(_add_torch, views)


def _add_numpy(views: list[list[np.ndarray]]) -> None:
    for upper, lower, total in views:
        np.add(upper, lower, total)


def _add_torch(views: list[list[torch.Tensor]]) -> None:
    for upper, lower, total in views:
        torch.add(upper, lower, out=total)
