"""Shares of the steps of an evaluation, each in a process with a device of its own, or where an executor runs it.

The shares are every n-th step. Each is evaluated as if it were a run of its own, with the same results folder: the rows
meet there (`pythia_dynamics.evaluation.records`), and the caller learns of them by reading them. So an executor needs
nothing but the folder in common with the caller.
"""

from __future__ import annotations

import multiprocessing
import pickle
import secrets
import tempfile
import threading
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_dynamics.checkpoints.source import Source
from pythia_dynamics.device import resolve_device
from pythia_dynamics.errors import PythiaDynError, StoreError, first_line, listed
from pythia_dynamics.evaluation.processes import Processes
from pythia_dynamics.evaluation.records import Records
from pythia_dynamics.evaluation.settings import EvaluationSettings, Mode
from pythia_dynamics.executors import Pool, as_executor, workers_of
from pythia_dynamics.files import reason_of
from pythia_dynamics.mirror import local
from pythia_dynamics.progress import Progress

if TYPE_CHECKING:
    import torch

__all__ = ["Missing", "Share", "evaluate_in_shares", "results_folder", "share_devices"]

_POLL_SECONDS = 0.5
"""Wait between two looks at the rows of the shares: soon enough for a progress bar, and one `stat` a mode."""

_GRACE_SECONDS = 5.0
"""Time for the shares of an interrupted run to write their last rows and end; processes of our own are killed then."""

_gpus: defaultdict[str, threading.Lock] = defaultdict(threading.Lock)
"""For each GPU that this process uses: one share at a time, where an executor gives several to threads of a process."""

Missing = Mapping[Mode, Mapping[int, str]]
"""The reason for each step without a row, by mode."""


@dataclass(frozen=True)
class Share:
    """The part of an evaluation that one process does.

    Parameters
    ----------
    source
        Where the checkpoints are.
    modes
        The modes.
    settings
        How to evaluate: the steps of the share, one device, and the corpus as a value, so that all have the same text.
    out
        The results folder of all shares.
    marker
        A file that is there as long as the run goes on.
    """

    source: Source
    modes: tuple[Mode, ...]
    settings: EvaluationSettings
    out: Path
    marker: Path

    @classmethod
    def of(cls, source: Source, modes: Sequence[Mode], settings: EvaluationSettings, out: Path) -> Share:
        """A share of a new run."""
        out = out.resolve()
        return cls(source, tuple(modes), settings, out, out / f".{secrets.token_hex(4)}.running")

    def stop_if_over(self, done: int, total: int) -> None:
        """Raise `PythiaDynError` if the run has ended; a progress callback."""
        if not self.marker.exists():
            raise PythiaDynError("the run was interrupted")


@dataclass(frozen=True)
class _Outcome:
    """What came of a share: gaps, warnings, and the error that ended it early, as a class and a message."""

    missing: Missing = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    error: tuple[type[PythiaDynError], str] | None = None


def share_devices(
    settings: EvaluationSettings, executor: Pool | None, workers: int | None
) -> tuple[str | torch.device, ...]:
    """The device of each share; empty where the caller's process does all.

    Parameters
    ----------
    settings
        Which devices there are. Without an executor, several of them have a share each.
    executor, workers
        As for `evaluate`. The shares take the devices in turn.

    Raises
    ------
    PythiaDynError
        For a number of workers without an executor or below 1, and for an executor that does not say its own.
    """
    devices = settings.devices
    if executor is None:
        if workers is not None:
            raise PythiaDynError("workers is the number of shares for an executor; without one, name several devices")
        return devices if len(devices) > 1 else ()
    if workers is None:
        workers = len(devices) if len(devices) > 1 else workers_of(executor)
    count = workers
    if count is None or count < 1:
        raise PythiaDynError(f"with an executor, workers is the number of shares, at least 1, not {workers}")
    return tuple(devices[i % len(devices)] for i in range(count))


@contextmanager
def results_folder(out: str | Path | None, *, shared: bool) -> Iterator[Path | None]:
    """The folder where rows are written: `out`, or where it is None a temporary one, if shares have to meet there."""
    if out is not None or not shared:
        yield None if out is None else local(out)
        return
    with tempfile.TemporaryDirectory(prefix="pythia-dyn-", ignore_cleanup_errors=True) as scratch:
        # As deep as a results folder in a project, so that no source seems to be in the same project.
        yield Path(scratch, "results", "model", "head")


def evaluate_in_shares(
    evaluate_share: Callable[[Share], Missing],
    share: Share,
    devices: Sequence[str | torch.device],
    todo: Mapping[int, Sequence[Mode]],
    records: Mapping[Mode, Records],
    executor: Pool | None,
    progress: Progress,
) -> None:
    """Evaluate the steps that lack rows in shares, and take over the rows.

    A share that fails does not stop the others.

    Parameters
    ----------
    evaluate_share
        Evaluates a share and returns its gaps; a function of a module.
    share
        What all shares have in common; its steps and device are replaced.
    devices
        The device of each share.
    todo
        The modes that lack a row by step, in the order in which steps are evaluated.
    records
        The rows of each mode, in the folder `share.out`; rows and gaps are added to them.
    executor
        Runs the shares. None starts a process for each.
    progress
        Called with the number of these steps that are done and their total.

    Warns
    -----
    UserWarning
        What the shares have warned of, each once.

    Raises
    ------
    PythiaDynError
        The source cannot be sent to another process; or, after the end of all shares, one has failed and steps lack
        rows.
    """
    progress(0, len(todo))
    if not todo:
        return
    steps = list(todo)
    count = min(len(devices), len(steps))
    parts = [steps[i::count] for i in range(count)]
    budget = None if share.settings.disk_budget is None else share.settings.disk_budget // count
    shared = replace(share.settings, disk_budget=budget)
    shares = [
        replace(share, settings=replace(shared, steps=tuple(part), device=device))
        for part, device in zip(parts, devices, strict=False)
    ]
    sent = [_pickled(one) for one in shares]
    own = Processes(count) if executor is None else None
    pool = as_executor(executor) or own
    assert pool is not None
    futures: list[Future[_Outcome]] = []
    _begin(share)
    try:
        futures += [pool.submit(_run_share, evaluate_share, one) for one in sent]
        pending = set(futures)
        while pending:
            _, pending = wait(pending, timeout=_POLL_SECONDS, return_when=FIRST_COMPLETED)
            for record in records.values():
                record.refresh()
            progress(_done(futures, parts, todo, records), len(todo))
    finally:
        for future in futures:
            future.cancel()
        try:
            if own is not None:  # first: what ends by itself is not interrupted on its way out
                own.stop(_GRACE_SECONDS)
        finally:
            share.marker.unlink(missing_ok=True)
        wait([future for future in futures if not future.cancelled()], timeout=_GRACE_SECONDS)
    _take_over([_outcome(future) for future in futures], todo, records)


def _begin(share: Share) -> None:
    """Make the marker. It is not counted as a file that is written, because it goes again."""
    try:
        share.out.mkdir(parents=True, exist_ok=True)
        share.marker.touch()
    except OSError as error:
        raise StoreError(f"cannot write {share.out}: {reason_of(error)}") from None


def _pickled(share: Share) -> bytes:
    """A share as bytes. So every share has a source of its own, in threads too: one that ends cancels only its own."""
    try:
        return pickle.dumps(share)
    except Exception as error:
        what = f"{type(share.source).__name__} of {share.source.location}"
        raise PythiaDynError(f"the {what} cannot be sent to other processes ({first_line(error)})") from error


def _run_share(evaluate_share: Callable[[Share], Missing], sent: bytes) -> _Outcome:
    """Evaluate a share, in another process or thread. Errors of the library are returned: not all can be pickled."""
    share: Share = pickle.loads(sent)
    if not share.out.is_dir():
        text = f"the executor does not see {share.out}: results, checkpoints and this process need one file system"
        return _Outcome(error=(PythiaDynError, text))
    apart = multiprocessing.parent_process() is not None and threading.current_thread() is threading.main_thread()
    if not apart:  # threads share the list of warnings, and a warning is shown where it arises
        return _outcome_of(evaluate_share, share)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        outcome = _outcome_of(evaluate_share, share)
    texts = dict.fromkeys(str(each.message) for each in caught if issubclass(each.category, UserWarning))
    return replace(outcome, warnings=tuple(texts))


def _outcome_of(evaluate_share: Callable[[Share], Missing], share: Share) -> _Outcome:
    try:
        device = resolve_device(share.settings.device)
        with _gpus[str(device)] if device.type == "cuda" else nullcontext():
            return _Outcome(evaluate_share(share))
    except PythiaDynError as error:
        has_message_only = type(error).__init__ is PythiaDynError.__init__
        return _Outcome(error=(type(error) if has_message_only else PythiaDynError, str(error)))


def _outcome(future: Future[_Outcome]) -> _Outcome | Exception:
    """What came of a share that has ended, or the exception that ended it."""
    try:
        return future.result(timeout=0)
    except Exception as error:
        return error


def _is_complete(future: Future[_Outcome]) -> bool:
    """Whether a share has come to its end."""
    outcome = _outcome(future) if future.done() else None
    return isinstance(outcome, _Outcome) and outcome.error is None


def _done(
    futures: Sequence[Future[_Outcome]],
    parts: Sequence[Sequence[int]],
    todo: Mapping[int, Sequence[Mode]],
    records: Mapping[Mode, Records],
) -> int:
    """Number of steps that are done: all of a share that has ended, and those whose rows are there."""
    ended = {step for future, part in zip(futures, parts, strict=True) if _is_complete(future) for step in part}
    return sum(step in ended or all(step in records[mode].added_elsewhere for mode in todo[step]) for step in todo)


def _take_over(
    outcomes: Sequence[_Outcome | Exception], todo: Mapping[int, Sequence[Mode]], records: Mapping[Mode, Records]
) -> None:
    """Add the gaps of all shares to the records, and warn and raise as the shares did."""
    missing: dict[Mode, dict[int, str]] = {mode: {} for mode in records}
    for outcome in outcomes:
        if isinstance(outcome, _Outcome):
            for mode, reasons in outcome.missing.items():
                missing[mode] |= reasons
    for mode, record in records.items():
        record.refresh()
        for step, reason in sorted(missing[mode].items()):
            record.add_missing(step, reason)
        record.flush(force=True)
    lacking = [
        step
        for step, modes in todo.items()
        if any(step not in records[mode].added_elsewhere and step not in missing[mode] for mode in modes)
    ]
    texts = [text for outcome in outcomes if isinstance(outcome, _Outcome) for text in outcome.warnings]
    for text in dict.fromkeys(texts):
        warnings.warn(text, stacklevel=4)
    failures = [failure for outcome in outcomes if (failure := _failure(outcome)) is not None]
    if lacking and not failures:
        failures = [(StoreError, "rows that the shares have written are not seen in the results folder")]
    if failures:
        kind = failures[0][0] if len({kind for kind, _ in failures}) == 1 else PythiaDynError
        why = "; ".join(dict.fromkeys(reason for _, reason in failures))
        if not lacking:  # it had written all its rows
            warnings.warn(why, stacklevel=4)
            return
        lack = "lacks its row" if len(lacking) == 1 else "lack rows"
        cause = next((outcome for outcome in outcomes if isinstance(outcome, Exception)), None)
        raise kind(f"{why}; {listed(lacking)} {lack}, the same command goes on from there") from cause


def _failure(outcome: _Outcome | Exception) -> tuple[type[PythiaDynError], str] | None:
    """The class and the message of the error that ended a share early; None where it came to its end."""
    if isinstance(outcome, _Outcome):
        return outcome.error
    if isinstance(outcome, BrokenExecutor):
        return PythiaDynError, "a process of the executor was killed, or has ended"
    if isinstance(outcome, PythiaDynError):
        return PythiaDynError, str(outcome)
    if isinstance(outcome, RuntimeError) and "bootstrapping phase" in str(outcome):
        return PythiaDynError, "a script that starts processes needs the guard `if __name__ == '__main__':`"
    return PythiaDynError, f"a share failed: {type(outcome).__name__}: {first_line(outcome)}"
