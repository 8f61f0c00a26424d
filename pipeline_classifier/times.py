"""Times of observations: MJD and UTC."""

from datetime import datetime, timedelta

SECONDS_PER_DAY = 86400.0


def utc_of(mjd: float) -> str:
    """Date and time of an MJD to the millisecond, 2020-05-31 11:36:46.000."""
    # Half a millisecond, as isoformat cuts off and does not round.
    time = datetime(1858, 11, 17) + timedelta(days=mjd, microseconds=500)
    return time.isoformat(sep=" ", timespec="milliseconds")
