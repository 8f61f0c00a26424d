"""Lists of events: this project's CSV, and the columns of TransientX and heimdall."""

import csv
import io
from collections.abc import Sequence
from dataclasses import MISSING, asdict, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_classifier.events import Event
from pipeline_classifier.formats.candidate_list_formats import HEIMDALL_COLUMNS
from pipeline_classifier.formats.csv_table import read_csv
from pipeline_classifier.formats.file_names import safe_field
from pipeline_classifier.frontend.pages import PageGrid
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer

FORMATS = {
    "time_s": ".6f",
    "mjd": ".11f",
    "mjd_infinite": ".11f",
    "dm_pc_cm3": ".3f",
    "snr": ".2f",
    "width_ms": ".4f",
    "probability": ".6f",
}


def candidate_lines(events: Sequence[Event], heading: bool = False) -> str:
    """Return events as lines of CSV, optionally after the column names; an unknown number is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    if heading:
        writer.writerow(field.name for field in fields(Event))
    for event in events:
        row = asdict(event)
        writer.writerow("" if value != value else format(value, FORMATS.get(key, "")) for key, value in row.items())
    return text.getvalue()


def write_candidates(path: Path, events: Sequence[Event]) -> None:
    """Write events as CSV; the file is complete or absent."""
    _write(path, candidate_lines(events, heading=True))


def as_written(events: Sequence[Event]) -> list[Event]:
    """Round events to the digits that are written."""
    written = []
    for event in events:
        values: dict[str, Any] = {key: float(format(getattr(event, key), digits)) for key, digits in FORMATS.items()}
        written.append(replace(event, **values))
    return written


def read_candidates(path: Path) -> list[Event]:
    """Return the events of a list that `write_candidates` wrote.

    Raises
    ------
    InputError
        If it is not such a list.
    """
    columns = {field.name: field for field in fields(Event)}
    names, rows = read_csv(path, [name for name, field in columns.items() if field.default is MISSING])
    events = []
    for line, row in rows:
        texts = {name: text for name, text in zip(names, row, strict=True) if name in columns}
        try:
            values = {
                name: int(text) if columns[name].type is int else float(text or "nan") for name, text in texts.items()
            }
        except ValueError:
            raise InputError(f"{path}, line {line}: every field must be a number, got {','.join(row)!r}") from None
        events.append(Event(**values))  # type: ignore[arg-type]
    return events


def write_transientx(
    path: Path, events: Sequence[Event], grid: PageGrid, observation: str, images: Sequence[str]
) -> None:
    """Write events in the columns of a TransientX list: tab separated, without a heading.

    The columns are beam, number, MJD, DM, width (ms), S/N, highest and lowest frequency (MHz), image, number of the
    image, and observation.

    Parameters
    ----------
    path : Path
    events : sequence of Event
    grid : PageGrid
        Gives the band.
    observation : str
        Name of the observation.
    images : sequence of str
        File name of the picture of each event, or an empty string.
    """
    lines = [
        f"1\t{number}\t{e.mjd:.11f}\t{e.dm_pc_cm3:.3f}\t{e.width_ms:.4f}\t{e.snr:.2f}\t{grid.f_top:.6f}\t"
        f"{grid.f_bottom:.6f}\t{safe_field(image)}\t0\t{safe_field(observation)}\n"
        for number, (e, image) in enumerate(zip(events, images, strict=True), start=1)
    ]
    _write(path, "".join(lines))


def write_heimdall(path: Path, events: Sequence[Event], grid: PageGrid) -> None:
    """Write events as CSV in the columns of heimdall; samples and trial DMs are those of the search.

    The columns are S/N, sample and time (s) at the top channel, filter (log2 of the width in samples), DM trial, DM,
    number of members (1), first and last sample.
    """
    lines = [",".join(HEIMDALL_COLUMNS) + "\n"]
    for e in events:
        width = e.width_samples * e.time_downsample
        sample = round(e.time_s / grid.tsamp)
        begin = sample - width // 2
        trial = round((e.dm_pc_cm3 - grid.dms[0]) / (grid.dms[1] - grid.dms[0]))
        numbers = [f"{e.snr:.2f}", sample, f"{e.time_s:.6f}", round(np.log2(width)), trial, f"{e.dm_pc_cm3:.3f}", 1]
        lines.append(",".join(map(str, [*numbers, begin, begin + width])) + "\n")
    _write(path, "".join(lines))


def _write(path: Path, text: str) -> None:
    with atomic_writer(path) as file:
        file.write(text.encode())
