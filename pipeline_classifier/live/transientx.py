"""What TransientX's dada programs make of a filterbank file, and how they end.

``dada_fildb`` writes one byte per sample and channel in whole blocks of its ring; an incomplete last block is omitted.
``dada_dbdedispdb`` makes one page of each block. The first pages are withheld until the sweep over the band, in the two
steps of its subband dedispersion, has been read: a file gives as many pages as blocks, less those of the sweep. This
is the code of XLibs (subdedispersion.cpp, dada_dbdedispdb.cpp) in 2024 and 2025.
"""

import logging
import math
import signal
import time

from pipeline_classifier.config import PipelineConfig
from pipeline_classifier.formats.sigproc import Filterbank
from pipeline_classifier.frontend.threads import thread_count
from pipeline_classifier.live.processes import POLL_S, Child
from single_pulse_classifier_training.cli import InputError

logger = logging.getLogger(__name__)

DISPERSION_S_MHZ2 = 4148.741601
"""Dispersion constant of TransientX, s MHz^2 cm^3 / pc."""
MAX_BITS = 8
"""dada_fildb takes every sample for one byte, also those of files with more bits."""
FEEDER_ENDS_S = 5.0
"""Longest time for dada_fildb to exit after its end of data, seconds; chosen by hand."""
SEGMENTATION_FAULTS = (-signal.SIGSEGV, 128 + signal.SIGSEGV)
"""Exit code of a program, and of a shell or an image runtime that reports one."""


def fitted(config: PipelineConfig, observation: Filterbank) -> PipelineConfig:
    """Return the config with values that give pages of ``page_samples``, and with no more threads than cores.

    Raises
    ------
    InputError
        If the programs cannot make pages of the file.
    """
    nbits = observation.header.nbits
    if nbits > MAX_BITS:
        raise InputError(f"{observation.path}: dada_fildb reads at most {MAX_BITS} bits per sample, got {nbits}")
    fd = config.transientx.fd
    if fd > observation.nchans:
        raise InputError(
            f"preprocesslite.fd times downsample.fd must be at most the {observation.nchans} channels of "
            f"{observation.path}, got {fd}"
        )
    samples = config.page_samples * config.samples_per_column()
    block_bytes, cores = samples * observation.nchans, thread_count(None)
    changes = {"input_buffer_size": block_bytes, "threads_for_transientx": min(config.threads_for_transientx, cores)}
    if block_bytes != config.input_buffer_size:
        logger.info(
            "input_buffer_size is %d instead of %d: %d samples of %d channels give a page of %d",
            block_bytes,
            config.input_buffer_size,
            samples,
            observation.nchans,
            config.page_samples,
        )
    if config.threads_for_transientx > cores:
        logger.info(
            "dada_dbdedispdb gets %d threads, one per core, instead of %d", cores, config.threads_for_transientx
        )
    return config.model_copy(update=changes)


def expected_pages(config: PipelineConfig, observation: Filterbank) -> int:
    """Return the number of pages that the programs make of the file.

    Raises
    ------
    InputError
        If the file is too short for one page.
    """
    td, fd = config.samples_per_column(), config.transientx.fd
    grid, n_time = config.transientx.subdedispersion, config.page_samples
    nchans = observation.nchans // fd
    channels = observation.frequencies[: nchans * fd].reshape(nchans, fd).mean(axis=1)
    n_subbands = round(math.sqrt(nchans))
    n_trials = math.ceil(grid.ndm / n_subbands) * n_subbands

    def sweep(dm: float) -> float:
        delay_s = DISPERSION_S_MHZ2 * dm * (channels.min() ** -2.0 - channels.max() ** -2.0)
        return float(delay_s / (td * observation.tsamp))

    inside = math.ceil(sweep(grid.dms + grid.ndm * grid.ddm) / n_subbands)
    between = math.ceil(sweep(grid.dms + (n_trials - 1) * grid.ddm))
    withheld = math.ceil(inside / n_time) + math.ceil(between / n_time)
    blocks = observation.nsamples // (n_time * td)
    if blocks <= withheld:
        raise InputError(
            f"{observation.path}: the file must have at least {(withheld + 1) * n_time * td} samples for one page of "
            f"dada_dbdedispdb, got {observation.nsamples}"
        )
    return blocks - withheld


class Programs:
    """The running programs: ``dada_fildb``, which feeds the input ring, and ``dada_dbdedispdb``.

    When its input has ended, dada_dbdedispdb (2025) dies by SIGSEGV in the destructor of an output that it does not
    use. That is its normal end if dada_fildb has ended without error.
    """

    def __init__(self, feeder: Child, dedisperser: Child) -> None:
        self.feeder, self.dedisperser = feeder, dedisperser
        self._died = math.inf

    @property
    def died_at_end(self) -> bool:
        """Whether dada_dbdedispdb died by SIGSEGV and dada_fildb had ended without error."""
        return self.dedisperser.exit_code in SEGMENTATION_FAULTS and self.feeder.exit_code == 0

    @property
    def failures(self) -> list[str]:
        """How the programs failed, one sentence each."""
        failed = [self.feeder.failure, "" if self.died_at_end else self.dedisperser.failure]
        return [sentence for sentence in failed if sentence]

    @property
    def running(self) -> list[str]:
        """Names of the programs that still run."""
        return [child.command.name for child in (self.feeder, self.dedisperser) if child.exit_code is None]

    def ended(self) -> str:
        """Return why no more pages will come (a program failed, or the last one has ended), or an empty string."""
        if self.dedisperser.exit_code in SEGMENTATION_FAULTS and self.feeder.exit_code is None:
            self._died = min(self._died, time.monotonic())
            if time.monotonic() - self._died < FEEDER_ENDS_S:
                return ""
        for sentence in self.failures:
            return sentence
        return "" if self.dedisperser.exit_code is None else f"{self.dedisperser.command.name} ended"

    def finished(self) -> str:
        """Wait until it is known why no more pages will come; return the reason, or an empty string after a failure."""
        deadline = time.monotonic() + 2 * FEEDER_ENDS_S
        while not (reason := self.ended()) and time.monotonic() < deadline:
            time.sleep(POLL_S)
        return "" if self.failures else reason
