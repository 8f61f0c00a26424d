"""Simulate an observation: a SIGPROC filterbank file with pulses and interference, and a table of the pulses.

    python simulate_observation.py crab.fil                                  # Effelsberg, 60 s, 40 pulses, mild RFI
    python simulate_observation.py hard.fil --rfi strong --snr-min 6 --seed 7
    python simulate_observation.py low.fil --nchans 512 --fch1 400 --foff 0.2 --tsamp-us 655.36 --dm-max 40
    python simulate_observation.py frb.fil --coherent-dm 560 --dm-min 550 --dm-max 570 --rfi field
    python simulate_observation.py sky.fil --pulse-free 0.5 --rfi strong    # half an hour without pulses, 4.5 GB

The file is written block by block, after a check of the free space on the disk. An hour takes 9 GB with the default
channels and sampling time, less with fewer channels or longer samples.

Writes OUT.fil (8 bit) and the truth table OUT_truth.csv with one row per pulse: time_s and mjd at the centre of the
highest channel, DM, S/N, width of the intrinsic Gaussian (FWHM), width of the best boxcar, scattering time at 1 GHz,
spectral index, scintillation bandwidth, centre and width of the spectrum of band-limited bursts (otherwise empty), and,
with --coherent-dm, that DM.
The S/N is that of the best boxcar on the noise-free profile summed over all channels; a search finds less where
channels are dead, noisy or masked. The same options and seed give identical files. An existing OUT.fil without a truth
table is not replaced.
"""

import argparse
import logging
import math
import sys
from dataclasses import replace
from pathlib import Path

if __name__ == "__main__":
    sys.path[0] = str(Path(__file__).resolve().parents[1])  # packages by their full name, from any folder
    from single_pulse_classifier_training.cli import quiet_interrupts

    quiet_interrupts()

from pipeline_classifier.formats.file_names import output_name
from pipeline_classifier.simulation.interference import RFI_LEVELS, random_rfi
from pipeline_classifier.simulation.observation import (
    EFFELSBERG,
    PulseRanges,
    check_not_foreign,
    check_size,
    random_pulses,
    simulate,
)
from single_pulse_classifier_training.cli import InputError, run_script

logger = logging.getLogger(__name__)


def get_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def option(name: str, default: float, text: str) -> None:
        parser.add_argument(name, type=type(default), default=default, help=f"{text} (default: {default})")

    parser.add_argument("output", metavar="OUT.fil", type=Path, help="the file to write")
    option("--nchans", EFFELSBERG.nchans, "number of channels")
    option("--fch1", EFFELSBERG.fch1, "centre of the first channel, MHz")
    option("--foff", EFFELSBERG.foff, "step to the next channel, MHz; positive if the band ascends")
    option("--tsamp-us", round(EFFELSBERG.tsamp * 1e6, 6), "sampling time, microseconds")
    option("--tstart", EFFELSBERG.tstart, "MJD of the first sample")
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--duration-s", type=float, default=60.0, help="length, seconds (default: 60.0)")
    length.add_argument(
        "--pulse-free", type=float, metavar="HOURS", help="length in hours of an observation without pulses"
    )
    parser.add_argument("--pulses", type=int, help="number of pulses (default: 40, or 0 with --pulse-free)")
    ranges = PulseRanges()
    for name, key, text in (
        ("snr", "snr", "S/N"),
        ("dm", "dm_pc_cm3", "DM, pc cm^-3"),
        ("width-ms", "width_ms", "width, ms"),
    ):
        low, high = getattr(ranges, key)
        option(f"--{name}-min", low, f"lowest {text}")
        option(f"--{name}-max", high, f"highest {text}")
    option("--min-separation-s", ranges.min_separation_s, "shortest time between pulses, seconds")
    option("--band-limited", ranges.band_limited, "fraction of pulses that fill only part of the band")
    option("--short-sweep", ranges.short_sweep, "fraction of pulses whose sweep over the band is 1 to 3 widths")
    option("--double", ranges.double, "fraction of pulses shortly followed by a fainter second pulse")
    parser.add_argument(
        "--coherent-dm",
        type=float,
        default=ranges.coherent_dm_pc_cm3,
        metavar="DM",
        help="DM of coherent dedispersion in each channel, pc cm^-3; pulses of this DM are not smeared in a channel "
        "(default: %(default)s)",
    )
    parser.add_argument("--rfi", default="mild", help=f"level of interference: {', '.join(RFI_LEVELS)} (default: mild)")
    option("--seed", 0, "random seed")
    return parser


def run(args: argparse.Namespace) -> Path:
    """Simulate an observation and return the path of its truth table."""
    is_pulse_free = args.pulse_free is not None
    for option, value in (("--duration-s", args.duration_s), ("--pulse-free", args.pulse_free)):
        if value is not None and not 0 < value < math.inf:
            raise InputError(f"{option} must be above 0, got {value:g}")
    if is_pulse_free and args.pulses:
        raise InputError(f"--pulses must be 0 with --pulse-free, got {args.pulses}")
    duration_s = 3600 * args.pulse_free if is_pulse_free else args.duration_s
    n_pulses = args.pulses if args.pulses is not None else 0 if is_pulse_free else 40
    if args.seed < 0:
        raise InputError(f"--seed must be at least 0, got {args.seed}")
    header = replace(
        EFFELSBERG, nchans=args.nchans, fch1=args.fch1, foff=args.foff, tsamp=args.tsamp_us * 1e-6, tstart=args.tstart
    )
    header.check(args.output)
    output_name(args.output)  # the truth table, written last, is named after it too
    check_not_foreign(args.output, "name")
    nsamples = max(1, round(duration_s / header.tsamp))
    check_size(args.output, header, nsamples)
    logger.info("%s: %.4g s, %.3g GB", args.output, nsamples * header.tsamp, nsamples * header.bytes_per_sample / 1e9)
    ranges = PulseRanges(
        dm_pc_cm3=(args.dm_min, args.dm_max),
        snr=(args.snr_min, args.snr_max),
        width_ms=(args.width_ms_min, args.width_ms_max),
        band_limited=args.band_limited,
        double=args.double,
        min_separation_s=args.min_separation_s,
        short_sweep=args.short_sweep,
        coherent_dm_pc_cm3=args.coherent_dm,
    )
    pulses = random_pulses(n_pulses, ranges, header, nsamples, args.seed)
    rfi = random_rfi(args.rfi, header, nsamples, args.seed)
    truth = simulate(args.output, header, nsamples, pulses, rfi, args.seed, progress=True)
    logger.info("%s: %d samples, %d pulses; truth table: %s", args.output, nsamples, len(pulses), truth)
    return truth


def main() -> None:
    run_script(get_parser(), run)


if __name__ == "__main__":
    main()
