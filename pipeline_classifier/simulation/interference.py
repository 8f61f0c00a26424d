"""Random interference and instrumental faults for simulated observations.

Signals are in units of the noise of a channel; gains multiply signal and noise alike, as in a receiver.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from pipeline_classifier.formats.sigproc import Header
from pipeline_classifier.simulation.drawing import Draw
from pipeline_classifier.simulation.field_interference import FieldDraw, field_interferers
from pipeline_classifier.simulation.interferers import Chirp, Impulse, Interferer, Periodic
from single_pulse_classifier_training.cli import InputError

# Ranges to draw from for each observation. Impulses, chirps, steps, dropouts and saturations are numbers per minute;
# carriers, dead and noisy channels are fractions of the channels; amplitudes are in units of the noise of a channel;
# drift and step size are relative changes of the gain. Chosen by hand, not fitted to recorded interference.
LEVELS: dict[str, dict[str, Any]] = {
    "mild": {
        "impulses": (6, 20),
        "impulse_amplitude": (0.3, 3),
        "carriers": (0.004, 0.015),
        "carrier_amplitude": (0.3, 3),
        "chirps": (1, 3),
        "chirp_amplitude": (0.5, 2),
        "mains_chance": 0.5,
        "mains_amplitude": (0.01, 0.05),
        "drift": (0.003, 0.01),
        "steps": (0, 1),
        "step_size": 0.01,
        "dead": (0, 0.04),
        "noisy": (0, 0.01),
        "dropouts": (0, 1),
        "dropout_ms": (1, 10),
        "saturations": (0, 1),
        "saturation_ms": (0.5, 5),
    },
    "strong": {
        "impulses": (60, 180),
        "impulse_amplitude": (0.3, 10),
        "carriers": (0.01, 0.05),
        "carrier_amplitude": (0.5, 8),
        "chirps": (6, 20),
        "chirp_amplitude": (0.7, 5),
        "mains_chance": 1.0,
        "mains_amplitude": (0.03, 0.2),
        "drift": (0.01, 0.05),
        "steps": (2, 6),
        "step_size": 0.04,
        "dead": (0.02, 0.1),
        "noisy": (0.01, 0.04),
        "dropouts": (1, 4),
        "dropout_ms": (1, 50),
        "saturations": (1, 4),
        "saturation_ms": (0.5, 20),
    },
}
# The kinds of `field_interference` at this factor times their rates; all rates are drawn uniformly in the logarithm.
FIELD_KINDS = "field_kinds"
LEVELS["extreme"] = LEVELS["strong"] | {
    "impulses": (150, 400),
    "chirps": (40, 120),
    "steps": (4, 12),
    "dropouts": (3, 12),
    "saturations": (3, 12),
}
LEVELS["field"] = LEVELS["strong"] | {
    "impulses": (12, 240),
    "carriers": (0.003, 0.05),
    "chirps": (1, 30),
    "steps": (0.5, 8),
    "dead": (0, 0.12),
    "dropouts": (0.3, 6),
    "saturations": (0.3, 6),
    FIELD_KINDS: 1.0,
}
LEVELS["hard"] = LEVELS["field"] | {
    "impulses": (40, 600),
    "chirps": (4, 120),
    "steps": (1, 16),
    "dropouts": (1, 16),
    "saturations": (1, 16),
    FIELD_KINDS: 4.0,
}
RFI_LEVELS = ("none", *LEVELS)
LONGEST_HARD_TSAMP_S = 2e-4  # rates of `hard` are per minute up to here, then per sample, so that gaps remain
SATURATING_SIGMA = 1e3  # simulated samples of 8 bits saturate from about 16 sigma in mid band


@dataclass(eq=False)
class Rfi:
    """Interference and instrumental faults of an observation; none by default.

    Attributes
    ----------
    interferers : list of Interferer
        Signals added to the noise.
    drift : (k, 3) ndarray
        Amplitude, period in samples and phase of slow sinusoidal changes of the gain, common to all channels.
    steps : (k, 2) ndarray
        Samples, in ascending order, and the factor by which the gain is multiplied from there to the next one.
    dropouts : (k, 2) ndarray of int
        First sample and the one after the last of stretches in which the gain is 0.
    dead_channels, dead_counts : (k,) ndarray
        Channels (0 = highest frequency) that hold a constant, and that constant.
    noisy_channels, noisy_factors : (k,) ndarray
        Channels with higher noise, and the factor by which it is higher; signals are unaffected.
    losses, loss_counts : (k, 4) and (k,) ndarray
        Lost packets: first sample and the one after the last, first channel and the one after the last; and the
        constant that replaces the samples.
    """

    interferers: list[Interferer] = field(default_factory=list)
    drift: np.ndarray = field(default_factory=lambda: np.empty((0, 3)))
    steps: np.ndarray = field(default_factory=lambda: np.empty((0, 2)))
    dropouts: np.ndarray = field(default_factory=lambda: np.empty((0, 2), int))
    dead_channels: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    dead_counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))
    noisy_channels: np.ndarray = field(default_factory=lambda: np.empty(0, int))
    noisy_factors: np.ndarray = field(default_factory=lambda: np.empty(0, np.float32))
    losses: np.ndarray = field(default_factory=lambda: np.empty((0, 4), int))
    loss_counts: np.ndarray = field(default_factory=lambda: np.empty(0, np.uint8))

    def gain(self, first_sample: int, n: int) -> np.ndarray:
        """Compute the gain of samples ``first_sample`` to ``first_sample + n``, float32 (n,)."""
        samples = np.arange(first_sample, first_sample + n)
        gain = np.ones(n)
        for amplitude, period, phase in self.drift:
            gain += amplitude * np.sin(2 * np.pi * samples / period + phase)
        factors = np.concatenate([[1.0], self.steps[:, 1]])
        gain *= factors[np.searchsorted(self.steps[:, 0], samples, side="right")]
        begins, ends = self.dropouts.T
        for begin, end in self.dropouts[_overlapping(begins, ends, first_sample, n)]:
            gain[max(0, begin - first_sample) : max(0, end - first_sample)] = 0
        return gain.astype(np.float32)

    def add(self, block: np.ndarray, first_sample: int) -> None:
        """Add all interferers to a block (m, nchans) float32 in units of channel noise, in place."""
        for i in _overlapping(*self._extents, first_sample, len(block)):
            self.interferers[i].add(block, first_sample)

    def lose(self, counts: np.ndarray, first_sample: int) -> None:
        """Replace the samples of lost packets and dead channels in a block (m, nchans) uint8, in place."""
        for i in _overlapping(self.losses[:, 0], self.losses[:, 1], first_sample, len(counts)):
            begin, end, first, last = self.losses[i]
            counts[max(0, begin - first_sample) : end - first_sample, first:last] = self.loss_counts[i]
        counts[:, self.dead_channels] = self.dead_counts

    @functools.cached_property
    def _extents(self) -> tuple[np.ndarray, np.ndarray]:
        return np.array([i.start for i in self.interferers]), np.array([i.stop for i in self.interferers])


def _overlapping(begin: np.ndarray, end: np.ndarray, first_sample: int, n: int) -> np.ndarray:
    """Indices of the intervals that overlap with samples ``first_sample`` to ``first_sample + n``."""
    return np.flatnonzero((begin < first_sample + n) & (end > first_sample))


class _Draw(Draw):
    """Draws the components of an `Rfi` for one observation; ranges not in `LEVELS` are chosen by hand too."""

    def __init__(self, level: str, header: Header, nsamples: int, rng: np.random.Generator):
        super().__init__(header, nsamples, rng)
        self.ranges = LEVELS[level]

    def count(self, what: str) -> int:
        """Number of events in the observation: Poisson, at a rate drawn from the range of the level."""
        rate = (self.log_uniform if FIELD_KINDS in self.ranges else self.rng.uniform)(*self.ranges[what])
        return self.rng.poisson(rate * self.minutes)

    def channels(self, what: str) -> np.ndarray:
        """Channels scattered over the band and, like a filtered sub-band, in one contiguous run."""
        wanted = int(self.rng.uniform(*self.ranges[what]) * self.nchans)
        if wanted == 0:
            return np.empty(0, int)
        run = int(self.rng.integers(0, wanted // 2 + 1))
        first = int(self.rng.integers(0, self.nchans - run + 1))
        scattered = self.rng.choice(self.nchans, wanted - run, replace=False)
        return np.union1d(scattered, np.arange(first, first + run))

    def impulses(self) -> Iterator[Impulse]:
        for start in self.samples(self.count("impulses")):
            width = int(np.rint(self.log_uniform(1, 100)))
            t = np.arange(width, dtype=np.float32)
            shape = self.rng.integers(3)
            if shape == 0:
                profile = np.ones(width, np.float32)
            elif shape == 1:
                profile = np.sin(np.pi * (t + 0.5) / width) ** 2
            else:
                profile = np.exp(-np.arange(4 * width, dtype=np.float32) / width)
            yield Impulse(int(start), profile, self.spectrum(self.log_uniform(*self.ranges["impulse_amplitude"])))

    def carriers(self) -> Iterator[Periodic]:
        for _ in range(int(np.ceil(self.rng.uniform(*self.ranges["carriers"]) * self.nchans))):
            width = min(int(self.rng.integers(1, 4)), self.nchans)
            spectrum = self.log_uniform(*self.ranges["carrier_amplitude"]) * self.rng.uniform(0.3, 1, width)
            start, stop = np.sort(self.samples(2)) if self.rng.random() < 0.5 else (0, self.nsamples)
            period = self.log_uniform(0.002, 2) / self.tsamp
            yield Periodic(
                int(start),
                int(stop),
                period,
                self.rng.uniform(0.05, 0.9),
                False,
                int(self.rng.integers(0, self.nchans - width + 1)),
                spectrum.astype(np.float32),
            )

    def mains(self) -> Iterator[Periodic]:
        if self.rng.random() < self.ranges["mains_chance"]:
            period = 1 / (self.rng.choice([50, 100]) * self.tsamp)
            start = -int(self.rng.uniform(0, period))
            yield Periodic(
                start,
                self.nsamples,
                period,
                self.rng.uniform(0.2, 1),
                True,
                0,
                self.spectrum(self.log_uniform(*self.ranges["mains_amplitude"])),
            )

    def saturations(self) -> Iterator[Impulse]:
        for start in self.samples(self.count("saturations")):
            width = int(np.ceil(self.log_uniform(*self.ranges["saturation_ms"]) * 1e-3 / self.tsamp))
            spectrum = np.full(self.nchans, SATURATING_SIGMA, np.float32)
            if self.rng.random() < 0.5:
                first, last = np.sort(self.rng.integers(0, self.nchans + 1, 2))
                spectrum[:first] = spectrum[last:] = 0
            yield Impulse(int(start), np.ones(width, np.float32), spectrum)

    def chirps(self) -> Iterator[Chirp]:
        """Sweeps through 20 to 70 per cent of the band within 10 ms to 2 s, as long as those of pulses, up or down."""
        for start in self.samples(self.count("chirps")):
            n = max(1, int(self.rng.uniform(0.2, 0.7) * self.nchans))
            sweep = self.log_uniform(0.01, 2) / self.tsamp
            curvature = self.rng.choice([1.0, self.rng.uniform(0.7, 1.5)])
            times = start + sweep * (np.arange(n) / n) ** curvature
            if self.rng.random() < 0.5:
                times = times[::-1]
            sigma = max(0.5, self.rng.uniform(0.5, 2) * sweep / n)
            first_channel = int(self.rng.integers(0, self.nchans - n + 1))
            amplitude = self.log_uniform(*self.ranges["chirp_amplitude"])
            if FIELD_KINDS in self.ranges and self.follows_dispersion(times, first_channel, np.ones(n), sigma):
                continue
            yield Chirp(first_channel, times, sigma, amplitude)

    def drift(self) -> np.ndarray:
        amplitudes = self.rng.uniform(*self.ranges["drift"]) * self.rng.dirichlet([1, 1, 1])
        return np.column_stack([amplitudes, self.log_uniform(3, 60, 3) / self.tsamp, self.rng.uniform(0, 2 * np.pi, 3)])

    def steps(self) -> np.ndarray:
        n = self.count("steps")
        factors = 1 + self.ranges["step_size"] * self.rng.uniform(-1, 1, n)
        return np.column_stack([np.sort(self.samples(n)), factors])

    def dropouts(self) -> np.ndarray:
        n = self.count("dropouts")
        begin = self.samples(n)
        shortest, longest = self.ranges["dropout_ms"]
        lengths = self.log_uniform(shortest, longest, n) * 1e-3 / self.tsamp
        return np.column_stack([begin, begin + np.ceil(lengths).astype(int)])


def random_rfi(level: str, header: Header, nsamples: int, seed: int) -> Rfi:
    """Draw the interference of an observation; the same arguments give the same result.

    Parameters
    ----------
    level : str
        ``none``; ``mild`` (at most 4 per cent of the channels dead); ``strong`` (one to three impulses per second, a
        chirp every few seconds, a few steps and dropouts per minute, up to 10 per cent of the channels dead);
        ``extreme`` (two to seven times as many impulses, chirps, steps and dropouts, for training sets); ``field``
        (the kinds of ``strong`` and of `field_interference`, at rates from wide distributions); or ``hard`` (several
        times the rates of ``field``, for training sets).
    header : Header
        Geometry of the observation.
    nsamples : int
        Length of the observation.
    seed : int
        Random seed; may equal the seed of the pulses and of the noise.

    Raises
    ------
    InputError
        If the level is unknown.
    """
    if level not in RFI_LEVELS:
        raise InputError(f"rfi must be one of {', '.join(RFI_LEVELS)}, got {level!r}")
    if level == "none":
        return Rfi()
    draw = _Draw(level, header, nsamples, np.random.default_rng([seed, 3]))
    field_draw = FieldDraw(header, nsamples, np.random.default_rng([seed, 6]))
    factor = LEVELS[level].get(FIELD_KINDS, 0.0)
    if level == "hard":
        draw.minutes = field_draw.minutes = min(draw.minutes, nsamples * LONGEST_HARD_TSAMP_S / 60)
    dead, noisy = draw.channels("dead"), draw.channels("noisy")
    interferers: list[Interferer] = [*draw.impulses(), *draw.carriers(), *draw.mains()]
    interferers += [*draw.saturations(), *draw.chirps()]
    interferers += field_interferers(field_draw, factor)
    return Rfi(
        interferers,
        draw.drift(),
        draw.steps(),
        draw.dropouts(),
        dead,
        draw.rng.choice(np.array([0, 0, 60, 128, 255], np.uint8), len(dead)),
        noisy,
        draw.rng.uniform(1.5, 6, len(noisy)).astype(np.float32),
        *field_draw.packet_losses(factor),
    )
