"""The study of "The Garden of Forking Paths": fetch, verify, measure, evaluate, draw, test the claims, report.

Each stage does only what is not done yet, so that an interrupted run can be continued. A model that fails does not stop
the others.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pythia_dynamics.checkpoints.open import open_source
from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.claims.scorecard import judge, save
from pythia_dynamics.claims.verdict import Verdict
from pythia_dynamics.errors import PythiaDynError, listed
from pythia_dynamics.evaluation.corpus import DATASETS, load_corpus
from pythia_dynamics.evaluation.portrait import PHRASE, portrait
from pythia_dynamics.evaluation.runner import evaluate
from pythia_dynamics.evaluation.settings import MODES, EvaluationSettings, Mode
from pythia_dynamics.evaluation.snapshots import checkpoints_on_disk
from pythia_dynamics.figures.gallery import COMPARISON_FOLDER, comparison_figures
from pythia_dynamics.figures.specs import save_figures
from pythia_dynamics.history.cache import choose_model
from pythia_dynamics.history.estimate import FetchPlan, preview
from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.history import History
from pythia_dynamics.history.request import WORKERS
from pythia_dynamics.history.store import Store
from pythia_dynamics.history.workload import EFFICIENCY, evaluation_operations
from pythia_dynamics.measures import MEASURES
from pythia_dynamics.progress import Stage
from pythia_dynamics.results.folder import Results, results_directory
from pythia_dynamics.studies.pipeline import draw_perplexity, measure, save_findings, save_portrait
from pythia_dynamics.studies.sections import write_report
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.verify import verify_store
from pythia_dynamics.tables import plain

__all__ = ["MODELS", "PAGE", "ModelPlan", "Reproduction", "checkpoint_seconds", "plan", "run"]

MODELS = ("14m", "31m", "70m", "160m", "410m", "1b")
"""The six models of the paper's Table 1."""

PAGE = "report.html"
"""Name of the report in the directory of results."""

_MEASURED_SECONDS = 2.0
"""A checkpoint on disk whose evaluation should take less by its operations is evaluated to measure it."""

_LAMBADA_TOKENS = 80
"""Tokens of a passage of LAMBADA."""

_TOKEN_CHARACTERS = 4
"""Characters of a token of English text."""


@dataclass(frozen=True)
class ModelPlan:
    """What is still to be done for one model.

    Parameters
    ----------
    model
        The model.
    fetch
        The cost of fetching W_U.
    checkpoints
        Number of whole checkpoints to evaluate.
    checkpoint_bytes
        Bytes to download for each of them; 0 for local ones.
    operations
        Floating-point operations of the evaluation of each of them, about.
    width
        d_model.
    """

    model: Model
    fetch: FetchPlan
    checkpoints: int
    checkpoint_bytes: int
    operations: float
    width: int

    @property
    def bytes(self) -> int:
        """Bytes to download."""
        return self.fetch.bytes + self.checkpoints * self.checkpoint_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk: the store, the checkpoint in use and the next ones."""
        at_once = min(checkpoints_on_disk(self.checkpoint_bytes), self.checkpoints)
        return self.fetch.disk_bytes + at_once * self.checkpoint_bytes

    def seconds(self, bandwidth: float, evaluation: float) -> float:
        """Estimated duration. A checkpoint is evaluated while the next one is downloaded.

        Parameters
        ----------
        bandwidth
            Bytes per second.
        evaluation
            Seconds that the evaluation of a checkpoint takes; see `checkpoint_seconds`.
        """
        return self.fetch.seconds(bandwidth) + self.checkpoints * max(self.checkpoint_bytes / bandwidth, evaluation)


@dataclass(frozen=True)
class Reproduction:
    """The result of `run`.

    Parameters
    ----------
    verdicts
        The verdicts on the claims by model.
    files
        Every file written.
    failed
        The models that failed, and why.
    missing
        The steps that a model lacks, and why, by model.
    """

    verdicts: Mapping[str, tuple[Verdict, ...]]
    files: tuple[Path, ...]
    failed: Mapping[str, str]
    missing: Mapping[str, Mapping[int, str]]


def checkpoint_seconds(planned: ModelPlan, settings: EvaluationSettings) -> float:
    """Seconds that the evaluation of a checkpoint takes on this machine, from a measurement.

    Half the rate of matrix products of the model's width, which models from 14m on reach: measured in a second. Of
    smaller ones the time is that of the calls, not of the arithmetic: where the checkpoints are in a directory, one of
    them is evaluated, after one passage that loads the libraries. One that cannot be evaluated is planned by the
    products; `run` says why it cannot.

    Parameters
    ----------
    planned
        What is to be done for the model.
    settings
        How to evaluate: device, corpus, limit.
    """
    from pythia_dynamics.device import resolve_device
    from pythia_dynamics.evaluation.products import product_rate

    if not planned.checkpoints:
        return 0.0
    device = resolve_device(str(settings.device).partition(",")[0])
    seconds = planned.operations / (EFFICIENCY * product_rate(planned.width, device))
    if planned.model.is_local and seconds < _MEASURED_SECONDS:
        last = replace(settings, steps=[max(open_source(planned.model).revisions())])
        with suppress(PythiaDynError):
            evaluate(planned.model, MODES, replace(last, limit=1))  # loads libraries
            began = time.monotonic()
            evaluate(planned.model, MODES, last)
            seconds = time.monotonic() - began
    return seconds


def plan(
    models: Iterable[str | Path] = MODELS,
    *,
    steps: str | None = None,
    skip_perplexity: bool = False,
    corpus: str | Path = "lambada",
    limit: int = 500,
    cache: Path | str | None = None,
    results: Path | str | None = None,
    suite: Mapping[str, Any] | str | Path | None = None,
) -> list[ModelPlan]:
    """What `run` with the same arguments has still to do.

    Parameters
    ----------
    models
        Aliases, repositories or directories.
    steps
        The steps, as for `pythia_dynamics.fetch`. By default the papers' 143.
    skip_perplexity
        Whether to leave out all that needs whole checkpoints.
    corpus
        The text to evaluate. A file is read for the lengths of its passages.
    limit
        Passages to evaluate.
    cache
        Directory of the weight stores.
    results
        Directory of the results.
    suite
        Values of the models' suites, as for `FetchRequest`.

    Raises
    ------
    PythiaDynError
        As `preview` and `load_corpus` do.
    """
    lengths = [] if skip_perplexity else _passage_tokens(corpus, limit)
    plans = []
    for name in dict.fromkeys(models):
        model = choose_model(name, cache, suite)
        fetch = preview(model, steps=steps, cache=cache)
        evaluated = min(_evaluated(Results(model.name, results), mode) for mode in MODES)
        checkpoints = 0 if skip_perplexity else max(0, fetch.steps - fetch.missing - evaluated)
        shape = model.architecture
        if shape is not None:
            whole, weights = shape.checkpoint_bytes, shape.parameters - shape.unembedding_parameters
        else:  # 16-bit weights
            whole = fetch.full_bytes // max(fetch.revisions, 1)
            weights = whole // 2
        operations = evaluation_operations(weights, lengths)
        width = shape.d_model if shape is not None else round(math.sqrt(weights / 12))
        plans.append(ModelPlan(model, fetch, checkpoints, 0 if model.is_local else whole, operations, width))
    return plans


def _passage_tokens(corpus: str | Path, limit: int) -> list[float]:
    """Tokens of each passage, about."""
    if str(corpus) in DATASETS:
        return [_LAMBADA_TOKENS] * limit
    return [len(text) / _TOKEN_CHARACTERS for text in load_corpus(corpus, limit=limit).texts]


def run(
    models: Iterable[str | Path] = MODELS,
    *,
    stage: Stage,
    steps: str | None = None,
    skip_perplexity: bool = False,
    workers: int = WORKERS,
    cache: Path | str | None = None,
    results: Path | str | None = None,
    suite: Mapping[str, Any] | str | Path | None = None,
    **evaluation: Any,
) -> Reproduction:
    """Reproduce the paper for some models: all stages for each of them, the figures of all of them, and one page.

    For each model: fetch W_U and verify its content, compute every measure, evaluate the three perplexities, and that
    of the last step with a ternary head, take a portrait of the first and last step, and test the claims. Missing
    revisions are gaps.

    Parameters
    ----------
    models
        Aliases, repositories or directories.
    stage
        Called with the label and the unit of each stage.
    steps
        The steps, as for `pythia_dynamics.fetch`. By default the papers' 143.
    skip_perplexity
        Whether to leave out all that needs whole checkpoints: perplexities and portrait.
    workers
        Revisions that are fetched at once.
    cache
        Directory of the weight stores.
    results
        Directory of the results.
    suite
        Values of the models' suites, as for `FetchRequest`.
    **evaluation
        Fields of `EvaluationSettings`: corpus, limit, device, dtype, overwrite.

    Returns
    -------
    Reproduction
        A model that fails is in its `failed`. The same call tries it again.

    Raises
    ------
    PythiaDynError
        Where every model failed.
    """
    done: dict[str, Results] = {}
    failed: dict[str, str] = {}
    missing: dict[str, Mapping[int, str]] = {}
    verdicts: dict[str, tuple[Verdict, ...]] = {}
    files: list[Path] = []
    settings = EvaluationSettings.from_mapping(evaluation)
    for name in dict.fromkeys(models):
        try:
            model = choose_model(name, cache, suite)
            out = Results(model.name, results)
            request = {"steps": steps, "cache": cache, "workers": workers}
            gaps, made = _reproduce_model(model, out, stage, None if skip_perplexity else settings, **request)
            with stage(f"{model.name}: claims", "model") as progress:
                verdicts[model.name] = judge(out)
                files += [*made, save(out, verdicts[model.name])]
                progress(1, 1)
        except PythiaDynError as error:
            failed[str(name)] = str(error)
            continue
        done[model.name] = out
        if gaps:
            missing[model.name] = gaps
    if not done:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise PythiaDynError(f"no model could be reproduced: {reasons or 'none is named'}")
    chosen, directory = list(done.values()), results_directory(results)
    if len(chosen) > 1:
        with stage("figures of all models", "figure") as progress:
            files += save_figures(comparison_figures(chosen, directory / COMPARISON_FOLDER), progress=progress)
    with stage("report", "part") as progress:
        files.append(write_report(chosen, directory / PAGE, progress=progress))
    return Reproduction(verdicts, tuple(dict.fromkeys(files)), failed, missing)


def _reproduce_model(
    model: Model, out: Results, stage: Stage, settings: EvaluationSettings | None, **request: Any
) -> tuple[Mapping[int, str], list[Path]]:
    """Do all for one model that has not been done yet; return the steps that could not be fetched, and the files."""
    with stage(f"{model.name}: fetch W_U", "step") as progress:
        fetched = download(model, progress=progress, **request)
    if fetched.superseded:
        replaced = f"{model.name}: {listed(list(fetched.superseded))} replaced at the source since the fetch"
        warnings.warn(f"{replaced}; pythia-dyn fetch --refresh --model {model.name} fetches again", stacklevel=2)
    history = next(iter(fetched.histories().values()))
    files: list[Path] = []
    if fetched.fetched or not (out.path / "verify.json").is_file():
        with stage(f"{model.name}: verify", "part") as progress:
            found = verify_store(Store.open(fetched.path), history.tensor, Compute(progress=progress))
        files.append(save_findings(out, found))
    files += _measure(history, out, stage)
    if settings is not None:
        files += _evaluate(model, history, out, stage, settings)
        files += _measure(history, out, stage)  # the order parameter has a loss now
    return fetched.missing, files


def _measure(history: History, out: Results, stage: Stage) -> list[Path]:
    """Compute the measures that have not been computed of these weights; return the files."""
    names = [name for name in MEASURES if not _is_current(out, name, history)]
    if not names:
        return []
    with stage(f"{history.name}: measure", "block") as progress:
        outcomes = measure(history, names, out, compute=Compute(device="auto", progress=progress))
    return [path for outcome in outcomes for path in outcome.files]


def _evaluate(model: Model, history: History, out: Results, stage: Stage, settings: EvaluationSettings) -> list[Path]:
    """Evaluate the perplexities, that of the last step with a ternary head, and take a portrait; return the files."""
    first, last = _first_and_last(history)
    with stage(f"{model.name}: perplexities", "step") as progress:
        every_step = replace(settings, steps=history.steps.tolist())
        scores = evaluate(model, MODES, every_step, out=out.path, progress=progress)
    files = [path for outcome in draw_perplexity(out, scores) for path in outcome.files]
    ternary = out.path / "ternary"
    with stage(f"{model.name}: ternary head", "step") as progress:
        last_step = replace(settings, steps=[last], head="ternary")
        evaluate(model, ["forward"], last_step, out=ternary, progress=progress)
    files.append(ternary / "perplexity-forward.csv")
    if first < last and not _has_portrait(out, history):
        with stage(f"{model.name}: first and last step", "step") as progress:
            taken = portrait(model, steps=[first, last], device=settings.device, progress=progress)
        files += save_portrait(out, taken)
    return files


def _is_current(out: Results, name: str, history: History) -> bool:
    """Whether a result is of these weights, and that of the order parameter is not older than the loss."""
    folder = out.of(history.tensor)
    if not (folder.path / f"{name}.png").is_file():
        return False
    table, forward = folder.path / "order.csv", out.path / "perplexity-forward.csv"
    if name == "order" and forward.is_file() and forward.stat().st_mtime > table.stat().st_mtime:
        return False
    made = folder.provenance().get(name, {})
    decisive = {key: value for key, value in plain(history.provenance).items() if key != "checks"}  # not how it came
    return all(made.get(key) == value for key, value in decisive.items())


def _has_portrait(out: Results, history: History) -> bool:
    """Whether there is a portrait of the first and the last of these checkpoints, with the default phrase."""
    try:
        taken = out.read_zarr("first_last")
    except PythiaDynError:
        return False
    if taken.attrs.get("phrase") != PHRASE:
        return False
    commits = history.provenance["commits"]
    return bool(taken.attrs.get("commits") == {str(step): commits[str(step)] for step in _first_and_last(history)})


def _first_and_last(history: History) -> tuple[int, int]:
    """The first and the last step that is not missing."""
    present = history.steps[history.present]
    return int(present[0]), int(present[-1])


def _evaluated(out: Results, mode: Mode) -> int:
    """Number of steps whose perplexity is known."""
    try:
        return int(np.isfinite(out.read_table(f"perplexity-{mode}")["sentences"]).sum())
    except PythiaDynError:
        return 0
