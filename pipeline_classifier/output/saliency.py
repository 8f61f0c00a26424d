"""Saliency: which parts of a page are evidence for a pulse, according to the network.

Parts of the image are hidden one after the other, and the change of the network's output is recorded: occlusion, after
Zeiler & Fergus 2014 (arXiv:1311.2901, section 4.2).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline_classifier.detection.page_classifier import PageClassifier
from pipeline_classifier.detection.search import LayerResult, SearchResult
from pipeline_classifier.events import Event
from pipeline_classifier.frontend.filterbank_pages import FilterbankPages
from pipeline_classifier.frontend.sources import Source
from pipeline_classifier.output.event_picture import Saliency

if TYPE_CHECKING:
    import torch

PATCHES = 16  # along each side of the image; each is hidden together with half of its neighbours


def occlusion(classifier: PageClassifier, image: torch.Tensor) -> np.ndarray:
    """Return by how much the log-odds of a pulse decrease when a part of an image is hidden.

    Squares of an eighth of the side, a sixteenth apart, take the median of the image one after the other. The value of
    a pixel is the mean over the squares that cover it, with weights that fall linearly with the distance of their
    centres.

    Parameters
    ----------
    classifier : PageClassifier
    image : (resolution, resolution) Tensor of uint8

    Returns
    -------
    (resolution, resolution) ndarray of float32
        Positive where the image is evidence for a pulse.
    """
    import torch

    resolution = len(image)
    pixels = (torch.arange(resolution, device=image.device) + 0.5) * PATCHES / resolution
    distance = (pixels - torch.arange(PATCHES, device=image.device)[:, None] - 0.5).abs()  # (PATCHES, resolution)
    covers = distance < 1.0
    median = image.flatten().median()
    log_odds = np.empty(PATCHES * PATCHES, np.float32)
    network = classifier.network
    for first in range(0, len(log_odds), network.batch_size):
        patch = torch.arange(first, min(first + network.batch_size, len(log_odds)), device=image.device)
        hidden = covers[patch // PATCHES, :, None] & covers[patch % PATCHES, None, :]
        log_odds[first : first + len(patch)] = network.log_odds(torch.where(hidden, median, image)).cpu()
    drop = float(network.log_odds(image[None])) - log_odds.reshape(PATCHES, PATCHES)
    weights = np.maximum(0.0, 2.0 - distance.cpu().numpy())
    weights /= weights.sum(axis=0)
    return (weights.T @ drop @ weights).astype(np.float32)


def page_of(event: Event, result: LayerResult) -> int:
    """Return the page whose centre is closest to an event, among those in which it was found."""
    pages = np.arange(event.first_page, event.last_page + 1)
    grid = result.layer.grid
    distance_s = np.abs((result.layer.starts[pages] + grid.n_time / 2) * grid.tsamp - event.time_s)
    return int(pages[0] if np.isnan(distance_s).any() else pages[distance_s.argmin()])


def saliency_of_events(
    source: Source, result: SearchResult, classifier: PageClassifier, numbers: Sequence[int]
) -> Iterator[tuple[int, Saliency]]:
    """Yield number (from 1) and saliency of some events of a search, in the order of its pages.

    The parts of an observation with these pages are read again. They are divided into chunks as in the search, so that
    the pages are bit-identical to those that the network got.
    """
    layers = [(layer.layer.time_downsample, layer.layer.dm_stack) for layer in result.layers]
    wanted: dict[tuple[int, int], list[int]] = {}
    for number in numbers:
        event = result.events[number - 1]
        of = layers.index((event.time_downsample, event.dm_stack))
        wanted.setdefault((of, page_of(event, result.layers[of])), []).append(number)
    if isinstance(source, FilterbankPages):
        pages = [sorted(page for layer, page in wanted if layer == of) for of in range(len(layers))]
        starts = [each.layer.starts[chosen] for each, chosen in zip(result.layers, pages, strict=True)]
        source = source.with_starts(*starts)
    else:
        pages = [list(range(len(each.layer.starts))) for each in result.layers]
    for batch in source.planes():
        for place, page in enumerate(pages[batch.layer][batch.first : batch.first + len(batch)]):
            if (batch.layer, page) in wanted:
                image = classifier.images(batch, np.array([place]))[0][0]
                drop = occlusion(classifier, image)
                layer = result.layers[batch.layer].layer
                saliency = Saliency(layer.grid, int(layer.starts[page]), page, image.cpu().numpy(), drop)
                for number in wanted[batch.layer, page]:
                    yield number, saliency
