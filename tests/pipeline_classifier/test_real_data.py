"""Real observations: the dry run finds the Crab's giant pulse and FRB 180417, and nothing in interference."""

import csv
import json
from pathlib import Path

import pytest

from pipeline_classifier import run_pipeline_simulation as script
from tests.command_line import run_here

REPOSITORY = Path(__file__).resolve().parents[2]
DATA = REPOSITORY.parent / "shared" / "data"


def events(filterbank: str, folder: Path, **config: object) -> list[dict[str, float]]:
    """Search a file; return its candidates."""
    path = DATA / filterbank
    if not path.is_file():
        pytest.skip(f"{path} is not there: real observations are kept outside the repository")
    (folder / "config.json").write_text(json.dumps(config))
    done = run_here(script, "-c", folder / "config.json", "--filterbank", path, "--output-dir", folder)
    assert done.returncode == 0, done.stderr
    with open(folder / f"candidates_{path.stem}.csv", newline="") as file:
        rows = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    assert len(list(folder.glob("event_*.png"))) == len(rows)
    return rows


def at(rows: list[dict[str, float]], dm: float, dm_tolerance: float, time_s: float) -> list[dict[str, float]]:
    return [row for row in rows if abs(row["dm_pc_cm3"] - dm) <= dm_tolerance and abs(row["time_s"] - time_s) <= 5e-3]


def test_the_giant_pulse_of_the_crab(tmp_path):
    rows = events("crab_parkes_706-1402MHz_512us_4.2s.fil", tmp_path)
    [pulse] = at(rows, 56.4, 1.5, 1.899)
    assert pulse["mjd"] == pytest.approx(58543.330387 + 1.899 / 86400, abs=1e-6)
    assert pulse["snr"] == pytest.approx(9.2, rel=0.2)


@pytest.mark.parametrize("bits, found", [(8, 1), (4, 1), (2, None), (1, None)])
def test_the_same_pulse_in_a_part_of_the_band_and_with_fewer_bits(tmp_path, bits, found):
    """Most of the band is zapped; times hold at the top channel, 4030 MHz."""
    rows = events(f"parkes_uwl_crab_a_{bits}bit.fil", tmp_path, zaplist=[[0, 860], [1400, 5000]])
    assert found is None or len(at(rows, 56.5, 1.5, 1.793)) == len(rows) == found


def test_interference_without_a_pulse(tmp_path):
    assert events("rfi_parkes_2002-4030MHz_512us_2.1s.fil", tmp_path) == []


def test_a_fast_radio_burst(tmp_path):
    [burst] = at(events("askap_frb180417_beam28.fil", tmp_path, ddm=2.0), 475.5, 4.0, 2.029)
    assert burst["snr"] == pytest.approx(16.9, rel=0.2)
