"""HTML report: one self-contained page with the observation, the run summary, and the events with their pictures."""

import base64
import html
import io
from collections.abc import Iterator
from pathlib import Path
from string import Template

import numpy as np

from pipeline_classifier.detection.classifiers import Classifiers
from pipeline_classifier.detection.decision import page_interval_s
from pipeline_classifier.detection.search import SearchResult
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.sources import Source
from pipeline_classifier.output.plots import brightest, event_picture, plot_overview
from pipeline_classifier.times import utc_of
from single_pulse_classifier_training.calibration import rate_for_page_length
from single_pulse_classifier_training.runtime import atomic_writer

MOST_ROWS = 5000  # those of the brightest events; with more, browsers take seconds to show or sort the table
MOST_PICTURES = 500  # those of the brightest events
PICTURE_WIDTH, JPEG_QUALITY = 560, 50  # pixels; some 60 kB each
MASK_PLACES, MASK_SAMPLES = 16, 4096  # places at which the channel mask is computed for the overview, and their length
COLUMNS = ("#", "time (s)", "MJD", "DM (pc cm⁻³)", "S/N", "width (ms)", "probability", "pages")


def write_report(folder: Path, result: SearchResult, source: Source, classifiers: Classifiers, model: str) -> Path:
    """Write ``report_<name>.html``; the file is complete or absent.

    Parameters
    ----------
    folder : Path
    result : SearchResult
        Its pictures of events, if there are any, must have been written.
    source : Source
    classifiers : Classifiers
    model : str
        File name of the page classifier.
    """
    template = Template(Path(__file__).with_name("report_template.html").read_text(encoding="utf-8"))
    figure, figure_text = overview(result, source)
    page = template.substitute(
        name=text(source.name),
        facts=" ".join(f"<span>{text(label)} <b>{text(value)}</b></span>" for label, value in facts(source)),
        summary=text(summary(result, source, classifiers, model)),
        overview=figure,
        overview_text=text(figure_text),
        events="\0",
        run_summary="\n".join(summary_row(*row) for row in result.summary.rows()),
    )
    before, after = page.split("\0")
    path = folder / f"report_{source.name}.html"
    with atomic_writer(path) as file:
        file.write(before.encode())
        file.writelines(part.encode() for part in event_table(result, folder, source))
        file.write(after.encode())
    return path


def text(value: object) -> str:
    """Escape for HTML, and replace unprintable characters by U+FFFD."""
    return html.escape("".join(letter if letter.isprintable() else "\ufffd" for letter in str(value)))


def facts(source: Source) -> list[tuple[str, str]]:
    """Label and value of what is known about the observation."""
    if not isinstance(source, FilterbankPages):
        return [("pages of a .npy file,", "times unknown")]
    file = source.observation
    known = [("source", file.header.source_name or "not named")]
    if file.tstart > 0:
        known += [("first sample at MJD", f"{file.tstart:.8f}"), ("UTC", utc_of(file.tstart))]
    half_channel = abs(file.header.foff) / 2
    low, high = file.frequencies[-1] - half_channel, file.frequencies[0] + half_channel
    known += [("band", f"{low:.6g} to {high:.6g} MHz in {file.nchans} channels")]
    return [*known, ("sampling", f"{file.tsamp * 1e6:.6g} µs")]


def summary(result: SearchResult, source: Source, classifiers: Classifiers, model: str) -> str:
    """One line: events, duration, models, and threshold and false positives of the classifier that decided."""
    from single_pulse_classifier_training.training_models import current_name

    run, checkpoint = result.summary, classifiers.pages.checkpoint
    assert run.threshold is not None
    model += f" ({checkpoint.model_name} at {checkpoint.resolution})"
    what, threshold, page_s, thresholds = "page", run.threshold, page_interval_s(source.layers), checkpoint.thresholds
    if classifiers.candidates and run.event_threshold is not None:
        # The rates of events hold for pages of any length.
        what, threshold, page_s = "peak", run.event_threshold, np.inf
        model += f" and {current_name(classifiers.candidates.checkpoint.model_name)}"
        thresholds = classifiers.candidates.checkpoint.thresholds if classifiers.is_measured else []
    count = len(result.events)
    found = f"{count or 'No'} event{'' if count == 1 else 's'} in "
    found += f"{run.pages:,} pages" if run.duration_s is None else f"{run.duration_s:,.6g} s"
    rate = run.false_per_hour
    for entry in thresholds:
        if rate is None and not np.isnan(page_s) and entry["threshold"] == threshold:
            rate = rate_for_page_length(entry, page_s)
    false = "rate not known" if rate is None else f"{float(f'{rate:.3g}'):,g} per hour, as measured for this model"
    return (
        f"{found}. Every {what} with a probability of at least {threshold:.6g} counts as a pulse; "
        f"false {what}s: {false}. Model {model}."
    )


def overview(result: SearchResult, source: Source) -> tuple[str, str]:
    """Return the overview as an inline image, and its caption."""
    probabilities = np.concatenate([layer.probabilities for layer in result.layers])
    words = "Above: the events, " + (
        "circle area by S/N, colour by width. " if np.isfinite(source.grid.tsamp) else "circle area by S/N. "
    )
    words += "Below: the number of pages by probability"
    channels = None
    if isinstance(source, FilterbankPages):
        channels = source.frequencies, channels_in_use(source)
        words += f", and the fraction of {MASK_PLACES} places in the observation at which each channel was in use"
    buffer = io.BytesIO()
    plot_overview(buffer, result.events, probabilities, result.summary.threshold or 0.0, channels)
    return data_uri("png", buffer), words + "."


def channels_in_use(source: FilterbankPages) -> np.ndarray:
    """Fraction of `MASK_PLACES` places at which the cleaning keeps each channel, (nchans,)."""
    last = max(0, source.nsamples - MASK_SAMPLES)
    places = np.linspace(0, last, MASK_PLACES).astype(int)
    return np.mean([source.cleaned(int(place), MASK_SAMPLES)[1] for place in places], axis=0)


def summary_row(label: str, value: str, unit: str) -> str:
    """A row of the run summary."""
    number = f"{int(value):,}" if value.isdigit() else value
    return f'<tr><th scope="row">{text(label)}</th><td>{text(number)}</td><td>{text(unit)}</td></tr>'


def event_table(result: SearchResult, output_dir: Path, source: Source) -> Iterator[str]:
    """Yield the table of the brightest events row by row, some of them with pictures if these were written."""
    if not result.events:
        yield "<p>No event was found.</p>"
        return
    written, n = set(result.files), len(result.events)
    paths = {number: output_dir / event_picture(source.name, number) for number in range(1, n + 1)}
    pictures = {number: path for number, path in paths.items() if path in written}
    shown = set(brightest(result.events, MOST_PICTURES)) & set(pictures)
    note = "Click on the heading of a column to sort by it"
    note += ", and on a picture to enlarge it." if pictures else "."
    if n > MOST_ROWS:
        note += f" The {MOST_ROWS:,} brightest of {n:,} events are listed; candidates_{source.name}.csv has all."
    if 0 < len(pictures) < n:
        note += (
            f" {n - len(pictures):,} events were not drawn: the most probable and brightest come first (max_plots). "
        )
        note += "The same command with --plots-only --all-plots instead of --report draws the others."
    if len(pictures) > len(shown):
        note += f" Pictures of the {len(shown)} brightest events are included; others are beside this page."
    yield f'<p class="note">{text(note)}</p>\n'
    spectra = " spectra" if isinstance(source, FilterbankPages) else ""
    yield f'<div class="scroll"><table class="events{spectra}"><thead><tr>'
    yield "".join(f'<th scope="col">{column}</th>' for column in COLUMNS)
    yield ('<th scope="col" class="unsorted">picture</th>' if pictures else "") + "</tr></thead><tbody>\n"
    for number in brightest(result.events, MOST_ROWS):
        cells = "".join(f"<td>{cell}</td>" for cell in event_cells(number, result.events[number - 1]))
        if pictures:
            cells += f"<td>{picture(number, pictures[number]) if number in shown else ''}</td>"
        yield f'<tr id="e{number}">{cells}</tr>\n'
    yield "</tbody></table></div>"


def event_cells(number: int, event: Event) -> list[str]:
    """Text of the columns, empty where a number is not known."""
    formats = {"time_s": ".4f", "mjd": ".8f", "dm_pc_cm3": ".2f", "snr": ".1f", "width_ms": ".3f", "probability": ".4f"}
    values = [(getattr(event, key), form) for key, form in formats.items()]
    pages = f"{event.first_page}" + (f"–{event.last_page}" if event.last_page > event.first_page else "")
    return [str(number), *("" if np.isnan(value) else format(value, form) for value, form in values), pages]


def picture(number: int, path: Path) -> str:
    """Return one image as HTML: small in its row, and enlarged while the fragment of the URL names it."""
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
