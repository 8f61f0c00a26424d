"""Pulses of known S/N, width and DM that are added to a copy of an observation for an evaluation."""

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.simulation.injection import inject
from pipeline_classifier.simulation.observation import (
    MOST_PULSES,
    PulseRanges,
    check_not_foreign,
    random_pulses,
    truth_path,
    write_truth,
)
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError

INJECTION_OPTIONS = (
    "pulses", "snr_min", "snr_max", "dm_min", "dm_max", "width_ms_min", "width_ms_max", "seed", "keep",
)  # fmt: skip
DM_MARGIN = 0.05
"""Fraction of the range of trial DMs, at either end, without injected pulses: near DM 0 a pulse looks like
interference. Chosen by hand."""
LONGEST_IN_PAGES, LONGEST_IN_BASELINE_WINDOWS = 1 / 3, 1 / 4
"""Longest injected pulse, in units of a page and of the baseline window: both reduce the S/N of longer ones."""


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

    @staticmethod
    def add_to(parser: argparse.ArgumentParser) -> None:
        """Add the options to a parser."""
        group = parser.add_argument_group("injection")
        group.add_argument("--inject", metavar="FILE", help="SIGPROC file to add pulses to")
        group.add_argument("--pulses", type=int, default=100, help="number of pulses (default: %(default)s)")
        group.add_argument("--snr-min", type=float, default=6.0, help="smallest S/N (default: %(default)s)")
        group.add_argument("--snr-max", type=float, default=30.0, help="largest S/N (default: %(default)s)")
        group.add_argument(
            "--dm-min", type=float, help="lowest DM, pc cm^-3 (default: a little above the lowest trial DM)"
        )
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

    @classmethod
    def of(cls, args: argparse.Namespace) -> Self | None:
        """Take the options from parsed arguments, and check them; None without ``--inject``."""
        if not args.inject:
            parser = argparse.ArgumentParser()
            cls.add_to(parser)
            for name in INJECTION_OPTIONS:
                if getattr(args, name) != parser.get_default(name):
                    raise InputError(f"--{name.replace('_', '-')} must be used with --inject FILE")
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
    if options.keep:
        check_not_foreign(path, "--output-dir")
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
