"""Simulated observations: noise with a bandpass, pulses and interference, and the truth table of the pulses."""

import csv
import io
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.csv_table import read_csv
from pipeline_classifier.formats.sigproc import FilterbankWriter, Header
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.pulses import Injector, Pulse, pulse_extent, with_short_sweeps
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer

EFFELSBERG = Header(
    nchans=256,
    nbits=8,
    tsamp=102.4e-6,
    fch1=1530.0,
    foff=-1.25,
    tstart=59000.48386574,
    source_name="simulated",
    telescope_id=8,
)
"""Geometry of the Effelsberg observation B0531+21_59000_48386.fil that the default config names."""
MEAN_COUNTS, SIGMA_COUNTS = 100.0, 10.0
"""Mean and standard deviation of a channel of response 1; chosen by hand, 10 and 15.5 sigma from the ends of 8 bits."""
BLOCK_VALUES = 1 << 18  # samples times channels per block; chosen by hand
MOST_PULSES = 100_000  # bounds the memory of their profiles
TRUTH_COLUMNS = (
    "time_s",
    "mjd",
    "dm_pc_cm3",
    "snr",
    "width_ms",
    "boxcar_width_ms",
    "scattering_ms",
    "spectral_index",
    "scintillation_bandwidth_mhz",
    "centre_mhz",
    "bandwidth_mhz",
)
COHERENT_COLUMN = "coherent_dm_pc_cm3"  # only in tables of data that were dedispersed coherently
REQUIRED_COLUMNS = ("time_s", "dm_pc_cm3", "snr", "width_ms")


@dataclass(frozen=True)
class PulseRanges:
    """Distributions from which `random_pulses` draws; the defaults are chosen by hand, not fitted to real pulses.

    Parameters
    ----------
    dm_pc_cm3, spectral_index : (float, float)
        Lowest and highest value, drawn uniformly.
    snr, width_ms : (float, float)
        Lowest and highest value, drawn uniformly in the logarithm.
    scattered : float
        Fraction of pulses with a scattering tail of 0.1 to 2 widths at mid band.
    scintillating : float
        Fraction of pulses with a scintillation bandwidth between a channel and the band.
    band_limited : float
        Fraction of pulses with an envelope over 15 to 60 per cent of the band.
    double : float
        Fraction of pulses followed by a second one after 2 to 6 widths (at least 4 samples), of 0.6 to 1 times the S/N.
    min_separation_s : float
        Shortest time between pulses other than these second ones.
    short_sweep : float
        Fraction of pulses whose sweep over the band is 1 to 3 widths, where the limits of DM and width allow it.
    coherent_dm_pc_cm3 : float
        As in `Pulse`.
    """

    dm_pc_cm3: tuple[float, float] = (10.0, 120.0)
    snr: tuple[float, float] = (8.0, 50.0)
    width_ms: tuple[float, float] = (0.2, 5.0)
    spectral_index: tuple[float, float] = (-4.0, 1.0)
    scattered: float = 0.4
    scintillating: float = 0.4
    band_limited: float = 0.0
    double: float = 0.0
    min_separation_s: float = 0.25
    short_sweep: float = 0.0
    coherent_dm_pc_cm3: float = 0.0

    def check(self) -> None:
        """Raise InputError for the first impossible range or fraction."""
        for name, least, most in (
            ("dm_pc_cm3", 0, 1e5),
            ("snr", 1e-3, 1e6),
            ("width_ms", 1e-6, 1e6),
            ("spectral_index", -20, 20),
        ):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise InputError(
                    f"{name} must be an ascending range within {least:g} to {most:g}, got {low:g} to {high:g}"
                )
        for name in ("scattered", "scintillating", "band_limited", "double", "short_sweep"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} must be from 0 to 1, got {getattr(self, name):g}")
        if not 0 <= self.min_separation_s <= 1e6:
            raise InputError(f"min_separation_s must be from 0 to 1e6, got {self.min_separation_s:g}")
        if not 0 <= self.coherent_dm_pc_cm3 <= 1e5:
            raise InputError(f"coherent_dm must be from 0 to 1e5, got {self.coherent_dm_pc_cm3:g}")


def check_size(path: str | Path, header: Header, nsamples: int) -> None:
    """Raise InputError if the disk has no room for an observation; its parts in memory are smaller."""
    check_free_space(path, nsamples * header.bytes_per_sample)


def check_not_foreign(path: Path, advice: str) -> None:
    """Raise InputError if a simulation would replace a file without a truth table, which was not simulated."""
    if path.exists() and not truth_path(path).exists():
        raise InputError(f"{path}: must be a new file or have a truth table, got one without; use another {advice}")


def check_free_space(path: str | Path, size: int) -> None:
    """Raise InputError if the disk has no room for a file of ``size`` bytes."""
    folder = Path(path).absolute().parent
    if folder.is_dir() and (disk := shutil.disk_usage(folder)).total and size > disk.free:
        raise InputError(f"{path}: must have at most {disk.free} bytes, the free space on disk, got {size}")


def random_pulses(n: int, ranges: PulseRanges, header: Header, nsamples: int, seed: int) -> list[Pulse]:
    """Draw pulses that lie entirely within an observation, including their tails in the lowest channel.

    Parameters
    ----------
    n : int
        Number of pulses, not counting the second ones of doubles.
    ranges : PulseRanges
        Distributions of their parameters.
    header : Header
        Geometry of the observation.
    nsamples : int
        Length of the observation.
    seed : int
        Random seed; may equal the seed of the interference and of the noise.

    Returns
    -------
    pulses : list of Pulse
        In order of time.

    Raises
    ------
    InputError
        If a range is impossible, or the pulses are too many or too dispersed for the length of the observation.
    """
    ranges.check()
    if not 0 <= n <= MOST_PULSES:
        raise InputError(f"pulses must be from 0 to {MOST_PULSES}, got {n}")
    if n == 0:
        return []
    rng = np.random.default_rng([seed, 2])
    drawn = _pulses_at_time_0(n, ranges, header, rng)
    pulses = [replace(pulse, coherent_dm_pc_cm3=ranges.coherent_dm_pc_cm3) for pulse in drawn]
    if ranges.short_sweep:
        settings = ranges.short_sweep, header.frequencies, ranges.dm_pc_cm3, ranges.width_ms
        pulses = with_short_sweeps(pulses, *settings, np.random.default_rng([seed, 7]))
    extents = np.array([pulse_extent(pulse, header.frequencies, header.tsamp) for pulse in pulses])
    first, last = -extents[:, 0].min() * header.tsamp, (nsamples - extents[:, 1].max()) * header.tsamp
    slack = last - first - (n - 1) * ranges.min_separation_s
    if slack <= 0:
        highest_dm = max(pulse.dm_pc_cm3 for pulse in pulses)
        sweep = dispersion_delay(highest_dm, header.frequencies[-1], header.frequencies[0])
        raise InputError(
            f"{n} pulses of DM up to {highest_dm:.4g} (a sweep of {sweep:.3g} s), {ranges.min_separation_s:g} s apart, "
            f"must fit into the observation of {nsamples * header.tsamp:.4g} s"
        )
    times = first + np.sort(rng.uniform(0, slack, n)) + np.arange(n) * ranges.min_separation_s
    pulses = [replace(pulse, time_s=time) for pulse, time in zip(pulses, times.tolist(), strict=True)]
    return sorted(pulses + _second_pulses(pulses, ranges.double, header, nsamples, rng), key=lambda pulse: pulse.time_s)


def _pulses_at_time_0(n: int, ranges: PulseRanges, header: Header, rng: np.random.Generator) -> list[Pulse]:
    """Draw all parameters of pulses but their times."""
    frequencies = header.frequencies
    top, bottom = frequencies[0], frequencies[-1]
    band = top - bottom + abs(header.foff)
    dms, indices = rng.uniform(*ranges.dm_pc_cm3, n), rng.uniform(*ranges.spectral_index, n)
    snrs, widths = (np.exp(rng.uniform(low, high, n)) for low, high in map(np.log, (ranges.snr, ranges.width_ms)))
    # The tail at mid band, converted to 1 GHz.
    tails = widths * np.exp(rng.uniform(np.log(0.1), np.log(2), n)) * (frequencies.mean() / 1000) ** 4
    scattering = np.where(rng.random(n) < ranges.scattered, tails, 0)
    scintles = np.exp(rng.uniform(np.log(abs(header.foff)), np.log(band), n))
    scintillation = np.where(rng.random(n) < ranges.scintillating, scintles, 0)
    limited = rng.random(n) < ranges.band_limited
    centres, bandwidths = rng.uniform(bottom, top, n), rng.uniform(0.15, 0.6, n) * band
    return [
        Pulse(0.0, *values[:6], *(values[6:] if band_limited else (None, None)))
        for band_limited, *values in zip(
            limited.tolist(),
            *(
                column.tolist()
                for column in (dms, snrs, widths, scattering, indices, scintillation, centres, bandwidths)
            ),
            strict=True,
        )
    ]


def _second_pulses(
    pulses: Sequence[Pulse], fraction: float, header: Header, nsamples: int, rng: np.random.Generator
) -> list[Pulse]:
    """Second pulses of doubles: copies of the first, later and fainter, unless they end after the observation."""
    seconds = []
    for pulse in pulses:
        double, widths, factor = rng.random(), rng.uniform(2, 6), rng.uniform(0.6, 1.0)
        later_s = max(widths * pulse.width_ms * 1e-3, 4 * header.tsamp)
        second = replace(pulse, time_s=pulse.time_s + later_s, snr=pulse.snr * factor)
        if double < fraction and pulse_extent(second, header.frequencies, header.tsamp)[1] <= nsamples:
            seconds.append(second)
    return seconds


def random_bandpass(nchans: int, rng: np.random.Generator) -> np.ndarray:
    """Draw a receiver response: roll-off at the edges, a slope and a ripple, in ranges chosen by hand.

    Returns
    -------
    response : (nchans,) ndarray of float32
        About 1 at mid band.
    """
    x = (np.arange(nchans) + 0.5) / nchans
    edge = rng.uniform(0.02, 0.06)
    rolloff = 0.25 + 0.75 * np.tanh(x / edge) * np.tanh((1 - x) / edge)
    ripple = rng.uniform(0.01, 0.04) * np.sin(2 * np.pi * (rng.uniform(3, 15) * x + rng.random()))
    return (rolloff * (1 + rng.uniform(-0.1, 0.1) * (2 * x - 1) + ripple)).astype(np.float32)


def simulate(
    path: str | Path,
    header: Header,
    nsamples: int,
    pulses: Sequence[Pulse],
    rfi: Rfi,
    seed: int,
    progress: bool = False,
) -> Path:
    """Write an 8-bit observation and its truth table, ``<name>_truth.csv`` beside it.

    A channel of response b has Gaussian noise of mean ``100 b`` and standard deviation ``10 b`` counts. Pulses and
    interference are added in units of that standard deviation; the sum is multiplied by the gain, rounded, and clipped
    to 0 to 255. The noise depends on the seed alone, not on pulses or interference.

    Parameters
    ----------
    path : str or Path
        The filterbank file to write.
    header : Header
        Its header, with ``nbits`` 8 and ``nifs`` 1.
    nsamples : int
        Its length.
    pulses : sequence of Pulse
        Pulses to add, such as those of `random_pulses`.
    rfi : Rfi
        Interference to add, such as that of `random_rfi`; ``Rfi()`` for none.
    seed : int
        Seed of the noise, the bandpass and the scintillation; may equal that of the pulses and the interference.
    progress : bool
        Show a progress bar on stderr.

    Returns
    -------
    truth : Path
        The truth table.
    """
    if (header.nbits, header.nifs, header.signed) != (8, 1, False) or nsamples < 1:
        raise ValueError("a simulated observation must have unsigned 8-bit samples, one IF and at least one sample")
    response = random_bandpass(header.nchans, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 0])
    rows = max(1, BLOCK_VALUES // header.nchans)

    with (
        FilterbankWriter(path, header) as file,
        tqdm(total=nsamples, unit=" samples", disable=None if progress else True) as bar,
    ):
        injector = Injector(pulses, header.frequencies, header.tsamp, seed)
        for first in range(0, nsamples, rows):
            block = rng.standard_normal((min(rows, nsamples - first), header.nchans), dtype=np.float32)
            block[:, rfi.noisy_channels] *= rfi.noisy_factors
            injector.add(block, first)
            rfi.add(block, first)
            block *= SIGMA_COUNTS * response
            block += MEAN_COUNTS * response
            block *= rfi.gain(first, len(block))[:, None]
            block += 0.5
            counts = np.clip(block, 0, 255, out=block).astype(np.uint8)
            rfi.lose(counts, first)
            file.write(counts[:, ::-1] if header.ascending else counts)
            bar.update(len(block))

    write_truth(truth_path(path), injector.pulses, injector.boxcar_widths_ms, header.tstart)
    return truth_path(path)


def truth_path(filterbank: str | Path) -> Path:
    """Path of the truth table of an observation, ``<name>_truth.csv`` beside it."""
    return Path(filterbank).with_name(f"{Path(filterbank).stem}_truth.csv")


def write_truth(
    path: str | Path, pulses: Sequence[Pulse], boxcar_widths_ms: Sequence[float] | np.ndarray, tstart: float
) -> None:
    """Write a truth table: CSV with the columns `TRUTH_COLUMNS` and, if it is not 0, `COHERENT_COLUMN`.

    Parameters
    ----------
    path : str or Path
        The file to write.
    pulses : sequence of Pulse
        The pulses; times and MJDs are those at the centre of the highest channel.
    boxcar_widths_ms : (n_pulses,) sequence of float
        Their best boxcar widths, as in `Injector`.
    tstart : float
        MJD of the first sample of the observation.
    """
    text = io.StringIO()
    columns = TRUTH_COLUMNS + (COHERENT_COLUMN,) * any(pulse.coherent_dm_pc_cm3 for pulse in pulses)
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for pulse, boxcar in zip(pulses, boxcar_widths_ms, strict=True):
        row = {k: "" if v is None else f"{v:.6g}" for k, v in asdict(pulse).items() if k in columns}
        writer.writerow(
            row
            | {
                "time_s": f"{pulse.time_s:.7f}",
                "mjd": f"{tstart + pulse.time_s / 86400:.11f}",
                "boxcar_width_ms": f"{boxcar:.6g}",
            }
        )
    with atomic_writer(path) as file:
        file.write(text.getvalue().encode())


def read_truth(path: str | Path) -> list[Pulse]:
    """Read a truth table: CSV with the columns `REQUIRED_COLUMNS`, and others of `TRUTH_COLUMNS` where present.

    Raises
    ------
    InputError
        If the file does not exist, is damaged (`read_csv`), or has an impossible value.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file (simulate_observation.py writes truth tables)")
    names, rows = read_csv(path, REQUIRED_COLUMNS)
    return [_pulse_of(dict(zip(names, fields, strict=True)), f"{path}, line {line}") for line, fields in rows]


def known_pulses(filterbank: str | Path, duration_s: float) -> list[Pulse]:
    """Read the truth table beside a filterbank file.

    Parameters
    ----------
    filterbank : str or Path
        The observation.
    duration_s : float
        Its length in seconds.

    Raises
    ------
    InputError
        As in `read_truth`; also if a pulse is later than the end of the observation.
    """
    path = truth_path(filterbank)
    pulses = read_truth(path)
    for pulse in pulses:
        if not pulse.time_s <= duration_s:
            raise InputError(
                f"{path}: time_s must be at most {duration_s:.6g} s, the length of the observation, "
                f"got {pulse.time_s:.6g} s"
            )
    return pulses


def _pulse_of(row: dict[str, str], where: str) -> Pulse:
    """Pulse of a row of a truth table; ``where`` names file and line in messages."""
    values = {}
    for name in (*TRUTH_COLUMNS, COHERENT_COLUMN):
        if name in ("mjd", "boxcar_width_ms") or (name not in REQUIRED_COLUMNS and not row.get(name)):
            continue
        least = {"spectral_index": -20.0, "snr": 1e-3, "width_ms": 1e-6, "bandwidth_mhz": 1e-6}.get(name, 0.0)
        try:
            values[name] = float(row[name])
        except ValueError:
            values[name] = np.nan
        if not least <= values[name] < 1e7:
            raise InputError(f"{where}: {name} must be a number from {least:g} to 1e7, got {row[name]!r}")
    if ("centre_mhz" in values) != ("bandwidth_mhz" in values):
        raise InputError(f"{where}: centre_mhz and bandwidth_mhz must be given together, got only one of them")
    return Pulse(**values)
