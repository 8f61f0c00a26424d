"""TransientX lists: the numbers written come back to the bit, and a damaged line is named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_classifier.events import Event
from pipeline_classifier.formats.candidate_lists import read_transientx
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.output.candidate_lists import write_transientx
from single_pulse_classifier_training.cli import InputError

on_one_file = settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
number = st.floats(0, 1e7, exclude_max=True)
row = st.tuples(number, number, number, number)
# Not a number to Python, of any length, within one field of one line.
word = st.text(st.characters(codec="utf-8", exclude_characters="\t\n\r\0"), max_size=20).filter(
    lambda text: not is_finite_number(text)
)


def is_finite_number(text: str) -> bool:
    try:
        return bool(np.isfinite(float(text)))
    except ValueError:
        return False


def line_of(values: tuple[object, ...]) -> str:
    return "\t".join(["1", "1", *map(str, values), "1532.5", "1212.5", "image.png", "x", "crab.fil"])


def write(path: Path, lines: list[str], end: str = "\n") -> Path:
    path.write_text("".join(line + end for line in lines), encoding="utf-8", newline="")
    return path


@given(st.lists(row, max_size=8), st.sampled_from(["\n", "\r\n"]), st.booleans())
@on_one_file
def test_rows_survive_the_round_trip(tmp_path, rows, end, spaced):
    lines = [text for values in rows for text in ([line_of(values), ""] if spaced else [line_of(values)])]
    columns = read_transientx(write(tmp_path / "a.cands", lines, end))
    assert len(columns) == 4
    for column, expected in zip(columns, zip(*rows) if rows else [()] * 4):
        assert column.dtype == np.float64 and column.shape == (len(rows),) and column.flags.c_contiguous
        np.testing.assert_array_equal(column, np.array(expected, dtype=float))


@given(st.lists(row, min_size=1, max_size=8), st.data())
@on_one_file
def test_a_damaged_line_is_named(tmp_path, rows, data):
    damaged = data.draw(st.integers(0, len(rows) - 1))
    column = data.draw(st.integers(0, 3))
    values: list[object] = list(rows[damaged])
    values[column] = data.draw(st.one_of(word, st.sampled_from(["nan", "inf", "-inf", "", "-1", "1e7"])))
    lines = [line_of(values) for values in rows]
    lines[damaged] = data.draw(
        st.sampled_from([line_of(tuple(values)), "\t".join(line_of(rows[damaged]).split("\t")[:5])])
    )
    with pytest.raises(
        InputError,
        match=rf"a.cands, line {damaged + 1}: (columns 3 to 6 must be|must have at least 6 columns) .*, got ",
    ):
        read_transientx(write(tmp_path / "a.cands", lines))


@given(st.binary(max_size=300))
@on_one_file
def test_any_bytes_are_read_or_refused(tmp_path, content):
    path = tmp_path / "a.cands"
    path.write_bytes(content)
    try:
        columns = read_transientx(path)
    except InputError as error:
        assert "\n" not in str(error) and f"{path}, line " in str(error)
    else:
        assert len({len(column) for column in columns}) == 1


def test_separators_other_than_tabs_are_refused(tmp_path):
    path = write(tmp_path / "a.cands", [line_of((59000.5, 56.7, 1.0, 20.0)).replace("\t", ",")])
    with pytest.raises(InputError, match=r"line 1: must have at least 6 columns separated by tabs, .*, got 1$"):
        read_transientx(path)
    with pytest.raises(FileNotFoundError):
        read_transientx(tmp_path / "absent.cands")


def test_a_line_with_other_columns_than_the_first_one_is_refused(tmp_path):
    """One field less before the MJD, and every number after it is another quantity."""
    lines = [line_of((59000.5, 56.7, 1.0, 20.0)), line_of((59000.6, 56.7, 1.0, 20.0)).removeprefix("1\t"), " \t "]
    with pytest.raises(InputError, match=r"line 2: .* as many as the first line, got 10$"):
        read_transientx(write(tmp_path / "a.cands", lines))
    assert (
        read_transientx(write(tmp_path / "a.cands", ["\ufeff" + lines[0].replace("56.7", " 56.7 "), lines[2]]))[1]
        == 56.7
    )


def test_the_list_that_a_search_writes_is_read(tmp_path):
    grid = PageGrid(0.5 * np.arange(256), 256, 1.024e-4, 59000.48386574, 1530.0, 1211.25)
    events = [Event(t, grid.tstart + t / 86400, 56.5, 12.25, 1.6384, 0.9, 0, 0, 16) for t in (1.0, 2.5)]
    write_transientx(tmp_path / "a.cands", events, grid, "crab.fil", ["a.png", "b.png"])
    mjd, dm, width_ms, snr = read_transientx(tmp_path / "a.cands")
    np.testing.assert_allclose(mjd, [event.mjd for event in events], rtol=0, atol=1e-11)
    assert dm.tolist() == [56.5] * 2 and width_ms.tolist() == [1.6384] * 2 and snr.tolist() == [12.25] * 2


def test_comments_are_skipped_as_in_replot_fil(tmp_path):
    """A candidate that was commented out is not read, and line numbers still count it."""
    lines = ["# beam\tnumber\tmjd", line_of((59000.5, 56.7, 1.0, 20.0)), "  #" + line_of((59000.6, 56.7, 1.0, 20.0))]
    assert read_transientx(write(tmp_path / "a.cands", lines))[0].tolist() == [59000.5]
    with pytest.raises(InputError, match="line 4"):
        read_transientx(write(tmp_path / "a.cands", [*lines, "1\t1"]))
