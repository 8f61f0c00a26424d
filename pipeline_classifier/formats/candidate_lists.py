"""Candidate lists of search programs: read as plain numbers, and written again with columns added."""

import csv
import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path

import numpy as np

from pipeline_classifier.formats.candidate_list_formats import (
    FORMATS,
    MAX_LOG2,
    MAX_SHOWN,
    MJDS,
    is_presto_heading,
    number_of,
    recognised,
    separator_of,
    split_line,
)
from pipeline_classifier.formats.file_names import safe_field
from pipeline_classifier.times import SECONDS_PER_DAY
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer

MAX_BYTES = 1 << 26
"""Characters of the longest list, about a million rows; it limits the memory, which is seven times as much."""
MAX_LINE = 1 << 16
"""Characters of the longest line; chosen by hand, far above those of real lists."""
LIMITS = {
    "time_s": (-1e9, 1e9),
    "mjd": (0.0, 1e7),
    "dm": (0.0, 1e7),
    "snr": (0.0, 1e7),
    "width_log2": (0.0, MAX_LOG2),
    "width_samples": (0.0, 1e7),
    "width_ms": (0.0, 1e7),
}
"""Lowest value, and the limit that values must be below. Most limits are exceeded only by damaged lines."""
MAY_BE_EMPTY = ("mjd", "snr", "width_log2", "width_samples", "width_ms")


@dataclass(frozen=True, slots=True)
class CandidateRow:
    """One candidate of a list. A number that the list does not give is NaN.

    Attributes
    ----------
    line : int
        Line of the list, counted from 1.
    time_s : float
        Arrival after the first sample of the observation, in seconds.
    mjd : float
        Arrival as MJD; a row has this or ``time_s``, or both.
    dm : float
        Dispersion measure in pc cm^-3.
    snr : float
    width_samples, width_ms : float
        Width in samples of the observation or in milliseconds; a list gives one of them.
    beam : str
        Beam as written in the list, or an empty string.
    file : str
        Observation as named in the list, or an empty string.
    """

    line: int
    time_s: float
    mjd: float
    dm: float
    snr: float
    width_samples: float
    width_ms: float
    beam: str
    file: str

    def seconds_after(self, tstart: float) -> float:
        """Return the arrival in seconds after the first sample of an observation that begins at the MJD ``tstart``."""
        return (self.mjd - tstart) * SECONDS_PER_DAY if np.isnan(self.time_s) else self.time_s

    def width_s(self, tsamp: float) -> float:
        """Return the width in seconds, for a sampling time in seconds; NaN if the list does not give it."""
        return self.width_samples * tsamp if np.isnan(self.width_ms) else self.width_ms / 1e3


@dataclass(frozen=True)
class CandidateList:
    """A list as it was read.

    Attributes
    ----------
    path : Path
    format : str
        One of `FORMATS`; an empty string for a list without rows.
    rows : list of CandidateRow
    lines : list of str
        All lines of the file with their ends; that of a row is ``lines[row.line - 1]``.
    separator : str
        A tab, a comma or a blank.
    names : tuple of str
        Names in the heading, in lower case; empty without a heading.
    headings : tuple of int
        Numbers of the lines that are headings; a list of PRESTO may have several.
    """

    path: Path
    format: str
    rows: list[CandidateRow]
    lines: list[str] = field(repr=False)
    separator: str = " "
    names: tuple[str, ...] = ()
    headings: tuple[int, ...] = ()


def read_candidate_list(path: str | Path, format: str | None = None) -> CandidateList:
    """Read a candidate list. Empty lines and lines that begin with ``#`` are not rows.

    Parameters
    ----------
    path : str or Path
    format : str, optional
        One of `FORMATS`; by default it is recognised by the content.

    Raises
    ------
    InputError
        If the list is in none of the formats, is longer than 64 MiB, or has a line with more or fewer columns than the
        first one, or with a number that is missing or out of range; the message has the line.
    """
    path = Path(path)
    if format not in (None, *FORMATS):
        raise InputError(f"{path}: the format of a candidate list must be one of {', '.join(FORMATS)}, got {format!r}")
    lines = _read_lines(path)
    texts = [lines[0].removeprefix("\ufeff"), *lines[1:]] if lines else []
    numbers = [n for n, text in enumerate(texts, 1) if text.strip() and not text.lstrip().startswith("#")]
    if not numbers:
        return CandidateList(path, format or "", [], lines)
    first = texts[numbers[0] - 1]
    name, names = recognised(f"{path}, line {numbers[0]}", first, format)
    parser = _RowParser(name, names, separator_of(name, first))
    if names:
        headings = [numbers.pop(0)]
    else:
        headings = [n for n, text in enumerate(texts, 1) if name == "presto" and is_presto_heading(text)]
        names = tuple(texts[headings[0] - 1].lower().split()) if headings else ()
    rows = [parser.row(f"{path}, line {number}", number, texts[number - 1]) for number in numbers]
    if "time_or_mjd" in FORMATS[name].fields and all(MJDS[0] <= row.time_s < MJDS[1] for row in rows):
        rows = [replace(row, time_s=np.nan, mjd=row.time_s) for row in rows]
    return CandidateList(path, name, rows, lines, parser.separator, names, tuple(headings))


def read_transientx(path: str | Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Read the numbers of a TransientX list (``.cands``).

    Parameters
    ----------
    path : str or Path
        The list; it may be empty.

    Returns
    -------
    mjd : (K,) ndarray of float64
        Arrival at the top of the band.
    dm : (K,) ndarray of float64
        Dispersion measure in pc cm^-3.
    width_ms : (K,) ndarray of float64
        Width in milliseconds.
    snr : (K,) ndarray of float64
        Signal-to-noise ratio.

    Raises
    ------
    InputError
        As `read_candidate_list`.
    """
    rows = [(row.mjd, row.dm, row.width_ms, row.snr) for row in read_candidate_list(path, "transientx").rows]
    mjd, dm, width_ms, snr = np.array(rows, dtype=np.float64).reshape(-1, 4).T.copy()
    return mjd, dm, width_ms, snr


def write_with_columns(
    candidates: CandidateList,
    path: str | Path,
    columns: Mapping[str, Sequence[object] | np.ndarray],
    keep: Sequence[bool] | np.ndarray | None = None,
) -> None:
    """Write a list as it was read, with columns appended to its rows, in its own separator.

    A heading gets the names of the columns; a name that it has already is preceded by ``predicted_``. The file is
    complete or absent.

    Parameters
    ----------
    candidates : CandidateList
    path : str or Path
        It may be that of the list itself.
    columns : mapping of str to sequence
        Name and values of each column, as many as there are rows. Floats are written with six decimals, NaN as an empty
        field of CSV.
    keep : (K,) sequence of bool, optional
        Whether a row is written; by default all are.
    """
    kept = [True] * len(candidates.rows) if keep is None else keep
    for values in (kept, *columns.values()):
        if len(values) != len(candidates.rows):
            raise ValueError(f"a column must have {len(candidates.rows)} values, one per row, got {len(values)}")
    names: list[str] = []
    for name in columns:
        while name in (*candidates.names, *names):
            name = f"predicted_{name}"
        names.append(name)
    added: dict[int, Sequence[object]] = dict.fromkeys(candidates.headings, names)
    for position, row in enumerate(candidates.rows):
        added[row.line] = [values[position] for values in columns.values()]
    omitted = {row.line for row, is_kept in zip(candidates.rows, kept, strict=True) if not is_kept}
    with atomic_writer(path) as file:
        for number, line in enumerate(candidates.lines, 1):
            if number in omitted:
                continue
            if values := added.get(number, ()):
                text = line.rstrip("\r\n")
                new = [text, *(_written(value, candidates.separator) for value in values)]
                line = candidates.separator.join(new) + line[len(text) :]
            file.write(line.encode("utf-8", "surrogateescape"))


def _read_lines(path: Path) -> list[str]:
    lines: list[str] = []
    size = 0
    # Bytes that are not UTF-8 are kept; only "\n" ends a line, so that lines can be written as they were.
    with open(path, encoding="utf-8", errors="surrogateescape", newline="\n") as file:
        while line := file.readline(MAX_LINE + 1):
            size += len(line)
            where = f"{path}, line {len(lines) + 1}"
            if len(line) > MAX_LINE:
                raise InputError(f"{where}: must have at most {MAX_LINE} characters, got more")
            if size > MAX_BYTES:
                raise InputError(f"{where}: a candidate list must have at most {MAX_BYTES} characters, got more")
            lines.append(line)
    return lines


class _RowParser:
    """Reads the rows of a list whose format and columns are known."""

    def __init__(self, name: str, names: tuple[str, ...], separator: str) -> None:
        self.name, self.format, self.separator = name, FORMATS[name], separator
        columns = names or self.format.order
        wanted = self.format.fields | self.format.optional
        self.position = {key: columns.index(column) for key, column in wanted.items() if column in columns}
        self.has_heading, self.n_columns = bool(names), len(names)

    def row(self, where: str, line: int, text: str) -> CandidateRow:
        fields = split_line(where, text, self.name, self.separator)
        self.n_columns = self.n_columns or len(fields)
        least = 0 if self.has_heading else self.format.required
        if len(fields) != self.n_columns or len(fields) < least:
            separator = {",": "commas", "\t": "tabs"}.get(self.separator, "blanks")
            columns = f"at least {least} columns" if least else f"{self.n_columns} columns"
            raise InputError(
                f"{where}: must have {columns} separated by {separator}, as many as the first line, got {len(fields)}"
            )
        values = {key: self._value(where, key, fields) for key in self.position if key not in ("beam", "file")}
        width_samples = values.get("width_samples", 2.0 ** values["width_log2"] if "width_log2" in values else np.nan)
        return CandidateRow(
            line=line,
            time_s=values.get("time_s", values.get("time_or_mjd", np.nan)),
            mjd=values.get("mjd", np.nan),
            dm=values["dm"],
            snr=values["snr"],
            width_samples=width_samples,
            width_ms=values.get("width_ms", np.nan),
            beam=self._text("beam", fields),
            file=self._text("file", fields),
        )

    def _value(self, where: str, key: str, fields: list[str]) -> float:
        position = self.position[key]
        text = fields[position]
        if self.has_heading and not text and key in MAY_BE_EMPTY:
            return np.nan
        low, high = LIMITS["time_s" if key == "time_or_mjd" else key]
        value = number_of(text)
        if not low <= value < high:
            column = (self.format.fields | self.format.optional)[key]
            what = f"{column} (log2 of the width in samples)" if key == "width_log2" else column
            raise InputError(
                f"{where}: column {position + 1}, {what}, must be a number from {low:g} to {high:g}, "
                f"got {text[:MAX_SHOWN]!r}"
            )
        return value

    def _text(self, key: str, fields: list[str]) -> str:
        position = self.position.get(key, len(fields))
        return fields[position] if position < len(fields) else ""


def _written(value: object, separator: str) -> str:
    """Format a value as a field of a list."""
    if isinstance(value, Real) and not isinstance(value, Integral):
        text = format(float(value), ".6f")
        return "" if separator == "," and text == "nan" else text
    text = str(int(value)) if isinstance(value, Integral) else safe_field(str(value))
    if separator == ",":
        quoted = io.StringIO()
        csv.writer(quoted, lineterminator="").writerow([text])
        return quoted.getvalue()
    return (re.sub(r"\s+", "_", text) if separator == " " else text) or "-"
