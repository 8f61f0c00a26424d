"""Formats of candidate lists: their columns, and how a list is recognised by its first line.

- ``heimdall``: ``.cand``, separated by blanks or tabs, without a heading; or as CSV with one;
- ``dsa110``: the same as DSA-110 writes it, with MJDs or seconds;
- ``transientx``: ``.cands``, separated by tabs, without a heading;
- ``presto``: ``.singlepulse``, with a heading that begins with ``#``; or as CSV;
- ``your``: the CSV from which ``your`` makes the candidate files of FETCH;
- ``catalogue``: the CSV of this project.
"""

import csv
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from single_pulse_classifier_training.cli import InputError

HEIMDALL_COLUMNS = ("snr", "sample", "time_s", "filter", "dm_trial", "dm", "members", "begin", "end")
COINCIDENCE_COLUMNS = ("nbeams", "beam_mask", "primary_beam", "max_snr", "beam")
"""Columns that the coincidencer of heimdall adds."""
MAX_LOG2 = 31
"""Limit of the log2 of a width in samples; larger values are probably widths in samples."""
MAX_SHOWN = 100
"""Characters of a line in a message."""
MJDS = (40000.0, 100000.0)
"""Range of MJDs, from 1968 to 2132, by which they are distinguished from seconds."""
INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class ListFormat:
    """Columns of a format.

    Attributes
    ----------
    fields : dict
        Column of each number of a row, as named in the heading or in ``order``. The key "time_or_mjd" is a time in
        seconds or an MJD, depending on its values.
    optional : dict
        The same for columns that a list may lack.
    order : tuple of str
        All columns in order, for lists without a heading; empty if a list must have one.
    required : int
        Number of the first columns of ``order`` that each line has.
    integers : tuple of str
        Columns that hold integers, by which a line without a heading is recognised.
    """

    fields: dict[str, str]
    optional: dict[str, str]
    order: tuple[str, ...] = ()
    required: int = 0
    integers: tuple[str, ...] = ()


FORMATS = {
    "heimdall": ListFormat(
        {"time_s": "time_s", "dm": "dm", "snr": "snr", "width_log2": "filter"},
        {"beam": "beam"},
        HEIMDALL_COLUMNS + COINCIDENCE_COLUMNS,
        len(HEIMDALL_COLUMNS),
        ("sample", "filter", "dm_trial", "members", "begin", "end"),
    ),
    "dsa110": ListFormat(
        {"time_or_mjd": "mjds", "dm": "dm", "snr": "snr", "width_log2": "ibox", "beam": "ibeam"},
        {},
        ("snr", "if", "itime", "mjds", "ibox", "idm", "dm", "ibeam"),
        8,
        ("if", "itime", "ibox", "idm", "ibeam"),
    ),
    "transientx": ListFormat(
        {"mjd": "mjd", "dm": "dm", "width_ms": "width_ms", "snr": "snr", "beam": "beam"},
        {"file": "file"},
        ("beam", "number", "mjd", "dm", "width_ms", "snr", "f_high", "f_low", "picture", "group", "file"),
        6,
    ),
    "presto": ListFormat(
        {"dm": "dm", "snr": "sigma", "time_s": "time", "width_samples": "downfact"},
        {},
        ("dm", "sigma", "time", "sample", "downfact"),
        5,
        ("sample", "downfact"),
    ),
    "your": ListFormat({"time_s": "stime", "dm": "dm", "snr": "snr", "width_log2": "width"}, {"file": "file"}),
    "catalogue": ListFormat(
        {"time_s": "time_s", "dm": "dm_pc_cm3", "snr": "snr", "width_ms": "width_ms"}, {"mjd": "mjd"}
    ),
}


def separator_of(name: str, line: str) -> str:
    """Return the separator of a list in the format ``name`` by one of its lines: a tab, a comma or a blank."""
    if name == "transientx":
        return "\t"
    if "," in line or not FORMATS[name].order:
        return ","
    return "\t" if "\t" in line else " "


def split_line(where: str, line: str, name: str, separator: str) -> list[str]:
    """Return the fields of a line, without white space around them."""
    line = line.rstrip("\r\n")
    if separator == ",":
        try:
            return [text.strip() for text in next(csv.reader([line], strict=True), [])]
        except csv.Error as error:
            raise InputError(f"{where}: must be CSV, got an error: {error}") from None
    # A name in a TransientX list may contain blanks.
    return [text.strip() for text in line.split("\t")] if name == "transientx" else line.split()


def recognised(where: str, line: str, format: str | None) -> tuple[str, tuple[str, ...]]:
    """Return the format of a list by its first line, and the names of its columns if that line is a heading.

    Parameters
    ----------
    where : str
        File and line, for messages.
    line : str
    format : str, optional
        The format, if it is known.

    Raises
    ------
    InputError
        If it is in none of the formats, or names a column twice.
    """
    fields = line.split(",") if "," in line else line.split()
    names = _heading_names(fields)
    for name in FORMATS if format is None else [format]:
        if set(FORMATS[name].fields.values()) <= set(names):
            for column in names:
                if column and names.count(column) > 1:
                    raise InputError(f"{where}: every column must be named once, got {column} twice")
            return name, names
    if format and not FORMATS[format].order:
        required = ", ".join(FORMATS[format].fields.values())
        raise InputError(f"{where}: the heading must name {required}, got {line.strip()[:MAX_SHOWN]!r}")
    for name in [format] if format else ["heimdall", "dsa110", "transientx", "presto"]:
        if format or _fits(name, split_line(where, line, name, separator_of(name, line))):
            return name, ()
    raise InputError(
        f"{where}: must be a heading or a candidate in one of the formats {', '.join(FORMATS)}, "
        f"got {line.strip()[:MAX_SHOWN]!r}"
    )


def is_presto_heading(line: str) -> bool:
    """Whether a comment is the heading of PRESTO."""
    return line.lstrip().startswith("#") and {"dm", "sigma", "downfact"} <= set(line.lower().lstrip(" #").split())


def number_of(text: str) -> float:
    """Return a text as a number, NaN if it is not a finite one."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def _heading_names(fields: Sequence[str]) -> tuple[str, ...]:
    """Return the names of a heading in lower case, without units: "Time (s)" is "time"."""
    return tuple(re.sub(r"\s*\([^()]*\)$", "", text.strip(' \t\r\n"')).lower() for text in fields)


def _fits(name: str, fields: list[str]) -> bool:
    """Whether the fields of a line without a heading can be a row of a format."""
    form = FORMATS[name]
    if len(fields) < form.required:
        return False
    texts = dict(zip(form.order, fields, strict=False))
    numbers = {key: number_of(texts[column]) for key, column in form.fields.items() if key != "beam"}
    if any(math.isnan(value) for value in numbers.values()):
        return False
    if name == "transientx":
        is_mjd = MJDS[0] <= numbers["mjd"] < MJDS[1]
        has_picture = "picture" in texts and math.isnan(number_of(texts["picture"]))
        return is_mjd or (has_picture and number_of(texts["f_high"]) >= number_of(texts["f_low"]))
    # Without this, a damaged line of heimdall would be read as one of PRESTO.
    if name == "presto" and len(fields) >= len(HEIMDALL_COLUMNS):
        return False
    return numbers.get("width_log2", 0) < MAX_LOG2 and all(INTEGER.fullmatch(texts[name]) for name in form.integers)
