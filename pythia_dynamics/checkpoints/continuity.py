"""Does a run continue its own first step? The first steps of a repository, compared by a small part of their weights.

Checksums cannot tell: two steps of a run have different files whether or not the one continues the other, and weights
that differ in the signs of zeros only have different checksums as well. So 64 KiB of the embedding are read by byte
range from each of the first steps. The embedding is drawn at random before training, so the cosine of two initial
embeddings is close to 0, while the first few hundred updates, in the warm-up, hardly change one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import ml_dtypes
import numpy as np

from pythia_dynamics.checkpoints.defects import EARLY_STEPS
from pythia_dynamics.checkpoints.findings import Finding
from pythia_dynamics.checkpoints.layout import LayoutCache
from pythia_dynamics.checkpoints.reader import RevisionReader
from pythia_dynamics.checkpoints.roles import EMBEDDING
from pythia_dynamics.checkpoints.source import AccessError, Revision, Source
from pythia_dynamics.errors import PythiaDynError, listed
from pythia_dynamics.progress import Progress, silent

__all__ = ["Sample", "check_continuity", "read_samples"]

_SAMPLE_BYTES = 64 * 1024
"""Bytes of the embedding that are read of each step. The cosine of 32,768 independent pairs of numbers has a standard
deviation of 0.006, so that 0.5 cannot be chance; and the header of the file, read before, is about as large."""

_STEPS_READ = 5
"""Steps that are read of each repository: 0, 1, 2, 4 and 8 of Pythia."""

_CONTINUES = 0.5
"""Smallest cosine between the weights of two early steps of one run. In the middle of the training of Pythia 12B, the
cosine to the initial embedding is still 0.59 (EleutherAI/pythia, issue 206)."""

_IDENTICAL = 0.999
"""Smallest cosine of weights that are called the initial weights of another run."""


@dataclass(frozen=True, slots=True)
class Sample:
    """A small part of the weights of the first steps of a repository.

    Parameters
    ----------
    location
        The repository's id.
    tensor
        Name of the tensor; empty where there are not two early steps.
    values
        Its first elements, float32, by step in increasing order.
    """

    location: str
    tensor: str
    values: Mapping[int, np.ndarray[Any, np.dtype[np.float32]]]


def read_samples(source: Source, *, progress: Progress = silent) -> Sample:
    """Read 64 KiB of the embedding at the first five steps up to `EARLY_STEPS`, by byte range.

    Parameters
    ----------
    source
        The repository. A revision that cannot be read is left out; `verify_listing` reports it.
    progress
        Called with the number of steps that are done and of all.

    Raises
    ------
    AccessError
        The repository cannot be read.
    CheckpointError
        The repository has nothing that is a step.
    """
    early = [revision for step, revision in source.revisions().items() if step <= EARLY_STEPS][:_STEPS_READ]
    cache = LayoutCache(tickets=iter(range(len(early))))
    tensor, values = "", {}
    for done, revision in enumerate(early if len(early) > 1 else (), 1):
        try:
            tensor, values[revision.step] = _read_sample(source, revision, cache)
        except AccessError:
            raise
        except PythiaDynError:
            pass
        progress(done, len(early))
    return Sample(source.location, tensor, values)


def check_continuity(samples: Sequence[Sample]) -> dict[str, list[Finding]]:
    """Find the runs that do not continue their own first step, and the run whose initial weights they have.

    Parameters
    ----------
    samples
        The first weights of each repository.

    Returns
    -------
    dict of str to list of Finding
        Findings of the kind ``discontinuous`` by repository. A repository with fewer than two samples is left out.
    """
    return {sample.location: _breaks(sample, samples) for sample in samples if len(sample.values) > 1}


def _breaks(sample: Sample, samples: Sequence[Sample]) -> list[Finding]:
    findings = []
    pairs = list(pairwise(sorted(sample.values)))
    cosines = {pair: _cosine(*(sample.values[step] for step in pair)) for pair in pairs}
    for (before, after), cosine in cosines.items():
        if not cosine < _CONTINUES:  # NaN too: weights that are all zero, or not finite, tell nothing
            continue
        count = min(len(sample.values[step]) for step in (before, after))
        message = (
            f"step {after} does not continue step {before}: the cosine of their first {count} weights of "
            f"{sample.tensor} is {cosine:.3f}"
        )
        others = [f"{value:.3f} between {listed(pair)}" for pair, value in cosines.items() if value >= _CONTINUES]
        message += f", that of the next ones {', '.join(others)}" if others else ""
        starts = [
            (other.location, min(other.values))
            for other in samples
            if other.location != sample.location
            and other.values
            and _cosine(other.values[min(other.values)], sample.values[after]) > _IDENTICAL
        ]
        if starts:
            places = ", ".join(f"{location} (step {step})" for location, step in starts)
            message += f"; step {after} has the initial weights of {places}"
        findings.append(Finding("discontinuous", (before, after), message, elsewhere=tuple(starts)))
    return findings


def _cosine(one: np.ndarray[Any, Any], other: np.ndarray[Any, Any]) -> float:
    """The cosine of two vectors, of the elements that both have. NaN where one of them is zero or not finite."""
    count = min(len(one), len(other))
    a, b = (vector[:count].astype(np.float64) for vector in (one, other))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        return float(a @ b / np.sqrt((a @ a) * (b @ b)))


def _read_sample(
    source: Source, revision: Revision, cache: LayoutCache
) -> tuple[str, np.ndarray[Any, np.dtype[np.float32]]]:
    """Name and first elements of the embedding of a revision."""
    with closing(RevisionReader(source, revision, headers_only=True)) as reader:
        tensor = next(reader.find((EMBEDDING,), cache)).tensor
    dtype = np.dtype(ml_dtypes.bfloat16 if tensor.dtype == "bfloat16" else tensor.dtype)
    count = min(tensor.nbytes, _SAMPLE_BYTES)
    with source.read(revision, tensor.file, tensor.start, tensor.start + count) as stream:
        return tensor.name, np.frombuffer(stream.read(count), dtype).astype(np.float32)
