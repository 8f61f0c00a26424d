"""Dedispersion on a GPU: the sums of `frontend.dedispersion.DedispersionTree` in torch, level by level."""

import numpy as np
import torch

from pipeline_classifier.frontend.dedispersion import accumulator_dtype
from pipeline_classifier.frontend.dedispersion_plan import Band, SubBand, plan_sub_bands


class DeviceTree:
    """Dedispersion in which trial DMs share partial sums, with the result of `DedispersionTree` to the bit.

    Parameters
    ----------
    delays, quanta : ndarray
        As for `DedispersionTree`.
    device : torch.device or str
        Device of samples and sums.

    Attributes
    ----------
    delays : (n_dm, nchans) ndarray of int64
        Delays that the sums really have.
    max_delay : int
        The largest of them.
    """

    def __init__(self, delays: np.ndarray, quanta: np.ndarray | None, device: torch.device | str) -> None:
        sub_bands = plan_sub_bands(np.rint(delays).astype(np.int64) if quanta is None else delays, quanta)
        self.delays = np.concatenate([sub_band.delays for sub_band in sub_bands], axis=1)
        self.max_delay = int(self.delays.max())
        self._sub_bands = [_DeviceSubBand(sub_band, device) for sub_band in sub_bands]

    def __call__(self, data: torch.Tensor, n: int) -> torch.Tensor:
        """Dedisperse a block; arguments and result are those of `DedispersionTree`, as tensors on the device."""
        kind = torch.from_numpy(np.empty(0, accumulator_dtype(len(data)))).dtype
        plane = torch.zeros((len(self.delays), n), dtype=kind, device=data.device)
        for sub_band in self._sub_bands:
            sub_band.add(data, plane, 0)
        return plane

    def add(self, data: torch.Tensor, plane: torch.Tensor, origin: int | None = None) -> None:
        """Add the dedispersed samples of one chunk to a plane, as `DedispersionTree.add`."""
        for sub_band in self._sub_bands:
            sub_band.add(data, plane, self.max_delay if origin is None else origin)


class _DeviceSubBand:
    """A sub-band with its tables on the device."""

    def __init__(self, sub_band: SubBand, device: torch.device | str) -> None:
        self._lo, self._hi, self._past = sub_band.band.lo, sub_band.band.hi, sub_band.band.past
        self._least, self._largest = int(sub_band.shift.min()), int(sub_band.shift.max())
        self._levels = [torch.from_numpy(level).to(device) for level in levels(sub_band.band)]
        self._row, self._shift = (torch.from_numpy(values).to(device) for values in (sub_band.row, sub_band.shift))

    def add(self, data: torch.Tensor, plane: torch.Tensor, origin: int) -> None:
        """Add to columns ``origin + t - delay`` as far as the plane has them."""
        n, past = data.shape[1], self._past
        first = max(0, origin - past - self._largest)
        stop = min(plane.shape[1], origin + n - self._least)
        if stop <= first:
            return
        rows = torch.zeros((self._hi - self._lo + 1, n + 2 * past), dtype=torch.int16, device=data.device)
        rows[:-1, past : past + n] = data[self._lo : self._hi]
        for level in self._levels:
            rows = _next_level(rows, level, n + past)
        # A row begins at column origin - past - shift.
        start = first - origin + past + self._shift
        left = max(0, -(first - origin + past + self._least))
        right = max(0, stop - origin + past + self._largest - rows.shape[1])
        rows = torch.nn.functional.pad(rows, (left, right))
        windows = rows.view(-1).unfold(0, stop - first, 1)
        plane[:, first:stop] += windows[self._row * rows.shape[1] + left + start]


def _next_level(rows: torch.Tensor, level: torch.Tensor, width: int) -> torch.Tensor:
    """Sum pairs of shifted rows; the last row, and every row from ``width`` on, are zeros."""
    windows = rows.view(-1).unfold(0, width, 1)
    starts = level[:, :, 0] * rows.shape[1] + level[:, :, 1]
    result = rows.new_zeros((len(level) + 1, rows.shape[1]))
    torch.add(windows[starts[:, 0]], windows[starts[:, 1]], out=result[:-1, :width])
    return result


def levels(band: Band) -> list[np.ndarray]:
    """Return the additions of a tree by its levels.

    Parameters
    ----------
    band : Band
        The tree.

    Returns
    -------
    list of (n, 2, 2) ndarray of int64
        For each row of a level, from the lowest level to the tree, and each summand its row in the level below and its
        shift. The rows of the lowest level are the channels; below each level, the row after the last one is zeros.
    """
    bands, tables = [band], []
    while any(band.halves for band in bands):
        below = [half for band in bands for half in band.halves or (band,)]
        firsts = np.cumsum([0, *(len(half.rows) for half in below)])
        zeros = np.array([[[0, 0], [firsts[-1], 0]]])
        parts, number = [], 0
        for band in bands:
            part = zeros.copy() if band.halves is None else band.rows.copy()
            for k in range(1 if band.halves is None else 2):
                part[:, k, 0] += firsts[number]
                number += 1
            parts.append(part)
        tables.append(np.concatenate(parts))
        bands = below
    return tables[::-1]
