"""Recall by properties of pulses: every pulse is in the bin of its own value, and the table has these numbers."""

import json
from dataclasses import replace

import numpy as np

from pipeline_classifier.evaluation.evaluation_table import recall_by_property, recall_lines
from pipeline_classifier.evaluation.recovery import compare, outcome_of, pooled
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.simulation.pulses import Pulse

# DM 1 sweeps 1.038 ms.
GRID = PageGrid(0.5 * np.arange(2000), 256, 0.5e-3, 59000.0, 1530.0, 1215.0)


def counts(parts: list[dict]) -> list[tuple[int, int]]:
    return [(part["found"], part["of"]) for part in parts]


def test_recall_by_sweep_over_width_width_dm_and_share_of_the_band():
    pulses = [
        Pulse(1.0, 9.0, 20.0, 20.0),  # sweep / width 0.47
        Pulse(2.0, 20.0, 20.0, 10.0),  # 2.1
        Pulse(3.0, 50.0, 20.0, 10.0),  # 5.2
        Pulse(4.0, 50.0, 20.0, 0.05),  # 105: a sample of 0.5 ms counts as its width
        Pulse(5.0, 2.0, 20.0, 0.05),  # 4.2
        Pulse(6.0, 400.0, 20.0, 2.0, centre_mhz=1372.5, bandwidth_mhz=63.0),  # 0.2 of the band
        Pulse(7.0, 400.0, 20.0, 2.0, centre_mhz=1530.0, bandwidth_mhz=63.0),  # 0.1: half of it lies above the band
        Pulse(8.0, 400.0, 20.0, 2.0, centre_mhz=1372.5, bandwidth_mhz=157.5),  # 0.5
        Pulse(9.0, 400.0, 20.0, 2.0, centre_mhz=1372.5, bandwidth_mhz=630.0),  # the whole band
    ]
    found = [Event(p.time_s, 59000.0, p.dm_pc_cm3, p.snr, p.width_ms, 1.0, 0, 0, 2) for p in pulses]
    del found[3], found[5]
    outcome = outcome_of(pulses, found, compare(pulses, found, GRID), GRID, 0.5e-3, 60.0)
    recall = recall_by_property(pooled([outcome, outcome_of([], [], compare([], [], GRID), GRID, 0.5e-3, 60.0)]))
    assert counts(recall["recall_by_sweep_over_width"]) == [(1, 1), (1, 1), (2, 2), (3, 5)]
    assert counts(recall["recall_by_width_ms"]) == [(1, 2), (0, 0), (0, 0), (3, 4), (0, 0), (3, 3), (0, 0), (0, 0)]
    assert counts(recall["recall_by_dm_pc_cm3"]) == [(2, 2), (1, 1), (1, 2), (0, 0), (3, 4), (0, 0), (0, 0)]
    assert counts(recall["recall_by_band_share"]) == [(0, 1), (1, 1), (1, 1), (0, 0), (5, 6)]
    json.dumps(recall, allow_nan=False)

    lines = recall_lines("share of band", recall["recall_by_band_share"], last="whole band")
    assert [line.strip() for line in lines] == [
        "share of band below 0.15    0 of 1    0.000",
        "share of band 0.15 to 0.3    1 of 1    1.000",
        "share of band 0.3 to 0.6    1 of 1    1.000",
        "whole band    5 of 6    0.833",
    ]


def test_sweep_and_share_are_those_of_the_band_in_use():
    pulse = Pulse(3.0, 50.0, 20.0, 10.0, centre_mhz=1404.0, bandwidth_mhz=126.0)
    for zaplist, sweep_s, share in (((), 0.05188, 0.4), (((1215.0, 1404.0),), 0.01662, 0.5)):
        grid = replace(GRID, zaplist=zaplist)
        outcome = outcome_of([pulse], [], compare([pulse], [], grid), grid, 0.5e-3, 60.0)
        np.testing.assert_allclose((outcome.sweep_s[0], outcome.band_share[0]), (sweep_s, share), rtol=1e-3)
