"""Calibration: every verdict and detector on histories of known truth, and how often each is wrong.

    from pythia_dynamics.claims import calibration

    table = calibration.calibrate(calibration.CalibrationSettings(runs=40), truths=["walk-*", "split-all-15"])
    print(calibration.error_rates(table)["msd-peak"].text)

Histories (`TRUTHS`) are measured as any other, and judged by the tests of the scorecard, with its correction for
several tests. Curves (`CURVE_TRUTHS`) are judged by the claims that read them. What a history or a curve does not have,
the rest of the scorecard, is that of a random walk with smooth curves, so that the correction is for as many tests as
on the full results of a model.
"""

from __future__ import annotations

import ast
import hashlib
import multiprocessing
import re
import signal
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import cache, lru_cache
from multiprocessing.synchronize import Event
from pathlib import Path
from typing import TYPE_CHECKING

from pythia_dynamics import __version__
from pythia_dynamics.claims import scorecard
from pythia_dynamics.claims.bifurcation_step import bifurcation_of
from pythia_dynamics.claims.curve_truths import CURVE_TRUTHS, CurveTruth
from pythia_dynamics.claims.error_rates import (
    CalibrationSettings,
    CalibrationTable,
    ErrorRates,
    Rate,
    TruthCounts,
    error_rates,
    error_rates_of,
    load_calibration,
    read_table,
    write_table,
)
from pythia_dynamics.claims.evidence import VERDICTS, VerdictWord
from pythia_dynamics.claims.saved import SavedResults
from pythia_dynamics.claims.truths import DETECTORS, TRUTHS, Truth, select_truths
from pythia_dynamics.claims.verdict import Decision, corrected, decision_of
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.executors import Pool, as_executor
from pythia_dynamics.progress import Progress, silent
from pythia_dynamics.shard import Shard
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.sweep import run_jobs

if TYPE_CHECKING:
    import xarray as xr

    from pythia_dynamics.history.history import History

__all__ = [
    "CHUNK",
    "CURVE_TRUTHS",
    "DETECTORS",
    "TRUTHS",
    "CalibrationSettings",
    "CalibrationTable",
    "CurveTruth",
    "ErrorRates",
    "Rate",
    "Truth",
    "TruthCounts",
    "calibrate",
    "calibrated_truths",
    "code_version",
    "error_rates",
    "error_rates_of",
    "judge_run",
    "load_calibration",
    "measured",
    "merge_tables",
    "read_table",
    "write_table",
]

CHUNK = 20
"""Runs of one task: about 20 seconds, so that processes finish together and an interruption loses little."""

_RANK_OPTIONS = {"batch_sizes": (32,), "draws": 4}
"""Projections of the covariance rank. One of the paper's batch sizes and four draws take as long as the other measures
together."""

_COMPANY = {"history": "walk-cosine", "loss": "loss-exponential-ar6-0.003", "perplexity": "perplexity-smooth-ar6"}
"""The truths that fill the scorecard: they have no effect."""

_SPREAD = 1_000_003
"""Distance of the seeds of the company from those of the runs."""

_JUDGING = ("claims/*.py", "measures/*.py", "sweep/*.py", "training/stopping.py")
"""The code that decides what is said of a history."""

Words = Mapping[str, VerdictWord]


def calibrated_truths(*, extra: bool = False) -> tuple[str, ...]:
    """The names of the truths of a calibration: histories, then curves.

    Parameters
    ----------
    extra
        Whether further truths are included, which are not part of the table of the package.
    """
    histories = [name for name, truth in TRUTHS.items() if extra or not truth.extra]
    return (*histories, *(name for name, curve in CURVE_TRUTHS.items() if extra or not curve.extra))


# -- one history ----------------------------------------------------------------------------------------------


def measured(history: History) -> Mapping[str, xr.Dataset]:
    """The results of a history that claims read, as `SavedResults.in_memory` takes them.

    Parameters
    ----------
    history
        The history. It is read by one thread.
    """
    from pythia_dynamics.measures.analyse import analyse
    from pythia_dynamics.measures.catalogue import find_measure

    names = ["msd", "density", "two_time", "order", "rank"]
    found = analyse(history, names, options={"rank": _RANK_OPTIONS}, compute=Compute(threads=1))
    for name in names:
        if (on_save := find_measure(name).on_save) is not None:
            found[name] = on_save(found[name])
    density = found["density"]
    curves = [name for name, variable in density.data_vars.items() if variable.dims == ("step",)]
    return {
        "msd.csv": found["msd"],
        "moments.csv": density[curves],
        "density.zarr": density,
        "two_time.zarr": found["two_time"],
        "order.csv": found["order"],
        "rank.csv": found["rank"],
    }


def _detected(history: History, saved: SavedResults) -> Words:
    """What the detectors say of a history: ``supported`` where they find something, or that noise may hide it."""
    from pythia_dynamics.measures.phases import DETECTORS as SIGNALS
    from pythia_dynamics.measures.phases import phases
    from pythia_dynamics.training.stopping import replay

    compute = Compute(threads=1)
    changes, split = phases(history, compute=compute), bifurcation_of(saved)
    found = {
        "bifurcation": split is not None and split.step is not None,
        "phases": any(bool(changes[f"{name}_change"].any()) for name in SIGNALS),
        "stop": replay(history, compute=compute).stopped_at is not None,
    }
    words: dict[str, VerdictWord] = {name: "supported" if yes else "not supported" for name, yes in found.items()}
    if split is not None and split.undecided:
        words["bifurcation"] = "undecided"
    return words


def _decisions(saved: SavedResults, only: frozenset[str] | None = None) -> dict[str, Decision]:
    """The decisions on all claims of the scorecard, or on some of them, without a correction."""
    return {
        claim.id: decision_of(test, saved)
        for claim, test in scorecard.CLAIMS.items()
        if only is None or claim.id in only
    }


@lru_cache(maxsize=16)
def _company(seed: int, records: int, weights: int) -> tuple[Mapping[str, xr.Dataset], Mapping[str, Decision]]:
    """The tables of a random walk with smooth curves, and the decisions on all claims."""
    truth = TRUTHS[_COMPANY["history"]]
    tables = {
        **measured(truth.history(seed, records, weights)),
        **CURVE_TRUTHS[_COMPANY["perplexity"]].tables(seed, records),
    }
    decisions = _decisions(SavedResults.in_memory(truth.model, tables))
    loss = CURVE_TRUTHS[_COMPANY["loss"]]  # over another b than that of the walk
    return tables, {
        **decisions,
        **_decisions(SavedResults.in_memory(truth.model, loss.tables(seed, records)), loss.about),
    }


def judge_run(name: str, seed: int, records: int = 143, weights: int = 8192, *, company: int | None = None) -> Words:
    """Draw one history or curve, measure it and judge it.

    Parameters
    ----------
    name
        Name of the truth, of a history or a curve.
    seed
        Its seed.
    records, weights
        Number of steps, and of weights at each step.
    company
        Seed of the history and the curves that fill the scorecard. By default one that depends on `seed`.

    Returns
    -------
    mapping of str to VerdictWord
        The word for each claim and detector. Of a curve, only the claims that it is about.

    Raises
    ------
    UnknownNameError
        There is no such truth.
    """
    (name,) = select_truths([name], [*TRUTHS, *CURVE_TRUTHS])
    beside, rest = _company(_SPREAD + (seed if company is None else company), records, weights)
    detected: Words = {}
    if name in TRUTHS:
        truth = TRUTHS[name]
        history = truth.history(seed, records, weights)
        tables = dict(measured(history))
        if truth.curve:
            tables |= CURVE_TRUTHS[truth.curve].tables(seed, records)
        saved = SavedResults.in_memory(truth.model, tables)
        own = _decisions(saved, truth.about or None)
        detected = {} if truth.about else _detected(history, saved)
    else:
        curve = CURVE_TRUTHS[name]
        of_walk = {name: beside[name] for name in ("msd.csv", "order.csv")}  # the steps, and the shape of the weights
        saved = SavedResults.in_memory(curve.model, {**of_walk, **curve.tables(seed, records)})
        own = _decisions(saved, curve.about)
    testable = {key: decision for key, decision in own.items() if decision.evidence is not None}
    whole = {**rest, **testable}
    words = {key: each.verdict for key, each in zip(whole, corrected(list(whole.values())), strict=True)}
    return {**{key: words[key] if key in testable else "not testable here" for key in own}, **detected}


# -- many histories -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Task:
    """Some runs of one truth."""

    truth: str
    settings: CalibrationSettings
    runs: range


def _tasks(truth: str, settings: CalibrationSettings) -> list[_Task]:
    starts = range(0, settings.runs, CHUNK)
    return [_Task(truth, settings, range(start, min(start + CHUNK, settings.runs))) for start in starts]


_Counts = dict[str, Counter[VerdictWord]]


def _run(task: _Task) -> _Counts:
    """Judge the runs of a task with one thread, and count the words."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    counts: _Counts = defaultdict(Counter)
    settings = task.settings
    with threadpool_limits(limits=1):
        for run in task.runs:
            if _stopped is not None and _stopped.is_set():
                break
            seed = settings.seed + run
            try:
                words = judge_run(
                    task.truth, seed, settings.records, settings.weights, company=settings.seed + task.runs.start
                )
            except Exception as error:
                error.add_note(f"while judging {task.truth}, seed {seed}")
                raise
            for key, word in words.items():
                counts[key][word] += 1
    return dict(counts)


_stopped: Event | None = None
"""In a process of the pool: set when the others need no more results."""


def _start_process(stopped: Event) -> None:
    """Leave an interruption to the parent, which says so with `stopped`."""
    global _stopped
    _stopped = stopped
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _results(tasks: Sequence[_Task], workers: int, executor: Executor | None) -> Iterator[tuple[_Task, _Counts]]:
    """The tasks and their counts, as they are ready."""
    if executor is not None:
        jobs = ((index, (_run, task)) for index, task in enumerate(tasks))
        for index, counts in run_jobs(executor, jobs, ahead=2 * workers):
            yield tasks[index], counts
        return
    if workers == 1:
        for task in tasks:
            yield task, _run(task)
        return
    context = multiprocessing.get_context("spawn")  # threads of BLAS and of Numba do not survive a fork
    stopped = context.Event()
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_start_process, initargs=(stopped,))
    try:
        running = {pool.submit(_run, task): task for task in tasks}
        while running:
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(future), future.result()
    finally:
        stopped.set()  # a process ends its task after the history that it judges
        pool.shutdown(wait=True, cancel_futures=True)


def calibrate(
    settings: CalibrationSettings | None = None,
    *,
    truths: Sequence[str] = (),
    out: Path | None = None,
    workers: int | None = None,
    executor: Pool | None = None,
    shard: Shard | None = None,
    progress: Progress = silent,
) -> CalibrationTable:
    """Judge histories and curves of known truth, and count what is said of them.

    Parameters
    ----------
    settings
        Number of runs, records and weights, and the first seed. Run i of every truth has the seed `seed` + i.
    truths
        Names and globs of truths. Default: all of `calibrated_truths`. Further truths are taken by their names only.
    out
        A file for the table. It is written after every truth. Truths that a file of the same settings has, and that
        the same code has judged (`code_version`), are not judged again.
    workers
        Number of processes; 1 for none beside this one. Default: the number of cores.
    executor
        Judges the runs instead of own processes, 20 in a task; as for `Compute`.
    shard
        The job of an array, which judges some of the runs of all truths. Its table is a file beside `out`,
        ``<stem>.2-of-4.json``; `merge_tables` puts those of all jobs together.
    progress
        Is called with the number of runs that are finished, and that of all.

    Returns
    -------
    CalibrationTable
        The truths that were asked for, and those that the file has beside them, in the order of `TRUTHS` and
        `CURVE_TRUTHS`.

    Raises
    ------
    UnknownNameError
        There is no such truth.
    PythiaDynError
        The file is one of other settings or of other code, or `workers` is below 1; or a shard has no file.
    """
    settings = settings or CalibrationSettings()
    everything, usual = calibrated_truths(extra=True), calibrated_truths()
    chosen = select_truths(truths, everything) if truths else usual
    names = tuple(name for name in chosen if name in usual or name in truths)
    workers = Compute(executor=executor).workers if workers is None else workers
    if workers < 1:
        raise PythiaDynError(f"the number of processes must be at least 1; got {workers}")
    tasks = [task for name in names for task in _tasks(name, settings)]
    if shard is not None:
        if out is None:
            raise PythiaDynError("a shard of a calibration needs a file for its table; name one with --out")
        tasks, out = shard.take(tasks), _part_path(out, shard)
    runs = Counter[str]()
    for task in tasks:
        runs[task.truth] += len(task.runs)
    done = {} if out is None else {each.name: each for each in _resumed(out, settings)}
    todo = [task for task in tasks if task.truth not in done]
    total, finished = runs.total(), sum(count for name, count in runs.items() if name in done)
    progress(finished, total)
    parts: dict[str, dict[_Task, _Counts]] = defaultdict(dict)
    for task, counts in _results(todo, workers, as_executor(executor)):
        parts[task.truth][task] = counts
        finished += len(task.runs)
        if sum(len(each.runs) for each in parts[task.truth]) == runs[task.truth]:
            done[task.truth] = _counted(task.truth, runs[task.truth], list(parts.pop(task.truth).values()))
            if out is not None:
                write_table(out, _ordered(settings, done))
        progress(finished, total)
    return _ordered(settings, done)


@cache
def code_version() -> str:
    """The version of the package, and a digest of the code that judges: without comments, docstrings and layout."""
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for path in sorted(path for part in _JUDGING for path in root.glob(part)):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
                node.value = ast.Constant(None)
        digest.update(f"{path.relative_to(root).as_posix()} {ast.dump(tree)}".encode())
    return f"{__version__}+{digest.hexdigest()[:12]}"


def _resumed(out: Path, settings: CalibrationSettings) -> tuple[TruthCounts, ...]:
    """The truths that a file has. Raises `PythiaDynError` where it is of other settings or of other code."""
    if not out.exists():
        return ()
    found = read_table(out)
    if found.settings != settings or found.version != code_version():
        was = f"{asdict(found.settings)} and version {found.version}"
        raise PythiaDynError(f"{out} is of {was}; name another file with --out, or remove it")
    return found.truths


def _part_path(out: Path, shard: Shard) -> Path:
    """The file for the table of the job of an array."""
    return out.with_name(f"{out.stem}.{shard.label}{out.suffix}")


def merge_tables(out: Path) -> CalibrationTable:
    """Put the tables of the jobs of an array together, write them to one file, and remove theirs.

    Parameters
    ----------
    out
        What `calibrate` was given as `out`. If it has truths already, of the same settings and code, they are kept.

    Raises
    ------
    PythiaDynError
        A job has no table, or one of other settings or of other code.
    """
    label = re.compile(rf"{re.escape(out.stem)}\.(\d+)-of-(\d+){re.escape(out.suffix)}")
    found = [
        Shard(int(match[1]), int(match[2])) for path in out.parent.iterdir() if (match := label.fullmatch(path.name))
    ]
    if not found:
        raise PythiaDynError(f"there are no parts of {out}: run pythia-dyn calibrate --out {out} --shard 1/4 first")
    counts = {each.count for each in found}
    if len(counts) > 1:
        both = " and ".join(str(each) for each in sorted(counts))
        raise PythiaDynError(f"{out} has parts of arrays of {both} jobs; remove those of one")
    shards = [Shard(number + 1, max(counts)) for number in range(max(counts))]
    if absent := [str(each) for each in shards if each not in found]:
        raise PythiaDynError(f"{out} lacks the part {', '.join(absent)}: run calibrate with --shard {absent[0]}")
    tables = [read_table(_part_path(out, shard)) for shard in shards]
    settings = tables[0].settings
    for shard, table in zip(shards, tables, strict=True):
        if table.settings != settings or table.version != code_version():
            raise PythiaDynError(f"{_part_path(out, shard)} is of other settings, or of another version of the code")
    done = {each.name: each for each in _resumed(out, settings)}
    for name in dict.fromkeys(each.name for table in tables for each in table.truths):
        parts = [each for table in tables for each in table.truths if each.name == name]
        runs = sum(each.runs for each in parts)
        if runs != settings.runs:
            raise PythiaDynError(
                f"the parts of {out} have {runs} of {settings.runs} runs of {name}; run its jobs again"
            )
        words = [{key: Counter(counted) for key, counted in each.counts.items()} for each in parts]
        done[name] = _counted(name, runs, words)
    table = _ordered(settings, done)
    write_table(out, table)
    for shard in shards:
        _part_path(out, shard).unlink()
    return table


def _counted(name: str, runs: int, parts: Sequence[_Counts]) -> TruthCounts:
    """The counts of some tasks of a truth, together so many runs."""
    truth: Truth | CurveTruth = TRUTHS[name] if name in TRUTHS else CURVE_TRUTHS[name]
    counts: _Counts = defaultdict(Counter)
    for part in parts:
        for key, words in part.items():
            counts[key].update(words)
    return TruthCounts(
        name=name,
        description=truth.description,
        model=truth.model,
        runs=runs,
        effects=tuple(sorted(truth.effects)),
        open=tuple(sorted(truth.open)),
        counts={key: {word: words[word] for word in VERDICTS if words[word]} for key, words in counts.items()},
    )


def _ordered(settings: CalibrationSettings, done: Mapping[str, TruthCounts]) -> CalibrationTable:
    """The table of some truths, in the order of all."""
    truths = tuple(done[name] for name in calibrated_truths(extra=True) if name in done)
    return CalibrationTable(settings, code_version(), truths)
