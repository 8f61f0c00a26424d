"""Pages of an observation on a GPU: samples are copied once, and only figures and a few columns come back."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pipeline_classifier.frontend import dedispersion
from pipeline_classifier.frontend.chunks import Chunk
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages, Planes, stacks_of
from pipeline_classifier.frontend.gpu.cleaning import clean
from pipeline_classifier.frontend.gpu.dedispersion import DeviceTree
from pipeline_classifier.frontend.gpu.images import robust_noise, to_images
from pipeline_classifier.frontend.pages import PageBatch, sampling_steps
from pipeline_classifier.frontend.settings import FrontEndSettings

MOST_WORKERS = 3
"""Largest number of chunks that are processed at the same time: some are read while one is computed, and more would
only occupy memory of the GPU. Chosen by hand."""


@dataclass(frozen=True)
class DeviceBatch(PageBatch):
    """Pages whose plane is a tensor of integer sums on a device; methods return arrays, except for images.

    Attributes
    ----------
    plane : (n_dm, n) tensor of int16 or int32
    """

    plane: torch.Tensor  # type: ignore[assignment]

    @property
    def are_images(self) -> bool:
        """Whether the pages are images already."""
        return False

    def noise(self) -> tuple[np.ndarray, np.ndarray]:
        """Median and noise of each page, both (B,) float32."""
        median, sigma = torch.stack(robust_noise(self._sampled())).cpu().numpy()
        return median, sigma

    def largest_boxcars(self, n_widths: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Search the whole plane with boxcars, with the result of `PageBatch.largest_boxcars`."""
        rows = self.plane.to(torch.float32) * self.scale
        lowest, total, width = rows.amin(dim=0), rows.sum(dim=0), 1
        highest = rows.new_full((n_widths, rows.shape[1]), -torch.inf)
        highest[0] = rows.amax(dim=0)
        for number in range(1, n_widths, 2):
            if rows.shape[1] <= width:
                break
            pairs = rows[:, :-width] + rows[:, width:]
            highest[number, : pairs.shape[1]] = pairs.amax(dim=0)
            if number + 1 < n_widths and pairs.shape[1] > width:
                late = pairs[:, width:]
                highest[number + 1, : late.shape[1]] = (rows[:, : late.shape[1]] + late).amax(dim=0)
            rows, width = pairs, 2 * width
        return highest.cpu().numpy(), lowest.cpu().numpy(), total.cpu().numpy()

    def columns_on_host(self, first: int, end: int) -> np.ndarray:
        """Copy columns of the plane to the host, not scaled."""
        return self.plane[:, first:end].cpu().numpy()

    def images(self, chosen: np.ndarray, normaliser: str, resolution: int) -> tuple[torch.Tensor, np.ndarray]:  # type: ignore[override]
        """Turn some of the pages into images (B, resolution, resolution) of uint8 on the device."""
        return to_images(self._pages(chosen), normaliser, resolution)

    def sampled(self) -> np.ndarray:
        """Copy the values that `PageBatch.sampled` cuts out to the host."""
        return self._sampled().cpu().numpy()

    def cut(self, chosen: slice | np.ndarray) -> np.ndarray:
        """Copy some of the pages to the host, (B, n_dm, n_time) float32."""
        return self._pages(chosen).cpu().numpy()

    def _sampled(self) -> torch.Tensor:
        return self._pages(slice(None), *sampling_steps(len(self.plane), self.n_time))

    def _pages(self, chosen: slice | np.ndarray, rows: int = 1, columns: int = 1) -> torch.Tensor:
        """Some of the pages on the device, float32: all of their values, or each of so many rows and columns."""
        first = torch.from_numpy(self.columns[chosen]).to(self.plane.device)
        windows = self.plane[::rows].unfold(1, self.n_time, 1)[:, :, ::columns]
        return windows[:, first].transpose(0, 1).to(torch.float32, memory_format=torch.contiguous_format) * self.scale


class DevicePages(FilterbankPages):
    """Pages of an observation, made on a device; they are those of `FilterbankPages` but for the rounding of samples.

    Samples are copied as they are read; only those that are averaged first (`Cleaning.td`, `Cleaning.fd`) are averaged
    on the host. Cutouts of events are made on the host.

    Parameters
    ----------
    path, settings
        As for `FilterbankPages`.
    device : torch.device or str
        Any device, also the CPU in tests.
    """

    def __init__(
        self, path: str | Path | Sequence[str | Path], settings: FrontEndSettings, device: torch.device | str
    ) -> None:
        super().__init__(path, settings)
        # With its number: threads begin with the first GPU as their current one.
        self._device = torch.empty(0, device=device).device
        self.plan = replace(self.plan, workers=min(self.plan.workers, MOST_WORKERS))
        self._device_trees = [
            DeviceTree(*self._delays(stack, settings), self._device) for stack in stacks_of(settings.dms)
        ]

    def _dedispersed(self, chunk: Chunk) -> Planes:
        """Read, clean and dedisperse the samples of one chunk."""
        nchans = len(self.frequencies)
        data = torch.zeros((nchans, chunk.end - chunk.start), dtype=torch.int8, device=self._device)
        good, not_finite, constant = np.zeros(nchans, dtype=bool), 0, 0
        for begin, finish, read_from, read_to in self._pieces(chunk.start, chunk.end, self.cleaning):
            raw = torch.from_numpy(self._read(read_from, read_to)).to(self._device)
            part = clean(raw, self.frequencies, self.tsamp, self.cleaning)
            chosen = slice(begin - read_from, finish - read_from)
            data[:, begin - chunk.start : finish - chunk.start] = part.data[:, chosen]
            good |= part.good
            not_finite += int(part.not_finite[chosen].sum())
            constant += int(part.constant[chosen].sum())
        kind = torch.int16 if dedispersion.accumulator_dtype(nchans) == np.int16 else torch.int32
        sums: list[Any] = []
        for tree, (first, last) in zip(self._device_trees, chunk.columns, strict=True):
            plane = torch.zeros((len(tree.delays), last - first), dtype=kind, device=self._device)
            tree.add(data, plane, chunk.start - first)
            sums.append(plane)
        return Planes(chunk, good, not_finite, constant, sums)

    def _without(self, complete: int, sums: Any, stack: int) -> Any:
        """Copy the columns from ``complete`` on."""
        return sums[:, complete:].clone()

    def _batch(self, columns: Any, factor: int, *meaning: Any) -> PageBatch:
        """Put a copy of the columns, of which ``factor`` are summed to one, into a batch of pages."""
        if factor > 1:
            columns = columns.unflatten(1, (-1, factor)).sum(dim=2, dtype=torch.int32)
        return DeviceBatch(columns.clone(), *meaning)
