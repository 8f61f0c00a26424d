"""Describe a filterbank file and check whether it can be searched with a config.

  python check_input.py file.fil                      with the default config
  python check_input.py file.fil -c config.json       with another config
  python check_input.py a.fil b.fil c.fil             consecutive files, as one observation
  python check_input.py file.fil --json               print the same numbers as one JSON object
  python check_input.py file.fil --no-timing          skip the measurement of speed, which takes some seconds

The last line is the verdict: "OK", "OK with warnings: ..." (exit code 0) or "NOT USABLE: ..." (exit code 2).
Sample values are checked in a few stretches of the file. The memory is that of run_inference.py, estimated to within a
factor of 1.5. The speed is measured on this machine, in a search of the beginning of the observation.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

import numpy as np

from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.classifiers import Classifiers, load_classifiers
from pipeline_classifier.detection.decision import decide
from pipeline_classifier.detection.search import search
from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.dispersion import DISPERSION_CONSTANT, dispersion_delay
from pipeline_classifier.evaluation.input_report import (
    NOT_USABLE,
    OK,
    WARNINGS,
    Report,
    find_obstacles,
    find_warnings,
    text,
)
from pipeline_classifier.formats.joined import JoinedFilterbank, open_observation
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend import filterbank_pages
from pipeline_classifier.frontend.blanking import out_of_range
from pipeline_classifier.frontend.chunks import ChunkPlan, plan_chunks
from pipeline_classifier.frontend.cleaning import zapped
from pipeline_classifier.frontend.observation import after_downsampling, input_warnings
from pipeline_classifier.frontend.settings import Cleaning
from pipeline_classifier.frontend.sources import Layer
from pipeline_classifier.frontend.threads import thread_count
from pipeline_classifier.options import add_config_option
from pipeline_classifier.times import utc_of
from single_pulse_classifier_training.cli import InputError, run_script

# Number and size of the stretches in which sample values are checked; chosen by hand.
STRETCHES = 4
STRETCH_SAMPLES = 2048
STRETCH_BYTES = 16 << 20
WHOLE_BYTES = 256 << 20
MIN_SATURATING_BITS = 4  # with fewer bits the lowest and the highest level are in normal use

# Parts of the memory estimate besides those of `chunks.plan_chunks`. A slow test compares it with the resident memory
# of run_inference.py, within a factor of 1.5.
CUDA_BYTES = 360 << 20
"""Resident memory that a CUDA build of torch needs more than a CPU build."""
ACTIVATIONS_PER_PIXEL = 10
"""float32 values that the network holds at once for each pixel of an image, besides those of a search of few pages."""
TIMED_CHUNKS = 4
"""Chunks for each worker that are searched to measure the speed, besides those that the longest sweep takes."""
LARGEST_TIMED = {"nchans": 1 << 14, "ndm": 1 << 10, "block_bytes": 1 << 30, "pages": 1 << 23}
"""Limits above which the speed is not measured, as that could take more than some ten seconds; chosen by hand."""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "files", nargs="+", metavar="FILE", help="SIGPROC filterbank file, or consecutive files of one observation"
    )
    add_config_option(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--no-timing", action="store_true", help="do not measure the speed")
    return parser


def check(files: Sequence[str | Path], config: PipelineConfig, classifiers: Classifiers, timing: bool = True) -> Report:
    """Describe an observation, and judge whether it can be searched with a config.

    Parameters
    ----------
    files : sequence of str or Path
        One SIGPROC file, or consecutive files of one observation.
    config : PipelineConfig
        Settings of the search.
    classifiers : Classifiers
        Networks of the search.
    timing : bool
        Whether to measure the speed.

    Returns
    -------
    report : dict
        Numbers by name, with units in the names (None where unknown), the ``verdict`` and its ``reasons``. Unreadable
        files have only the last two.
    """
    settings = config.front_end()
    dms, cleaning = settings.dms, settings.cleaning
    report: Report = {"files": [str(file) for file in files]}
    try:
        filterbank = open_observation(files[0] if len(files) == 1 else files, config.ifs)
        report |= header(filterbank) | search_grid(filterbank, dms, cleaning, config) | sample_values(filterbank)
        obstacles = find_obstacles(report)
        if not obstacles:
            plan = plan_chunks(filterbank, filterbank_pages.stacks_of(dms), settings)
            report |= memory(plan, report, config, classifiers.pages.checkpoint.resolution)
            if timing:
                report |= speed(files, report, config, classifiers)
    except (InputError, OSError) as error:
        obstacles = [str(error)]
    warnings = [] if obstacles else find_warnings(report)
    verdict = NOT_USABLE if obstacles else WARNINGS if warnings else OK
    return report | {"verdict": verdict, "reasons": obstacles or warnings}


def header(filterbank: Filterbank | JoinedFilterbank) -> Report:
    """Header values with their units, and the actual number of samples."""
    head = filterbank.header
    return {
        "source_name": head.source_name,
        "nbits": head.nbits,
        "sample_type": {"u": "unsigned", "i": "signed", "f": "floating point"}[head.dtype.kind],
        "nifs": head.nifs,
        "f_top_mhz": float(filterbank.frequencies[0]),
        "f_bottom_mhz": float(filterbank.frequencies[-1]),
        "ascending": head.ascending,
        "nchans": head.nchans,
        "channel_width_mhz": abs(head.foff),
        "tsamp_s": head.tsamp,
        "nsamples": filterbank.nsamples,
        "duration_s": filterbank.nsamples * head.tsamp,
        "tstart_mjd": head.tstart,
        "start_utc": utc_of(head.tstart) if head.tstart > 0 else None,
        "bytes_left_over": filterbank.bytes_left_over,
    }


def search_grid(
    filterbank: Filterbank | JoinedFilterbank, dms: np.ndarray, cleaning: Cleaning, config: PipelineConfig
) -> Report:
    """Trial DMs and pages, and the sweep and smearing of pulses at these DMs.

    The smearing within a channel is that of the lowest channel, ``2 K DM width / f^3`` (Lorimer & Kramer 2005, Handbook
    of Pulsar Astronomy, sect. 4.1.1). The smearing by the DM step is the sweep of half a step, which is the largest
    difference between the DM of a pulse and the nearest trial DM.
    """
    frequencies, tsamp, nsamples = after_downsampling(filterbank, cleaning)
    top, bottom = frequencies[[0, -1]]
    sweeps_s = dispersion_delay(dms, bottom, top)
    channel_s = 2 * DISPERSION_CONSTANT * dms * abs(filterbank.header.foff) * cleaning.fd / bottom**3
    half_step_s = float(dispersion_delay((dms[1] - dms[0]) / 2, bottom, top))
    page_s = config.page_samples * tsamp * max(config.time_downsample)
    rows = np.unique(np.linspace(0, len(dms) - 1, 5).round().astype(int))
    beyond_file, beyond_page = dms[sweeps_s > nsamples * tsamp], dms[channel_s > page_s]
    stacks = -(-len(dms) // filterbank_pages.STACK_DMS)
    return {
        "dm_lowest": float(dms[0]),
        "dm_highest": float(dms[-1]),
        "dm_step": float(dms[1] - dms[0]),
        "ndm": len(dms),
        "page_samples": config.page_samples,
        "time_downsample": list(config.time_downsample),
        "longest_page_s": page_s,
        "pages": stacks * sum(count_pages(nsamples, factor, config) for factor in config.time_downsample),
        "sweeps": [
            {
                "dm": float(dms[row]),
                "sweep_s": float(sweeps_s[row]),
                "sweep_samples": float(sweeps_s[row] / tsamp),
                "sweep_pages": float(sweeps_s[row] / page_s),
                "sweep_files": float(sweeps_s[row] / (nsamples * tsamp)),
                "channel_smearing_ms": float(channel_s[row] * 1e3),
                "channel_smearing_samples": float(channel_s[row] / tsamp),
            }
            for row in rows
        ],
        "dm_step_smearing_ms": half_step_s * 1e3,
        "dm_step_smearing_samples": half_step_s / tsamp,
        "samples_swept_past_end": int(min(math.ceil(sweeps_s[-1] / tsamp), nsamples)),
        "dms_swept_past_file": len(beyond_file),
        "first_dm_swept_past_file": float(beyond_file[0]) if len(beyond_file) else None,
        "dms_smeared_past_page": len(beyond_page),
        "first_dm_smeared_past_page": float(beyond_page[0]) if len(beyond_page) else None,
        "baseline_window_s": cleaning.baseline_window_s,
        "zaplist_mhz": [list(band) for band in cleaning.zaplist],
        "channels_zapped": int(zapped(frequencies, cleaning.zaplist).sum()),
        "input_warnings": input_warnings(filterbank, frequencies, config.front_end()),
    }


def count_pages(nsamples: int, factor: int, config: PipelineConfig) -> int:
    """Number of pages of one stack of DMs at one time resolution: the length of `pages.page_starts`."""
    step = max(1, round(config.page_samples * (1.0 - config.overlap())))
    return -(-max(0, -(-nsamples // factor) - config.page_samples) // step) + 1


def sample_values(filterbank: Filterbank | JoinedFilterbank) -> Report:
    """Dead channels, saturated samples and non-finite samples in a few stretches over the whole observation.

    All of an observation of floats up to `WHOLE_BYTES` is read: one spectrum may be bad. A channel is dead if it is
    constant or not finite in every stretch. Samples at either end of their range are counted as saturated in all other
    channels.
    """
    head = filterbank.header
    length = int(min(STRETCH_SAMPLES, filterbank.nsamples, max(2, STRETCH_BYTES // (8 * head.nifs * head.nchans))))
    last = filterbank.nsamples - length
    stretches = STRETCHES
    if head.dtype.kind == "f" and filterbank.nsamples * head.bytes_per_sample <= WHOLE_BYTES:
        stretches = max(STRETCHES, -(-filterbank.nsamples // length))
    starts = sorted({last * k // (stretches - 1) for k in range(stretches)})
    limits = None
    if head.dtype.kind in "iu" and head.nbits >= MIN_SATURATING_BITS:
        ifs = head.nifs if filterbank.ifs == "sum" else 1
        lowest, highest = head.sample_range
        limits = ifs * lowest, ifs * highest
    dead = np.ones(head.nchans, dtype=bool)
    saturated, not_finite = np.zeros(head.nchans, dtype=np.int64), 0
    for start in starts:
        block = filterbank.read(start, length)
        finite = np.isfinite(block).all(axis=0)
        dead &= ~finite | (block.min(axis=0) == block.max(axis=0))
        bad = out_of_range(block)
        not_finite += 0 if bad is None else int(bad.sum())
        if limits is not None:
            saturated += ((block == limits[0]) | (block == limits[1])).sum(axis=0)
    live_samples = len(starts) * length * int((~dead).sum())
    return {
        "samples_looked_at": len(starts) * length,
        "channels_dead": int(dead.sum()),
        "dead_channel_fraction": float(dead.mean()),
        "saturated_fraction": None if limits is None else float(saturated[~dead].sum() / max(1, live_samples)),
        "not_finite_fraction": not_finite / (len(starts) * length * head.nchans),
    }


def memory(plan: ChunkPlan, report: Report, config: PipelineConfig, resolution: int) -> Report:
    """Memory that run_inference.py needs, from the plan of chunks that it follows."""
    import torch

    length = min(plan.length, report["nsamples"])
    workers = min(thread_count(config.threads), plan.workers, -(-report["nsamples"] // length))
    network = 4 * config.batch_size * resolution**2 * ACTIVATIONS_PER_PIXEL
    program = CUDA_BYTES if torch.version.cuda else 0
    return {
        "threads": workers,
        "block_samples": length,
        "block_bytes": int(plan.bytes_each),
        "memory_bytes": plan.memory_bytes(workers) + program + network + 16 * report["pages"],
        "machine_memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
    }


def speed(files: Sequence[str | Path], report: Report, config: PipelineConfig, classifiers: Classifiers) -> Report:
    """Speed of the whole search, measured on the first chunks; None if `LARGEST_TIMED` is exceeded."""
    unknown: Report = {"timed_s": None, "times_real_time": None, "expected_run_s": None}
    if any(report[key] > largest for key, largest in LARGEST_TIMED.items()):
        return unknown
    source = filterbank_pages.FilterbankPages(files[0] if len(files) == 1 else files, config.front_end())
    decision = decide(config, classifiers, source.layers)
    n_chunks = 1 + source.max_delay // source.plan.length
    for chunks in (
        n_chunks,
        n_chunks + TIMED_CHUNKS * report["threads"],
    ):  # loops are compiled, if need be, in the first
        edges = source.chunk_edges()[: chunks + 1]
        first = [layer.starts[: beginning(layer, int(edges[-1]) - source.max_delay)] for layer in source.layers]
        part = source.with_starts(*first)
        began = time.monotonic()
        search(part, classifiers, decision, config.threads)
        wall_s = time.monotonic() - began
    timed_s = (part.summary().samples_read or 0) * source.tsamp
    factor = timed_s / wall_s
    return {"timed_s": timed_s, "times_real_time": factor, "expected_run_s": report["duration_s"] / factor}


def beginning(layer: Layer, samples: int) -> int:
    """Count the pages of a layer that end within the first samples of an observation, at least one."""
    ends = (layer.starts + layer.grid.n_time) * layer.time_downsample
    return max(1, int(np.searchsorted(ends, samples, side="right")))


def run(args: argparse.Namespace) -> Report:
    """Check the files and print the report; exit with code 2 if the observation cannot be searched."""
    config = load_pipeline_config(args.config)
    config.warn_of_unused_settings()
    report = check(args.files, config, load_classifiers(config), not args.no_timing)
    print(json.dumps(report, indent=2, allow_nan=False) if args.json else text(report))
    if report["verdict"] == NOT_USABLE:
        sys.exit(2)
    return report


def main() -> None:
    run_script(get_parser(), run, prepare_process)


if __name__ == "__main__":
    main()
