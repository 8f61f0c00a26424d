"""Make a training set out of observations and what is known of their pulses.

  python create_dataset.py A.fil B.fil --output-dir ../single_pulse_classifier_training/data --name crab
      labels from A_truth.csv and B_truth.csv beside the observations (simulate_observation.py writes them)
  python create_dataset.py B0531+21.fil --cands B0531+21.cands --pulse-dm 56 58 --name B0531+21_59000_48386
      labels from a TransientX candidate list: DM in [56, 58] is a pulse, DM 0 is an artefact

Every pulse, and every candidate at DM 0, gives --shifts pages that start at different samples, so that the pulse
stands everywhere between the left and the right edge. Pages of pulse-free sky, as many as asked for, are artefacts too;
with --hard-negatives MODEL.pth only those that fool this model, to train it again with.
The pages are cleaned, dedispersed and normalised by the very code that run_inference.py uses.

Written to the output folder (<name>_DM_time_dataset_realbased_...):
  training.npy               (N, 256, 256) uint8 images, row 0 = highest DM
  training_<res>x<res>.npy   the same for other --resolutions
  labels_training.npy        (N,) strings, Pulse or Artefact
  groups_training.npy        (N,) int64, the event that an image comes from: its images belong on one side of a split
  snr_training.npy           (N,) float32, S/N of the pulse as the truth or the list gives it, NaN for artefacts
"""

import argparse
import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder

import numpy as np
from tqdm import tqdm

from pipeline_classifier.config import DEFAULT_CONFIG, PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.page_classifier import Classifier
from pipeline_classifier.formats.candidate_lists import read_transientx
from pipeline_classifier.frontend.pages import PAGE_NORMALISERS, PageGrid, resize, to_images
from pipeline_classifier.frontend.sources import FilterbankPages
from pipeline_classifier.simulation.observation import known_pulses
from pipeline_classifier.simulation.pulses import Pulse
from pipeline_classifier.times import SECONDS_PER_DAY
from single_pulse_classifier_training.checkpoint import load_checkpoint
from single_pulse_classifier_training.cli import InputError, check_distinct, run_script, set_name
from single_pulse_classifier_training.runtime import atomic_writer, choose_device, make_output_folder, save_npy

VISIBLE_SNR = 1.5  # below this S/N a pulse that is smeared at a wrong trial DM no longer shows in a page
BATCH_SIZE = 64
HARD = 0.05  # probability of a pulse from which a page without one is a hard negative


@dataclass(frozen=True)
class KnownEvents:
    """Events of one observation: arrival (samples), DM, S/N, width (samples), whether each is a pulse, all (K,).

    ``labelled`` (K,) bool: the others give no images, but pulse-free sky keeps away from them too.
    """

    sample: np.ndarray
    dm: np.ndarray
    snr: np.ndarray
    width: np.ndarray
    is_pulse: np.ndarray
    labelled: np.ndarray


@dataclass(frozen=True)
class LabelledStarts:
    """First samples of the pages to cut from one observation, ascending, with label, group and S/N, all (N,)."""

    start: np.ndarray
    is_pulse: np.ndarray
    group: np.ndarray
    snr: np.ndarray


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("observations", nargs="+", help="SIGPROC filterbank files")
    parser.add_argument(
        "-c", "--config", default=DEFAULT_CONFIG, help="DM grid, page and cleaning (default: %(default)s)"
    )
    parser.add_argument("--output-dir", default=".", help="where the set goes (default: this folder)")
    parser.add_argument("--name", help="name of the set (default: of the first observation)")
    parser.add_argument("--cands", nargs="+", help="TransientX lists, one per observation, in place of truth files")
    parser.add_argument(
        "--pulse-dm",
        nargs=2,
        type=float,
        default=(56.0, 58.0),
        metavar=("LOW", "HIGH"),
        help="DM window of pulses in the lists (default: 56 58)",
    )
    parser.add_argument(
        "--artefact-dm",
        nargs=2,
        type=float,
        default=(0.0, 0.0),
        metavar=("LOW", "HIGH"),
        help="DM window of artefacts in the lists (default: 0 0)",
    )
    parser.add_argument("--shifts", type=int, default=256, help="pages of each event (default: %(default)s)")
    parser.add_argument(
        "--sky-pages",
        type=float,
        default=1.0,
        help="pulse-free pages per page of a pulse, at most what there is (default: %(default)s)",
    )
    parser.add_argument(
        "--hard-negatives",
        metavar="MODEL.pth",
        help=f"of pulse-free sky, take only pages to which this model gives a probability of {HARD:g} or more",
    )
    parser.add_argument(
        "--normaliser", choices=PAGE_NORMALISERS, default="minmax", help="default: %(default)s, the original's"
    )
    parser.add_argument(
        "--resolutions", nargs="+", type=int, default=[256], help="sides of the images, one file each (default: 256)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the choice of pulse-free pages (default: %(default)s)")
    return parser


def events_from_truth(pulses: list[Pulse], grid: PageGrid) -> KnownEvents:
    """Pulses of a truth table, on the observation of ``grid``."""
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
        raise InputError(f"{path}: none of {len(dm)} candidates has a DM in {list(pulse_dm)} or {list(artefact_dm)}")
    sample = np.floor((mjd - grid.tstart) * SECONDS_PER_DAY / grid.tsamp).astype(np.int64)
    return KnownEvents(sample, dm, snr, np.maximum(1.0, width_ms / 1e3 / grid.tsamp), is_pulse, labelled)


def event_extent(events: KnownEvents, grid: PageGrid) -> tuple[np.ndarray, np.ndarray]:
    """First and last sample (K,) at which any DM row of a page shows something of an event.

    At a wrong trial DM the pulse is smeared over the difference in sweep; once that is (snr / VISIBLE_SNR)^2 times its
    width, it is lost in the noise.
    """
    faintest = 2 * events.width * np.maximum(1.0, events.snr / VISIBLE_SNR) ** 2
    before = np.minimum(faintest, np.abs(grid.sweep(events.dm - grid.dms[-1]))) + 3 * events.width
    after = np.minimum(faintest, np.abs(grid.sweep(events.dm - grid.dms[0]))) + 3 * events.width
    return np.floor(events.sample - before), np.ceil(events.sample + after)


def pulse_free_starts(events: KnownEvents, grid: PageGrid, nsamples: int, rng: np.random.Generator) -> np.ndarray:
    """First samples (N,) of pages on a regular grid that show nothing of any event."""
    first, last = event_extent(events, grid)
    regular = np.arange(rng.integers(0, grid.n_time), nsamples - grid.n_time + 1, grid.n_time)
    # A page is pulse-free when as many extents began before its end as ended before its start.
    begun = np.searchsorted(np.sort(first), regular + grid.n_time, side="right")
    ended = np.searchsorted(np.sort(last), regular, side="left")
    return regular[begun == ended]


def only_hard(starts: np.ndarray, source: FilterbankPages, classifier: Classifier) -> np.ndarray:
    """Those of the pages that the classifier takes for pulses."""
    source.choose(starts)
    probabilities = [classifier.classify(batch)[1] for batch in source.batches(BATCH_SIZE)]
    source.release()
    return starts[np.concatenate(probabilities) >= HARD] if len(starts) else starts


def label_starts(
    events: KnownEvents,
    free: np.ndarray,
    grid: PageGrid,
    nsamples: int,
    shifts: int,
    sky_pages: float,
    rng: np.random.Generator,
) -> LabelledStarts:
    """Choose the pages of one observation.

    An event's pages hold its arrival in every column from the last to the first (``shifts`` of them, evenly spaced);
    ``free`` are the pages of pulse-free sky to draw from.
    """
    offsets = np.unique(np.round(np.linspace(0, grid.n_time - 1, shifts)).astype(np.int64))[::-1]
    labelled = np.flatnonzero(events.labelled)
    start = (events.sample[labelled, None] - offsets).ravel()
    group = np.repeat(labelled, len(offsets))
    inside = (start >= 0) & (start + grid.n_time <= nsamples)
    start, group = start[inside], group[inside]
    is_pulse, snr = events.is_pulse[group], np.where(events.is_pulse, events.snr, np.nan)[group]

    wanted = round(sky_pages * is_pulse.sum()) if len(events.sample) else len(free)
    sky = rng.permutation(free)[:wanted]
    start = np.concatenate([start, sky])
    group = np.concatenate([group, len(events.sample) + np.arange(len(sky))])
    is_pulse = np.concatenate([is_pulse, np.zeros(len(sky), dtype=bool)])
    snr = np.concatenate([snr, np.full(len(sky), np.nan)])
    order = np.argsort(start, kind="stable")
    return LabelledStarts(start[order], is_pulse[order], group[order], snr[order])


def plan(args: argparse.Namespace, config: PipelineConfig) -> list[tuple[FilterbankPages, LabelledStarts]]:
    """Open every observation and choose its pages, before any of them is read."""
    if args.cands and len(args.cands) != len(args.observations):
        raise InputError(
            f"--cands names {len(args.cands)} lists for {len(args.observations)} observations: give one for each"
        )
    if args.shifts < 1 or args.sky_pages < 0:
        raise InputError(f"--shifts {args.shifts} and --sky-pages {args.sky_pages}: at least 1 and 0 are needed")
    if min(args.resolutions) < 1 or args.seed < 0:
        raise InputError(f"--resolutions {min(args.resolutions)} and --seed {args.seed}: at least 1 and 0 are needed")
    check_distinct(args.observations)
    rng = np.random.default_rng(args.seed)
    dms, cleaning = config.front_end()
    classifier = None
    if args.hard_negatives:
        device = choose_device(config.device)
        classifier = Classifier(load_checkpoint(args.hard_negatives, device), device)
    planned, groups = [], 0
    for i, path in enumerate(args.observations):
        source = FilterbankPages(path, dms, config.page_samples, cleaning)
        if args.cands:
            events = events_from_cands(Path(args.cands[i]), source.grid, tuple(args.pulse_dm), tuple(args.artefact_dm))
        else:
            events = events_from_truth(known_pulses(path, source.duration_s), source.grid)
        free = pulse_free_starts(events, source.grid, source.nsamples, rng)
        if classifier:
            free = only_hard(free, source, classifier)
        chosen = label_starts(events, free, source.grid, source.nsamples, args.shifts, args.sky_pages, rng)
        chosen = LabelledStarts(chosen.start, chosen.is_pulse, chosen.group + groups, chosen.snr)
        groups = int(chosen.group.max(initial=groups - 1)) + 1
        source.choose(chosen.start)
        planned.append((source, chosen))
    if not sum(len(chosen.start) for _, chosen in planned):
        raise InputError(
            f"no page of {args.observations[0]} can be labelled: no event inside it, and no pulse-free sky"
        )
    return planned


def write_images(
    planned: list[tuple[FilterbankPages, LabelledStarts]], paths: dict[int, Path], normaliser: str
) -> None:
    """Cut, normalise and write every page, one .npy file for each resolution in ``paths``, whole or not at all."""
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
    config = load_pipeline_config(args.config)
    name = set_name(args)
    planned = plan(args, config)
    output_dir = make_output_folder(Path(args.output_dir), "--output-dir")
    prefix = f"{name}_DM_time_dataset_realbased"
    names = {r: "training.npy" if r == 256 else f"training_{r}x{r}.npy" for r in args.resolutions}
    images = {resolution: output_dir / f"{prefix}_{name}" for resolution, name in names.items()}
    write_images(planned, images, args.normaliser)

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
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
