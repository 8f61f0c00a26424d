"""A search as one HTML page: what was searched, what was found, with pictures; it needs nothing but itself."""

import argparse
import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path
from string import Template

import numpy as np

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.detection.page_classifier import Classifier
from pipeline_classifier.detection.search import SearchResult, page_interval_s, search
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.sources import FilterbankPages, Source
from pipeline_classifier.output.plots import plot_overview
from pipeline_classifier.output.results import write_results
from pipeline_classifier.times import utc_of
from single_pulse_classifier_training.calibration import rate_for_page_length
from single_pulse_classifier_training.cli import InputError
from single_pulse_classifier_training.runtime import atomic_writer

MOST_PICTURES = 500  # of the brightest events
PICTURE_WIDTH, JPEG_QUALITY = 560, 50  # pixels; some 60 kB each
MASK_PLACES, MASK_SAMPLES = 16, 4096  # where in the observation channels are looked at, and how long
ACCOUNT = {
    "samples": ("samples in the observation", ""),
    "samples_read": ("samples searched", ""),
    "channels": ("channels", ""),
    "channels_used": ("channels in use, on average", ""),
    "bytes_left_over": ("bytes at the end that are no whole sample", "B"),
    "samples_swept_past_end": ("last samples of which high DMs miss channels", ""),
    "pages": ("pages", ""),
    "pages_classified": ("pages classified", ""),
    "pages_unusable": ("pages that are constant or not finite", ""),
    "pages_with_pulse": ("pages with a pulse", ""),
    "events": ("events", ""),
    "wall_s": ("time that the search took", "s"),
    "duration_s": ("length of the observation", "s"),
    "times_real_time": ("speed", "times real time"),
    "false_per_hour": ("false positives per hour expected", "per hour"),
    "event_threshold": ("probability from which a peak is a pulse", ""),
    "threshold": ("probability from which a page is a pulse", ""),
}
COLUMNS = ("#", "time (s)", "MJD", "DM (pc cm⁻³)", "S/N", "width (ms)", "probability", "pages")


def add_report_options(parser: argparse.ArgumentParser) -> None:
    """Add ``--report`` and ``--saliency``."""
    parser.add_argument("--report", action="store_true", help="write report_<name>.html too: one page with everything")
    parser.add_argument(
        "--saliency",
        action="store_true",
        help="add to the picture of every event what the network looked at; makes the pages of events again",
    )


def check_report_options(args: argparse.Namespace, ring: bool) -> None:
    """Refuse what cannot be done, before work starts."""
    for option in ("report", "saliency"):
        if ring and getattr(args, option):
            raise InputError(f"--{option} is not for a ring, whose pages are gone when it ends; valid: a file")
    if args.saliency and args.no_plots:
        raise InputError("--saliency adds to the pictures that --no-plots leaves out; valid is one of the two")


def search_and_write(
    source: Source,
    classifier: Classifier,
    output_dir: Path,
    config: PipelineConfig,
    args: argparse.Namespace,
) -> SearchResult:
    """Search one source and write what was found, with the options of `add_report_options` and ``--no-plots``."""
    result = search(source, classifier, config.threads)
    looker = classifier if args.saliency else None
    write_results(result, source, output_dir, config.n_spectra, plots=not args.no_plots, looker=looker)
    if args.report:
        write_report(output_dir, result, source, classifier, config.model_path.name)
    return result


def write_report(output_dir: Path, result: SearchResult, source: Source, classifier: Classifier, model: str) -> None:
    """Write ``report_<name>.html``, whole or not at all, and add it to the files of the result.

    Parameters
    ----------
    result : its event pictures, where there are any, must be written
    model : name of the model's file
    """
    template = Template(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
    figure, figure_text = overview(result, source)
    page = template.substitute(
        name=text(source.name),
        facts=" ".join(f"<span>{text(label)} <b>{text(value)}</b></span>" for label, value in facts(source)),
        summary=text(summary(result, source, classifier, model)),
        overview=figure,
        overview_text=text(figure_text),
        events="\0",
        account="\n".join(account_row(key, value) for key, value in result.account.items()),
    )
    before, after = page.split("\0")
    path = output_dir / f"report_{source.name}.html"
    with atomic_writer(path) as file:
        file.write(before.encode())
        file.writelines(part.encode() for part in event_table(result, output_dir, source))
        file.write(after.encode())
    result.files.append(path)


def text(value: object) -> str:
    """Escaped for HTML; what cannot be shown becomes U+FFFD."""
    return html.escape("".join(letter if letter.isprintable() else "\ufffd" for letter in str(value)))


def facts(source: Source) -> list[tuple[str, str]]:
    """What is known of the observation: label and value."""
    if not isinstance(source, FilterbankPages):
        return [("pages of a .npy file,", "times unknown")]
    file = source.filterbank
    known = [("source", file.header.source_name or "not named")]
    if file.tstart > 0:
        known += [("first sample at MJD", f"{file.tstart:.8f}"), ("UTC", utc_of(file.tstart))]
    half_channel = abs(file.header.foff) / 2
    low, high = file.frequencies[-1] - half_channel, file.frequencies[0] + half_channel
    known += [("band", f"{low:.6g} to {high:.6g} MHz in {file.nchans} channels")]
    return [*known, ("sampling", f"{file.tsamp * 1e6:.6g} µs")]


def summary(result: SearchResult, source: Source, classifier: Classifier, model: str) -> str:
    """One line: events, duration, threshold, false positives, model; those of the second look, if it decided."""
    account, checkpoint = result.account, classifier.checkpoint
    model += f" ({checkpoint.model_name} at {checkpoint.resolution})"
    what, threshold, page_s, thresholds = "page", account["threshold"], page_interval_s(source), checkpoint.thresholds
    if classifier.second_look and "event_threshold" in account:
        what, threshold, page_s = "peak", account["event_threshold"], np.inf  # its rates hold at any length of a page
        model += f" and {classifier.second_look.checkpoint.model_name}"
        thresholds = classifier.second_look.checkpoint.thresholds
    count = len(result.events)
    found = f"{count or 'No'} event{'' if count == 1 else 's'} in "
    found += f"{account['duration_s']:,.6g} s" if "duration_s" in account else f"{account['pages']:,} pages"
    rate = account.get("false_per_hour")
    for entry in thresholds:
        if rate is None and not np.isnan(page_s) and entry["threshold"] == threshold:
            rate = rate_for_page_length(entry, page_s)
    false = "rate not known" if rate is None else f"{float(f'{rate:.3g}'):,g} per hour by the model's own measurement"
    return f"{found}. A {what} is a pulse from probability {threshold:.6g} on; false {what}s: {false}. Model {model}."


def overview(result: SearchResult, source: Source) -> tuple[str, str]:
    """The overview as an inline image, and what it shows in words."""
    probabilities = np.concatenate([layer.probabilities for layer in result.layers])
    words = "Above: the events, " + (
        "circle area by S/N, colour by width. " if np.isfinite(source.grid.tsamp) else "circle area by S/N. "
    )
    words += "Below: the probability of every page"
    channels = None
    if isinstance(source, FilterbankPages):
        channels = source.frequencies, channels_in_use(source)
        words += f", and how often a channel was in use at {MASK_PLACES} places of the observation"
    buffer = io.BytesIO()
    plot_overview(buffer, result.events, probabilities, result.account["threshold"], channels)
    return data_uri("png", buffer), words + "."


def channels_in_use(source: FilterbankPages) -> np.ndarray:
    """(nchans,) share of `MASK_PLACES` places at which the cleaning keeps a channel."""
    last = max(0, source.nsamples - MASK_SAMPLES)
    places = np.linspace(0, last, MASK_PLACES).astype(int)
    return np.mean([source.cleaned(int(place), MASK_SAMPLES)[1] for place in places], axis=0)


def account_row(key: str, value: object) -> str:
    label, unit = ACCOUNT.get(key, (key.replace("_", " "), ""))
    number = f"{value:.9g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    return f'<tr><th scope="row">{text(label)}</th><td>{text(number)}</td><td>{unit}</td></tr>'


def event_table(result: SearchResult, output_dir: Path, source: Source) -> Iterator[str]:
    """The table of events, row by row; the brightest have pictures, made of those that were written."""
    if not result.events:
        yield "<p>No event was found.</p>"
        return
    written = set(result.files)
    paths = (output_dir / f"event_{source.name}_{number:04d}.png" for number in range(1, len(result.events) + 1))
    pictures = {number: path for number, path in enumerate(paths, start=1) if path in written}
    brightest = sorted(pictures, key=lambda number: -result.events[number - 1].snr)[:MOST_PICTURES]
    note = "A click on the head of a column sorts by it, and one on a picture shows it large. " if pictures else ""
    if len(pictures) > MOST_PICTURES:
        note += f"Pictures of the {MOST_PICTURES} brightest events are in here; those of all are beside this page."
    yield f'<p class="note">{note or "A click on the head of a column sorts by it."}</p>\n'
    spectra = " spectra" if isinstance(source, FilterbankPages) else ""
    yield f'<div class="scroll"><table class="events{spectra}"><thead><tr>'
    yield "".join(f'<th scope="col">{column}</th>' for column in COLUMNS)
    yield ('<th scope="col" class="unsorted">picture</th>' if pictures else "") + "</tr></thead><tbody>\n"
    chosen = set(brightest)
    for number, event in enumerate(result.events, start=1):
        cells = "".join(f"<td>{cell}</td>" for cell in event_cells(number, event))
        if pictures:
            cells += f"<td>{picture(number, pictures[number]) if number in chosen else ''}</td>"
        yield f'<tr id="e{number}">{cells}</tr>\n'
    yield "</tbody></table></div>"


def event_cells(number: int, event: Event) -> list[str]:
    """Text of the columns; empty where a number is not known."""
    formats = {"time_s": ".4f", "mjd": ".8f", "dm_pc_cm3": ".2f", "snr": ".1f", "width_ms": ".3f", "probability": ".4f"}
    values = [(getattr(event, key), form) for key, form in formats.items()]
    pages = f"{event.first_page}" + (f"–{event.last_page}" if event.last_page > event.first_page else "")
    return [str(number), *("" if np.isnan(value) else format(value, form) for value, form in values), pages]


def picture(number: int, path: Path) -> str:
    """One image, small in its row, and large while the address names it."""
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((PICTURE_WIDTH, 10 * PICTURE_WIDTH), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return (
        f'<span class="picture" id="p{number}"><a href="#p{number}"><img src="{data_uri("jpeg", buffer)}" '
        f'alt="event {number}" decoding="async"></a><a class="close" href="#e{number}">close ✕</a></span>'
    )


def data_uri(kind: str, buffer: io.BytesIO) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(buffer.getvalue()).decode()}"
