"""Candidate lists: numbers and lines come back as they were, formats are recognised, and a damaged line is named."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline_classifier.events import Event
from pipeline_classifier.formats import candidate_lists
from pipeline_classifier.formats.candidate_list_formats import FORMATS
from pipeline_classifier.formats.candidate_lists import read_candidate_list, read_transientx, write_with_columns
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.output.candidate_lists import write_candidates, write_heimdall, write_transientx
from single_pulse_classifier_training.cli import InputError

DATA = Path(__file__).resolve().parents[4] / "shared" / "data"
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
        match=rf"a.cands, line {damaged + 1}: (column [3-6], [a-z_]+, must be a number|must have at least 6 columns) .*, got ",
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
    write_heimdall(tmp_path / "a_heimdall.csv", events, grid)
    write_candidates(tmp_path / "a.csv", events)
    mjd, dm, width_ms, snr = read_transientx(tmp_path / "a.cands")
    np.testing.assert_allclose(mjd, [event.mjd for event in events], rtol=0, atol=1e-11)
    assert dm.tolist() == [56.5] * 2 and width_ms.tolist() == [1.6384] * 2 and snr.tolist() == [12.25] * 2
    for name, format in {"a.cands": "transientx", "a_heimdall.csv": "heimdall", "a.csv": "catalogue"}.items():
        found = read_candidate_list(tmp_path / name)
        assert found.format == format
        for event, row in zip(events, found.rows):
            assert (row.dm, row.snr, row.width_s(grid.tsamp)) == (56.5, 12.25, pytest.approx(1.6384e-3))
            assert row.seconds_after(grid.tstart) == pytest.approx(event.time_s, abs=2e-6)


def test_comments_are_skipped_as_in_replot_fil(tmp_path):
    """A candidate that was commented out is not read, and line numbers still count it."""
    lines = ["# beam\tnumber\tmjd", line_of((59000.5, 56.7, 1.0, 20.0)), "  #" + line_of((59000.6, 56.7, 1.0, 20.0))]
    assert read_transientx(write(tmp_path / "a.cands", lines))[0].tolist() == [59000.5]
    with pytest.raises(InputError, match="line 4"):
        read_transientx(write(tmp_path / "a.cands", [*lines, "1\t1"]))


HEADING = "file,snr,stime,width,dm,label,chan_mask_path,num_files"
LISTS = {
    "heimdall": ["16.8128\t1602\t2.02888\t1\t127\t475.284\t22\t1601\t1604\t"],
    "heimdall by blanks": ["  16.8128 1602  2.02888 1 127 475.284 22 1601 1604"],
    "heimdall with beams": ["16.8128\t1602\t2.02888\t1\t127\t475.284\t22\t1601\t1604\t2\t0x3\t1\t18.2\t7"],
    "heimdall as CSV": [
        "snr,sample,time_s,filter,dm_trial,dm,members,begin,end",
        "16.8128,1602,2.02888,1,127,475.284,1,1601,1603",
    ],
    "dsa110": ["16.8128 602 1602 2.02888 1 127 475.284 7"],
    "dsa110 with MJDs": ["16.8128 602 1602 59000.5000234824 1 127 475.284 7"],
    "transientx": ["7\t1\t59000.5000234824\t475.284\t2.532\t16.8128\t1465\t1200\ta, b.png\t1\t28.fil"],
    "transientx with few columns": ["7\t1\t59000.5000234824\t475.284\t2.532\t16.8128"],
    "presto": [
        "# DM      Sigma      Time (s)     Sample    Downfact",
        " 475.284   16.8128      2.028880      1602      2",
    ],
    "presto without heading": ["475.284 16.8128 2.02888 1602 2"],
    "presto as CSV": ["DM,Sigma,Time (s),Sample,Downfact,telescope", '475.284,16.8128,2.02888,1602,2,"ASKAP, 36"'],
    "your": [HEADING, "28.fil,16.8128,2.02888,1,475.284,1,,1"],
    "catalogue": ["dm_pc_cm3,time_s,mjd,snr,width_ms", "475.284,2.02888,,16.8128,2.532"],
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_a_format_is_recognised_and_columns_are_appended(tmp_path, name, end):
    """FRB 180417 in every format; a second row without a line end, an empty line and a comment."""
    *heading, row = LISTS[name]
    path = tmp_path / "list"
    path.write_bytes(end.join([*heading, "# 2 3", row, "", row]).encode())
    found = read_candidate_list(path)
    assert found.format == name.split()[0] and len(found.rows) == 2
    assert read_candidate_list(path, found.format) == found
    for number, candidate in zip([3, 5] if heading else [2, 4], found.rows):
        assert candidate.line == number and found.lines[number - 1].rstrip("\r\n") == row
        assert (candidate.dm, candidate.snr) == (475.284, 16.8128)
        assert candidate.seconds_after(59000.5) == pytest.approx(2.02888, abs=1e-5)
        assert candidate.width_s(1.266e-3) == pytest.approx(2.532e-3)
        assert candidate.beam == ("7" if "\t7" in row or "7\t" in row[:2] or row.endswith(" 7") else "")
        assert candidate.file == ("28.fil" if "28.fil" in row else "")

    write_with_columns(found, path, {"probability": [0.5, np.float32(1)], "label": np.array([1, 0])})
    separator = "," if "," in row and "\t" not in row else "\t" if "\t" in row else " "
    lines = path.read_bytes().decode().split(end)
    label = "predicted_label" if name == "your" else "label"
    assert lines[len(heading) :] == [
        "# 2 3", separator.join([row, "0.500000", "1"]), "", separator.join([row, "1.000000", "0"])
    ]  # fmt: skip
    assert lines[: len(heading)] == [separator.join([text, "probability", label]) for text in heading]
    again = read_candidate_list(path)
    assert again.format == found.format and again.rows == found.rows


def test_bytes_that_are_not_utf8_are_written_as_they_were(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbf" + HEADING.encode() + b"\n\xe9.fil,7,1.5,3,56.5,0,,1\r\n")
    found = read_candidate_list(path)
    assert found.rows[0].time_s == 1.5 and found.rows[0].width_samples == 8
    write_with_columns(found, path, {"text": ["a,b"], "number": [np.nan]})
    assert path.read_bytes() == (
        b"\xef\xbb\xbf" + HEADING.encode() + b',text,number\n\xe9.fil,7,1.5,3,56.5,0,,1,"a,b",\r\n'
    )


def test_rows_can_be_omitted_and_text_stays_one_field(tmp_path):
    path = write(tmp_path / "a.cand", [f"{snr} 10 1.0 2 3 56.7 1 9 13" for snr in (7, 8, 9)])
    write_with_columns(read_candidate_list(path), path, {"note": ["a", "b c", ""]}, keep=[False, True, True])
    assert path.read_text() == "8 10 1.0 2 3 56.7 1 9 13 b_c\n9 10 1.0 2 3 56.7 1 9 13 -\n"
    with pytest.raises(ValueError, match="must have 2 values, one per row, got 1"):
        write_with_columns(read_candidate_list(path), path, {"note": ["a"]})


def test_a_list_without_rows(tmp_path):
    for lines in ([], ["# DM Sigma Time (s) Sample Downfact"]):
        found = read_candidate_list(write(tmp_path / "a", lines))
        assert found.rows == [] and found.format == ""
        write_with_columns(found, tmp_path / "b", {"probability": []})
        assert (tmp_path / "b").read_bytes() == (tmp_path / "a").read_bytes()
    found = read_candidate_list(write(tmp_path / "a.csv", [HEADING]))
    assert found.rows == [] and found.format == "your"


@pytest.mark.parametrize(
    "lines, message",
    [
        (["beam,number", "1,2"], "line 1: must be a heading or a candidate in one of the formats heimdall, dsa110, .*, got 'beam,number'$"),
        (["16.8 1602 2.0 70 127 475.2 22 1601 1604"], "line 1: must be a heading or a candidate"),
        (["16.8\t1602\t2.0\t1\t127\t475.2\t22\t1601\t16O4"], "line 1: must be a heading or a candidate"),
        ([HEADING, "28.fil,16,2.0,64,475,1,,1"], r"line 2: column 4, width \(log2 of the width in samples\), must be a number from 0 to 31, got '64'$"),
        ([HEADING, "28.fil,16,,1,475,1,,1"], "line 2: column 3, stime, must be a number from -1e.09 to 1e.09, got ''$"),
        ([HEADING, "28.fil,16,2.0,1,475,1"], "line 2: must have 8 columns separated by commas, as many as the first line, got 6$"),
        ([HEADING + ",snr", "28.fil,16,2.0,1,475,1,,1,9"], "line 1: every column must be named once, got snr twice$"),
        (["475 16 2.0 1602 2", "475 16 2.0 1602"], "line 2: must have at least 5 columns separated by blanks, as many as the first line, got 4$"),
        (["475 16 2.0 1602 2", "475 16 inf 1602 2"], "line 2: column 3, time, must be a number .*, got 'inf'$"),
        (["1" * 70000], "line 1: must have at most 65536 characters, got more$"),
    ],
)  # fmt: skip
def test_what_is_not_a_list_is_refused_in_one_sentence(tmp_path, lines, message):
    with pytest.raises(InputError, match="a, " + message):
        read_candidate_list(write(tmp_path / "a", lines))


def test_a_format_that_was_named_is_required(tmp_path):
    path = write(tmp_path / "a", ["475 16 2.0 1602 2"])
    for format, message in {
        "your": "line 1: the heading must name stime, dm, snr, width, got '475 16 2.0 1602 2'$",
        "heimdall": "line 1: must have at least 9 columns separated by blanks, .*, got 5$",
        "amber": f"a: the format of a candidate list must be one of {', '.join(FORMATS)}, got 'amber'$",
    }.items():
        with pytest.raises(InputError, match=message):
            read_candidate_list(path, format)


def test_a_list_that_is_too_long_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(candidate_lists, "MAX_BYTES", 1000)
    path = write(tmp_path / "a", ["475 16 2.0 1602 2"] * 100)
    with pytest.raises(InputError, match="a, line 56: a candidate list must have at most 1000 characters, got more$"):
        read_candidate_list(path)


field_texts = st.one_of(
    st.sampled_from(
        ["", " ", "0", "1", "59000.5", "56.7", "nan", "1e999", "#", '"', "a", "-1", "٣", "1_0", *HEADING.split(",")]
    ),
    st.text(max_size=3),
    st.floats().map(str),
    st.integers().map(str),
)
line_texts = st.one_of(
    st.sampled_from([line for lines in LISTS.values() for line in lines]),
    st.builds(str.join, st.sampled_from(["\t", ",", " "]), st.lists(field_texts, max_size=14)),
)
contents = st.builds(lambda lines, end: end.join(lines).encode("utf-8", "surrogatepass"),
                     st.lists(line_texts, max_size=4), st.sampled_from(["\n", "\r\n", "\r"]))  # fmt: skip


@given(st.one_of(st.binary(max_size=200), contents), st.sampled_from([None, *FORMATS]))
@settings(on_one_file, max_examples=200)
def test_any_text_is_read_or_refused_in_one_sentence(tmp_path, content, format):
    path = tmp_path / "list"
    path.write_bytes(content)
    try:
        found = read_candidate_list(path, format)
    except InputError as error:
        assert "\n" not in str(error) and f"{path}, line " in str(error)
        return
    assert all(np.isfinite(row.dm) and np.isfinite(row.seconds_after(59000.0)) for row in found.rows)
    write_with_columns(found, path, {})
    assert path.read_bytes() == content
    write_with_columns(found, path, {"probability": [0.25] * len(found.rows)})
    again = read_candidate_list(path, found.format or format)
    assert [(row.line, row.dm) for row in again.rows] == [(row.line, row.dm) for row in found.rows]


def test_the_list_of_a_real_search():
    path = DATA / "candlists" / "mwa_crab_1099414416_presto.csv"
    if not path.is_file():
        pytest.skip(f"{path} is not there: real candidates are kept outside the repository")
    found = read_candidate_list(path)
    assert found.format == "presto" and len(found.rows) == 8655
    assert (found.rows[0].dm, found.rows[0].snr, found.rows[0].time_s, found.rows[0].width_samples) == (
        63.16,
        5.23,
        0.5912,
        2,
    )
