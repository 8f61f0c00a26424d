"""Tables with a heading as CSV: truth tables, and the candidates of a search."""

import csv
from collections.abc import Sequence
from pathlib import Path

from single_pulse_classifier_training.cli import InputError

MOST_SHOWN = 100
"""Characters of a heading in a message."""


def read_csv(path: str | Path, required: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Read a table; white space around names and fields is removed, empty lines are skipped.

    Parameters
    ----------
    path : str or Path
    required : sequence of str
        Columns that the heading must name, in any order; it may name others.

    Returns
    -------
    names : list of str
        The columns.
    rows : list of (int, list of str)
        Line number and fields of each row, as many as there are columns.

    Raises
    ------
    InputError
        If the heading lacks a required column or names one twice, or a row has too few or too many fields.
    """
    rows = []
    with open(path, newline="", encoding="utf-8-sig", errors="replace") as file:
        reader = csv.reader(file)
        try:
            heading = next(reader, [])
            names = [name.strip() for name in heading]
            if not set(required) <= set(names):
                raise InputError(
                    f"{path}, line 1: the heading must name {', '.join(required)}, separated by commas, "
                    f"got {','.join(heading)[:MOST_SHOWN]!r}"
                )
            for name in names:
                if name and names.count(name) > 1:
                    raise InputError(f"{path}, line 1: every column must be named once, got {name} twice")
            for row in reader:
                fields = [field.strip() for field in row]
                if fields in ([], [""]):
                    continue
                if len(fields) != len(names):
                    raise InputError(
                        f"{path}, line {reader.line_num}: must have {len(names)} fields, as the heading, "
                        f"got {len(fields)}"
                    )
                rows.append((reader.line_num, fields))
        except csv.Error as error:
            raise InputError(f"{path}, line {reader.line_num}: must be CSV, got an error: {error}") from None
    return names, rows
