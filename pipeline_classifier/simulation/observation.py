"""Simulated observations: noise with a bandpass, pulses and interference, written block by block, with their truth."""

import csv
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.sigproc import FilterbankWriter, Header
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.pulses import Injector, Pulse, pulse_extent
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
MEAN_COUNTS = 100.0
SIGMA_COUNTS = 10.0
BLOCK_VALUES = 1 << 18
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
NEEDED_COLUMNS = ("time_s", "dm_pc_cm3", "snr", "width_ms")


@dataclass(frozen=True)
class PulseRanges:
    """What `random_pulses` draws from: (low, high) pairs, uniform in DM, log-uniform in S/N and width.

    Of all pulses, a fraction ``scattered`` has a tail of 0.1 to 2 widths at mid band, ``scintillating`` a random
    spectrum, ``band_limited`` an envelope over 15 to 60 per cent of the band, ``double`` a second pulse of 0.6 to 1
    times its S/N, 2 to 6 widths (and at least 4 samples) behind it.
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

    def check(self) -> None:
        """Raise InputError for the first range that cannot be drawn from."""
        for name, least, most in (
            ("dm_pc_cm3", 0, 1e5),
            ("snr", 1e-3, 1e6),
            ("width_ms", 1e-6, 1e6),
            ("spectral_index", -20, 20),
        ):
            low, high = getattr(self, name)
            if not least <= low <= high <= most:
                raise InputError(
                    f"the range of {name} is {low:g} to {high:g}; valid: ascending, in {least:g} to {most:g}"
                )
        for name in ("scattered", "scintillating", "band_limited", "double"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name):g}; valid: 0 to 1")
        if not 0 <= self.min_separation_s <= 1e6:
            raise InputError(f"min_separation_s is {self.min_separation_s:g}; valid: 0 to 1e6")


def random_pulses(n: int, ranges: PulseRanges, header: Header, nsamples: int, seed: int) -> list[Pulse]:
    """Draw n pulses in order of time, each wholly inside the observation, tail and lowest channel included.

    Raises
    ------
    InputError
        An impossible range, or too many or too dispersed pulses for the length of the observation.
    """
    ranges.check()
    if n < 0:
        raise InputError(f"pulses is {n}; valid: 0 or more")
    rng = np.random.default_rng([seed, 2])
    frequencies = header.frequencies
    top, bottom = frequencies[0], frequencies[-1]
    band = top - bottom + abs(header.foff)
    dms, indices = rng.uniform(*ranges.dm_pc_cm3, n), rng.uniform(*ranges.spectral_index, n)
    snrs, widths = (np.exp(rng.uniform(low, high, n)) for low, high in map(np.log, (ranges.snr, ranges.width_ms)))
    # A tail at mid band, referred to 1 GHz.
    tails = widths * np.exp(rng.uniform(np.log(0.1), np.log(2), n)) * (frequencies.mean() / 1000) ** 4
    scattering = np.where(rng.random(n) < ranges.scattered, tails, 0)
    scintles = np.exp(rng.uniform(np.log(abs(header.foff)), np.log(band), n))
    scintillation = np.where(rng.random(n) < ranges.scintillating, scintles, 0)
    limited = rng.random(n) < ranges.band_limited
    centres, bandwidths = rng.uniform(bottom, top, n), rng.uniform(0.15, 0.6, n) * band
    pulses = [
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
    if n == 0:
        return []

    extents = np.array([pulse_extent(pulse, frequencies, header.tsamp) for pulse in pulses])
    first, last = -extents[:, 0].min() * header.tsamp, (nsamples - extents[:, 1].max()) * header.tsamp
    slack = last - first - (n - 1) * ranges.min_separation_s
    if slack <= 0:
        sweep = dispersion_delay(dms.max(), bottom, top)
        raise InputError(
            f"{n} pulses of DM up to {dms.max():.4g} (a sweep of {sweep:.3g} s), "
            f"{ranges.min_separation_s:g} s apart, do not fit into {nsamples * header.tsamp:.4g} s; "
            f"valid: fewer, a lower DM, or a longer duration"
        )
    times = first + np.sort(rng.uniform(0, slack, n)) + np.arange(n) * ranges.min_separation_s
    pulses = [replace(pulse, time_s=time) for pulse, time in zip(pulses, times.tolist(), strict=True)]
    return sorted(pulses + _companions(pulses, ranges.double, header, nsamples, rng), key=lambda pulse: pulse.time_s)


def _companions(
    pulses: Sequence[Pulse], fraction: float, header: Header, nsamples: int, rng: np.random.Generator
) -> list[Pulse]:
    """The second pulses of some: the same burst again, a little later and fainter, where the observation has room."""
    companions = []
    for pulse in pulses:
        double, widths, factor = rng.random(), rng.uniform(2, 6), rng.uniform(0.6, 1.0)
        later_s = max(widths * pulse.width_ms * 1e-3, 4 * header.tsamp)
        second = replace(pulse, time_s=pulse.time_s + later_s, snr=pulse.snr * factor)
        if double < fraction and pulse_extent(second, header.frequencies, header.tsamp)[1] <= nsamples:
            companions.append(second)
    return companions


def random_bandpass(nchans: int, rng: np.random.Generator) -> np.ndarray:
    """A receiver's response, about 1 in mid band: edges that roll off, a slope and a ripple. float32 (nchans,)."""
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
    """Write an 8-bit observation and its truth, ``<name>_truth.csv`` beside it.

    A channel of response b has Gaussian noise of mean ``100 b`` and standard deviation ``10 b`` counts; pulses and
    interferers are added in units of that deviation; the whole is multiplied by the gain, rounded, and clipped to 0 to
    255. The noise depends on the seed alone: other pulses or other interference leave it as it is.

    Parameters
    ----------
    path
        The .fil to write.
    header
        Its geometry; ``nbits`` 8 and ``nifs`` 1.
    nsamples
        Its length.
    pulses
        See `random_pulses`.
    rfi
        See `random_rfi`; ``Rfi()`` for none.
    seed
        Of noise, bandpass and scintillation; may be the one that drew the pulses and the interference.
    progress
        Show a progress bar on stderr.

    Returns
    -------
    pathlib.Path
        The truth table.
    """
    if (header.nbits, header.nifs, header.signed) != (8, 1, False) or nsamples < 1:
        raise ValueError("only unsigned 8-bit observations with one IF and at least one sample are simulated")
    response = random_bandpass(header.nchans, np.random.default_rng([seed, 1]))
    rng = np.random.default_rng([seed, 0])
    rows = max(1, BLOCK_VALUES // header.nchans)

    with FilterbankWriter(path, header) as file, tqdm(total=nsamples, unit=" samples", disable=not progress) as bar:
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
            counts[:, rfi.dead_channels] = rfi.dead_counts
            file.write(counts[:, ::-1] if header.ascending else counts)
            bar.update(len(block))

    write_truth(truth_path(path), injector.pulses, injector.boxcar_widths_ms, header.tstart)
    return truth_path(path)


def truth_path(filterbank: str | Path) -> Path:
    """Where the truth table of an observation lies: ``<name>_truth.csv`` beside it."""
    return Path(filterbank).with_name(f"{Path(filterbank).stem}_truth.csv")


def write_truth(
    path: str | Path, pulses: Sequence[Pulse], boxcar_widths_ms: Sequence[float] | np.ndarray, tstart: float
) -> None:
    """Write pulses as CSV with the columns `TRUTH_COLUMNS`; times and MJDs hold at the highest channel's centre."""
    text = io.StringIO()
    writer = csv.DictWriter(text, TRUTH_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for pulse, boxcar in zip(pulses, boxcar_widths_ms, strict=True):
        row = {k: "" if v is None else f"{v:.6g}" for k, v in asdict(pulse).items()}
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
    """Read what `write_truth` wrote, or any table with the columns `NEEDED_COLUMNS`; what is missing is not there.

    Raises
    ------
    InputError
        No such file, other columns, or a value that no pulse has.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file; valid: a truth table that simulate_observation.py wrote")
    with open(path, newline="", encoding="utf-8", errors="replace") as file:
        reader = csv.DictReader(file)
        missing = [name for name in NEEDED_COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(
                f"{path}: the column {missing[0]} is missing; valid: a first line that names at least "
                f"{', '.join(NEEDED_COLUMNS)}"
            )
        return [_pulse_of(row, f"{path}, line {reader.line_num}") for row in reader]


def known_pulses(filterbank: str | Path, duration_s: float) -> list[Pulse]:
    """The truth table beside a filterbank file of that length.

    Raises
    ------
    InputError
        As `read_truth`; or a pulse lies past the end of the file.
    """
    path = truth_path(filterbank)
    pulses = read_truth(path)
    for pulse in pulses:
        if not pulse.time_s <= duration_s:
            raise InputError(
                f"{path}: a pulse at {pulse.time_s:.6g} s, the observation has {duration_s:.6g} s; "
                "valid: the truth table of this very file"
            )
    return pulses


def _pulse_of(row: dict[str, str], where: str) -> Pulse:
    values = {}
    for name in TRUTH_COLUMNS:
        if name in ("mjd", "boxcar_width_ms") or (name not in NEEDED_COLUMNS and row.get(name) in (None, "")):
            continue
        least = {"spectral_index": -20.0, "snr": 1e-3, "width_ms": 1e-6, "bandwidth_mhz": 1e-6}.get(name, 0.0)
        try:
            values[name] = float(row[name])
        except (TypeError, ValueError):
            values[name] = np.nan
        if not least <= values[name] < 1e7:
            raise InputError(f"{where}: {name} is {row[name]!r}; valid: a number from {least:g} to 1e7")
    if ("centre_mhz" in values) != ("bandwidth_mhz" in values):
        raise InputError(f"{where}: centre_mhz and bandwidth_mhz go together; valid: both or neither")
    return Pulse(**values)
