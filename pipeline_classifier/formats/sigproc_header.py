"""Headers of SIGPROC filterbank files.

The format is described in D. Lorimer's SIGPROC manual: length-prefixed keywords, each followed by its value in
little-endian byte order.
"""

import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.file_types import HEAD_BYTES, name_of_format

MAX_HEADER_BYTES = 1 << 21  # a table of 65,536 frequencies has 1.3 MB; this limits what is read of any other file
MAX_KEYWORD_BYTES = 80  # the limit of SIGPROC's own reader
KEYWORD = re.compile(r"[A-Za-z_]\w*", re.ASCII)
UNEQUAL_STEPS = 0.01
"""Largest difference, in channel widths, between a table of frequencies and equal steps: far above the rounding of a
32-bit float, and without effect on delays. Chosen by hand; not tuned on data."""
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
    unknown_keywords : tuple of str
        Keywords that were read from a file and are not used.
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
    unknown_keywords: tuple[str, ...] = field(default=(), compare=False)

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

    def warnings(self) -> list[str]:
        """Return what may be wrong with the header, one phrase each."""
        found = {
            f"the header has unknown keywords, which are not used: {', '.join(self.unknown_keywords)}": bool(
                self.unknown_keywords
            ),
            "the header has no start time, so MJDs will be wrong": self.tstart == 0,
            f"the start time, MJD {self.tstart:g}, is before 1858, so MJDs will be wrong": self.tstart < 0,
        }
        return [phrase for phrase, applies in found.items() if applies]

    def check(self, name: str | Path) -> None:
        """Raise InputError, naming the file, for the first impossible value.

        Most limits are far outside those of real telescopes; only damaged headers exceed them. Those of the units lie
        between the ionospheric cut-off near 10 MHz and 1 THz.
        """
        lowest, highest = sorted((self.fch1, self.fch1 + self.foff * (self.nchans - 1)))
        for good, keyword, requirement in (
            (1 <= self.nchans <= 65536, "nchans", "be from 1 to 65536"),
            (self.nbits in NBITS, "nbits", "be 1, 2, 4, 8, 16 or 32"),
            (1 <= self.nifs <= 4, "nifs", "be from 1 to 4"),
            (1e-9 <= self.tsamp < 10, "tsamp", "be from 1e-9 to 10 seconds"),
            (0 < self.fch1 < np.inf, "fch1", "be a positive number of MHz"),
            (not self.fch1 > 1e6, "fch1", "be in MHz, up to 1e6 (larger values look like kHz or Hz)"),
            (np.isfinite(self.foff) and self.foff != 0, "foff", "be a number of MHz other than 0"),
            (not highest < 10, "fch1", "be in MHz, with channels above 10 MHz (lower values look like GHz)"),
            (1e-6 <= abs(self.foff) <= 1e6, "foff", "be from 1e-6 to 1e6 MHz in absolute value"),
            (lowest >= 1e-3 and highest <= 1e7, "foff", "keep every channel within 1e-3 to 1e7 MHz"),
            (-1e7 <= self.tstart <= 1e6, "tstart", "be an MJD, at most 1e6"),
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

    def skip_unknown(self, keyword: str) -> None:
        """Skip the value of an unknown keyword: 4 or 8 bytes or a string, whichever has a keyword after it."""
        text = _number_at(self.head, self.position)
        for length in (4, 8, 4 + text if text >= 0 else 4):
            after = _number_at(self.head, self.position + length)
            begin = self.position + length + 4
            following = self.head[begin : begin + max(0, after)].decode("ascii", errors="replace")
            if 1 <= after <= MAX_KEYWORD_BYTES and KEYWORD.fullmatch(following):
                self.position += length
                return
        raise InputError(
            f"{self.path}: header keyword must be one of {', '.join(sorted(KEYWORDS))}, or have a value of 4 or 8 "
            f"bytes or a string, got {keyword!r}"
        )

    def _take(self, length: int, what: str) -> bytes:
        piece = self.head[self.position : self.position + length]
        if len(piece) < length:
            raise InputError(
                f"{self.path}: header must end with HEADER_END within {MAX_HEADER_BYTES} bytes, "
                f"got {len(self.head)} bytes, cut off inside {what}"
            )
        self.position += length
        return piece


def _number_at(head: bytes, position: int) -> int:
    """32-bit integer at a position of a header; -1 past its end."""
    return int.from_bytes(head[position : position + 4], "little", signed=True) if position + 4 <= len(head) else -1


def _band_of(table: Sequence[float], nchans: int | None, path: Path) -> dict[str, float]:
    """Frequency of the first channel and step of a table of channel frequencies."""
    if len(table) != nchans:
        raise InputError(f"{path}: FREQUENCY_START must be followed by nchans = {nchans} frequencies, got {len(table)}")
    if nchans == 1:
        return {"fch1": table[0]}
    foff = (table[-1] - table[0]) / (nchans - 1)
    steps = np.diff(table)
    if not np.abs(np.array(table) - table[0] - foff * np.arange(nchans)).max() <= UNEQUAL_STEPS * abs(foff):
        raise InputError(
            f"{path}: channels must have equal steps of frequency, since their delays are computed from fch1 and foff, "
            f"got a table of fchannel with steps from {steps.min():.6g} to {steps.max():.6g} MHz"
        )
    return {"fch1": table[0], "foff": foff}


def read_header(path: str | Path) -> Header:
    """Read and check the header of a SIGPROC file.

    A table of frequencies (FREQUENCY_START, fchannel, ..., FREQUENCY_END) in equal steps replaces fch1 and foff.
    Unknown keywords are skipped.

    Raises
    ------
    InputError
        If the file does not exist, is not a filterbank, or if its header is cut off or has an impossible value, unequal
        steps of frequency, or an unknown keyword with a value of unknown length.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: must be a filterbank file, got a folder; name the files in it, as '{path}/*.fil'")
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    with open(path, "rb") as file:
        head = file.read(MAX_HEADER_BYTES)
    if not head.startswith(b"\x0c\0\0\0HEADER_START"):
        kind = name_of_format(head[:HEAD_BYTES])
        advice = {"a FITS file": " (convert it, for example with digifil)", "a .npy file": " (search it with --pages)"}
        raise InputError(f"{path}: a SIGPROC filterbank must begin with HEADER_START, got {kind}{advice.get(kind, '')}")

    reader = _HeaderReader(head, path)
    reader.keyword()
    values: dict[str, Any] = {}
    table, unknown = [], []
    while (keyword := reader.keyword()) != "HEADER_END":
        if keyword == "fchannel":
            table.append(reader.value(DOUBLE, keyword))
        elif keyword in KEYWORDS:
            values[keyword] = reader.value(KEYWORDS[keyword], keyword)
        elif keyword not in ("FREQUENCY_START", "FREQUENCY_END"):
            reader.skip_unknown(keyword)
            unknown.append(keyword)
    if table:
        values |= _band_of(table, values.get("nchans"), path)
    if missing := [keyword for keyword in REQUIRED if keyword not in values]:
        others = f" and has the unknown {', '.join(map(repr, unknown))}" if unknown else ""
        raise InputError(f"{path}: header must contain {', '.join(REQUIRED)}, but lacks {', '.join(missing)}{others}")

    known = {f.name for f in fields(Header)}
    values["signed"] = bool(values.get("signed", 0))
    used = {k: v for k, v in values.items() if k in known}
    header = Header(**used, header_bytes=reader.position, unknown_keywords=tuple(dict.fromkeys(unknown)))
    header.check(path)
    return header


def write_header(file: BinaryIO, header: Header) -> None:
    """Write a SIGPROC header to an open binary file."""

    def string(text: str) -> bytes:
        encoded = text.encode()
        return struct.pack("<i", len(encoded)) + encoded

    file.write(string("HEADER_START"))
    for f in fields(Header):
        value = getattr(header, f.name)
        if f.name not in KEYWORDS or (f.name == "signed" and not value):
            continue
        kind = KEYWORDS[f.name]
        file.write(string(f.name) + (string(value) if kind == STRING else struct.pack(kind, value)))
    file.write(string("HEADER_END"))
