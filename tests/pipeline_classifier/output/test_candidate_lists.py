"""Lists of events: this project's table, and those of TransientX and heimdall."""

import csv

import numpy as np
import pytest

from pipeline_classifier.formats.candidate_lists import read_transientx
from pipeline_classifier.output.candidate_lists import write_candidates, write_heimdall, write_transientx
from tests.pipeline_classifier.detection.planes import GRID, event


def test_the_lists_of_other_programs(tmp_path):
    pulse = event(2.0, 20.0, 12.3, width_samples=5, time_downsample=2)
    write_transientx(tmp_path / "a.cands", [pulse], GRID, "a", ["event_a_0001.png"])
    [row] = csv.reader(open(tmp_path / "a.cands"), delimiter="\t")
    assert row[0:2] == ["1", "1"] and [float(x) for x in row[2:8]] == [59000.0, 20.0, 1.0, 12.3, 1500.0, 1300.0]
    assert row[8:] == ["event_a_0001.png", "0", "a"]
    write_heimdall(tmp_path / "a.csv", [pulse], GRID)
    [row] = csv.DictReader(open(tmp_path / "a.csv"))
    columns = ("sample", "filter", "dm_trial", "begin", "end")
    assert [row[name] for name in columns] == ["2000", "3", "20", "1995", "2005"]


@pytest.mark.parametrize(
    "name, field",
    [
        ("B0531+21", "B0531+21"),
        ("J0332-5434@L", "J0332-5434@L"),
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+a", "'+a"),
        ("-a", "'-a"),
        ("@a", "'@a"),
        ("a\tb\nc\rd\x1b", "a_b_c_d_"),
        ("\t=a", "_=a"),
    ],
)
def test_names_in_a_list_are_one_field_and_no_formula(tmp_path, name, field):
    write_transientx(tmp_path / "a.cands", [event(2.0, 20.0, 12.3)] * 2, GRID, name, [name] * 2)
    text = (tmp_path / "a.cands").read_bytes().decode()
    rows = [line.split("\t") for line in text.splitlines()]
    assert [row[8:] for row in rows] == [[field, "0", field]] * 2
    assert len(read_transientx(tmp_path / "a.cands")[0]) == 2


def test_the_table_of_candidates(tmp_path):
    unknown = event(np.nan, np.nan, 9.0, page=4, mjd=np.nan, width_ms=np.nan)
    write_candidates(tmp_path / "candidates.csv", [event(1.25, 56.5, 12.345), unknown])
    with open(tmp_path / "candidates.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:8] == [
        "time_s",
        "mjd",
        "dm_pc_cm3",
        "snr",
        "width_ms",
        "probability",
        "first_page",
        "last_page",
    ]
    assert float(rows[0]["time_s"]) == 1.25 and float(rows[0]["dm_pc_cm3"]) == 56.5
    assert float(rows[0]["snr"]) == pytest.approx(12.345, abs=0.01)
    assert [rows[1][key] for key in ("time_s", "mjd", "dm_pc_cm3", "width_ms")] == [""] * 4
    assert (rows[1]["snr"], rows[1]["first_page"]) == ("9.00", "4")
    write_candidates(tmp_path / "candidates.csv", [])
    assert (tmp_path / "candidates.csv").read_text().count("\n") == 1, "a header alone"
    assert len(list(tmp_path.iterdir())) == 1
