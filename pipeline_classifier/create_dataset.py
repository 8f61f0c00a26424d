"""Make a training set from observations whose pulses are known.

  python create_dataset.py A.fil B.fil --output-dir ../single_pulse_classifier_training/data --name crab
      labels from A_truth.csv and B_truth.csv beside the observations (simulate_observation.py writes them)
  python create_dataset.py B0531+21.fil --cands B0531+21.cands --pulse-dm 56 58 --name B0531+21_59000_48386
      labels from a TransientX candidate list: DM in [56, 58] is a pulse, DM 0 is an artefact

Every pulse, and every candidate at DM 0, gives --shifts pages that start at different samples, so that it appears at
all positions between the left and the right edge. Pages of pulse-free sky are artefacts as well; with --hard-negatives
MODEL.pth only those to which this model gives a pulse probability of at least 0.05. The pages are read, cleaned,
dedispersed and normalised by the code that run_inference.py uses, with the same config.

Written to the output folder (<name>_DM_time_dataset_realbased_...):
  training.npy               (N, 256, 256) uint8 images, row 0 = highest DM
  training_<res>x<res>.npy   the same for other --resolutions
  labels_training.npy        (N,) strings, Pulse or Artefact
  groups_training.npy        (N,) int64, the event that an image shows; its images belong in one split
  snr_training.npy           (N,) float32, S/N of the pulse as the truth or the list gives it, NaN for artefacts
"""

import argparse
import contextlib
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.page_classifier import PageClassifier
from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.formats.candidate_lists import read_transientx
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import PAGE_NORMALISERS, PageGrid, resize, to_images
from pipeline_classifier.options import add_config_option, check_distinct, set_name
from pipeline_classifier.simulation.observation import known_pulses
from pipeline_classifier.simulation.pulses import Pulse
from pipeline_classifier.times import SECONDS_PER_DAY
from single_pulse_classifier_training.checkpoint import load_checkpoint
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import atomic_writer, choose_device, make_output_folder, save_npy

VISIBLE_SNR = 1.5
"""S/N below which a pulse smeared at a wrong trial DM is not visible in a page. Chosen by hand, on the safe side."""
BATCH_SIZE = 64
HARD = 0.05
"""Minimum probability of a hard negative, a page without a pulse: as `event_finder.CANDIDATE_THRESHOLD`."""


@dataclass(frozen=True)
class KnownEvents:
    """Events of one observation, all attributes (K,).

    Attributes
    ----------
    sample : ndarray of int64
        Arrival at the top channel.
    dm : ndarray of float
        pc cm^-3.
    snr : ndarray of float
    width : ndarray of float
        Samples.
    is_pulse : ndarray of bool
    labelled : ndarray of bool
        Whether the event gives images; pages of pulse-free sky avoid the others too.
    """

    sample: np.ndarray
    dm: np.ndarray
    snr: np.ndarray
    width: np.ndarray
    is_pulse: np.ndarray
    labelled: np.ndarray


@dataclass(frozen=True)
class LabelledStarts:
    """Pages to cut from one observation: first samples, ascending, with label, group and S/N, all (N,)."""

    start: np.ndarray
    is_pulse: np.ndarray
    group: np.ndarray
    snr: np.ndarray


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
    normaliser : str
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
    normaliser: str
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
        default="minmax",
        help="scaling of the images; that of the training config must be the same (default: %(default)s)",
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


def events_from_truth(pulses: list[Pulse], grid: PageGrid) -> KnownEvents:
    """Return the pulses of a truth table as events, in samples of ``grid``."""
    time_s = np.array([pulse.time_s for pulse in pulses], dtype=float)
    width_ms = np.array([max(pulse.width_ms, 1e3 * grid.tsamp) for pulse in pulses], dtype=float)
    return KnownEvents(
        np.floor(time_s / grid.tsamp).astype(np.int64),
        np.array([pulse.dm_pc_cm3 for pulse in pulses], dtype=float),
        np.array([pulse.snr for pulse in pulses], dtype=float),
        width_ms / 1e3 / grid.tsamp,
        np.ones(len(pulses), dtype=bool),
        np.ones(len(pulses), dtype=bool),
    )


def events_from_cands(
    path: Path, grid: PageGrid, pulse_dm: tuple[float, float], artefact_dm: tuple[float, float]
) -> KnownEvents:
    """Candidates of a TransientX list; those in the two DM windows are labelled."""
    mjd, dm, width_ms, snr = read_transientx(path)
    is_pulse = (dm >= pulse_dm[0]) & (dm <= pulse_dm[1])
    labelled = is_pulse | ((dm >= artefact_dm[0]) & (dm <= artefact_dm[1]))
    if not labelled.any():
        raise InputError(
            f"{path}: a candidate must have a DM in --pulse-dm {list(pulse_dm)} or --artefact-dm {list(artefact_dm)}, "
            f"got none of {len(dm)}"
        )
    sample = np.floor((mjd - grid.tstart) * SECONDS_PER_DAY / grid.tsamp).astype(np.int64)
    return KnownEvents(sample, dm, snr, np.maximum(1.0, width_ms / 1e3 / grid.tsamp), is_pulse, labelled)


def event_extent(events: KnownEvents, grid: PageGrid) -> tuple[np.ndarray, np.ndarray]:
    """First and last sample (K,) at which any row of a page shows an event.

    At a wrong trial DM a pulse is smeared over the difference in sweep, and its S/N falls with the square root of
    width / sweep: below `VISIBLE_SNR` once the sweep exceeds (snr / VISIBLE_SNR)^2 widths.
    """
    faintest = 2 * events.width * np.maximum(1.0, events.snr / VISIBLE_SNR) ** 2
    before = np.minimum(faintest, np.abs(grid.sweep(events.dm - grid.dms[-1]))) + 3 * events.width
    after = np.minimum(faintest, np.abs(grid.sweep(events.dm - grid.dms[0]))) + 3 * events.width
    return np.floor(events.sample - before), np.ceil(events.sample + after)


def pulse_free_starts(events: KnownEvents, grid: PageGrid, nsamples: int, rng: np.random.Generator) -> np.ndarray:
    """First samples (N,) of pages on a regular grid that show no event."""
    first, last = event_extent(events, grid)
    regular = np.arange(rng.integers(0, grid.n_time), nsamples - grid.n_time + 1, grid.n_time)
    # A page is pulse-free when as many extents began before its end as ended before its start.
    begun = np.searchsorted(np.sort(first), regular + grid.n_time, side="right")
    ended = np.searchsorted(np.sort(last), regular, side="left")
    return regular[begun == ended]


def only_hard(starts: np.ndarray, source: FilterbankPages, classifier: PageClassifier) -> np.ndarray:
    """Return the starts of the pages to which the classifier gives a probability of at least `HARD`."""
    batches = source.with_starts(starts).batches(BATCH_SIZE)
    probabilities = [classifier.classify(batch)[0] for batch in batches]
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
    return LabelledStarts(start[order], is_pulse[order], group[order], snr[order])


def plan(options: DatasetOptions, config: PipelineConfig) -> list[tuple[FilterbankPages, LabelledStarts]]:
    """Open every observation and choose its pages, before any of them is read."""
    rng = np.random.default_rng(options.seed)
    settings = replace(config.front_end(), overlap=0.0, time_downsample=(1,))
    classifier = None
    if options.hard_negatives:
        device = choose_device(config.device)
        classifier = PageClassifier(load_checkpoint(options.hard_negatives, device), device)
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
                    file.write(resize(images, resolution).numpy().tobytes())
                bar.update(len(batch))
            source.release()


def run(args: argparse.Namespace) -> dict[str, Path]:
    """Make the set; return the files by kind."""
    config, options = load_pipeline_config(args.config), DatasetOptions.of(args)
    name = set_name(args.name, options.observations)
    config.warn_of_unused_settings()
    planned = plan(options, config)
    output_dir = make_output_folder(Path(args.output_dir), "--output-dir")
    prefix = f"{name}_DM_time_dataset_realbased"
    names = {r: "training.npy" if r == 256 else f"training_{r}x{r}.npy" for r in options.resolutions}
    images = {resolution: output_dir / f"{prefix}_{name}" for resolution, name in names.items()}
    write_images(planned, images, options.normaliser)

    is_pulse = np.concatenate([chosen.is_pulse for _, chosen in planned])
    columns = {
        "labels": np.where(is_pulse, "Pulse", "Artefact"),
        "groups": np.concatenate([chosen.group for _, chosen in planned]).astype(np.int64),
        "snr": np.concatenate([chosen.snr for _, chosen in planned]).astype(np.float32),
    }
    files = {f"images_{resolution}": path for resolution, path in images.items()}
    for kind, values in columns.items():
        files[kind] = output_dir / f"{prefix}_{kind}_training.npy"
        save_npy(files[kind], values)
    pulses, groups = int(is_pulse.sum()), len(np.unique(columns["groups"]))
    print(f"{len(is_pulse)} images: {pulses} Pulse, {len(is_pulse) - pulses} Artefact, of {groups} events")
    for path in files.values():
        print(path)
    return files


def main() -> None:
    prepare_process()
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
