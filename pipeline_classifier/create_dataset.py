"""Make a training set from observations whose pulses are known.

  python create_dataset.py A.fil B.fil --output-dir ../single_pulse_classifier_training/data --name crab
      labels from A_truth.csv and B_truth.csv beside the observations (simulate_observation.py writes them)
  python create_dataset.py B0531+21.fil --cands B0531+21.cands --pulse-dm 56 58 --name B0531+21_59000_48386
      labels from a TransientX candidate list: DM in [56, 58] is a pulse, DM 0 is an artefact

Every pulse, and every candidate at DM 0, gives --shifts pages that start at different samples, so that it appears at
all positions between the left and the right edge. Pages of pulse-free sky are artefacts as well; with --hard-negatives
MODEL.pth only those to which this model gives a pulse probability of at least 0.05. The pages are read, cleaned,
dedispersed and normalised by the code that run_inference.py uses, with the same config. The normaliser is that of the
model which the config names, unless --normaliser is given. Of observations without any pulse (a truth table with the
heading alone), all pages are taken; evaluate.py --pulse-free measures false positives on them.

Written to the output folder; files of an earlier set of the same name are replaced:
  training_<name>.json       config for training.py with the settings of the included model
and, as <name>_DM_time_dataset_realbased_...:
  training.npy               (N, 256, 256) uint8 images, row 0 = highest DM
  training_<res>x<res>.npy   the same for other --resolutions
  labels_training.npy        (N,) strings, Pulse or Artefact
  groups_training.npy        (N,) int64, the event that an image shows; its images belong in one split
  snr_training.npy           (N,) float32, S/N of the pulse as the truth or the list gives it, NaN for artefacts
  set.json                   description: files, normaliser, DMs, sampling time, classes, observations
"""

import argparse
import contextlib
import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.classifiers import load_page_model
from pipeline_classifier.detection.page_classifier import PageClassifier
from pipeline_classifier.detection.workers import prepare_process, wait_for_packages
from pipeline_classifier.evaluation.known_events import (
    KnownEvents,
    events_from_cands,
    events_from_truth,
    origin_of,
    pulse_free_starts,
)
from pipeline_classifier.frontend.filterbank_pages import STACK_DMS, FilterbankPages
from pipeline_classifier.frontend.pages import PAGE_NORMALISERS, resize, to_images
from pipeline_classifier.options import add_config_option, check_distinct, set_name
from pipeline_classifier.simulation.observation import check_free_space, known_pulses, truth_path
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.labelled_set import PAGES, SetPaths, begin_set, finish_set
from single_pulse_classifier_training.runtime import atomic_writer, choose_device, make_output_folder

logger = logging.getLogger(__name__)

BATCH_SIZE = 64
HARD = 0.05
"""Minimum probability of a hard negative, a page without a pulse: as `event_finder.CANDIDATE_THRESHOLD`."""


@dataclass(frozen=True)
class LabelledStarts:
    """Pages to cut from one observation.

    Attributes
    ----------
    start, is_pulse, group, snr : (N,) ndarray
        First samples, ascending, with label, group and S/N.
    is_free_sky : bool
        Whether the observation has no event, and its pages are all that it holds.
    """

    start: np.ndarray
    is_pulse: np.ndarray
    group: np.ndarray
    snr: np.ndarray
    is_free_sky: bool


@dataclass(frozen=True)
class DatasetOptions:
    """Contents of the set.

    Attributes
    ----------
    observations : tuple of str
        SIGPROC files.
    cands : tuple of str
        TransientX lists, one for each observation; empty: truth tables.
    pulse_dm, artefact_dm : (float, float)
        DM windows of the two classes in the lists, pc cm^-3.
    shifts : int
        Pages of each event.
    sky_pages : float
        Pulse-free pages for each page of a pulse.
    hard_negatives : str or None
        Checkpoint of the model that selects pulse-free pages.
    normaliser : str or None
        None for that of the model which the config names.
    resolutions : tuple of int
        Heights and widths of the images in pixels.
    seed : int
    """

    observations: tuple[str, ...]
    cands: tuple[str, ...]
    pulse_dm: tuple[float, float]
    artefact_dm: tuple[float, float]
    shifts: int
    sky_pages: float
    hard_negatives: str | None
    normaliser: str | None
    resolutions: tuple[int, ...]
    seed: int

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self:
        """Take the options from parsed arguments, and check them."""
        if args.cands and len(args.cands) != len(args.observations):
            raise InputError(
                f"--cands must name a list for each of the {len(args.observations)} observations, got {len(args.cands)}"
            )
        for option, value, least in (
            ("--shifts", args.shifts, 1),
            ("--sky-pages", args.sky_pages, 0),
            ("--resolutions", min(args.resolutions), 1),
            ("--seed", args.seed, 0),
        ):
            if not value >= least:
                raise InputError(f"{option} must be at least {least}, got {value}")
        for option, (low, high) in (("--pulse-dm", args.pulse_dm), ("--artefact-dm", args.artefact_dm)):
            if not low <= high:
                raise InputError(f"{option} must be a lower and a higher DM, got {low:g} {high:g}")
        check_distinct(args.observations)
        return cls(
            tuple(args.observations),
            tuple(args.cands or ()),
            tuple(args.pulse_dm),
            tuple(args.artefact_dm),
            args.shifts,
            args.sky_pages,
            args.hard_negatives,
            args.normaliser,
            tuple(args.resolutions),
            args.seed,
        )


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("observations", nargs="+", help="SIGPROC filterbank files")
    add_config_option(parser, "config with DM grid, page length and cleaning")
    parser.add_argument("--output-dir", default=".", help="folder of the set (default: the current folder)")
    parser.add_argument("--name", help="name of the set (default: that of the first observation)")
    parser.add_argument("--cands", nargs="+", help="TransientX lists, one per observation, instead of truth tables")
    parser.add_argument(
        "--pulse-dm",
        nargs=2,
        type=float,
        default=(56.0, 58.0),
        metavar=("LOW", "HIGH"),
        help="DM window of pulses in the lists, pc cm^-3 (default: 56 58)",
    )
    parser.add_argument(
        "--artefact-dm",
        nargs=2,
        type=float,
        default=(0.0, 0.0),
        metavar=("LOW", "HIGH"),
        help="DM window of artefacts in the lists, pc cm^-3 (default: 0 0)",
    )
    parser.add_argument("--shifts", type=int, default=256, help="number of pages of each event (default: %(default)s)")
    parser.add_argument(
        "--sky-pages",
        type=float,
        default=1.0,
        help="pulse-free pages per page of a pulse, if there are so many (default: %(default)s)",
    )
    parser.add_argument(
        "--hard-negatives",
        metavar="MODEL.pth",
        help=f"use only pulse-free pages to which this model gives a probability of {HARD:g} or more",
    )
    parser.add_argument(
        "--normaliser",
        choices=PAGE_NORMALISERS,
        help="scaling of the images, to be named in the training config too (default: that of the model which the "
        "config names, robust for the included one)",
    )
    parser.add_argument(
        "--resolutions",
        nargs="+",
        type=int,
        default=[256],
        help="pixels along a side of the images, one file each (default: 256)",
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="random seed of the choice of pulse-free pages (default: %(default)s)"
    )
    return parser


def only_hard(starts: np.ndarray, source: FilterbankPages, classifier: PageClassifier) -> np.ndarray:
    """Return the starts of the pages to which the classifier gives a probability of at least `HARD`."""
    batches = source.with_starts(starts).batches(BATCH_SIZE)
    probabilities = [classifier.classify(batch).probabilities for batch in batches]
    source.release()
    return starts[np.concatenate(probabilities) >= HARD] if len(starts) else starts


def label_starts(
    events: KnownEvents, free: np.ndarray, source: FilterbankPages, options: DatasetOptions, rng: np.random.Generator
) -> LabelledStarts:
    """Choose the pages of one observation.

    In the pages of an event its arrival moves from the last column to the first, in ``options.shifts`` columns, evenly
    spaced.

    Parameters
    ----------
    events : KnownEvents
    free : (F,) ndarray of int64
        First samples of the pages of pulse-free sky to draw from.
    source : FilterbankPages
    options : DatasetOptions
    rng : Generator
    """
    grid, nsamples, shifts = source.grid, source.nsamples, options.shifts
    offsets = np.unique(np.round(np.linspace(0, grid.n_time - 1, shifts)).astype(np.int64))[::-1]
    labelled = np.flatnonzero(events.labelled)
    start = (events.sample[labelled, None] - offsets).ravel()
    group = np.repeat(labelled, len(offsets))
    inside = (start >= 0) & (start + grid.n_time <= nsamples)
    start, group = start[inside], group[inside]
    is_pulse, snr = events.is_pulse[group], np.where(events.is_pulse, events.snr, np.nan)[group]

    wanted = round(options.sky_pages * is_pulse.sum()) if len(events.sample) else len(free)
    sky = rng.permutation(free)[:wanted]
    start = np.concatenate([start, sky])
    group = np.concatenate([group, len(events.sample) + np.arange(len(sky))])
    is_pulse = np.concatenate([is_pulse, np.zeros(len(sky), dtype=bool)])
    snr = np.concatenate([snr, np.full(len(sky), np.nan)])
    order = np.argsort(start, kind="stable")
    is_free_sky = not len(events.sample) and not options.hard_negatives
    return LabelledStarts(start[order], is_pulse[order], group[order], snr[order], is_free_sky)


def plan(options: DatasetOptions, config: PipelineConfig) -> list[tuple[FilterbankPages, LabelledStarts]]:
    """Open every observation and choose its pages, before any of them is read."""
    rng = np.random.default_rng(options.seed)
    settings = replace(config.front_end(), overlap=0.0, time_downsample=(1,))
    if len(settings.dms) > STACK_DMS:
        raise InputError(f"ndm must be at most {STACK_DMS} in a training set of pages, got {len(settings.dms)}")
    classifier = None
    if options.hard_negatives:
        wait_for_packages()
        device = choose_device(config.device)
        classifier = PageClassifier(load_page_model(options.hard_negatives, device), device)
    planned, groups = [], 0
    for i, path in enumerate(options.observations):
        source = FilterbankPages(path, settings)
        if options.cands:
            events = events_from_cands(Path(options.cands[i]), source.grid, options.pulse_dm, options.artefact_dm)
        else:
            events = events_from_truth(known_pulses(path, source.duration_s), source.grid)
        free = pulse_free_starts(events, source.grid, source.nsamples, rng)
        if classifier:
            free = only_hard(free, source, classifier)
        chosen = label_starts(events, free, source, options, rng)
        chosen = replace(chosen, group=chosen.group + groups)
        groups = int(chosen.group.max(initial=groups - 1)) + 1
        planned.append((source.with_starts(chosen.start), chosen))
    if not sum(len(chosen.start) for _, chosen in planned):
        raise InputError(
            f"{options.observations[0]}: must have an event inside it, or pulse-free sky, in one of the observations; "
            "got no page that can be labelled"
        )
    return planned


def normaliser_of_model(config: PipelineConfig) -> str:
    """Normaliser of the model that the config names; of the included one if that does not exist yet."""
    if not config.model_path.is_file():
        config = PipelineConfig()
        logger.info("the model of the config does not exist: images are scaled as for %s", config.model_path.name)
    return load_page_model(config.model_path, "cpu", config.model_name, config.resolution).normaliser


def write_images(
    planned: list[tuple[FilterbankPages, LabelledStarts]], paths: dict[int, Path], normaliser: str
) -> None:
    """Cut, normalise and write every page, one .npy file for each resolution in ``paths``, complete or absent."""
    count = sum(len(chosen.start) for _, chosen in planned)
    with contextlib.ExitStack() as stack, tqdm(total=count, unit="page", desc="pages", disable=None) as bar:
        outputs = {resolution: stack.enter_context(atomic_writer(path)) for resolution, path in paths.items()}
        for resolution, file in outputs.items():
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, resolution, resolution)}
            np.lib.format.write_array_header_1_0(file, header)
        for source, _ in planned:
            for batch in source.batches(BATCH_SIZE):
                images, _ = to_images(batch.pages, normaliser, max(paths))
                for resolution, file in outputs.items():
                    file.write(resize(images, resolution).tobytes())
                bar.update(len(batch))
            source.release()


def describe(
    planned: list[tuple[FilterbankPages, LabelledStarts]], normaliser: str, truths: Sequence[str | Path]
) -> dict[str, Any]:
    """Return what the description of a set says about its pages and observations, as `finish_set` takes it."""
    sources = [source for source, _ in planned]
    seconds = math.fsum(len(chosen.start) * source.grid.n_time * source.grid.tsamp for source, chosen in planned)
    is_free_sky = all(chosen.is_free_sky for _, chosen in planned)
    tsamps = {source.grid.tsamp for source in sources}
    return {
        "normaliser": normaliser,
        "dms": sources[0].grid.dms.tolist(),
        "tsamp_s": tsamps.pop() if len(tsamps) == 1 else None,
        "page_s": seconds / sum(len(chosen.start) for _, chosen in planned),
        "pulse_free_hours": seconds / 3600 if is_free_sky else None,
        "origin": [origin_of(source, truth) for source, truth in zip(sources, truths, strict=True)],
    }


def run(args: argparse.Namespace) -> dict[str, Path]:
    """Make the set; return the files by kind."""
    config, options = load_pipeline_config(args.config), DatasetOptions.of(args)
    name = set_name(args.name, options.observations)
    config.warn_of_unused_settings()
    normaliser = options.normaliser or normaliser_of_model(config)
    planned = plan(options, config)
    paths = SetPaths(make_output_folder(Path(args.output_dir), "--output-dir"), name, PAGES, options.resolutions)
    count = sum(len(chosen.start) for _, chosen in planned)
    check_free_space(paths.images[max(options.resolutions)], count * sum(r**2 for r in options.resolutions))
    begin_set(paths)
    write_images(planned, paths.images, normaliser)
    is_pulse = np.concatenate([chosen.is_pulse for _, chosen in planned])
    columns = {
        "labels": np.where(is_pulse, "Pulse", "Artefact"),
        "groups": np.concatenate([chosen.group for _, chosen in planned]).astype(np.int64),
        "snr": np.concatenate([chosen.snr for _, chosen in planned]).astype(np.float32),
    }
    truths = options.cands or [truth_path(path) for path in options.observations]
    return finish_set(paths, columns, describe(planned, normaliser, truths))


def main() -> None:
    run_script(get_parser(), run, prepare_process)


if __name__ == "__main__":
    main()
