"""Kinds of interference of the levels ``field`` and ``hard``, drawn from wide distributions.

All ranges are chosen by hand, wider than what one telescope sees; they are not fitted to recorded interference. Sweeps
that resemble those of pulses but follow another law are known as perytons (Burke-Spolaor et al. 2011, ApJ 727, 18).
"""

from collections.abc import Iterator

import numpy as np

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.simulation.drawing import Draw
from pipeline_classifier.simulation.interferers import (
    ChirpTrain,
    Impulse,
    Interferer,
    MovingLine,
    Sweep,
    Switched,
)
from pipeline_classifier.simulation.pulses import FWHM_PER_SIGMA

RATES = {
    "part_impulses": (6.0, 180.0),
    "sweeps": (1.0, 24.0),
    "bursts": (6.0, 180.0),
    "radars": (0.5, 10.0),
    "satellites": (0.4, 6.0),
    "moving_lines": (0.3, 5.0),
    "packet_losses": (0.3, 10.0),
}
"""Numbers per minute at the level ``field``. For each observation, the rate of each kind is drawn from its range,
uniformly in the logarithm."""
SNR = (5.0, 200.0)
"""S/N of an impulse or sweep along its own course, summed over all channels; about the range of pulses."""
LARGEST_AMPLITUDE = 30.0  # per channel and sample; simulated samples of 8 bits saturate from about 16 in mid band
POWERS = (-6.0, 1.0)  # of the frequency, to which the delay of a sweep is proportional
NEAR_DISPERSION = 0.5  # powers differ from -2, that of dispersion, by at least this


class FieldDraw(Draw):
    """Draws the interferers of `RATES`, each kind as an iterator."""

    def count(self, what: str, factor: float) -> int:
        """Number of events in the observation: Poisson, at a rate drawn from `RATES`, times ``factor``."""
        return self.rng.poisson(factor * self.log_uniform(*RATES[what]) * self.minutes)

    def part(self, least: float, most: float) -> tuple[int, int]:
        """First channel and number of channels of a random contiguous part, a fraction ``least`` to ``most``."""
        n = max(1, int(np.rint(self.log_uniform(least, most) * self.nchans)))
        return int(self.rng.integers(0, self.nchans - n + 1)), n

    def uneven(self, n: int) -> np.ndarray:
        """Random spectrum of ``n`` channels: slope, irregular structure, soft edges; maximum 1."""
        x = (np.arange(n) + 0.5) / n
        waves = np.cos(2 * np.pi * (np.arange(1, 7)[:, None] * x / 2 + self.rng.random((6, 1))))
        depths = self.rng.uniform(0, 1) * self.rng.standard_normal(6) / np.sqrt(np.arange(1, 7))
        spectrum = np.exp(self.rng.uniform(-1, 1) * x + depths @ waves)
        for edge in self.rng.uniform(0, 0.5, 2):
            soft = np.minimum(1, x / max(edge, 1e-3))
            spectrum = (spectrum * np.sin(np.pi / 2 * soft) ** 2)[::-1]
        return spectrum / spectrum.max()

    def profile(self, width: int) -> np.ndarray:
        """Random time profile with maximum 1: a box, a bell, a decay, a rise, or an irregular one with soft ends."""
        t = (np.arange(width) + 0.5) / width
        shape = self.rng.integers(5)
        if shape == 0:
            profile = np.ones(width)
        elif shape == 1:
            profile = np.sin(np.pi * t) ** 2
        elif shape == 2:
            profile = np.exp(-np.arange(4 * width) / width)
        elif shape == 3:
            profile = t ** self.rng.uniform(0.5, 3)
        else:
            times = np.linspace(0, 1, int(self.rng.integers(4, 24)))
            profile = np.interp(t, times, self.rng.exponential(1, len(times))) * np.minimum(1, 4 * np.sqrt(t * (1 - t)))
        return (profile / profile.max()).astype(np.float32)

    def occurrences(self, width: int) -> list[tuple[int, float]]:
        """Start and gain of an event and, in a third of cases, of up to 11 repetitions, at random times or periodic."""
        first = int(self.samples(1)[0])
        if self.rng.random() > 1 / 3:
            return [(first, 1.0)]
        n, spacing = int(self.rng.integers(1, 12)), self.log_uniform(2 * width, max(3 * width, 0.3 / self.tsamp))
        steps = np.full(n, spacing) if self.rng.random() < 0.5 else self.rng.exponential(spacing, n)
        later = first + np.rint(np.cumsum(steps)).astype(int)
        gains = self.rng.uniform(self.rng.uniform(0.1, 1), 1, n)
        return [(first, 1.0), *zip(later[later < self.nsamples].tolist(), gains.tolist(), strict=False)]

    def height(self, area: float) -> float:
        """Amplitude of a signal with the S/N `SNR`; ``area`` is that of its sum over channels, sqrt(width) at 1."""
        return min(self.log_uniform(*SNR) * np.sqrt(self.nchans) / area, LARGEST_AMPLITUDE)

    def part_impulses(self, factor: float) -> Iterator[Impulse]:
        """Impulses in one to six parts of the band at once."""
        for _ in range(self.count("part_impulses", factor)):
            profile = self.profile(int(np.rint(self.log_uniform(1, 150))))
            parts = []
            for _ in range(min(int(self.rng.geometric(0.5)), 6)):
                first, n = self.part(0.04, 0.9)
                parts.append((first, self.uneven(n) * self.rng.uniform(0.3, 1)))
            total = sum(spectrum.sum() for _, spectrum in parts)
            height = self.height(total * np.sqrt((profile**2).sum()))
            for start, gain in self.occurrences(len(profile)):
                for first, spectrum in parts:
                    yield Impulse(start, profile, (gain * height * spectrum).astype(np.float32), first)

    def sweeps(self, factor: float) -> Iterator[Sweep]:
        """Sweeps over the band or part of it, up or down, as long as those of pulses, that do not follow f^-2.

        The delay is a random power of the frequency, in half of the cases with a bend and a wiggle. Where eight such
        laws follow f^-2, as they may for short sweeps in narrow bands, there is no sweep.
        """
        for start in self.samples(self.count("sweeps", factor)):
            first, n = (0, self.nchans) if self.rng.random() < 0.5 else self.part(0.2, 1)
            if n < 8:
                continue
            frequencies = self.frequencies[first : first + n]
            shortest, longest = (
                float(dispersion_delay(dm, frequencies[-1], frequencies[0])) / self.tsamp for dm in (3, 300)
            )
            longest = max(16.0, min(longest, self.nsamples / 4))
            length = self.log_uniform(min(max(shortest, 8.0), longest / 2), longest)
            fwhm = self.log_uniform(1, max(2.0, min(85.0, length / 4)))
            spectrum, sigma = self.uneven(n), fwhm / FWHM_PER_SIGMA
            courses = (length * self.course(frequencies) for _ in range(8))
            delays = next((d for d in courses if not self.follows_dispersion(d, first, spectrum, sigma)), None)
            if delays is None:
                continue
            times = start + (delays.max() - delays if self.rng.random() < 0.5 else delays)
            # A channel has the signal for as long as the sweep is in it.
            sigmas = np.hypot(sigma, np.gradient(times) / np.sqrt(12))
            height = self.height(spectrum.sum() * np.sqrt(fwhm))
            yield Sweep(first, times, np.maximum(sigmas, 0.4), (height * spectrum).astype(np.float32))

    def course(self, frequencies: np.ndarray) -> np.ndarray:
        """Delays (n,) of a sweep of length 1 from the highest to the lowest frequency, not near f^-2."""
        power = -2.0
        while abs(power + 2) < NEAR_DISPERSION or abs(power) < 0.01:
            power = self.rng.uniform(*POWERS)
        law = frequencies**power
        x = (law - law[0]) / (law[-1] - law[0])
        if self.rng.random() < 0.5:
            bend, wiggle, waves = self.rng.uniform(-0.6, 0.6), self.rng.uniform(-0.1, 0.1), self.rng.integers(1, 4)
            x = x + 4 * bend * x * (1 - x) + wiggle * np.sin(2 * np.pi * waves * x)
        return x - x.min()

    def bursts(self, factor: float) -> Iterator[Impulse]:
        """Bursts in one to some channels, from 1 ms to 3 s."""
        for _ in range(self.count("bursts", factor)):
            first, n = self.part(min(0.05, 1 / self.nchans), 0.05)
            width = int(np.clip(self.log_uniform(1e-3, 3) / self.tsamp, 1, self.nsamples))
            profile = self.profile(width)[:width]
            spectrum = (self.log_uniform(0.2, 20) * self.uneven(n)).astype(np.float32)
            for start, gain in self.occurrences(width):
                yield Impulse(start, profile, np.float32(gain) * spectrum, first)

    def radars(self, factor: float) -> Iterator[ChirpTrain]:
        """Trains of linear chirps, repeated every 0.5 ms to 0.5 s, for 30 ms to 5 s.

        Chirps that follow f^-2, as do all in narrow bands, are made too short to be resolved, as those of most radars.
        """
        for start in self.samples(self.count("radars", factor)):
            first, n = self.part(0.02, 0.5)
            period = self.log_uniform(max(5e-4, 8 * self.tsamp), max(0.5, 16 * self.tsamp)) / self.tsamp
            duration = max(self.log_uniform(0.03, 5) / self.tsamp, 4 * period)
            length = self.log_uniform(1, max(2, 0.6 * period))
            delays = 0.2 * period + length * (np.arange(n) + 0.5) / n
            sigma = min(max(0.5, self.rng.uniform(0.5, 2) * length / n), 0.05 * period + 0.3)
            spectrum = (self.log_uniform(0.2, 15) * self.uneven(n)).astype(np.float32)
            stop = int(min(start + duration, self.nsamples))
            taper = float(self.rng.choice([0, 1, 2]))
            if self.follows_dispersion(delays, first, spectrum, sigma):
                delays = delays.mean() + sigma * (delays - delays.mean()) / np.ptp(delays) if n > 1 else delays
            if self.rng.random() < 0.5:
                delays = delays[::-1]
            yield ChirpTrain(int(start), stop, period, delays, sigma, taper, first, spectrum)

    def satellites(self, factor: float) -> Iterator[Switched]:
        """Bands that switch on and off for 0.5 s to a minute, at random or in slots of one length."""
        for start in self.samples(self.count("satellites", factor)):
            first, n = self.part(0.005, 0.12)
            duration = self.log_uniform(0.5, 60) / self.tsamp
            on, off = self.log_uniform(0.005, 2, 2) / self.tsamp
            pairs = int(np.ceil(duration / (on + off)))
            if self.rng.random() < 0.5:
                lengths = self.rng.exponential([on, off], (pairs, 2))
            else:
                lengths = on * self.rng.integers(1, 5, (pairs, 2))
            edges = start + np.cumsum(np.concatenate([[0], np.maximum(1, lengths.ravel()[:-1])])).astype(int)
            edges = np.minimum(edges[: np.searchsorted(edges, self.nsamples) // 2 * 2 + 2], self.nsamples)
            yield Switched(edges, first, (self.log_uniform(0.1, 8) * self.uneven(n)).astype(np.float32))

    def moving_lines(self, factor: float) -> Iterator[MovingLine]:
        """Intermodulation: one to five narrow lines, evenly spaced, that drift by multiples of the same rate."""
        for start in self.samples(self.count("moving_lines", factor)):
            n = int(self.rng.integers(1, 6))
            duration = self.log_uniform(0.5, 60) / self.tsamp
            drift = self.rng.choice([-1, 1]) * self.log_uniform(3e-4, 0.1) * self.nchans * self.tsamp
            channel, spacing = self.rng.uniform(0, self.nchans), self.rng.uniform(-0.3, 0.3) * self.nchans
            wobble = (self.rng.choice([0, self.log_uniform(0.3, 10)]), self.log_uniform(0.05, 10) / self.tsamp)
            sigma, amplitudes = self.rng.uniform(0.3, 1.5), self.log_uniform(0.1, 8) * self.rng.uniform(0.2, 1, n)
            stop = int(min(start + duration, self.nsamples))
            for i, amplitude in enumerate(amplitudes.tolist()):
                order = i % 3 + 1
                line = channel + i * spacing
                if 0 <= line < self.nchans:
                    yield MovingLine(int(start), stop, line, drift * order, wobble, sigma, amplitude)

    def packet_losses(self, factor: float) -> tuple[np.ndarray, np.ndarray]:
        """Blocks of samples and channels, (k, 4), and the constants that replace them, (k,).

        A packet has the whole band or an aligned part of it, and 8 to 1024 samples; losses come in runs.
        """
        blocks, counts = [np.empty((0, 4), int)], [np.empty(0, np.uint8)]
        for start in self.samples(self.count("packet_losses", factor)):
            parts = int(2 ** self.rng.integers(0, max(1, int(np.log2(self.nchans)) - 1)))
            length, channels = int(2 ** self.rng.integers(3, 11)), self.nchans // parts
            n = min(int(self.rng.geometric(self.log_uniform(0.02, 1))), 200)
            begins = start // length * length + length * self.rng.integers(0, self.rng.integers(1, 2 * n + 1), n)
            firsts = channels * self.rng.integers(0, self.rng.choice([1, parts]), n)
            if self.rng.random() < 0.5:
                firsts += channels * int(self.rng.integers(0, parts - firsts.max() // channels))
            blocks.append(np.column_stack([begins, begins + length, firsts, firsts + channels]))
            counts.append(np.full(n, self.rng.integers(1, 256) if self.rng.random() < 1 / 3 else 0, np.uint8))
        return np.concatenate(blocks), np.concatenate(counts)


def field_interferers(draw: FieldDraw, factor: float) -> list[Interferer]:
    """Draw the interferers of all kinds of `RATES`, at ``factor`` times the rates."""
    kinds = (draw.part_impulses, draw.sweeps, draw.bursts, draw.radars, draw.satellites, draw.moving_lines)
    return [interferer for kind in kinds for interferer in kind(factor)]
