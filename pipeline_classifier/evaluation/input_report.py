"""Verdict and text report of check_input.py."""

import math
from typing import Any

from pipeline_classifier.frontend.cleaning import FEWEST_SAMPLES

Report = dict[str, Any]

MIN_TIMED_SAMPLES = 4096  # the speed on fewer is dominated by the start of a search; chosen by hand

OK, WARNINGS, NOT_USABLE = "OK", "OK with warnings", "NOT USABLE"


def find_obstacles(report: Report) -> list[str]:
    """Return the reasons why the observation cannot be searched at all."""
    reasons = []
    if report["channels_zapped"] == report["nchans"]:
        reasons.append(f"the zaplist removes all {report['nchans']} channels")
    if report["channels_dead"] == report["nchans"]:
        reasons.append("every channel is constant or not finite in all the samples that were read")
    if report["nchans"] - report["channels_zapped"] == 1:
        reasons.append("a single channel shows no dispersion sweep")
    if report["dms_swept_past_file"] == report["ndm"]:
        reasons.append(
            f"the lowest trial DM, {report['dm_lowest']:g}, has a sweep of {report['sweeps'][0]['sweep_s']:.3g} s, "
            f"longer than the observation of {report['duration_s']:.3g} s"
        )
    return reasons


def find_warnings(report: Report) -> list[str]:
    """Return what a search will miss or measure wrongly, one phrase each."""
    span = (report["dm_highest"] - report["dm_lowest"]) / report["dm_step"] * 2 * report["dm_step_smearing_samples"]
    smeared, window_s = report["first_dm_smeared_past_page"], report["baseline_window_s"]
    factor = report.get("times_real_time")
    found = {
        f"{report['bytes_left_over']} bytes after the last whole sample are not read": report["bytes_left_over"] > 0,
        f"all {report['nifs']} IFs are added, which is wrong for Stokes parameters": report["nifs"] > 1,
        "the observation is shorter than a page, which is padded with zeros": report["duration_s"]
        < report["longest_page_s"],
        f"with fewer than {FEWEST_SAMPLES} samples no channel is masked": report["nsamples"] < FEWEST_SAMPLES,
        f"from DM {smeared or 0:g} on, the smearing within a channel is longer than a page": smeared is not None,
        f"pulses longer than {window_s:g} s are removed with the baseline although they fit into a page": (
            0 < window_s < report["longest_page_s"]
        ),
        f"the sweep changes by only {span:.2g} samples over all trial DMs, too little to distinguish pulses from "
        "interference": span < 2,
        f"the zaplist removes {report['channels_zapped']} of {report['nchans']} channels": (
            report["channels_zapped"] > report["nchans"] / 2
        ),
        f"{report['dead_channel_fraction']:.1%} of the channels are dead": report["dead_channel_fraction"] > 0.1,
        f"{report['saturated_fraction'] or 0:.1%} of the samples are saturated": (report["saturated_fraction"] or 0)
        > 0.01,
        f"{report['not_finite_fraction']:.2%} of the samples are not finite or out of range, and are not used": (
            report["not_finite_fraction"] > 0
        ),
        f"the search needs more than half of the memory of this machine ({size(report['memory_bytes'])})": (
            report["memory_bytes"] > report["machine_memory_bytes"] / 2
        ),
        f"the search runs at only {factor or 0:.2g} times real time": (
            factor is not None and factor < 1 and report["nsamples"] >= MIN_TIMED_SAMPLES
        ),
    }
    return report["input_warnings"] + [phrase for phrase, applies in found.items() if applies]


def size(n_bytes: float) -> str:
    """Format a number of bytes in MiB or GiB."""
    return f"{n_bytes / 2**30:.3g} GiB" if n_bytes >= 2**30 else f"{n_bytes / 2**20:.0f} MiB"


def text(report: Report) -> str:
    """Format a report as lines of printable characters, with the verdict in the last line."""
    lines = [("file", ", ".join(report["files"]))]
    if "channels_dead" in report:
        lines += described(report)
    reasons = "; ".join(report["reasons"])
    lines.append(("verdict", f"{report['verdict']}: {reasons}" if reasons else report["verdict"]))
    whole = [f"{name:<18}{value}" for name, value in lines]
    return "\n".join("".join(c if c.isprintable() else "?" for c in line) for line in whole)


def described(report: Report) -> list[tuple[str, str]]:
    """Return the lines of a report as (name, text) pairs."""
    r, ms = report, 1e3 * report["tsamp_s"]
    order = "ascending" if r["ascending"] else "descending"
    utc = f", {r['start_utc']} UTC" if r["start_utc"] else ""
    start = f"MJD {r['tstart_mjd']:.9f}{utc}" if r["tstart_mjd"] else "not in the header"
    saturated = "" if r["saturated_fraction"] is None else f"{r['saturated_fraction']:.2%} of the samples saturated, "
    resolutions = "" if r["time_downsample"] == [1] else f" of {r['time_downsample']} samples"
    lines = [
        ("source", r["source_name"] or "not in the header"),
        ("samples", f"{r['nbits']} bits, {r['sample_type']}, {r['nifs']} IF{'s' * (r['nifs'] > 1)}"),
        ("band", f"{r['f_top_mhz']:.6g} to {r['f_bottom_mhz']:.6g} MHz (channel centres), {order} in the file"),
        ("channels", f"{r['nchans']} of {r['channel_width_mhz']:.6g} MHz; the zaplist removes {r['channels_zapped']}"),
        ("zaplist", ", ".join(f"{low:g} to {high:g} MHz" for low, high in r["zaplist_mhz"]) or "empty"),
        ("time", f"{r['nsamples']} samples of {ms * 1e3:.6g} us, {r['duration_s']:.6g} s"),
        ("start", start),
        ("left over", f"{r['bytes_left_over']} bytes at the end"),
        ("trial DMs", f"{r['dm_lowest']:g} to {r['dm_highest']:g} pc cm^-3, {r['ndm']} in steps of {r['dm_step']:g}"),
        ("pages", f"{r['pages']} of {r['page_samples']} columns{resolutions}, the longest {r['longest_page_s']:.4g} s"),
        ("", "      DM     sweep: s     samples      pages  observations        smearing: ms    samples"),
    ]
    for s in r["sweeps"]:
        row = f"{s['dm']:8.6g} {s['sweep_s']:12.4g} {s['sweep_samples']:11.4g} {s['sweep_pages']:10.3g} "
        row += f"{s['sweep_files']:13.3g} {s['channel_smearing_ms']:19.4g} {s['channel_smearing_samples']:10.3g}"
        lines.append(("", row))
    lines += [
        ("DM step", f"smears by up to {r['dm_step_smearing_ms']:.4g} ms, {r['dm_step_smearing_samples']:.3g} samples"),
        ("end of the file", f"the last {r['samples_swept_past_end']} samples are searched with part of the band"),
        ("longest pulse", f"{widest_pulse_s(r):.4g} s, limited by page and baseline window"),
        ("sample values", f"{saturated}{r['not_finite_fraction']:.2%} not finite, {r['channels_dead']} dead channels"),
    ]
    if "memory_bytes" in r:
        memory = f"{size(r['memory_bytes'])} of {size(r['machine_memory_bytes'])}, threads: {r['threads']}"
        lines.append(("memory", memory))
    if r.get("times_real_time"):
        lines.append(("speed", f"{r['times_real_time']:.3g} times real time, {r['expected_run_s']:.3g} s in all"))
    return lines


def widest_pulse_s(report: Report) -> float:
    """Duration in seconds beyond which a pulse does not fit into a page or is removed with the baseline."""
    return min(report["longest_page_s"], report["baseline_window_s"] or math.inf)
