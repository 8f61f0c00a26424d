"""Random observations as those on which the included models were trained: any band, any sampling time."""

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


def pulse_free_observations(hours: float, folder: Path, seed: int = 0) -> Iterator[Path]:
    """Simulate observations of strong interference without pulses until they have at least ``hours`` together.

    Their settings are those of `random_observation`. Each is removed from ``folder`` before the next one is made.
    """
    rng = np.random.default_rng(seed)
    number, left_s = 0, hours * 3600
    while left_s > 1e-6:
        settings = random_observation(number, rng)
        names = ("fch1", "foff", "nchans")
        header = replace(EFFELSBERG, tsamp=settings["tsamp_us"] * 1e-6, **{name: settings[name] for name in names})
        nsamples = min(NSAMPLES, max(SHORTEST, math.ceil(left_s / header.tsamp)))
        path = folder / f"pulse_free_{number:04d}.fil"
        rfi = random_rfi("strong", header, nsamples, settings["seed"])
        truth = simulate(path, header, nsamples, [], rfi, settings["seed"])
        try:
            yield path
        finally:
            path.unlink()
            truth.unlink()
        number, left_s = number + 1, left_s - nsamples * header.tsamp
