"""The run summary: what was read, searched and found. A source fills in its part, the search completes it."""

from dataclasses import dataclass, field, fields
from typing import Any


def _entry(label: str, unit: str = "") -> Any:
    return field(default=None, metadata={"label": label, "unit": unit})


@dataclass(frozen=True)
class RunSummary:
    """Numbers of a run; None where a number does not apply.

    The label and the unit of each field are in its metadata. Screen, HTML report and JSON are made from them.
    """

    samples: int | None = _entry("samples in the observation")
    samples_read: int | None = _entry("samples read")
    samples_searched: int | None = _entry("samples searched")
    samples_not_searched: int | None = _entry("samples only in pages not classified")
    channels: int | None = _entry("channels")
    channels_used: float | None = _entry("channels in use, on average")
    values_not_finite: int | None = _entry("values not finite or out of range")
    values_constant: int | None = _entry("values in constant stretches")
    bytes_left_over: int | None = _entry("bytes left over at the end", "B")
    samples_swept_past_end: int | None = _entry("samples searched with part of the band")
    blocks_read: int | None = _entry("ring blocks read")
    transfers: int | None = _entry("transfers that ended")
    ring_blocks: int | None = _entry("blocks of the ring")
    most_ring_blocks_full: int | None = _entry("most ring blocks full")
    stopped: str | None = _entry("end of the stream")
    first_page: int | None = _entry("number of the first page")
    pages_expected: int | None = _entry("pages expected")
    pages: int | None = _entry("pages")
    pages_classified: int | None = _entry("pages classified")
    pages_unusable: int | None = _entry("pages constant, not finite, out of range")
    pages_without_output: int | None = _entry("pages without finite output of the model")
    pages_gated: int | None = _entry("pages below snr_gate")
    pages_with_pulse: int | None = _entry("pages with a pulse")
    candidates: int | None = _entry("candidates")
    candidates_without_output: int | None = _entry("candidates without finite output")
    events: int | None = _entry("events")
    duration_s: float | None = _entry("time searched", "s")
    wall_s: float | None = _entry("wall-clock time", "s")
    times_real_time: float | None = _entry("speed", "times real time")
    threshold: float | None = _entry("page threshold (probability)")
    event_threshold: float | None = _entry("event threshold (probability)")
    min_snr: float | None = _entry("minimum S/N of events")
    false_per_hour: float | None = _entry("expected false positives", "per hour")

    def known(self) -> dict[str, Any]:
        """Names and values of the fields that apply, as JSON has them."""
        return {f.name: value for f in fields(self) if (value := getattr(self, f.name)) is not None}

    def rows(self) -> list[tuple[str, str, str]]:
        """Label, value and unit, as text, of the fields that apply."""
        return [
            (f.metadata["label"], f"{value:.9g}" if isinstance(value, float) else str(value), f.metadata["unit"])
            for f in fields(self)
            if (value := getattr(self, f.name)) is not None
        ]
