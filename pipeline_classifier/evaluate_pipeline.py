"""Evaluate the search: how many known pulses it finds, how well it measures them, and how many events are false.

  python evaluate_pipeline.py A.fil B.fil -c config.json --output-dir out      observations with A_truth.csv beside them
  python evaluate_pipeline.py --inject MINE.fil -c config.json --pulses 100    pulses are added to your own file first

Prints recall by S/N, width and DM, false events per hour, and the errors of time, DM and S/N, over all observations
together. Recall and false events are also printed for other thresholds, to help choose "event_threshold" in the config.
The same is written to evaluation.json and drawn in evaluation.png.

The S/N is that of a pulse in white noise over all channels, as simulate_observation.py writes it: masked channels and
interference lower what a search can find. The width is the intrinsic one, at half maximum, in samples of the search.
Times are those of the peak before scattering, so that a scattering tail counts as an error of the measured time.

With --inject the file is searched twice, without and with pulses: events that were there before do not count as false,
and their number is printed. The copy with pulses needs as much disk space as the file, in the output folder; it is
removed at the end, or kept with its truth table by --keep.
"""

import argparse
import json
import logging
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

import numpy as np

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.classifiers import Classifiers, load_classifiers
from pipeline_classifier.detection.decision import EVENT_THRESHOLDS, decide
from pipeline_classifier.detection.search import events_by_threshold
from pipeline_classifier.detection.workers import prepare_process
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.evaluation.evaluation_plot import plot_evaluation
from pipeline_classifier.evaluation.recovery import (
    Outcome,
    bin_label,
    compare,
    outcome_of,
    pooled,
    quality,
    without_known,
)
from pipeline_classifier.events import Event
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.options import OutputOptions, SearchOptions
from pipeline_classifier.simulation.injection import inject
from pipeline_classifier.simulation.observation import (
    MOST_PULSES,
    PulseRanges,
    known_pulses,
    random_pulses,
    truth_path,
    write_truth,
)
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import atomic_writer, make_output_folder

logger = logging.getLogger(__name__)

FIGURES_BY_THRESHOLD = ("found", "recall", "recall_by_snr", "false_events", "false_events_per_hour")
INJECTION_OPTIONS = (
    "pulses", "snr_min", "snr_max", "dm_min", "dm_max", "width_ms_min", "width_ms_max", "seed", "keep",
)  # fmt: skip
DM_MARGIN = 0.05
"""Fraction of the range of trial DMs, at either end, without injected pulses: near DM 0 a pulse looks like
interference. Chosen by hand."""
LONGEST_IN_PAGES, LONGEST_IN_BASELINE_WINDOWS = 1 / 3, 1 / 4
"""Longest injected pulse, in units of a page and of the baseline window: both reduce the S/N of longer ones."""

Evaluated = tuple[dict[str, Any], dict[float, Outcome]]
"""Entry of an observation in evaluation.json, and the outcome of its pulses at each threshold."""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filterbanks", nargs="*", help="SIGPROC files with <name>_truth.csv beside each")
    SearchOptions.add_to(parser)
    OutputOptions.add_plots_to(parser)
    group = parser.add_argument_group("injection")
    group.add_argument("--inject", metavar="FILE", help="SIGPROC file to add pulses to")
    group.add_argument("--pulses", type=int, default=100, help="number of pulses (default: %(default)s)")
    group.add_argument("--snr-min", type=float, default=6.0, help="smallest S/N (default: %(default)s)")
    group.add_argument("--snr-max", type=float, default=30.0, help="largest S/N (default: %(default)s)")
    group.add_argument("--dm-min", type=float, help="lowest DM, pc cm^-3 (default: a little above the lowest trial DM)")
    group.add_argument(
        "--dm-max", type=float, help="highest DM, pc cm^-3 (default: a little below the highest trial DM)"
    )
    group.add_argument("--width-ms-min", type=float, help="smallest width (default: one sample)")
    group.add_argument(
        "--width-ms-max",
        type=float,
        help="largest width (default: a third of a page, at most a quarter of the baseline window)",
    )
    group.add_argument("--seed", type=int, default=0, help="random seed of the pulses (default: %(default)s)")
    group.add_argument("--keep", action="store_true", help="keep the file with pulses, and its truth table")
    return parser


@dataclass(frozen=True)
class InjectionOptions:
    """Pulses to inject; None stands for a value that depends on the config (`pulses_to_inject`).

    Attributes
    ----------
    path : Path
        The observation.
    pulses : int
    snr : (float, float)
        Lowest and highest S/N.
    dm_pc_cm3, width_ms : (float or None, float or None)
    seed : int
    keep : bool
        Keep the file with pulses.
    """

    path: Path
    pulses: int
    snr: tuple[float, float]
    dm_pc_cm3: tuple[float | None, float | None]
    width_ms: tuple[float | None, float | None]
    seed: int
    keep: bool

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self | None:
        """Take the options from parsed arguments, and check them; None without ``--inject``."""
        if args.inject and args.filterbanks:
            raise InputError(
                f"only one of --inject and observations with a truth table may be given, got {args.inject} and "
                f"{args.filterbanks[0]}"
            )
        if not args.inject:
            parser = get_parser()
            for name in INJECTION_OPTIONS:
                if getattr(args, name) != parser.get_default(name):
                    raise InputError(f"--{name.replace('_', '-')} must be used with --inject FILE")
            if not args.filterbanks:
                raise InputError(
                    "observations with <name>_truth.csv beside them, or --inject FILE, must be given, got neither"
                )
            return None
        if not 1 <= args.pulses <= MOST_PULSES:
            raise InputError(f"--pulses must be 1 to {MOST_PULSES}, got {args.pulses}")
        if args.seed < 0:
            raise InputError(f"--seed must be 0 or more, got {args.seed}")
        return cls(
            Path(args.inject),
            args.pulses,
            (args.snr_min, args.snr_max),
            (args.dm_min, args.dm_max),
            (args.width_ms_min, args.width_ms_max),
            args.seed,
            args.keep,
        )


def pulses_to_inject(options: InjectionOptions, config: PipelineConfig) -> list[Pulse]:
    """Draw pulses to inject, if possible so far apart that none lies in the bow tie of another.

    By default their DMs cover the trial DMs without `DM_MARGIN` at either end, and their widths range from one sample
    to the smaller of a third of a page and a quarter of the baseline window.
    """
    file, settings = Filterbank(options.path, config.ifs), config.front_end()
    dms, cleaning = settings.dms, settings.cleaning
    margin = DM_MARGIN * (dms[-1] - dms[0])
    tsamp = file.tsamp * cleaning.td
    page_s = settings.n_time * max(settings.time_downsample) * tsamp
    longest_s = min(LONGEST_IN_PAGES * page_s, LONGEST_IN_BASELINE_WINDOWS * (cleaning.baseline_window_s or np.inf))

    def given(values: tuple[float | None, float | None], low: float, high: float) -> tuple[float, float]:
        first, second = (float(default if x is None else x) for x, default in zip(values, (low, high), strict=True))
        return first, second

    dm = given(options.dm_pc_cm3, dms[0] + margin, dms[-1] - margin)
    sweep_s = float(dispersion_delay(max(dm[1] - dm[0], 0.0), file.frequencies[-1], file.frequencies[0]))
    ranges = PulseRanges(
        dm_pc_cm3=dm,
        snr=options.snr,
        width_ms=given(options.width_ms, min(tsamp, longest_s) * 1e3, longest_s * 1e3),
        min_separation_s=max(page_s, min(2 * page_s + sweep_s, 0.5 * file.duration_s / options.pulses)),
    )
    return random_pulses(options.pulses, ranges, file.header, file.nsamples, options.seed)


def injected_path(options: InjectionOptions, folder: Path) -> Path:
    """Return the path of the file with pulses; InputError if a kept one would replace another file."""
    path = folder / f"{options.path.stem}_injected.fil"
    if options.keep and path.exists() and not truth_path(path).exists():
        raise InputError(f"{path}: must be a new file or have a truth table, got one without; use another --output-dir")
    return path


@contextmanager
def injected_file(options: InjectionOptions, pulses: Sequence[Pulse], ifs: int | str, path: Path) -> Iterator[Path]:
    """Write the file with pulses; unless it is kept, it exists inside the ``with`` block only."""
    if options.keep:
        injector = inject(options.path, path, pulses, options.seed, ifs, progress=True)
        write_truth(truth_path(path), injector.pulses, injector.boxcar_widths_ms, Filterbank(path).tstart)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=".injected_", dir=path.parent) as folder:
        path = Path(folder) / path.name
        inject(options.path, path, pulses, options.seed, ifs, progress=True)
        yield path


@dataclass(frozen=True)
class Searched:
    """An observation that was searched.

    Attributes
    ----------
    source : FilterbankPages
    chosen : float
        Event threshold of the `Decision`, or its page threshold if pages decide.
    events : dict of float to list of Event
        Events found at each threshold.
    duration_s : float
        Seconds searched.
    """

    source: FilterbankPages
    chosen: float
    events: dict[float, list[Event]]
    duration_s: float


def searched(path: str | Path, config: PipelineConfig, classifiers: Classifiers) -> Searched:
    """Search an observation at the threshold of its decision and, if candidates decide, at `EVENT_THRESHOLDS`."""
    source = FilterbankPages(path, config.front_end())
    decision = decide(config, classifiers, source.layers)
    chosen = decision.threshold if decision.event_threshold is None else decision.event_threshold
    thresholds = {chosen} if decision.event_threshold is None else {chosen, *EVENT_THRESHOLDS}
    _, events = events_by_threshold(source, classifiers, decision, sorted(thresholds), config.threads)
    return Searched(source, chosen, events, round(source.duration_s, 3))


def evaluate_known(path: str, pulses: Sequence[Pulse], config: PipelineConfig, classifiers: Classifiers) -> Evaluated:
    """Search an observation whose pulses are known."""
    done = searched(path, config, classifiers)
    outcomes = {}
    for threshold, events in done.events.items():
        recovery = compare(pulses, events, done.source.grid)
        outcomes[threshold] = outcome_of(pulses, events, recovery, done.source.tsamp, done.duration_s)
    return record(path, done, outcomes[done.chosen]), outcomes


def evaluate_injected(
    options: InjectionOptions, pulses: Sequence[Pulse], config: PipelineConfig, classifiers: Classifiers, path: Path
) -> Evaluated:
    """Search a file without and with pulses (in a copy at ``path``); its own events do not count as false."""
    with injected_file(options, pulses, config.ifs, path) as copy:
        original = searched(options.path, config, classifiers)
        done = searched(copy, config, classifiers)
    outcomes = {}
    for threshold, events in done.events.items():
        recovery = compare(pulses, events, done.source.grid)
        recovery = without_known(recovery, events, original.events[threshold], done.source.grid)
        outcomes[threshold] = outcome_of(pulses, events, recovery, done.source.tsamp, done.duration_s)
    row = record(options.path, done, outcomes[done.chosen])
    return row | {"events_before_injection": len(original.events[done.chosen])}, outcomes


def record(path: str | Path, done: Searched, outcome: Outcome) -> dict[str, object]:
    """Return the entry of an observation in evaluation.json."""
    return {
        "filterbank": str(path),
        "duration_s": outcome.duration_s,
        "threshold": done.chosen,
        "pulses": len(outcome.snr),
        "found": int(outcome.found.sum()),
        "events": len(done.events[done.chosen]),
        "false_events": len(outcome.false_snr),
    }


def by_threshold(outcomes: Sequence[dict[float, Outcome]], dms: np.ndarray) -> list[dict[str, object]]:
    """Recall and false events per hour over all observations, at each threshold used for all of them."""
    rows = []
    for threshold in sorted(set.intersection(*(set(parts) for parts in outcomes))):
        figures = quality(pooled([parts[threshold] for parts in outcomes]), dms)
        rows.append({"threshold": threshold} | {key: figures[key] for key in FIGURES_BY_THRESHOLD})
    return rows


def table_by_threshold(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The rows of `by_threshold` as lines of text."""
    bins = [number for number, part in enumerate(rows[0]["recall_by_snr"]) if part["of"]]
    heading = [f"S/N {bin_label(rows[0]['recall_by_snr'][number])}" for number in bins]
    lines = ["", f"{'events from probability':>28} {'  '.join(f'{text:>12}' for text in [*heading, 'false/hour'])}"]
    for row in rows:
        parts = [row["recall_by_snr"][number] for number in bins]
        cells = [f"{part['found'] / part['of']:.3f}" for part in parts] + [f"{row['false_events_per_hour']:.4g}"]
        lines.append(f"{row['threshold']:>28.4g} {'  '.join(f'{text:>12}' for text in cells)}")
    return lines


def table(evaluation: dict) -> str:
    """The evaluation as lines of text."""

    def line(label: str, text: str) -> str:
        return f"{label:>28} {text}"

    def recalls(label: str, parts: list[dict], unit: str = "") -> list[str]:
        return [
            line(f"{label} {bin_label(p)}{unit}", f"{p['found']:>4} of {p['of']:<4} {p['found'] / p['of']:.3f}")
            for p in parts
            if p["of"]
        ]

    def error(label: str, sizes: dict, unit: str) -> list[str]:
        if sizes["median"] is None:
            return []
        return [line(label, f"median {sizes['median']:.3g}, 90 % below {sizes['percentile_90']:.3g} {unit}")]

    observations = evaluation["observations"]
    lines = [line("observations", f"{len(observations)}, {evaluation['hours']:.4g} hours")]
    before = [entry["events_before_injection"] for entry in observations if "events_before_injection" in entry]
    if before:
        lines.append(line("events before injection", f"{sum(before)} (not counted as false)"))
    if evaluation["pulses"]:
        found, of = evaluation["found"], evaluation["pulses"]
        lines.append(line("pulses found", f"{found} of {of}, {evaluation['recall']:.3f}"))
    lines += recalls("S/N", evaluation["recall_by_snr"])
    lines += recalls("width", evaluation["recall_by_width_samples"], " samples")
    lines += recalls("DM", evaluation["recall_by_dm"])
    rate = evaluation["false_events_per_hour"]
    lines.append(line("false events", f"{evaluation['false_events']}" + (f", {rate:.4g} per hour" if rate else "")))
    lines += error("DM error", evaluation["dm_error_pc_cm3"], "pc cm^-3")
    lines += error("time error", evaluation["time_error_ms"], "ms")
    lines += error("", evaluation["time_error_samples"], "samples")
    if evaluation["snr_ratio_median"] is not None:
        lines.append(line("S/N, measured / true", f"median {evaluation['snr_ratio_median']:.3f}"))
    if len(evaluation["by_threshold"]) > 1:
        lines += table_by_threshold(evaluation["by_threshold"])
    return "\n".join(lines)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Evaluate; return the content of evaluation.json."""
    injection, output = InjectionOptions.of(args), OutputOptions(plots=not args.no_plots)
    config = SearchOptions.of(args).load_config()
    if injection:
        truths = [pulses_to_inject(injection, config)]
    else:
        truths = [known_pulses(path, Filterbank(path, config.ifs).duration_s) for path in args.filterbanks]
    folder = make_output_folder(config.output_path, "output_dir")
    copy = injected_path(injection, folder) if injection else None
    classifiers = load_classifiers(config)
    config.warn_of_unused_settings()
    if injection and copy:
        evaluated = [evaluate_injected(injection, truths[0], config, classifiers, copy)]
    else:
        evaluated = [
            evaluate_known(path, pulses, config, classifiers)
            for path, pulses in zip(args.filterbanks, truths, strict=True)
        ]
    records, outcomes = zip(*evaluated, strict=True)
    outcome = pooled([parts[row["threshold"]] for row, parts in zip(records, outcomes, strict=True)])
    evaluation: dict[str, Any] = {"model": config.model_path.name, "observations": list(records)}
    evaluation |= quality(outcome, config.trial_dms())
    evaluation["by_threshold"] = by_threshold(outcomes, config.trial_dms())

    written = [folder / "evaluation.json"]
    with atomic_writer(written[0]) as file:
        file.write((json.dumps(evaluation, indent=4) + "\n").encode())
    if output.plots:
        written.append(folder / "evaluation.png")
        plot_evaluation(written[1], evaluation, outcome)
    print(table(evaluation))
    for path in written:
        print(f"{'written':>28} {path}")
    return evaluation


def main() -> None:
    prepare_process()
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
