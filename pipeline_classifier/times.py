"""Conversion of MJD to UTC."""

from datetime import datetime, timedelta

SECONDS_PER_DAY = 86400.0


def utc_of(mjd: float) -> str:
    """Format an MJD as date and time to the millisecond, e.g. 2020-05-31 11:36:46.000."""
    # isoformat truncates; half a millisecond makes it round.
    time = datetime(1858, 11, 17) + timedelta(days=mjd, microseconds=500)
    return time.isoformat(sep=" ", timespec="milliseconds")
