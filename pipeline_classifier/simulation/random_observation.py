"""Random observations of any band and sampling time, as those on which models are trained."""

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.simulation.interference import random_rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate

NSAMPLES = 160_000
DM_MAX = 125.0  # of the pulses: just below the highest trial DM of the default config
LONGEST_SWEEP = 8000  # samples
LONGEST_TSAMP_S = 1.3e-3
PULSES = 40
NDM = 256  # trial DMs of the grids of `hard_observation`
LOWEST_MHZ, HIGHEST_MHZ = 110.0, 3500.0  # of the bands of `hard_observation`
CANDIDATE_KINDS = (
    "mixed",
    "interference",
    "faint",
    "hard",
    "interference",
    "bright",
    "interference",
    "hard interference",
)
"""Kinds of observations for candidate classifiers: pulses of S/N 6 to 50 in any interference, faint and bright ones,
the observations of `hard_observation`, and interference without pulses."""
SHORTEST = 4096  # samples; 16 pages


def random_observation(number: int, rng: np.random.Generator) -> dict[str, Any]:
    """Draw settings of simulate_observation.py for one observation: every fourth at Effelsberg, the others anywhere.

    Bands lie between 300 and 4200 MHz, with 64 to 1024 channels and 50 us to 1.3 ms; pulses have half a sample to a
    third of a page, but at most a quarter of the baseline window; every sixth observation has interference alone.
    """
    if number % 4 == 0:
        top, bandwidth, nchans, tsamp_s = 1530.0, 320.0, 256, 102.4e-6
    else:
        top, nchans = np.exp(rng.uniform(np.log(320), np.log(4200))), int(rng.choice([64, 128, 256, 336, 512, 1024]))
        bandwidth = top * rng.uniform(0.1, 0.5)
        while (sweep_s := float(dispersion_delay(DM_MAX, top - bandwidth, top))) > LONGEST_SWEEP * LONGEST_TSAMP_S:
            bandwidth *= 0.8
        tsamp_s = np.exp(rng.uniform(np.log(max(50e-6, sweep_s / LONGEST_SWEEP)), np.log(LONGEST_TSAMP_S)))
    longest_ms = min(256 / 3 * tsamp_s, 0.05) * 1e3
    return {
        "fch1": top,
        "foff": -bandwidth / nchans,
        "nchans": nchans,
        "tsamp_us": tsamp_s * 1e6,
        "duration_s": NSAMPLES * tsamp_s,
        "pulses": 0 if number % 6 == 5 else PULSES,
        "dm_min": 8,
        "dm_max": DM_MAX,
        "snr_min": 6,
        "snr_max": 50,
        "width_ms_min": 0.5 * tsamp_s * 1e3,
        "width_ms_max": longest_ms,
        "band_limited": 0.2,
        "double": 0.1,
        "min_separation_s": 300 * tsamp_s,
        "rfi": ("mild", "strong", "strong")[number % 3],
        "seed": int(rng.integers(1 << 31)),
    }


def hard_observation(number: int, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw settings of simulate_observation.py for one observation at the level ``hard``, and the DM grid to search.

    Bands lie between 110 and 3500 MHz and span a factor of 1.03 to 2.5 in frequency, with 64 to 1024 channels and 50 us
    to 1.3 ms. Adjacent trial DMs differ by 0.5 to 20 samples over the band; two of five grids do not start at DM 0.
    Widths are at most a quarter of the longest sweep. A fifth of the observations are coherently dedispersed and have
    pulses near that DM; every sixth has interference alone.

    Parameters
    ----------
    number : int
        Number of the observation.
    rng : numpy.random.Generator
        Source of the random numbers.

    Returns
    -------
    settings : dict
        Options of simulate_observation.py, with underscores.
    grid : dict
        The config keys ``dms``, ``ddm`` and ``ndm``.
    """

    def log_uniform(low: float, high: float) -> float:
        return float(np.exp(rng.uniform(np.log(low), np.log(high))))

    ratio = log_uniform(1.03, 2.5)
    bottom = log_uniform(LOWEST_MHZ, HIGHEST_MHZ / ratio)
    top, nchans = bottom * ratio, int(rng.choice([64, 96, 128, 192, 256, 336, 512, 768, 1024]))
    foff = (top - bottom) / nchans
    s_per_dm = float(dispersion_delay(1.0, bottom + foff, top))
    longest_sweep = min(LONGEST_SWEEP, 40 * nchans)  # samples; 40 within a channel
    # The longest sweep is that of a DM of 10 or more, and a DM of 3000 has a sweep of 200 samples or more.
    shortest_s, longest_s = np.clip([10 * s_per_dm / longest_sweep, 15 * s_per_dm], 50e-6, LONGEST_TSAMP_S)
    tsamp_s = log_uniform(shortest_s, longest_s)
    ddm = min(log_uniform(0.5, 20) * tsamp_s / s_per_dm, longest_sweep * tsamp_s / s_per_dm / NDM)
    lowest = max(0.0, rng.uniform(-1.5, 1) * (longest_sweep * tsamp_s / s_per_dm - NDM * ddm))
    dm_max = lowest + (NDM - 4) * ddm
    longest_width_s = min(256 / 3 * tsamp_s, 0.05, dm_max * s_per_dm / 4)
    dm_min = max(lowest + 4 * ddm, longest_width_s / 2 / s_per_dm)
    coherent_dm = rng.uniform(dm_min, dm_max) if rng.random() < 0.2 else 0.0
    if coherent_dm:
        dm_min, dm_max = max(dm_min, 0.97 * coherent_dm), min(dm_max, 1.03 * coherent_dm)
    ascending = rng.random() < 0.2
    settings = {
        "fch1": bottom + foff if ascending else top,
        "foff": foff if ascending else -foff,
        "nchans": nchans,
        "tsamp_us": tsamp_s * 1e6,
        "duration_s": NSAMPLES * tsamp_s,
        "pulses": 0 if number % 6 == 5 else PULSES,
        "dm_min": dm_min,
        "dm_max": dm_max,
        "snr_min": 5.5,
        "snr_max": float(rng.choice([30, 60, 3000])),
        "width_ms_min": 0.5 * tsamp_s * 1e3,
        "width_ms_max": longest_width_s * 1e3,
        "band_limited": 0.3,
        "short_sweep": 0.15,
        "double": 0.1,
        "min_separation_s": 300 * tsamp_s,
        "coherent_dm": coherent_dm,
        "rfi": "hard",
        "seed": int(rng.integers(1 << 31)),
    }
    return settings, {"dms": lowest, "ddm": ddm, "ndm": NDM}


def candidate_observation(number: int, rng: np.random.Generator) -> tuple[dict[str, Any], dict[str, Any]]:
    """Draw one of the observations for the training set of the candidate classifiers; see `CANDIDATE_KINDS`.

    Parameters
    ----------
    number : int
        Number of the observation; the kinds take turns.
    rng : numpy.random.Generator

    Returns
    -------
    settings : dict
        Options of simulate_observation.py, with underscores.
    grid : dict
        Keys of the pipeline config.
    """
    kind = CANDIDATE_KINDS[number % len(CANDIDATE_KINDS)]
    grid: dict[str, Any] = {}
    if kind.startswith("hard"):
        settings, grid = hard_observation(0, rng)
    else:
        settings = random_observation(int(rng.integers(1 << 20)), rng)
    changes: dict[str, dict[str, Any]] = {
        "mixed": {"pulses": PULSES, "rfi": str(rng.choice(["mild", "strong", "field"]))},
        "faint": {"pulses": 70, "snr_min": 5.5, "snr_max": 15, "rfi": str(rng.choice(["strong", "field"]))},
        "bright": {"pulses": 50, "snr_min": 15, "snr_max": 1500, "band_limited": 0.4, "rfi": "field"},
        "interference": {"pulses": 0, "rfi": str(rng.choice(["extreme", "hard", "field"], p=[0.6, 0.2, 0.2]))},
        "hard": {},
        "hard interference": {"pulses": 0},
    }
    return settings | changes[kind], grid


def pulse_free_observations(hours: float, folder: Path, seed: int = 0, level: str = "strong") -> Iterator[Path]:
    """Simulate observations of interference without pulses until they have at least ``hours`` together.

    Their settings are those of `random_observation`, the interference that of ``level``. Each is removed from
    ``folder`` before the next one is made.
    """
    rng = np.random.default_rng(seed)
    number, left_s = 0, hours * 3600
    while left_s > 1e-6:
        settings = random_observation(number, rng)
        names = ("fch1", "foff", "nchans")
        header = replace(EFFELSBERG, tsamp=settings["tsamp_us"] * 1e-6, **{name: settings[name] for name in names})
        nsamples = min(NSAMPLES, max(SHORTEST, math.ceil(left_s / header.tsamp)))
        path = folder / f"pulse_free_{number:04d}.fil"
        rfi = random_rfi(level, header, nsamples, settings["seed"])
        truth = simulate(path, header, nsamples, [], rfi, settings["seed"])
        try:
            yield path
        finally:
            path.unlink()
            truth.unlink()
        number, left_s = number + 1, left_s - nsamples * header.tsamp
