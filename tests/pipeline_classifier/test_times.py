"""Conversion of MJD to UTC."""

import pytest

from pipeline_classifier.times import SECONDS_PER_DAY, utc_of


@pytest.mark.parametrize(
    "mjd, utc",
    [
        (40587.0, "1970-01-01 00:00:00.000"),
        (51544.5, "2000-01-01 12:00:00.000"),
        (59000.0 + 0.0006 / SECONDS_PER_DAY, "2020-05-31 00:00:00.001"),
        (59000.0 - 0.0004 / SECONDS_PER_DAY, "2020-05-31 00:00:00.000"),
        (59000.25, "2020-05-31 06:00:00.000"),
    ],
)
def test_known_times(mjd, utc):
    assert utc_of(mjd) == utc
