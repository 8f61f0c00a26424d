"""The candidate classifier: cutouts that are the same for every width and sampling, and its training set."""

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier.create_candidate_dataset import get_parser
from pipeline_classifier.create_candidate_dataset import run as create
from pipeline_classifier.detection.candidate_classifier import CandidateClassifier
from pipeline_classifier.detection.candidate_cutouts import SIDE, candidate_images, cutout
from pipeline_classifier.detection.peaks import Peak
from pipeline_classifier.dispersion import dispersion_delay
from pipeline_classifier.formats.sigproc import Header
from pipeline_classifier.frontend.boxcar import boxcar_search
from pipeline_classifier.frontend.pages import PageGrid
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.checkpoint import Checkpoint
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.training_models import build_model

FREQUENCIES = np.linspace(1530.0, 1211.0, 256)
DMS = 0.5 * np.arange(256)
MIDDLE = SIDE // 2


def plane_with_pulse(width: int, tsamp: float, snr: float, dm: float = 60.0) -> tuple[np.ndarray, PageGrid, Peak]:
    """What dedispersion makes of a boxcar pulse without noise, and its peak."""
    n = 200 * width
    grid = PageGrid(DMS, 256, tsamp, 59000.0, FREQUENCIES[0], FREQUENCIES[-1])
    late = dispersion_delay(dm - DMS[:, None], FREQUENCIES, FREQUENCIES[0]) / tsamp  # (n_dm, nchans)
    still_to_come = sum(np.clip(n // 2 + delays[:, None] - np.arange(n + 1), 0, width) for delays in late.T)
    plane = -np.diff(still_to_come, axis=1) / len(FREQUENCIES) * snr / np.sqrt(width)
    return plane.astype(np.float32), grid, Peak(120, n // 2 - width, width, snr)


def searched_plane(plane: np.ndarray):
    """The search of a plane whose noise is one."""
    noise = np.random.default_rng(0).standard_normal(plane.shape).astype(np.float32)
    with_noise, alone = boxcar_search(plane + noise, 128), boxcar_search(noise, 128)
    assert with_noise.total[:, -1].std() > 0
    # Without the noise, which is the same in both but for the level that the pulse changes a little.
    return type(with_noise)(with_noise.total - alone.total, with_noise.snr, with_noise.width)


def test_a_cutout_does_not_depend_on_sampling_and_width():
    cutouts = []
    for width, tsamp in ((4, 400e-6), (8, 200e-6), (16, 100e-6)):
        plane, grid, peak = plane_with_pulse(width, tsamp, 14.0)
        cutouts.append(cutout(searched_plane(plane), grid, peak))
        assert cutouts[-1].shape == (SIDE, SIDE)
        # A column is a quarter of the width, and holds a quarter of the pulse in half of the noise.
        assert cutouts[-1][MIDDLE, MIDDLE] == pytest.approx(7, rel=0.15)
        assert np.abs(cutouts[-1][MIDDLE, MIDDLE + 6 :]).max() < 1.5
    for other in cutouts[1:]:
        assert np.corrcoef(cutouts[0].ravel(), other.ravel())[0, 1] > 0.97


def test_a_cutout_shows_the_band_in_use():
    """A pulse in the lower half of the band looks as one in a file that has no more than that half."""
    cutouts = []
    for frequencies, zaplist in ((FREQUENCIES, ((1370.0, 2000.0),)), (FREQUENCIES[FREQUENCIES < 1370], ())):
        grid = PageGrid(DMS, 256, 200e-6, 59000.0, frequencies[0], frequencies[-1], zaplist)
        used = frequencies[frequencies < 1370]
        late = dispersion_delay(60.0 - DMS[:, None], used, frequencies[0]) / grid.tsamp
        plane = np.random.default_rng(0).standard_normal((256, 1200)).astype(np.float32)
        for row, delays in enumerate(late):
            np.add.at(plane[row], 600 + np.rint(delays).astype(int)[:, None] + np.arange(8), 20.0 / len(used))
        cutouts.append(cutout(boxcar_search(plane, 128), grid, Peak(120, 600, 8, 50.0)))
    strong = cutouts[1] > 2
    assert strong.sum() > 40 and np.corrcoef(cutouts[0][strong], cutouts[1][strong])[0, 1] > 0.95


def test_past_the_grid_of_dms_a_cutout_is_black_and_past_the_plane_it_is_empty():
    grid = PageGrid(DMS, 256, 1e-3, 59000.0, FREQUENCIES[0], FREQUENCIES[-1])
    noise = np.random.default_rng(1).standard_normal((256, 256)).astype(np.float32)
    values = cutout(boxcar_search(noise, 128), grid, Peak(4, 8, 4, 10.0))
    lowest = np.flatnonzero((values == -5).all(axis=1))
    assert len(lowest) and lowest[0] == 0 and lowest[-1] < MIDDLE
    assert (values[lowest[-1] + 1 :, : MIDDLE - 10] == 0).all() and values[MIDDLE, MIDDLE] != 0
    image = candidate_images(values[None], channels=("dm_time",))[0, 0]
    assert (image[SIDE - 1 - lowest.max() :] == 0).all() and image[0, 0] == 51


def network(seed: int = 3) -> Checkpoint:
    torch.manual_seed(seed)
    model = build_model("DM_time_candidate_classifier", SIDE).eval()
    return Checkpoint(model, "DM_time_candidate_classifier", SIDE, normaliser="noise", threshold=0.4)


def test_the_probability_of_a_peak_does_not_depend_on_the_others():
    plane, grid, peak = plane_with_pulse(4, 400e-6, 30.0)
    searched = boxcar_search(plane + np.random.default_rng(2).standard_normal(plane.shape).astype(np.float32), 128)
    peaks = [peak, *(Peak(row, 100 + 3 * row, 1 + row % 7, 6.0) for row in range(20, 90, 7))]
    classifier = CandidateClassifier(network())
    together = classifier.probabilities(searched, grid, peaks)
    assert together.shape == (len(peaks),) and ((together > 0) & (together < 1)).all()
    assert np.array_equal(together, np.concatenate([classifier.probabilities(searched, grid, [one]) for one in peaks]))
    assert len(classifier.probabilities(searched, grid, [])) == 0


def test_a_probability_that_is_not_finite_is_not_classified(caplog):
    """Finite weights whose products overflow."""
    checkpoint = network()
    classifier = CandidateClassifier(checkpoint)
    plane, grid, peak = plane_with_pulse(4, 400e-6, 30.0)
    searched = boxcar_search(plane + np.random.default_rng(2).standard_normal(plane.shape).astype(np.float32), 128)
    assert classifier.probabilities(searched, grid, [peak]) > 0 and not caplog.records
    checkpoint.model.fc.weight.data.fill_(3e38)
    classifier = CandidateClassifier(checkpoint)
    for _ in range(2):
        probabilities = classifier.probabilities(searched, grid, [peak, peak])
        assert probabilities.tolist() == [-1, -1] and probabilities.dtype == np.float32
    assert [record.getMessage() for record in caplog.records] == [
        "DM_time_candidate_classifier: the weights overflow; images without a finite probability are not classified"
    ]


def test_a_network_for_pages_is_refused_for_candidates():
    model = build_model("DM_time_small_residual", 256)
    pages = Checkpoint(model, "DM_time_small_residual", 256, normaliser="robust")
    with pytest.raises(
        InputError,
        match="candidate_classifier must be .* got a DM_time_small_residual .resolution 256, normaliser robust",
    ):
        CandidateClassifier(pages)


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("peaks")
    header = Header(nchans=64, nbits=8, tsamp=400e-6, fch1=1500.0, foff=-4.0, tstart=59000.0)
    pulses = [Pulse(time_s, 60.0, 25.0, 2.0) for time_s in (1.0, 2.0, 3.0, 4.0)]
    simulate(folder / "a.fil", header, 12_000, pulses, Rfi(), seed=4)
    return folder / "a.fil"


def make_set(output_dir: Path, *observations: Path) -> dict[str, np.ndarray]:
    files = create(get_parser().parse_args([*map(str, observations), "--output-dir", str(output_dir), "--name", "x"]))
    return {kind: np.load(path) for kind, path in files.items() if path.suffix == ".npy"}


def test_peaks_of_pulses_are_pulses_and_bright_in_the_middle(observation, tmp_path):
    made = make_set(tmp_path, observation)
    images, is_pulse = made["images_64"], made["labels"] == "Pulse"
    assert images.dtype == np.uint8 and images.shape == (len(is_pulse), 3, SIDE, SIDE)
    assert len(np.unique(made["groups"][is_pulse])) == 4
    assert not set(made["groups"][is_pulse]) & set(made["groups"][~is_pulse])
    assert (made["snr"][is_pulse] == 25).all() and np.isnan(made["snr"][~is_pulse]).all()
    assert np.median(images[is_pulse][:, 1, SIDE - 1 - MIDDLE, MIDDLE]) > 51 + 10.2 * 5
    again = make_set(tmp_path / "again", observation)
    assert all(np.array_equal(made[kind], again[kind], equal_nan=kind == "snr") for kind in made)


def test_peaks_of_all_stacks_of_trial_dms_are_in_the_set(observation, tmp_path):
    (tmp_path / "config.json").write_text('{"ndm": 300, "ddm": 0.25}')
    options = ["-c", str(tmp_path / "config.json"), "--output-dir", str(tmp_path)]
    files = create(get_parser().parse_args([str(observation), *options]))
    assert len(np.unique(np.load(files["groups"])[np.load(files["labels"]) == "Pulse"])) == 4


def test_without_truth_there_is_no_set(observation, tmp_path):
    alone = tmp_path / "alone.fil"
    alone.write_bytes(observation.read_bytes())
    with pytest.raises(InputError, match="alone_truth.csv: no such file"):
        make_set(tmp_path, alone)
    assert not list(tmp_path.glob("*.npy"))


@pytest.mark.parametrize("options, message", [(["--name", "a/b"], "--name must be a name without folders .* got a/b"),
                                              (["again"], "a.fil: every file must be given once")], ids=["name", "twice"])  # fmt: skip
def test_a_mistake_ends_it_before_any_work(observation, tmp_path, options, message):
    options = [str(observation) if word == "again" else word for word in options]
    with pytest.raises(InputError, match=message):
        create(get_parser().parse_args([str(observation), *options, "--output-dir", str(tmp_path / "out")]))
    assert not list(tmp_path.rglob("*.npy"))
