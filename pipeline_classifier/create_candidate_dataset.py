"""Make a training set for the second look out of observations whose pulses are known.

  python create_candidate_dataset.py A.fil B.fil --output-dir data --name peaks
      labels from A_truth.csv and B_truth.csv beside the observations (simulate_observation.py writes them)

Every peak of a boxcar search, in every page, gives one image of its surroundings (second_look.py). A peak is a pulse if
its time and DM are those of one in the truth table; it gives no image if they are nearly so.

Written to the output folder (<name>_DM_time_dataset_peaks_...), for training.py with "normaliser": "noise":
  training_64x64.npy     (N, 64, 64) uint8 images, row 0 = highest DM
  labels_training.npy    (N,) strings, Pulse or Artefact
  groups_training.npy    (N,) int64, the pulse or the stretch of eight pages that a peak comes from
  snr_training.npy       (N,) float32, S/N of the pulse as the truth table gives it, NaN for artefacts
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder

import numpy as np
import torch
from tqdm import tqdm

from pipeline_classifier.config import DEFAULT_CONFIG, PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.candidate_classifier import SIDE, portrait, portrait_images
from pipeline_classifier.detection.event_finder import PEAKS_PER_PAGE
from pipeline_classifier.detection.peaks import boxcar_search, find_peaks
from pipeline_classifier.detection.search import map_in_order, open_filterbank
from pipeline_classifier.evaluation.recovery import Matcher
from pipeline_classifier.frontend.pages import PageBatch
from pipeline_classifier.frontend.sources import FilterbankPages
from pipeline_classifier.simulation.observation import known_pulses
from single_pulse_classifier_training.cli import InputError, check_distinct, run_script, set_name
from single_pulse_classifier_training.runtime import make_output_folder, save_npy

logger = logging.getLogger(__name__)

NEARLY = 3.0  # times the tolerances of a match; such a peak is a pulse that was measured badly
PAGES_PER_GROUP = 8
LEAST_SNR = 5.5

Peaks = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("observations", nargs="+", help="SIGPROC filterbank files with <name>_truth.csv beside each")
    parser.add_argument("-c", "--config", default=DEFAULT_CONFIG, help="DM grid and cleaning (default: %(default)s)")
    parser.add_argument("--output-dir", default=".", help="where the set goes (default: this folder)")
    parser.add_argument("--name", help="name of the set (default: of the first observation)")
    return parser


def labelled_peaks(source: FilterbankPages, batch: PageBatch, matcher: Matcher) -> Peaks:
    """The peaks of adjoining pages, each seen with the pages beside it, and what they are.

    Returns
    -------
    images : (N, SIDE, SIDE) uint8
    is_pulse : (N,) bool
    group : (N,) int64, number of the pulse, or -1 - that of the stretch of pages
    snr : (N,) float32 of the pulse, NaN for artefacts
    """
    grid = source.grid
    portraits, is_pulse, group, snr = [], [], [], []
    for number in range(len(batch)):
        pages = slice(max(0, number - 1), number + 2)
        start, origin = int(batch.starts[number]), int(batch.starts[pages][0])
        if (np.diff(batch.starts[pages]) != grid.n_time).any():
            continue  # the last page of a file, which repeats a part of the one before it
        searched = boxcar_search(np.concatenate(batch.pages[pages], axis=1), grid.n_time // 2)
        edges = start - origin - grid.n_time // 4, start - origin + grid.n_time + grid.n_time // 4
        for peak in find_peaks(searched, grid, *edges, most=PEAKS_PER_PAGE):
            where = (
                (origin + peak.column + peak.width / 2) * grid.tsamp,
                float(grid.dms[peak.row]),
                peak.width * grid.tsamp,
            )
            pulses = np.flatnonzero(matcher.matches(*where))
            if peak.snr < LEAST_SNR or (not len(pulses) and matcher.matches(*where, NEARLY).any()):
                continue
            portraits.append(portrait(searched, grid, peak))
            is_pulse.append(len(pulses) > 0)
            group.append(pulses[0] if len(pulses) else -1 - (batch.first + number) // PAGES_PER_GROUP)
            snr.append(matcher.snrs[pulses].max() if len(pulses) else np.nan)
    images = portrait_images(np.array(portraits, np.float32).reshape(-1, SIDE, SIDE)).numpy()
    return images, np.array(is_pulse, bool), np.array(group, np.int64), np.array(snr, np.float32)


def plan(paths: Sequence[str], config: PipelineConfig) -> list[tuple[FilterbankPages, Matcher]]:
    """Open every observation and its truth table, before any of them is read."""
    check_distinct(paths)
    planned = []
    for path in paths:
        source = open_filterbank(path, config)
        if not source.grid.sweeps:
            raise InputError(f"{path}: one channel, or one trial DM: peaks have no sweep to be told by")
        planned.append((source, Matcher(known_pulses(path, source.duration_s), source.grid)))
    return planned


def peaks_of(observation: tuple[FilterbankPages, Matcher]) -> Peaks:
    """All peaks of an observation, as `labelled_peaks`; groups from 0 on."""
    source, matcher = observation
    parts = [labelled_peaks(source, source.pages(block)[0], matcher) for block in source.blocks()]
    source.release()
    images, is_pulse, group, snr = (np.concatenate(column) for column in zip(*parts, strict=True))
    return images, is_pulse, np.unique(group, return_inverse=True)[1], snr


def run(args: argparse.Namespace) -> dict[str, Path]:
    """Make the set; return the files by kind."""
    config = load_pipeline_config(args.config).model_copy(update={"page_overlap": 0.0, "time_downsample": [1]})
    name = set_name(args)
    planned = plan(args.observations, config)
    output_dir = make_output_folder(Path(args.output_dir), "--output-dir")
    prefix = f"{name}_DM_time_dataset_peaks"
    found = map_in_order(peaks_of, planned, config.threads)
    parts, groups = [], 0
    for images, is_pulse, group, snr in tqdm(found, total=len(planned), unit="file", disable=None):
        parts.append((images, is_pulse, group + groups, snr))
        groups += int(group.max(initial=-1)) + 1
    images, is_pulse, group, snr = (np.concatenate(column) for column in zip(*parts, strict=True))
    if not len(images):
        raise InputError(f"{args.observations[0]}: no peak of S/N {LEAST_SNR:g}, nor in any other observation")
    if not is_pulse.any():
        logger.warning("no peak is one of the known pulses: is the grid of trial DMs theirs?")
    columns = {
        f"training_{SIDE}x{SIDE}": images,
        "labels_training": np.where(is_pulse, "Pulse", "Artefact"),
        "groups_training": group,
        "snr_training": snr,
    }
    files = {kind: output_dir / f"{prefix}_{kind}.npy" for kind in columns}
    for kind, values in columns.items():
        save_npy(files[kind], values)
    print(f"{len(images)} peaks: {is_pulse.sum()} Pulse, {(~is_pulse).sum()} Artefact, of {groups} groups")
    for path in files.values():
        print(path)
    return files


def main() -> None:
    torch.set_num_threads(1)
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
