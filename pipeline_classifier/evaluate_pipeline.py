"""The yardstick: how many known pulses the search finds, how well it measures them, and how many events are false.

  python evaluate_pipeline.py A.fil B.fil -c config.json --output-dir out      observations with A_truth.csv beside them
  python evaluate_pipeline.py --inject MINE.fil -c config.json --pulses 100    pulses are added to your own file first

Prints recall by S/N, width and DM, false events per hour, and the errors of time, DM and S/N, over all observations
together, and recall and false events for other thresholds, so that you can choose yours ("event_threshold" in the
config). evaluation.json has the same, evaluation.png shows it.

S/N is that of a pulse in white noise over all channels, as simulate_observation.py writes it: masked channels and
interference lower what a search can find. The width is the intrinsic one, at half maximum, in samples of the search.
Times hold at the peak before scattering, so that a tail counts as an error of the measured time.

With --inject the file is searched twice, as it is and with pulses: what was there before is not counted as false, and
the report says how many events that were. The copy with pulses needs as much disk space as the file, in the output
folder; it is removed at the end, or kept with its truth table by --keep.
"""

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder

import numpy as np

from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.detection.page_classifier import Classifier
from pipeline_classifier.detection.search import (
    EVENT_THRESHOLDS,
    account_of,
    add_search_options,
    events_by_threshold,
    load_classifier,
    open_filterbank,
    page_interval_s,
    set_threshold,
    with_search_options,
)
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
from pipeline_classifier.frontend.sources import FilterbankPages
from pipeline_classifier.simulation.injection import inject
from pipeline_classifier.simulation.observation import PulseRanges, known_pulses, random_pulses, truth_path, write_truth
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import atomic_writer, make_output_folder

logger = logging.getLogger(__name__)

FIGURES_BY_THRESHOLD = ("found", "recall", "recall_by_snr", "false_events", "false_events_per_hour")
INJECTION_OPTIONS = (
    "pulses", "snr_min", "snr_max", "dm_min", "dm_max", "width_ms_min", "width_ms_max", "seed", "keep",
)  # fmt: skip
MOST_PULSES = 100_000
DM_MARGIN = 0.05  # of the grid of trial DMs; at DM 0 every search takes a pulse for interference
LONGEST_PAGE_SHARE = 1 / 3
LONGEST_BASELINE_SHARE = 1 / 4

Evaluated = tuple[dict[str, Any], dict[float, Outcome]]
"""An observation as evaluation.json has it, and what became of its pulses at each threshold."""


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("filterbanks", nargs="*", help="SIGPROC files with <name>_truth.csv beside each")
    add_search_options(parser)
    group = parser.add_argument_group("injection")
    group.add_argument("--inject", metavar="FILE", help="SIGPROC file to add pulses to")
    group.add_argument("--pulses", type=int, default=100, help="how many (default: %(default)s)")
    group.add_argument("--snr-min", type=float, default=6.0, help="smallest S/N (default: %(default)s)")
    group.add_argument("--snr-max", type=float, default=30.0, help="largest S/N (default: %(default)s)")
    group.add_argument("--dm-min", type=float, help="smallest DM (default: a little above the config's smallest)")
    group.add_argument("--dm-max", type=float, help="largest DM (default: a little below the config's largest)")
    group.add_argument("--width-ms-min", type=float, help="smallest width (default: one sample)")
    group.add_argument(
        "--width-ms-max",
        type=float,
        help="largest width (default: a third of a page, at most a quarter of the baseline window)",
    )
    group.add_argument("--seed", type=int, default=0, help="of the pulses (default: %(default)s)")
    group.add_argument("--keep", action="store_true", help="keep the file with pulses, and its truth table")
    return parser


def check_options(args: argparse.Namespace) -> None:
    """Raise InputError for options that do not go together, or values that no pulse has."""
    if args.inject and args.filterbanks:
        raise InputError(
            f"--inject {args.inject} and {args.filterbanks[0]}: valid is one file to inject into, or observations that "
            "have a truth table"
        )
    if not args.inject:
        parser = get_parser()
        for name in INJECTION_OPTIONS:
            if getattr(args, name) != parser.get_default(name):
                raise InputError(f"--{name.replace('_', '-')} is of no use without --inject FILE")
        if not args.filterbanks:
            raise InputError("no observation is given; valid: files with <name>_truth.csv beside, or --inject FILE")
    if not 1 <= args.pulses <= MOST_PULSES:
        raise InputError(f"--pulses is {args.pulses}; valid: 1 to {MOST_PULSES}")
    if args.seed < 0:
        raise InputError(f"--seed is {args.seed}; valid: 0 or more")


def pulses_to_inject(args: argparse.Namespace, config: PipelineConfig) -> list[Pulse]:
    """Random pulses for the file of ``--inject``, if there is room so far apart that no bow tie hides another."""
    filterbank = Filterbank(args.inject, config.ifs)
    dms, cleaning = config.front_end()
    margin = DM_MARGIN * (dms[-1] - dms[0])
    tsamp = filterbank.tsamp * cleaning.td
    page_s = config.page_samples * max(config.time_downsample) * tsamp
    longest_s = min(LONGEST_PAGE_SHARE * page_s, LONGEST_BASELINE_SHARE * (cleaning.baseline_window_s or np.inf))

    def given(value: float | None, default: float) -> float:
        return float(default if value is None else value)

    dm = given(args.dm_min, dms[0] + margin), given(args.dm_max, dms[-1] - margin)
    shortest_ms = given(args.width_ms_min, min(tsamp, longest_s) * 1e3)
    frequencies = filterbank.frequencies
    apart_s = 2 * page_s + float(dispersion_delay(max(dm[1] - dm[0], 0.0), frequencies[-1], frequencies[0]))
    ranges = PulseRanges(
        dm_pc_cm3=dm,
        snr=(args.snr_min, args.snr_max),
        width_ms=(shortest_ms, given(args.width_ms_max, longest_s * 1e3)),
        min_separation_s=max(page_s, min(apart_s, 0.5 * filterbank.duration_s / args.pulses)),
    )
    return random_pulses(args.pulses, ranges, filterbank.header, filterbank.nsamples, args.seed)


def injected_path(args: argparse.Namespace, output_dir: Path) -> Path:
    """Where the file with pulses goes when it is kept; InputError if something else is there."""
    path = output_dir / f"{Path(args.inject).stem}_injected.fil"
    if args.keep and path.exists() and not truth_path(path).exists():
        raise InputError(f"{path} has no truth table: it will not be overwritten, give another --output-dir")
    return path


@contextmanager
def injected_file(args: argparse.Namespace, pulses: Sequence[Pulse], ifs: int | str, path: Path) -> Iterator[Path]:
    """The file of ``--inject`` with pulses; unless it is kept, in a folder that goes after the ``with`` block."""
    if args.keep:
        injector = inject(args.inject, path, pulses, args.seed, ifs, progress=True)
        write_truth(truth_path(path), injector.pulses, injector.boxcar_widths_ms, Filterbank(path).tstart)
        yield path
        return
    with tempfile.TemporaryDirectory(prefix=".injected_", dir=path.parent) as folder:
        path = Path(folder) / path.name
        inject(args.inject, path, pulses, args.seed, ifs, progress=True)
        yield path


@dataclass(frozen=True)
class Searched:
    """An observation that was searched.

    Attributes
    ----------
    source : its pages
    chosen : the threshold of events that was asked for
    events : of the search at each threshold
    duration_s : seconds searched
    """

    source: FilterbankPages
    chosen: float
    events: dict[float, list[Event]]
    duration_s: float


def searched(path: str | Path, config: PipelineConfig, classifier: Classifier) -> Searched:
    """Search an observation at the threshold that the user chose, and with a second look at `EVENT_THRESHOLDS`."""
    source = open_filterbank(path, config)
    decision = set_threshold(classifier, source.grid, page_interval_s(source))
    chosen = decision.get("event_threshold", decision["threshold"])
    thresholds = {chosen, *EVENT_THRESHOLDS} if "event_threshold" in decision else {chosen}
    began = time.monotonic()
    layers, events = events_by_threshold(source, classifier, sorted(thresholds), config.threads)
    account = account_of(source, layers, len(events[chosen]), began)
    return Searched(source, chosen, events, account["duration_s"])


def evaluate_known(path: str, pulses: Sequence[Pulse], config: PipelineConfig, classifier: Classifier) -> Evaluated:
    """Search an observation whose pulses are known."""
    done = searched(path, config, classifier)
    outcomes = {}
    for threshold, events in done.events.items():
        recovery = compare(pulses, events, done.source.grid)
        outcomes[threshold] = outcome_of(pulses, events, recovery, done.source.tsamp, done.duration_s)
    return record(path, done, outcomes[done.chosen]), outcomes


def evaluate_injected(
    args: argparse.Namespace, pulses: Sequence[Pulse], config: PipelineConfig, classifier: Classifier, path: Path
) -> Evaluated:
    """Search a file as it is, then with pulses (in a copy at ``path``); its own events are not false."""
    with injected_file(args, pulses, config.ifs, path) as copy:
        original = searched(args.inject, config, classifier)
        done = searched(copy, config, classifier)
    outcomes = {}
    for threshold, events in done.events.items():
        recovery = compare(pulses, events, done.source.grid)
        recovery = without_known(recovery, events, original.events[threshold], done.source.grid)
        outcomes[threshold] = outcome_of(pulses, events, recovery, done.source.tsamp, done.duration_s)
    account = record(args.inject, done, outcomes[done.chosen])
    return account | {"events_before_injection": len(original.events[done.chosen])}, outcomes


def record(path: str, done: Searched, outcome: Outcome) -> dict[str, object]:
    """One observation, as evaluation.json has it."""
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
    """Recall and false events per hour over all observations, at each threshold that all were searched at."""
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
    """Do what the command line asks for; return what evaluation.json holds."""
    check_options(args)
    config = with_search_options(load_pipeline_config(args.config), args)
    if args.inject:
        truths = [pulses_to_inject(args, config)]
    else:
        truths = [known_pulses(path, Filterbank(path, config.ifs).duration_s) for path in args.filterbanks]
    output_dir = make_output_folder(Path(args.output_dir or config.resolve(config.output_dir)), "output_dir")
    copy = injected_path(args, output_dir) if args.inject else None
    classifier = load_classifier(config)
    if copy is not None:
        evaluated = [evaluate_injected(args, truths[0], config, classifier, copy)]
    else:
        evaluated = [
            evaluate_known(path, pulses, config, classifier)
            for path, pulses in zip(args.filterbanks, truths, strict=True)
        ]
    records, outcomes = zip(*evaluated, strict=True)
    outcome = pooled([parts[row["threshold"]] for row, parts in zip(records, outcomes, strict=True)])
    evaluation: dict[str, Any] = {"model": config.model_path.name, "observations": list(records)}
    evaluation |= quality(outcome, config.trial_dms())
    evaluation["by_threshold"] = by_threshold(outcomes, config.trial_dms())

    written = [output_dir / "evaluation.json"]
    with atomic_writer(written[0]) as file:
        file.write((json.dumps(evaluation, indent=4) + "\n").encode())
    if not args.no_plots:
        written.append(output_dir / "evaluation.png")
        plot_evaluation(written[1], evaluation, outcome)
    print(table(evaluation))
    for path in written:
        print(f"{'written':>28} {path}")
    return evaluation


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
