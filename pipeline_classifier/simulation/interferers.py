"""Signals of interference, added in place to blocks of samples, in units of the noise of a channel."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

REACH = 4.0  # standard deviations to which Gaussians are computed; beyond are less than 1e-4 of the flux


class Interferer(Protocol):
    """Interference in samples ``start`` to ``stop``, which ``add`` adds in place to a block that has some of them."""

    @property
    def start(self) -> int: ...

    @property
    def stop(self) -> int: ...

    def add(self, block: np.ndarray, first_sample: int) -> None: ...


@dataclass(frozen=True)
class Impulse:
    """An undispersed signal: ``profile`` from sample ``start`` on times ``spectrum`` from ``first_channel`` on."""

    start: int
    profile: np.ndarray
    spectrum: np.ndarray
    first_channel: int = 0

    @property
    def stop(self) -> int:
        return self.start + len(self.profile)

    def add(self, block: np.ndarray, first_sample: int) -> None:
        begin, end = max(self.start, first_sample), min(self.stop, first_sample + len(block))
        profile = self.profile[begin - self.start : end - self.start]
        channels = slice(self.first_channel, self.first_channel + len(self.spectrum))
        block[begin - first_sample : end - first_sample, channels] += profile[:, None] * self.spectrum


@dataclass(frozen=True)
class Periodic:
    """A periodic signal: a carrier that is switched on and off, or mains hum.

    Attributes
    ----------
    start, stop : int
        First sample and the one after the last.
    period : float
        Period in samples.
    duty : float
        Fraction of the period in which the signal is on.
    smooth : bool
        Whether the signal is a half sine (mains hum) instead of a square wave (a carrier).
    first_channel : int
        First of the channels that have the signal, 0 = highest frequency.
    spectrum : (n,) ndarray of float32
        Amplitudes in channels ``first_channel`` to ``first_channel + n``.
    """

    start: int
    stop: int
    period: float
    duty: float
    smooth: bool
    first_channel: int
    spectrum: np.ndarray

    def add(self, block: np.ndarray, first_sample: int) -> None:
        begin, end = max(self.start, first_sample), min(self.stop, first_sample + len(block))
        phase = (np.arange(begin, end) - self.start) / self.period % 1
        on = phase < self.duty
        profile = (on * np.sin(np.pi * phase / self.duty) if self.smooth else on).astype(np.float32)
        channels = slice(self.first_channel, self.first_channel + len(self.spectrum))
        block[begin - first_sample : end - first_sample, channels] += profile[:, None] * self.spectrum


@dataclass(frozen=True)
class Chirp:
    """A drifting carrier: channel ``first_channel + i`` has a Gaussian of ``sigma`` samples around ``times[i]``."""

    first_channel: int
    times: np.ndarray
    sigma: float
    amplitude: float

    @property
    def start(self) -> int:
        return int(self.times.min() - 4 * self.sigma)

    @property
    def stop(self) -> int:
        return int(self.times.max() + 4 * self.sigma) + 1

    def add(self, block: np.ndarray, first_sample: int) -> None:
        times, reach = self.times - first_sample, 4 * self.sigma
        inside = np.flatnonzero((times > -reach) & (times < len(block) + reach))
        distance = (np.arange(len(block))[:, None] - times[inside]) / self.sigma
        block[:, self.first_channel + inside] += self.amplitude * np.exp(-0.5 * distance**2)


@dataclass(frozen=True)
class Sweep:
    """A sweep of any law: channel ``first_channel + i`` has a Gaussian at ``times[i]``.

    Attributes
    ----------
    first_channel : int
        First of the channels that have the signal, 0 = highest frequency.
    times, sigmas, amplitudes : (n,) ndarray
        Centre and standard deviation in samples, and height, in each channel.
    """

    first_channel: int
    times: np.ndarray
    sigmas: np.ndarray
    amplitudes: np.ndarray

    @property
    def start(self) -> int:
        return int(np.floor(np.min(self.times - REACH * self.sigmas)))

    @property
    def stop(self) -> int:
        return int(np.ceil(np.max(self.times + REACH * self.sigmas))) + 1

    def add(self, block: np.ndarray, first_sample: int) -> None:
        reach = REACH * self.sigmas
        begin = np.maximum(np.ceil(self.times - reach).astype(int) - first_sample, 0)
        end = np.minimum(np.floor(self.times + reach).astype(int) + 1 - first_sample, len(block))
        inside = np.flatnonzero(begin < end)
        counts = end[inside] - begin[inside]
        # One entry for each sample of each channel that the sweep touches.
        which = np.repeat(inside, counts)
        samples = np.arange(len(which)) - np.repeat(np.cumsum(counts) - counts, counts) + begin[which]
        distance = (samples + first_sample - self.times[which]) / self.sigmas[which]
        signal = self.amplitudes[which] * np.exp(-0.5 * distance.astype(np.float32) ** 2)
        block[samples, self.first_channel + which] += signal


@dataclass(frozen=True)
class ChirpTrain:
    """A radar: linear chirps at a fixed repetition, as strong as the beam of its antenna is at that time.

    Attributes
    ----------
    start, stop : int
        First sample and the one after the last.
    period : float
        Repetition in samples.
    delays : (n,) ndarray
        Centre of the first chirp in each channel, in samples after ``start``.
    sigma : float
        Standard deviation of the Gaussian in each channel, in samples.
    taper : float
        Power of the parabola between start and stop to which the amplitude is proportional; 0: constant.
    first_channel : int
        First of the channels that have the signal, 0 = highest frequency.
    spectrum : (n,) ndarray of float32
        Amplitudes in these channels.
    """

    start: int
    stop: int
    period: float
    delays: np.ndarray
    sigma: float
    taper: float
    first_channel: int
    spectrum: np.ndarray

    def add(self, block: np.ndarray, first_sample: int) -> None:
        begin, end = max(self.start, first_sample), min(self.stop, first_sample + len(block))
        t = np.arange(begin, end) - self.start
        phase = (t / self.period % 1).astype(np.float32)[:, None] - (self.delays / self.period).astype(np.float32)
        phase -= np.rint(phase)
        phase *= self.period / self.sigma
        signal = np.exp(-0.5 * phase * phase) * self.spectrum
        x = (2 * t + 1) / (self.stop - self.start) - 1
        signal *= ((1 - x * x) ** self.taper).astype(np.float32)[:, None]
        channels = slice(self.first_channel, self.first_channel + len(self.spectrum))
        block[begin - first_sample : end - first_sample, channels] += signal


@dataclass(frozen=True)
class Switched:
    """A band that is on from ``edges[0]`` to ``edges[1]``, from ``edges[2]`` to ``edges[3]`` and so on.

    Attributes
    ----------
    edges : (2 k,) ndarray of int
        Samples in ascending order.
    first_channel : int
        First of the channels that have the signal, 0 = highest frequency.
    spectrum : (n,) ndarray of float32
        Amplitudes in these channels.
    """

    edges: np.ndarray
    first_channel: int
    spectrum: np.ndarray

    @property
    def start(self) -> int:
        return int(self.edges[0])

    @property
    def stop(self) -> int:
        return int(self.edges[-1])

    def add(self, block: np.ndarray, first_sample: int) -> None:
        channels = slice(self.first_channel, self.first_channel + len(self.spectrum))
        first, last = np.searchsorted(self.edges, [first_sample, first_sample + len(block)], side="right")
        for i in range(first // 2 * 2, last, 2):
            begin, end = np.maximum(self.edges[i : i + 2] - first_sample, 0)
            block[begin:end, channels] += self.spectrum


@dataclass(frozen=True)
class MovingLine:
    """A narrow line whose frequency drifts and wobbles; it ends where it leaves the band.

    Attributes
    ----------
    start, stop : int
        First sample and the one after the last.
    channel : float
        Channel at the first sample, 0 = highest frequency.
    drift : float
        Channels per sample.
    wobble : (float, float)
        Amplitude in channels and period in samples of a sinusoidal change of frequency.
    sigma : float
        Standard deviation of the line in channels.
    amplitude : float
        Height of the line.
    """

    start: int
    stop: int
    channel: float
    drift: float
    wobble: tuple[float, float]
    sigma: float
    amplitude: float

    def channels_at(self, samples: np.ndarray) -> np.ndarray:
        """Compute the channel of the line, a fraction, at each of the samples."""
        t = samples - self.start
        swing, period = self.wobble
        return self.channel + self.drift * t + swing * np.sin(2 * np.pi * t / period)

    def add(self, block: np.ndarray, first_sample: int) -> None:
        begin, end = max(self.start, first_sample), min(self.stop, first_sample + len(block))
        centre = self.channels_at(np.arange(begin, end))
        reach = REACH * self.sigma
        first = max(0, int(np.floor(centre.min() - reach)))
        last = min(block.shape[1], int(np.ceil(centre.max() + reach)) + 1)
        if first >= last:
            return
        distance = ((np.arange(first, last) - centre[:, None]) / self.sigma).astype(np.float32)
        line = self.amplitude * np.exp(-0.5 * distance * distance)
        block[begin - first_sample : end - first_sample, first:last] += line
