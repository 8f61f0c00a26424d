"""SIGPROC filterbank files: headers, and samples read and written block by block.

The format is described in D. Lorimer's SIGPROC manual: a header of length-prefixed keywords, each followed by its
value in little-endian byte order, then the samples in the order (time, IF, channel). Samples of 1, 2 and 4 bits are
packed with the first channel in the lowest bits of a byte.
"""

import functools
import struct
from contextlib import ExitStack
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO, Self

import numpy as np

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer

MAX_HEADER_BYTES = 65536  # real headers have some hundreds of bytes; this limits what is read of any other file
MAX_KEYWORD_BYTES = 80  # the limit of SIGPROC's own reader
NBITS = (1, 2, 4, 8, 16, 32)

INT, DOUBLE, CHAR, STRING = "<i", "<d", "<b", "string"
KEYWORDS = {
    "source_name": STRING,
    "rawdatafile": STRING,
    "telescope_id": INT,
    "machine_id": INT,
    "data_type": INT,
    "barycentric": INT,
    "pulsarcentric": INT,
    "nchans": INT,
    "nbits": INT,
    "nifs": INT,
    "nsamples": INT,
    "nbins": INT,
    "nbeams": INT,
    "ibeam": INT,
    "npuls": "<q",
    "tstart": DOUBLE,
    "tsamp": DOUBLE,
    "fch1": DOUBLE,
    "foff": DOUBLE,
    "src_raj": DOUBLE,
    "src_dej": DOUBLE,
    "az_start": DOUBLE,
    "za_start": DOUBLE,
    "refdm": DOUBLE,
    "period": DOUBLE,
    "signed": CHAR,
}
REQUIRED = ("nchans", "nbits", "tsamp", "fch1", "foff")


@dataclass(frozen=True)
class Header:
    """Header of a filterbank file; fields have the names of SIGPROC's keywords.

    Attributes
    ----------
    nchans, nbits, nifs : int
        Number of channels, bits per sample, and number of IFs (polarisations or Stokes parameters).
    tsamp : float
        Sampling time in seconds.
    fch1, foff : float
        Centre of the first channel in the file, and step to the next one (negative if the band descends), in MHz.
    tstart : float
        MJD of the first sample; 0 if unknown.
    signed : bool
        Whether integer samples have a sign.
    src_raj, src_dej : float
        Position as hhmmss.s and ddmmss.s.
    az_start, za_start : float
        Azimuth and zenith angle in degrees.
    header_bytes : int
        Length of the header as read from a file.
    """

    nchans: int
    nbits: int
    tsamp: float
    fch1: float
    foff: float
    tstart: float = 0.0
    nifs: int = 1
    signed: bool = False
    source_name: str = ""
    rawdatafile: str = ""
    telescope_id: int = 0
    machine_id: int = 0
    data_type: int = 1
    src_raj: float = 0.0
    src_dej: float = 0.0
    az_start: float = 0.0
    za_start: float = 0.0
    nbeams: int = 1
    ibeam: int = 1
    header_bytes: int = field(default=0, compare=False)

    @property
    def frequencies(self) -> np.ndarray:
        """Channel centres in MHz, float64 (nchans,), highest first regardless of the order in the file."""
        return np.sort(self.fch1 + self.foff * np.arange(self.nchans))[::-1].copy()

    @property
    def ascending(self) -> bool:
        """Whether the first channel in the file is the lowest one."""
        return self.foff > 0

    @property
    def bytes_per_sample(self) -> int:
        """Bytes of one time sample with all its IFs and channels."""
        return self.nifs * self.nchans * self.nbits // 8

    @property
    def dtype(self) -> np.dtype:
        """Type of an unpacked sample: uint8 (1 to 8 bits), uint16 or float32; int8 and int16 if signed.

        Signed samples are in two's complement, also those of 2 and 4 bits; a single bit has no sign.
        """
        kind = {16: "<u2", 32: "<f4"}.get(self.nbits, "u1")
        return np.dtype(kind.replace("u", "i") if self.signed and self.nbits > 1 else kind)

    @property
    def sample_range(self) -> tuple[int, int]:
        """Lowest and highest possible value of an integer sample."""
        lowest = -(1 << self.nbits - 1) if self.dtype.kind == "i" else 0
        return lowest, lowest + (1 << self.nbits) - 1

    def check(self, name: str | Path) -> None:
        """Raise InputError, naming the file, for the first impossible value.

        The limits are far outside those of real telescopes; only damaged headers exceed them.
        """
        lowest, highest = sorted((self.fch1, self.fch1 + self.foff * (self.nchans - 1)))
        for good, keyword, requirement in (
            (1 <= self.nchans <= 65536, "nchans", "be from 1 to 65536"),
            (self.nbits in NBITS, "nbits", "be 1, 2, 4, 8, 16 or 32"),
            (1 <= self.nifs <= 4, "nifs", "be from 1 to 4"),
            (1e-9 <= self.tsamp < 10, "tsamp", "be from 1e-9 to 10 seconds"),
            (1e-3 <= self.fch1 <= 1e7, "fch1", "be from 1e-3 to 1e7 MHz"),
            (1e-6 <= abs(self.foff) <= 1e6, "foff", "be from 1e-6 to 1e6 MHz in absolute value"),
            (lowest >= 1e-3 and highest <= 1e7, "foff", "keep every channel within 1e-3 to 1e7 MHz"),
            (0 <= self.tstart <= 1e6, "tstart", "be an MJD from 0 to 1e6"),
            (self.nifs * self.nchans * self.nbits % 8 == 0, "nchans", "let each time sample fill whole bytes"),
        ):
            if not good:
                raise InputError(f"{name}: {keyword} must {requirement}, got {getattr(self, keyword)!r}")


class _HeaderReader:
    """Reads the values of a header one after the other, never beyond its end."""

    def __init__(self, head: bytes, path: Path):
        self.head, self.path, self.position = head, path, 0

    def value(self, kind: str, keyword: str) -> Any:
        if kind == STRING:
            length = self.value(INT, keyword)
            if not 0 <= length <= MAX_HEADER_BYTES:
                raise InputError(
                    f"{self.path}: length of {keyword} must be from 0 to {MAX_HEADER_BYTES} bytes, got {length}"
                )
            return self._take(length, keyword).decode("utf-8", errors="replace").rstrip("\0")
        return struct.unpack(kind, self._take(struct.calcsize(kind), keyword))[0]

    def keyword(self) -> str:
        start = self.position
        length = self.value(INT, "the next keyword")
        if not 1 <= length <= MAX_KEYWORD_BYTES:
            raise InputError(
                f"{self.path}: length of the keyword at byte {start} must be from 1 to {MAX_KEYWORD_BYTES} bytes, "
                f"got {length}"
            )
        return self._take(length, "the next keyword").decode("ascii", errors="replace")

    def _take(self, length: int, what: str) -> bytes:
        piece = self.head[self.position : self.position + length]
        if len(piece) < length:
            raise InputError(
                f"{self.path}: header must end with HEADER_END within {MAX_HEADER_BYTES} bytes, "
                f"got {len(self.head)} bytes, cut off inside {what}"
            )
        self.position += length
        return piece


def read_header(path: str | Path) -> Header:
    """Read and check the header of a SIGPROC file.

    Raises
    ------
    InputError
        If the file does not exist, is not a filterbank, or if its header is cut off or has an unknown keyword or an
        impossible value.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with open(path, "rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    if not head.startswith(b"\x0c\0\0\0HEADER_START"):
        raise InputError(f"{path}: a SIGPROC filterbank must begin with HEADER_START, got {head[:16]!r}")

    reader = _HeaderReader(head, path)
    reader.keyword()
    values: dict[str, Any] = {}
    while (keyword := reader.keyword()) != "HEADER_END":
        if keyword not in KEYWORDS:
            raise InputError(f"{path}: header keyword must be one of {', '.join(sorted(KEYWORDS))}, got {keyword!r}")
        values[keyword] = reader.value(KEYWORDS[keyword], keyword)
    if missing := [keyword for keyword in REQUIRED if keyword not in values]:
        raise InputError(f"{path}: header must contain {', '.join(REQUIRED)}, but lacks {', '.join(missing)}")

    known = {f.name for f in fields(Header)}
    values["signed"] = bool(values.get("signed", 0))
    header = Header(**{k: v for k, v in values.items() if k in known}, header_bytes=reader.position)
    header.check(path)
    return header


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


def write_header(file: BinaryIO, header: Header) -> None:
    """Write a SIGPROC header to an open binary file."""

    def string(text: str) -> bytes:
        encoded = text.encode()
        return struct.pack("<i", len(encoded)) + encoded

    file.write(string("HEADER_START"))
    for f in fields(Header):
        value = getattr(header, f.name)
        if f.name == "header_bytes" or (f.name == "signed" and not value):
            continue
        kind = KEYWORDS[f.name]
        file.write(string(f.name) + (string(value) if kind == STRING else struct.pack(kind, value)))
    file.write(string("HEADER_END"))


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
