"""Random observations are possible ones, of any band, and their pulses lie within the DM grid."""

from pathlib import Path

import numpy as np
import pytest

from pipeline_classifier import simulate_observation as script
from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.simulation.observation import read_truth, truth_path
from pipeline_classifier.simulation.random_observation import hard_observation, pulse_free_observations


def parsed(settings):
    words = [f"--{key.replace('_', '-')}={value}" for key, value in settings.items()]
    return script.get_parser().parse_args(["a.fil", *words])


def test_hard_observations_span_wide_ranges_and_their_grids_hold_their_pulses():
    rng = np.random.default_rng(1)
    drawn = []
    for number in range(200):
        settings, grid = hard_observation(number, rng)
        args, config = parsed(settings), PipelineConfig(**grid)
        low, high = sorted([args.fch1, args.fch1 + args.foff * (args.nchans - 1)])
        trials = config.trial_dms()
        assert len(trials) == 256 and trials[0] <= args.dm_min < args.dm_max <= trials[-1]
        assert args.rfi == "hard" and args.pulses == (0 if number % 6 == 5 else 40)
        sweep = float(dispersion_delay(trials[-1], low, high)) / (args.tsamp_us * 1e-6)
        assert 60 < sweep <= 8001 and 0.5 < args.width_ms_max * 1e3 / args.tsamp_us <= sweep / 4
        assert not args.coherent_dm or args.dm_min <= args.coherent_dm <= args.dm_max
        drawn.append((low, high, args.nchans, args.tsamp_us, trials[-1], args.coherent_dm > 0, args.foff > 0))
    lows, highs, nchans, tsamps, dms, coherent, ascending = np.array(drawn).T
    assert 109 < lows.min() < 120 and 3000 < highs.max() <= 3501 and {64, 1024} <= set(nchans)
    assert 45 < tsamps.min() < 80 and 1000 < tsamps.max() <= 1300 and dms.min() < 10 and dms.max() > 1000
    assert 0.1 < coherent.mean() < 0.3 and 0.1 < ascending.mean() < 0.3


@pytest.mark.parametrize("number", [0, 1, 5])
def test_a_hard_observation_is_simulated(tmp_path, number):
    settings, _ = hard_observation(number, np.random.default_rng(number))
    settings |= {"duration_s": settings["duration_s"] / 5, "pulses": min(settings["pulses"], 5), "nchans": 64}
    args = parsed(settings)
    args.output = Path(tmp_path / "a.fil")
    truth = script.run(args)
    assert truth == truth_path(args.output) and len(read_truth(truth)) >= args.pulses
    assert Filterbank(args.output).nsamples == 32_000


def test_pulse_free_observations_have_the_interference_of_their_level(tmp_path):
    contents = {}
    for level in ("strong", "field"):
        for path in pulse_free_observations(1e-4, tmp_path, seed=3, level=level):
            contents[level] = path.read_bytes()
            assert read_truth(truth_path(path)) == []
    assert contents["strong"] != contents["field"] and list(tmp_path.iterdir()) == []
