"""The report of a search and the saliency overlay: what is in the page is what was found, and nothing is fetched."""

import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline_classifier.config import DEFAULT_CONFIG, load_pipeline_config
from pipeline_classifier.detection.classifiers import Classifiers, load_classifiers
from pipeline_classifier.detection.decision import Decision
from pipeline_classifier.detection.page_classifier import PageClassifier
from pipeline_classifier.detection.search import search
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.pages import PageBatch
from pipeline_classifier.frontend.run_summary import RunSummary
from pipeline_classifier.frontend.settings import FrontEndSettings
from pipeline_classifier.output import html_report, results
from pipeline_classifier.output.saliency import occlusion, saliency_of_events
from pipeline_classifier.run_inference import get_parser, run
from pipeline_classifier.simulation.interference import Rfi
from pipeline_classifier.simulation.observation import EFFELSBERG, simulate
from pipeline_classifier.simulation.pulses import Pulse
from single_pulse_classifier_training.cli import InputError

NAME = 'a<script>alert(1)<&">$name$'
PULSES = [Pulse(0.4, 56.77, 25.0, 1.0), Pulse(1.1, 30.0, 14.0, 2.0), Pulse(1.8, 90.0, 40.0, 3.0)]
VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """A page whose tags are closed in order: its tables, attributes and text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open, self.tags, self.rows, self.text = [], [], [], ""
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.rows.append([])
        elif tag == "tr":
            self.rows[-1].append([])
        elif tag in ("td", "th"):
            self.rows[-1][-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1][-1] += data
        if "script" not in self.open and "style" not in self.open:
            self.text += data

    @property
    def images(self) -> list[str]:
        return [attributes["src"] for tag, attributes in self.tags if tag == "img"]


def check_nothing_is_fetched(path: Path, page: Page) -> None:
    links = [value for _, attributes in page.tags for key, value in attributes.items() if key in ("src", "href")]
    assert links and all(re.match(r"#|data:image/(png|jpeg);base64,[A-Za-z0-9+/=]+$", link) for link in links)
    rest = re.sub(r'"data:image/[^"]*"', "", path.read_text(encoding="utf-8"))
    assert "//" not in rest and "url(" not in rest and "@import" not in rest
    assert re.findall("http[^ ]*", rest) == ['http-equiv="Content-Security-Policy"']
    assert [tag for tag, _ in page.tags].count("script") == 1


@pytest.fixture(scope="module")
def observation(tmp_path_factory) -> Path:
    """2.2 s of three known pulses; its names are of the worst kind."""
    path = tmp_path_factory.mktemp("observation") / f"{NAME}.fil"
    simulate(path, replace(EFFELSBERG, source_name="</p><b>\x07"), round(2.2 / EFFELSBERG.tsamp), PULSES, Rfi(), seed=5)
    return path


@pytest.fixture(scope="module")
def classifier():
    return load_classifiers(load_pipeline_config(DEFAULT_CONFIG, {"device": "cpu"})).pages


def run_inference(*options: object):
    return run(get_parser().parse_args([*map(str, options), "--device", "cpu"]))


def test_a_page_of_its_own_through_the_command_line(observation, tmp_path):
    script = Path(DEFAULT_CONFIG).with_name("run_inference.py")
    options = ["--filterbank", observation, "--output-dir", tmp_path, "--report", "--saliency"]
    done = subprocess.run([sys.executable, script, *options], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    path = tmp_path / f"report_{NAME}.html"
    assert f"written  {path}\n" in done.stdout
    page = Page(path)
    check_nothing_is_fetched(path, page)
    with open(tmp_path / f"candidates_{NAME}.csv", newline="") as file:
        events = list(csv.DictReader(file))
    head, *rows = page.rows[0]
    assert len(rows) == len(events) == 3
    assert len(page.images) == 1 + 3
    for row, event in zip(rows, events, strict=True):
        for column, key in enumerate(("time_s", "mjd", "dm_pc_cm3", "snr", "width_ms", "probability"), start=1):
            decimals = len(row[column].partition(".")[2])
            assert float(row[column]) == pytest.approx(float(event[key]), abs=0.51 * 10**-decimals), head[column]
        assert row[7].split("–")[0] == event["first_page"]
    numbers = json.loads((tmp_path / f"summary_{NAME}.json").read_text())
    assert [file["path"] for file in numbers.pop("inputs")] == [str(observation)]
    summary = RunSummary(**numbers)
    assert summary.events == 3 and summary.duration_s == pytest.approx(2.2, abs=1e-3)
    assert page.rows[1] == [
        [label, f"{int(value):,}" if value.isdigit() else value, unit] for label, value, unit in summary.rows()
    ]
    printed = [line.strip() for line in done.stdout.splitlines()]
    assert all(f"{label}  {value} {unit}".strip() in printed for label, value, unit in summary.rows())
    assert f"Single pulses in {NAME}" in page.text and "</p><b>\ufffd" in page.text
    assert "3 events in 2.2 s" in page.text and "default.pth" in page.text
    assert f"{EFFELSBERG.tstart:.8f}" in page.text


def test_without_pictures_and_without_events(observation, tmp_path):
    run_inference("--filterbank", observation, "--output-dir", tmp_path, "--report", "--no-plots")
    page = Page(tmp_path / f"report_{NAME}.html")
    assert len(page.images) == 1 and len(page.rows[0]) == 1 + 3 and len(page.rows[0][0]) == len(html_report.COLUMNS)
    np.save(tmp_path / "noise.npy", np.random.default_rng(1).normal(size=(3, 256, 256)).astype(np.float32))
    run_inference("--pages", tmp_path / "noise.npy", "--output-dir", tmp_path, "--report", "--threshold", 1)
    page = Page(tmp_path / "report_noise.html")
    assert "No event was found." in page.text and "No events in 3 pages" in page.text and len(page.rows) == 1
    check_nothing_is_fetched(tmp_path / "report_noise.html", page)


def test_candidates_without_times_and_more_events_than_pictures(observation, tmp_path, monkeypatch):
    starts = np.array([round(pulse.time_s / EFFELSBERG.tsamp) - 128 for pulse in PULSES])
    source = FilterbankPages(observation, FrontEndSettings(0.5 * np.arange(256))).with_starts(starts)
    np.save(tmp_path / "batch.npy", np.concatenate([batch.pages for batch in source.batches(64)]))
    monkeypatch.setattr(html_report, "MOST_PICTURES", 1)
    result = run_inference("--pages", tmp_path / "batch.npy", "--output-dir", tmp_path, "--report", "--saliency")
    page = Page(tmp_path / "report_batch.html")
    assert len(result.events) == 3 and len(list(tmp_path.glob("event_batch_*.png"))) == 3
    assert [row[1] + row[2] + row[5] for row in page.rows[0][1:]] == [""] * 3, "no times are known"
    brightest = int(np.argmax([event.snr for event in result.events])) + 1
    assert [attributes["id"] for tag, attributes in page.tags if attributes.get("class") == "picture"] == [
        f"p{brightest}"
    ]
    assert "Pictures of the 1 brightest events" in page.text


@pytest.mark.parametrize("saliency", [[], ["--saliency"]], ids=["", "saliency"])
def test_pictures_rows_and_lines_are_bounded(observation, saliency, tmp_path, monkeypatch, caplog):
    """Of three events the two brightest, number 1 and 3, are drawn and in the report; the first one is printed."""
    monkeypatch.setattr(html_report, "MOST_ROWS", 2)
    monkeypatch.setattr(results, "MOST_LINES", 1)
    result = run_inference(
        "--filterbank", observation, "--output-dir", tmp_path, "--report", "--max-plots", 2, *saliency
    )
    assert sorted(path.name for path in tmp_path.glob("*.png")) == [f"event_{NAME}_{n}.png" for n in ("0001", "0003")]
    assert "3 events: pictures are drawn of 2, the most probable and brightest (max_plots)" in caplog.text
    lists = [(tmp_path / f"candidates_{NAME}.{kind}").read_text().splitlines() for kind in ("csv", "cands")]
    assert len(lists[0]) == 1 + 3
    assert [line.split("\t")[8] for line in lists[1]] == [f"event_{NAME}_0001.png", "", f"event_{NAME}_0003.png"]
    page = Page(tmp_path / f"report_{NAME}.html")
    assert [row[0] for row in page.rows[0][1:]] == ["1", "3"] and len(page.images) == 1 + 2
    assert f"The 2 brightest of 3 events are listed; candidates_{NAME}.csv has all." in page.text
    assert "1 events were not drawn" in page.text
    assert "3 events in 2.2 s" in page.text
    *_, first, rest = results.report(result).splitlines()
    assert first.split()[0] == f"{result.events[0].time_s:.4f}" and rest.startswith("and 2 more events")


def image_of(page: np.ndarray, classifier: PageClassifier) -> torch.Tensor:
    batch = PageBatch.of_pages(page[None], np.zeros(1, np.int64), 0)
    return classifier.images(batch, np.zeros(1, np.int64))[0][0]


def test_the_network_reacts_to_the_pulse(observation, classifier):
    dms, tsamp = 0.5 * np.arange(256), EFFELSBERG.tsamp
    starts = np.array([round(pulse.time_s / tsamp) - 100 for pulse in PULSES])
    source = FilterbankPages(observation, FrontEndSettings(dms)).with_starts(starts)
    pages = np.concatenate([batch.pages for batch in source.batches(64)])
    for pulse, page in zip(PULSES, pages, strict=True):
        drop = occlusion(classifier, image_of(page, classifier))
        assert drop.shape == (256, 256) and drop.dtype == np.float32
        row, column = np.unravel_index(drop.argmax(), drop.shape)
        assert abs(dms[255 - row] - pulse.dm_pc_cm3) < 12 and abs(column - 100) < 24
        sky = np.delete(drop, np.s_[max(0, row - 64) : row + 64], axis=0)
        assert drop.max() > 3 and drop.max() > 2 * np.abs(sky).max()
        np.testing.assert_array_equal(drop, occlusion(classifier, image_of(page, classifier)))


def test_saliency_is_of_the_page_that_the_search_classified(observation, classifier):
    source = FilterbankPages(observation, load_pipeline_config(DEFAULT_CONFIG).front_end())
    result = search(source, Classifiers(classifier), Decision(threshold=0.5, min_snr=6.25), 1)
    found = list(saliency_of_events(source, result, classifier, [1, 3]))
    assert [number for number, *_ in found] == [1, 3]
    for number, saliency in found:
        event = result.events[number - 1]
        assert event.first_page <= saliency.page <= event.last_page
        image = image_of(saliency.image, classifier)
        probability = 1 / (1 + np.exp(-float(classifier.network.log_odds(image[None]))))
        assert probability == pytest.approx(result.probabilities[saliency.page], abs=1e-6)


def test_what_cannot_be_done_is_refused_before_work(tmp_path):
    for options in (["--report"], ["--saliency"]):
        with pytest.raises(InputError, match="must be used with a file"):
            run_inference(*options, "--output-dir", tmp_path / "new")
    with pytest.raises(InputError, match="--no-plots"):
        run_inference("--filterbank", "none.fil", "--saliency", "--no-plots", "--output-dir", tmp_path / "new")
    assert not (tmp_path / "new").exists()
