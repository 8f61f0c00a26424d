"""The yardstick: how many known pulses the search finds, how well it measures them, and how many events are false.

  python evaluate_pipeline.py A.fil B.fil -c config.json --output-dir out      observations with A_truth.csv beside them
  python evaluate_pipeline.py --inject MINE.fil -c config.json --pulses 100    pulses are added to your own file first

Prints recall by S/N, width and DM, false events per hour, and the errors of time, DM and S/N, over all observations
together; writes them to evaluation.json, and as pictures to evaluation.png.

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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder

import numpy as np

from pipeline_classifier.classifier import Classifier
from pipeline_classifier.config import PipelineConfig, load_pipeline_config
from pipeline_classifier.dedispersion import dispersion_delay
from pipeline_classifier.evaluation_plot import plot_evaluation
from pipeline_classifier.filterbank import Filterbank
from pipeline_classifier.injection import inject
from pipeline_classifier.pulse_signal import Pulse
from pipeline_classifier.recovery import Outcome, bin_label, compare, outcome_of, pooled, quality, without_known
from pipeline_classifier.search import add_search_options, load_classifier, open_filterbank, search
from pipeline_classifier.simulation import PulseRanges, random_pulses, read_truth, truth_path, write_truth
from single_pulse_classifier_training.cli import InputError, run_script
from single_pulse_classifier_training.runtime import atomic_writer, make_output_folder

logger = logging.getLogger(__name__)

INJECTION_OPTIONS = (
    "pulses", "snr_min", "snr_max", "dm_min", "dm_max", "width_ms_min", "width_ms_max", "seed", "keep",
)  # fmt: skip
MOST_PULSES = 100_000
DM_MARGIN = 0.05  # of the grid of trial DMs; at DM 0 every search takes a pulse for interference
LONGEST_PAGE_SHARE = 1 / 3
LONGEST_BASELINE_SHARE = 1 / 4


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


def known_pulses(paths: Sequence[str], config: PipelineConfig) -> list[list[Pulse]]:
    """The truth of every observation; InputError if one is missing, or there is no pulse in any of them."""
    truths = []
    for path in paths:
        Filterbank(path, config.ifs)
        truths.append(read_truth(truth_path(path)))
    if not any(truths):
        raise InputError(f"{truth_path(paths[0])}: no pulses, nor in any other observation; valid: at least one")
    return truths


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
        min_separation_s=max(page_s, min(apart_s, 0.5 * filterbank.nsamples * filterbank.tsamp / args.pulses)),
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


def evaluate_known(
    path: str, pulses: Sequence[Pulse], config: PipelineConfig, classifier: Classifier
) -> tuple[dict[str, object], Outcome]:
    """Search an observation whose pulses are known."""
    source = open_filterbank(path, config)
    result = search(source, classifier, config.threads)
    recovery = compare(pulses, result.events, source.grid)
    outcome = outcome_of(pulses, result.events, recovery, source.tsamp, result.account["duration_s"])
    return record(path, outcome, len(result.events), result.account["threshold"]), outcome


def evaluate_injected(
    args: argparse.Namespace, pulses: Sequence[Pulse], config: PipelineConfig, classifier: Classifier, path: Path
) -> tuple[dict[str, object], Outcome]:
    """Search a file as it is, then with pulses (in a copy at ``path``); its own events are not false."""
    with injected_file(args, pulses, config.ifs, path) as copy:
        original = search(open_filterbank(args.inject, config), classifier, config.threads)
        source = open_filterbank(copy, config)
        result = search(source, classifier, config.threads)
    recovery = compare(pulses, result.events, source.grid)
    recovery = without_known(recovery, result.events, original.events, source.grid)
    outcome = outcome_of(pulses, result.events, recovery, source.tsamp, result.account["duration_s"])
    account = record(args.inject, outcome, len(result.events), result.account["threshold"])
    return account | {"events_before_injection": len(original.events)}, outcome


def record(path: str, outcome: Outcome, events: int, threshold: float) -> dict[str, object]:
    """One observation, as evaluation.json has it."""
    return {
        "filterbank": str(path),
        "duration_s": outcome.duration_s,
        "threshold": threshold,
        "pulses": len(outcome.snr),
        "found": int(outcome.found.sum()),
        "events": events,
        "false_events": len(outcome.false_snr),
    }


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
    lines.append(line("pulses found", f"{evaluation['found']} of {evaluation['pulses']}, {evaluation['recall']:.3f}"))
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
    return "\n".join(lines)


def run(args: argparse.Namespace) -> dict[str, object]:
    """Do what the command line asks for; return what evaluation.json holds."""
    check_options(args)
    config = load_pipeline_config(args.config)
    truths = [pulses_to_inject(args, config)] if args.inject else known_pulses(args.filterbanks, config)
    output_dir = make_output_folder(Path(args.output_dir or config.resolve(config.output_dir)), "output_dir")
    copy = injected_path(args, output_dir) if args.inject else None
    classifier = load_classifier(config, args.device, args.threshold, args.max_false_per_hour)
    if copy is not None:
        evaluated = [evaluate_injected(args, truths[0], config, classifier, copy)]
    else:
        evaluated = [
            evaluate_known(path, pulses, config, classifier)
            for path, pulses in zip(args.filterbanks, truths, strict=True)
        ]
    records, outcomes = zip(*evaluated, strict=True)
    outcome = pooled(outcomes)
    evaluation: dict[str, Any] = {"model": config.model_path.name, "observations": list(records)}
    evaluation |= quality(outcome, config.trial_dms())

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
