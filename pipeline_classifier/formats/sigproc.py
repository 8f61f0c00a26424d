"""SIGPROC filterbank files: headers, and samples read and written block by block.

The format is described in D. Lorimer's SIGPROC manual: a header of length-prefixed keywords, each followed by its
value in little-endian byte order, then the samples in the order (time, IF, channel). Samples of 1, 2 and 4 bits are
packed with the first channel in the lowest bits of a byte.
"""

import functools
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np

from pipeline_classifier.formats.sigproc_header import Header, read_header, write_header
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer


class Filterbank:
    """A filterbank file, read block by block with the channels in descending order of frequency.

    Parameters
    ----------
    path : str or Path
        The SIGPROC file.
    ifs : int or "sum"
        How several IFs are combined: ``"sum"`` adds them (for two polarisations), a number selects one of them (for
        Stokes parameters, where 0 is the intensity).

    Attributes
    ----------
    nsamples : int
        Number of whole time samples, computed from the size of the file; the header's ``nsamples`` is ignored.
    bytes_left_over : int
        Bytes after the last whole sample, present if the file was cut off; they are not read.
    frequencies : (nchans,) ndarray of float64
        Channel centres in MHz, descending.

    Raises
    ------
    InputError
        As in `read_header`; also if the file holds no whole sample or does not have the selected IF.
    """

    def __init__(self, path: str | Path, ifs: int | str = "sum"):
        self.path = Path(path)
        self.header = read_header(path)
        if ifs != "sum" and ifs not in range(self.header.nifs):
            raise InputError(f"{self.path}: ifs must be 'sum' or from 0 to {self.header.nifs - 1}, got {ifs!r}")
        self.ifs = ifs
        data_bytes = self.path.stat().st_size - self.header.header_bytes
        self.nsamples, self.bytes_left_over = divmod(data_bytes, self.header.bytes_per_sample)
        if self.nsamples == 0:
            raise InputError(
                f"{self.path}: header must be followed by at least one sample of {self.header.bytes_per_sample} "
                f"bytes, got {data_bytes} bytes"
            )
        self.nchans = self.header.nchans
        self.tsamp = self.header.tsamp
        self.tstart = self.header.tstart
        self.frequencies = self.header.frequencies

    @property
    def duration_s(self) -> float:
        return self.nsamples * self.tsamp

    @property
    def ends(self) -> list[int]:
        """Number of the sample after the last one, as `joined.JoinedFilterbank` has it for every file."""
        return [self.nsamples]

    def read(self, start: int, n: int) -> np.ndarray:
        """Read samples ``start`` to ``start + n``, or to the end of the file if that comes first.

        Returns
        -------
        samples : (m, nchans) ndarray
            Newly allocated, in C order, column 0 = highest frequency. A single IF has the header's dtype; the sum of
            several is uint16 for uint8 samples, float32 for float32, and int32 otherwise.
        """
        if start < 0 or n < 0:
            raise ValueError(f"start and n must not be negative, got {start} and {n}")
        header = self.header
        start = min(start, self.nsamples)
        m = min(n, self.nsamples - start)
        storage = header.dtype if header.nbits >= 8 else np.dtype(np.uint8)
        count = m * header.bytes_per_sample // storage.itemsize
        # Not a memory map, whose pages would count as resident memory, in the end the whole file.
        raw = np.fromfile(self.path, storage, count, offset=header.header_bytes + start * header.bytes_per_sample)
        if raw.size < count:
            raise InputError(
                f"{self.path}: file must not become shorter while it is read, got {raw.size} of {count} values "
                f"from sample {start} on"
            )
        samples = raw if header.nbits >= 8 else unpack(raw, header.nbits, header.dtype.kind == "i")
        samples = samples.reshape(m, header.nifs, header.nchans)
        if header.nifs == 1:
            samples = samples[:, 0]
        elif self.ifs != "sum":
            samples = samples[:, int(self.ifs)]
        else:
            wide = np.float32 if header.nbits == 32 else np.uint16 if header.dtype == np.uint8 else np.int32
            samples = samples.sum(axis=1, dtype=wide)
        # ascontiguousarray would not copy a reversed array of one channel, whose negative stride torch rejects.
        return samples[:, ::-1].copy() if header.ascending else np.ascontiguousarray(samples)


@functools.cache
def _unpacking_table(nbits: int, signed: bool) -> np.ndarray:
    """The samples in each possible byte as one unsigned integer of 8 / nbits bytes, (256,)."""
    shifts = np.arange(0, 8, nbits)
    samples = np.arange(256)[:, None] >> shifts & (1 << nbits) - 1
    sign = 1 << nbits - 1 if signed else 0
    return ((samples ^ sign) - sign).astype(np.uint8).view(f"u{len(shifts)}").ravel()


def unpack(packed: np.ndarray, nbits: int, signed: bool = False) -> np.ndarray:
    """Unpack samples of 1, 2 or 4 bits, lowest bits first: uint8 (n,) to uint8 (int8 if signed) (n * 8 / nbits,)."""
    return _unpacking_table(nbits, signed)[packed].view(np.int8 if signed else np.uint8)


def pack(samples: np.ndarray, nbits: int) -> np.ndarray:
    """Pack uint8 or int8 samples, the inverse of `unpack`; ValueError if a sample does not fit into nbits."""
    lowest = -(1 << nbits - 1) if samples.dtype.kind == "i" else 0
    for extreme in (samples.min(), samples.max()) if samples.size else ():
        if not 0 <= int(extreme) - lowest < 1 << nbits:
            raise ValueError(f"a sample of {extreme} does not fit into {nbits} bits")
    shifts = np.arange(0, 8, nbits, dtype=np.uint8)
    bits = samples.view(np.uint8) & np.uint8((1 << nbits) - 1)
    return np.bitwise_or.reduce(bits.reshape(-1, len(shifts)) << shifts, axis=1)


class FilterbankWriter:
    """Writes a filterbank file block by block; it appears, complete, when the ``with`` block ends without an error.

    Parameters
    ----------
    path : str or Path
        The file to write, in an existing folder.
    header : Header
        Its header.

    Raises
    ------
    InputError
        If the folder does not exist or the header has an impossible value.
    """

    def __init__(self, path: str | Path, header: Header):
        header.check(path)
        self.path, self.header = Path(path), header
        if not self.path.parent.is_dir():
            raise InputError(f"{self.path}: folder must exist, got {self.path.parent}")

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._file = stack.enter_context(atomic_writer(self.path))
            write_header(self._file, self.header)
            self._stack = stack.pop_all()
        return self

    def write(self, block: np.ndarray) -> None:
        """Append samples.

        Parameters
        ----------
        block : (m, nchans) or (m, nifs, nchans) ndarray
            Samples of the header's dtype, with the channels in the order of the header: ascending if ``foff`` is
            positive, unlike those that `Filterbank.read` returns.
        """
        header = self.header
        if block.dtype != header.dtype or block[:1].size not in (0, header.nifs * header.nchans):
            raise ValueError(
                f"expected {header.dtype} (m, {header.nifs} x {header.nchans}), got {block.dtype} {block.shape}"
            )
        self._file.write(np.ascontiguousarray(block if header.nbits >= 8 else pack(block, header.nbits)).data)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)
