"""Perplexity over training: every checkpoint of a model, evaluated in one or several modes.

Each revision is evaluated with its own config and tokenizer. Where they are those of the revision before, as in most
suites, its weights are loaded into the same model. While it is evaluated, the weights of the next revision are read and
uploaded, and those after it are downloaded. A row is written as soon as it is known, and a later call continues from
the rows that are there. A revision that is missing or cannot be loaded gives an empty row with its reason; the run
continues with the next revision.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
import transformers

from pythia_dynamics import __version__
from pythia_dynamics.checkpoints.local import LocalSource
from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.checkpoints.source import Revision, Source
from pythia_dynamics.device import describe_device, matmul_precision, resolve_device, resolve_dtype
from pythia_dynamics.errors import CheckpointError, PythiaDynError, UnknownNameError
from pythia_dynamics.evaluation.checkpoint import IDENTITY, CheckpointReader, describe_differences
from pythia_dynamics.evaluation.corpus import Corpus, load_corpus
from pythia_dynamics.evaluation.evaluator import Evaluator
from pythia_dynamics.evaluation.loading import load_ahead
from pythia_dynamics.evaluation.products import choose_products
from pythia_dynamics.evaluation.records import Records
from pythia_dynamics.evaluation.settings import (
    PRODUCTS,
    EvaluationSettings,
    Mode,
    Products,
    check_modes,
    requested_steps,
)
from pythia_dynamics.evaluation.shards import Missing, Share, evaluate_in_shares, results_folder, share_devices
from pythia_dynamics.evaluation.snapshots import checkpoint_source, snapshots
from pythia_dynamics.executors import Pool
from pythia_dynamics.files import portable
from pythia_dynamics.progress import Progress, silent

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["evaluate", "evaluate_share", "perplexity"]


def perplexity(
    model: str | Path | Model | Source,
    mode: Mode = "forward",
    *,
    out: str | Path | None = None,
    progress: Progress = silent,
    executor: Pool | None = None,
    workers: int | None = None,
    **settings: Any,
) -> xr.Dataset:
    """Perplexity of every checkpoint of a model on the first passages of a corpus.

    ``perplexity("70m", mode="unmask", corpus="text.jsonl", limit=100, steps="1000:143000:1000", device="cuda")``

    Parameters
    ----------
    model
        An alias (``"70m"``), a repository id, a directory of checkpoints, a `Model` or a `Source`.
    mode
        ``"forward"``, ``"unmask"`` or ``"last-word"``, see `Mode`.
    out
        Directory (``results/<name>``) for ``perplexity-<mode>.csv``. Steps it already has, computed from the same
        commits under the same settings, are not computed again, whoever wrote them: several processes may work on the
        steps of one model. None writes nothing.
    progress
        Called with the number of revisions that are done and their total.
    executor
        Evaluates the steps in shares, in other processes or on other machines, instead of this process: an `Executor`,
        a `distributed.Client`, or an executor of submitit. It is sent the source, the text and paths. `out` is then a
        folder that all of them see. Where several devices are named, a process of this machine is started for each
        without an executor. The shares give the rows of a single run on the same kind of device. A process is started
        by importing the script that calls this function, whose call therefore stands below
        ``if __name__ == "__main__":``.
    workers
        Number of shares for the executor; by default that of the devices, where several are named, else what the
        executor runs at once, if it says so. The shares take the devices in turn.
    **settings
        Fields of `EvaluationSettings`: corpus, limit, steps, device, dtype, head, tf32, source, batch_tokens,
        max_tokens, products, disk_budget, overwrite. Their meanings and defaults are there.

    Returns
    -------
    xarray.Dataset
        The columns of the mode's table as float64 variables over `step`, the scores of each passage over `step` and
        `sentence`; unmasking adds curves over `prefix`. A step that is missing is NaN, with its reason in
        ``attrs["missing"]``. A sentence whose perplexity is not finite or below 1 is counted in `nonfinite` or
        `overflow` and left out of the means, which are over the other `sentences`; a step without a valid sentence is
        NaN. Columns that end in ``_se`` are standard errors over sentences.

        ``attrs["unscored"]`` counts the passages that are too short to score, ``attrs["truncated"]`` those that were
        cut, ``attrs["context"]`` is the longest sequence read, in tokens; ``config_sha256`` and ``tokenizer_sha256``
        are digests of what the checkpoint was run with, and ``tokenizer_step`` is there where it has no tokenizer of
        its own: the earlier step whose tokenizer was used. These are of the first step with a row;
        ``attrs["notes_by_step"]`` has them for the steps where any of them is another, and is left out where none is.

    Warns
    -----
    UserWarning
        In one line after the run, where the steps were not all run with the same config and a tokenizer of their own.

    Raises
    ------
    UnknownNameError
        For an unknown model, mode, setting, device, dtype or head, and for steps none of which is there.
    CorpusError
        For a text that cannot be loaded.
    CheckpointError
        When no revision could be evaluated.
    PythiaDynError
        The table in `out` was computed under other settings, and the setting `overwrite` is not set. Or a share has
        failed: the others have written their rows, and the same call goes on from there.
    """
    (chosen,) = check_modes([mode])
    given = EvaluationSettings.from_mapping(settings)
    return evaluate(model, [chosen], given, out=out, progress=progress, executor=executor, workers=workers)[chosen]


def evaluate(
    model: str | Path | Model | Source,
    modes: Iterable[Mode],
    settings: EvaluationSettings,
    *,
    out: str | Path | None = None,
    progress: Progress = silent,
    executor: Pool | None = None,
    workers: int | None = None,
) -> dict[Mode, xr.Dataset]:
    """What `modes` are of every checkpoint, in one pass over the checkpoints.

    Parameters
    ----------
    model, out, progress, executor, workers
        As for `perplexity`.
    modes
        The modes, all of `Mode`; each checkpoint is loaded once for all of them.
    settings
        How to evaluate.

    Returns
    -------
    dict
        One dataset for each mode, as `perplexity` returns it.

    Raises
    ------
    PythiaDynError
        As `perplexity`, which also says what is warned of.
    """
    chosen = check_modes(modes, get_args(Mode))
    devices = share_devices(settings, executor, workers)
    corpus = load_corpus(settings.corpus, limit=settings.limit)
    source = checkpoint_source(model, settings.source)
    available = source.revisions()
    wanted = _wanted_steps(settings, available, source.location)
    with results_folder(out, shared=bool(devices)) as folder:
        records = _open_records(source, corpus, chosen, settings, folder)
        if "unmask" in records:
            settings = replace(settings, products=_choose_products(settings, records["unmask"], available))
        reader = CheckpointReader(source, available)
        todo = _steps_to_evaluate(source, available, reader, wanted, records)
        done = len(wanted) - len(todo)

        def report(new: int, _: int) -> None:
            progress(done + new, len(wanted))

        if devices and folder is not None:
            share = Share.of(source, chosen, replace(settings, corpus=corpus), folder)
            with matmul_precision(tf32=settings.tf32):  # threads of an executor share it
                evaluate_in_shares(evaluate_share, share, devices, todo, records, executor, report)
        else:
            _evaluate_steps(source, corpus, settings, available, reader, todo, records, report)
        attributes = {"model": source.name, **corpus.provenance, **_places(source)}
        results = {mode: record.dataset(wanted, attributes) for mode, record in records.items()}
    for record in records.values():
        if all(step in record.missing for step in wanted):
            first = record.missing[wanted[0]]
            what = "representation" if record.mode == "representation" else "perplexity"
            raise CheckpointError(f"none of {len(wanted)} revisions of {source.location} gave a {what}: {first}")
    if differences := describe_differences(_identities(wanted, records)):
        warnings.warn(f"{source.name}: {differences}", stacklevel=2)
    return results


def evaluate_share(share: Share) -> Missing:
    """Evaluate the steps of a share that lack a row, with its source, on its device. Its rows are in its folder.

    Returns
    -------
    dict
        The reason for each step without a row, by mode.

    Raises
    ------
    PythiaDynError
        As `evaluate`. Steps none of which gave a perplexity are no error here.
    """
    settings, source = share.settings, share.source
    corpus = load_corpus(settings.corpus, limit=settings.limit)
    available = source.revisions()
    wanted = _wanted_steps(settings, available, source.location)
    records = _open_records(source, corpus, share.modes, settings, share.out)
    reader = CheckpointReader(source, available)
    todo = _steps_to_evaluate(source, available, reader, wanted, records)
    _evaluate_steps(source, corpus, settings, available, reader, todo, records, share.stop_if_over)
    return {
        mode: {step: record.missing[step] for step in wanted if step in record.missing}
        for mode, record in records.items()
    }


def _open_records(
    source: Source, corpus: Corpus, modes: Sequence[Mode], settings: EvaluationSettings, out: Path | None
) -> dict[Mode, Records]:
    """The rows of each mode that are there. Raises as `Records`."""
    row_settings = _row_settings(source, corpus, settings, out)
    return {mode: Records(mode, out, row_settings, overwrite=settings.overwrite) for mode in modes}


def _evaluate_steps(
    source: Source,
    corpus: Corpus,
    settings: EvaluationSettings,
    available: Mapping[int, Revision],
    reader: CheckpointReader,
    todo: Mapping[int, Sequence[Mode]],
    records: Mapping[Mode, Records],
    progress: Progress,
) -> None:
    """Evaluate the steps of `todo`, each in its modes, one after the other on one device, and add their rows."""
    done = 0
    progress(done, len(todo))
    evaluator, provenance = Evaluator(corpus, list(records), settings), _provenance(settings)
    revisions, stopped = [available[step] for step in todo], threading.Event()
    found = snapshots(source, revisions, disk_budget=settings.disk_budget, stopped=stopped)
    upcoming = load_ahead(found, reader.read, evaluator.prepare, evaluator.load, cancel=source.cancel, stopped=stopped)
    try:
        with matmul_precision(tf32=settings.tf32), closing(upcoming):
            for revision, load in upcoming:
                modes = [mode for mode in todo[revision.step] if not _is_done_elsewhere(records[mode], revision)]
                try:
                    if modes:
                        load()
                except (PythiaDynError, OSError) as error:
                    reason = " ".join((str(error) or type(error).__name__).split())
                    for mode in modes:
                        records[mode].add_missing(revision.step, reason)
                else:
                    for mode in modes:
                        row = evaluator.row(mode)
                        notes = {**evaluator.notes(mode), **provenance}  # after the row: memory may have run short
                        records[mode].add(revision.step, revision.commit, row, notes)
                for record in records.values():
                    record.flush()
                done += 1
                progress(done, len(todo))
    finally:
        for record in records.values():
            record.flush(force=True)


def _wanted_steps(settings: EvaluationSettings, available: Mapping[int, Revision], location: str) -> tuple[int, ...]:
    """The requested steps, at least one of which the source has."""
    requested = requested_steps(settings.steps)
    wanted = tuple(available) if requested is None else requested
    if not wanted:
        raise PythiaDynError("no steps to evaluate; give at least one")
    if not any(step in available for step in wanted):
        raise UnknownNameError("step", wanted[0], available, where=location)
    return wanted


def _row_settings(source: Source, corpus: Corpus, settings: EvaluationSettings, out: Path | None) -> dict[str, Any]:
    """What decides the values of a row, besides the checkpoint, up to rounding; written beside the rows."""
    text = {"corpus": corpus.name, "corpus_sha256": corpus.sha256, "passages": len(corpus.texts)}
    # results/<model>/, or results/<model>/<head>/: a suite in the same project is found in a copy of the project too.
    project = None if out is None else out.resolve().parents[1 if settings.head == "as-is" else 2]
    model = {"dtype": settings.dtype, "head": settings.head, "tf32": settings.tf32}
    places = _places(source)
    if out is not None and project is not None:
        places = {key: portable(place, out, project) for key, place in places.items()}
    return {**places, **text, **model, "max_tokens": settings.max_tokens}


def _choose_products(settings: EvaluationSettings, records: Records, steps: Iterable[int]) -> Products:
    """How all rows of a run are computed, in whatever process: as earlier ones of this machine, else the faster way."""
    if settings.products != "auto":
        return settings.products
    device = resolve_device(settings.devices[0])
    for notes in map(records.notes, steps):
        if notes.get("products") in PRODUCTS and notes.get("device_name") == describe_device(device):
            found: Products = notes["products"]
            return found
    return choose_products(device, resolve_dtype(settings.dtype))


def _provenance(settings: EvaluationSettings) -> dict[str, Any]:
    """With what a row is computed: it decides the rounding, and is noted with the row."""
    device = resolve_device(settings.device)
    versions = {"pythia_dynamics": __version__, "torch": torch.__version__, "transformers": transformers.__version__}
    return {"device": device.type, "device_name": describe_device(device), **versions}


def _is_done_elsewhere(record: Records, revision: Revision) -> bool:
    """Whether another process has written the row of a checkpoint meanwhile."""
    record.refresh()
    return revision.step in record.added_elsewhere and record.has(revision.step, revision.commit)


def _places(source: Source) -> dict[str, str]:
    """Where the checkpoints are, and their config and tokenizer where these are elsewhere."""
    suite = source.suite
    places = {"location": source.location, "config": suite.config, "tokenizer": suite.tokenizer}
    return {name: place for name, place in places.items() if place is not None}


def _steps_to_evaluate(
    source: Source,
    available: Mapping[int, Revision],
    reader: CheckpointReader,
    wanted: Sequence[int],
    records: Mapping[Mode, Records],
) -> dict[int, list[Mode]]:
    """The modes that lack a row, for each step that lacks any; steps without a revision are recorded as missing."""
    todo: dict[int, list[Mode]] = {}
    for step in wanted:
        if step not in available:
            for record in records.values():
                record.add_missing(step, "there is no such revision")
            continue
        revision = available[step]
        kept = [mode for mode, record in records.items() if record.has(step, revision.commit)]
        # The commit of a folder stands for its weights only; config and tokenizer are files that one edits.
        if kept and isinstance(source, LocalSource):
            now = _identity(source, reader, revision)
            kept = [mode for mode in kept if now == _identity_of(records[mode].notes(step))]
        if modes := [mode for mode in records if mode not in kept]:
            todo[step] = modes
    return todo


def _identity(source: LocalSource, reader: CheckpointReader, revision: Revision) -> Mapping[str, Any] | None:
    """What a checkpoint would be run with now; None where it cannot be run."""
    try:
        return reader.read(revision, source.snapshot(revision)).identity
    except (PythiaDynError, OSError):
        return None


def _identity_of(notes: Mapping[str, Any]) -> dict[str, Any]:
    """What a row was computed with, from its notes; empty for a row of a version that did not note it."""
    return {name: notes[name] for name in IDENTITY if name in notes}


def _identities(wanted: Sequence[int], records: Mapping[Mode, Records]) -> dict[int, dict[str, Any]]:
    """What the rows of each step were computed with, for the steps that have any."""
    found = [
        (step, _identity_of(record.notes(step)))
        for record in records.values()
        for step in wanted
        if step not in record.missing
    ]
    return {step: identity for step, identity in found if identity}
