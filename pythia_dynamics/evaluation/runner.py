"""Perplexity over training: every checkpoint of a model through one or several of the three engines.

The model is built once; the weights of each revision are loaded straight into it while the next one is fetched; a row
is written as soon as it is known, and a later call takes up where this one ended. A revision that is missing or cannot
be loaded leaves an empty row and its reason, not an end of the run.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
import transformers

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.open import open_source
from pythia_dynamics.checkpoints.registry import Model, parse_steps, resolve
from pythia_dynamics.checkpoints.source import Revision, Source
from pythia_dynamics.device import DTYPES, describe_device, matmul_precision, resolve_device
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.corpus import Corpus, load_corpus
from pythia_dynamics.evaluation.evaluator import HEADS, Evaluator, Options, encode, load, prepare
from pythia_dynamics.evaluation.model import context_length
from pythia_dynamics.evaluation.records import MODES, Records
from pythia_dynamics.evaluation.snapshots import snapshots
from pythia_dynamics.evaluation.unmasking import Completion, illustrate
from pythia_dynamics.progress import Progress, silent

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["completions", "perplexity"]


@overload
def perplexity(
    model: str | Path | Model | Source,
    *,
    mode: str = ...,
    corpus: str | Path | Corpus = ...,
    limit: int | None = ...,
    steps: str | Sequence[int] | None = ...,
    device: str | torch.device = ...,
    dtype: str = ...,
    head: str = ...,
    tf32: bool = ...,
    out: str | Path | None = ...,
    source: str = ...,
    batch_tokens: int | None = ...,
    max_tokens: int | None = ...,
    disk_budget: int | None = ...,
    progress: Progress = ...,
) -> xr.Dataset: ...
@overload
def perplexity(
    model: str | Path | Model | Source,
    *,
    mode: list[str] | tuple[str, ...],
    corpus: str | Path | Corpus = ...,
    limit: int | None = ...,
    steps: str | Sequence[int] | None = ...,
    device: str | torch.device = ...,
    dtype: str = ...,
    head: str = ...,
    tf32: bool = ...,
    out: str | Path | None = ...,
    source: str = ...,
    batch_tokens: int | None = ...,
    max_tokens: int | None = ...,
    disk_budget: int | None = ...,
    progress: Progress = ...,
) -> dict[str, xr.Dataset]: ...
def perplexity(
    model: str | Path | Model | Source,
    *,
    mode: str | list[str] | tuple[str, ...] = "forward",
    corpus: str | Path | Corpus = "lambada",
    limit: int | None = 500,
    steps: str | Sequence[int] | None = None,
    device: str | torch.device = "auto",
    dtype: str = "float32",
    head: str = "as-is",
    tf32: bool = False,
    out: str | Path | None = None,
    source: str = "hub",
    batch_tokens: int | None = None,
    max_tokens: int | None = None,
    disk_budget: int | None = None,
    progress: Progress = silent,
) -> xr.Dataset | dict[str, xr.Dataset]:
    """Perplexity of every checkpoint on the first `limit` passages of a corpus.

    `mode` is ``"forward"``, ``"unmask"`` or ``"last-word"``; a sequence of them is evaluated in one pass over the
    revisions and gives a dict of datasets. `model` is an alias, a repository id, a directory of checkpoints or a
    `Source`; `corpus` what `load_corpus` takes; `steps` a sequence, a specification such as ``"1000:143000:1000"``, or
    None for all there are. `dtype` is that of the weights and activations (log-softmax is always float32), `head`
    ``"ternary"`` rounds W_U to {−1, 0, +1}·scale first, `tf32` allows TF32 in float32 matrix products on CUDA.

    `out` is the directory (``results/<name>``) for ``perplexity-<mode>.csv``: steps it already has, computed from the
    same commits under the same settings, are not computed again; under other settings they are replaced, with a
    warning. `batch_tokens` bounds what is held at once (tokens read; key-value positions in unmasking), `max_tokens`
    cuts passages in forward and unmask mode (default: the model's context), `disk_budget` (bytes) keeps downloaded
    checkpoints while they fit, instead of one ahead. `progress` counts revisions.

    Each dataset has the columns of its table as variables over `step`, in float64; unmasking adds curves over
    `prefix`. A step that is missing is NaN, its reason in ``attrs["missing"]``. A sentence whose perplexity is not
    finite or below 1 is counted in `nonfinite` and in none of the means, which are over the other `sentences`; a step
    with no valid sentence is NaN. Passages too short to score anything are ``attrs["unscored"]``, those that had to be
    cut ``attrs["truncated"]``.

    Raises `UnknownNameError` for unknown names, `CorpusError`, and `CheckpointError` when no revision could be
    evaluated.
    """
    modes = (mode,) if isinstance(mode, str) else tuple(dict.fromkeys(mode))
    for name in modes:
        _known("mode", name, MODES)
    _known("head", head, HEADS)
    _known("dtype", dtype, DTYPES)
    if not modes:
        raise UnknownNameError("mode", "", MODES)
    options = Options(resolve_device(device), dtype, head, batch_tokens, max_tokens)
    texts = load_corpus(corpus, limit=limit)
    origin = _source(model, source)
    available = origin.revisions()
    wanted = _steps(steps, available, origin.location)
    settings = _settings(origin, texts, options, tf32)
    directory = None if out is None else Path(out)
    records = {name: Records(name, directory, settings) for name in modes}
    todo = _todo(available, wanted, records)
    done = len(wanted) - len(todo)
    progress(done, len(wanted))
    evaluator: Evaluator | None = None
    try:
        with matmul_precision(tf32=tf32):
            for revision, found in snapshots(origin, [available[s] for s in todo], disk_budget=disk_budget):
                lacking, identity = todo[revision.step]
                try:
                    if isinstance(found, Exception):
                        raise found
                    evaluator = evaluator or Evaluator(found, texts, modes, options)
                    evaluator.load(found)
                except (PythiaDynError, OSError) as error:
                    for name in lacking:
                        records[name].add_missing(revision.step, _one_line(error))
                else:
                    for name in lacking:
                        records[name].notes = evaluator.notes(name)
                        records[name].add(revision.step, identity, evaluator.row(name))
                for record in records.values():
                    record.flush()
                done += 1
                progress(done, len(wanted))
    finally:
        for record in records.values():
            record.flush(force=True)
    attributes = {"model": origin.name, "device_name": describe_device(options.device), **texts.provenance}
    results = {name: record.dataset(wanted, attributes) for name, record in records.items()}
    for record in records.values():
        if all(step in record.missing for step in wanted):
            first = record.missing[wanted[0]]
            raise CheckpointError(f"none of {len(wanted)} revisions of {origin.location} gave a perplexity: {first}")
    return results[modes[0]] if isinstance(mode, str) else results


def completions(
    model: str | Path | Model | Source,
    phrase: str,
    *,
    step: int | None = None,
    device: str | torch.device = "auto",
    dtype: str = "float32",
    head: str = "as-is",
    source: str = "hub",
) -> list[Completion]:
    """How the model completes a phrase from each of its prefixes, at a `step` or the last one: the paper's Fig 5.

    Raises `UnknownNameError` for a step that is not there, `CheckpointError` where it cannot be loaded.
    """
    _known("head", head, HEADS)
    _known("dtype", dtype, DTYPES)
    origin = _source(model, source)
    available = origin.revisions()
    chosen = max(available) if step is None else step
    if chosen not in available:
        raise UnknownNameError("step", chosen, available, where=f" {origin.location}".strip())
    options = Options(resolve_device(device), dtype, head)
    directory = origin.snapshot(available[chosen])
    with matmul_precision(tf32=False):
        loaded, tokenizer = prepare(directory, options)
        load(loaded, directory, options)
        tokens = encode(tokenizer, [phrase], loaded)[0][: context_length(loaded)]
        if len(tokens) < 2:
            raise PythiaDynError(f"{phrase!r} is {len(tokens)} token; a phrase to unmask needs at least two")
        return illustrate(loaded, tokens, tokenizer.decode)


def _known(kind: str, name: str, known: Iterable[str]) -> None:
    if name not in known:
        raise UnknownNameError(kind, name, known)


def _source(model: str | Path | Model | Source, source: str) -> Source:
    if isinstance(model, str | Path):
        model = resolve(model)
    return open_source(model, source) if isinstance(model, Model) else model


def _steps(steps: str | Sequence[int] | None, available: Mapping[int, Revision], location: str) -> tuple[int, ...]:
    parsed = parse_steps(steps) if isinstance(steps, str) else steps
    wanted = tuple(available) if parsed is None else tuple(sorted({int(step) for step in parsed}))
    if not wanted:
        raise PythiaDynError("no steps to evaluate; give at least one")
    if not any(step in available for step in wanted):
        raise UnknownNameError("step", wanted[0], available, where=location)
    return wanted


def _settings(source: Source, corpus: Corpus, options: Options, tf32: bool) -> dict[str, Any]:
    """What decides the values of a row, besides the checkpoint."""
    return {
        "location": source.location,
        "corpus": corpus.name,
        "corpus_sha256": corpus.sha256,
        "passages": len(corpus.texts),
        "dtype": options.dtype,
        "device": options.device.type,
        "head": options.head,
        "tf32": tf32,
        "max_tokens": options.max_tokens,
        "pythia_dynamics": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _todo(
    available: Mapping[int, Revision], wanted: Sequence[int], records: Mapping[str, Records]
) -> dict[int, tuple[list[str], str | None]]:
    """The steps to evaluate: for each, the modes that lack it, and its commit, which tells it from another."""
    todo: dict[int, tuple[list[str], str | None]] = {}
    for step in wanted:
        if step not in available:
            for record in records.values():
                record.add_missing(step, "there is no such revision")
            continue
        identity = available[step].commit
        if lacking := [name for name, record in records.items() if not record.has(step, identity)]:
            todo[step] = (lacking, identity)
    return todo


def _one_line(error: Exception) -> str:
    return " ".join((str(error) or type(error).__name__).split())
