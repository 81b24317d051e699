"""The study of "The Garden of Forking Paths": fetch, verify, measure, evaluate, draw, test the claims, report.

Each stage does only what is not done yet, so that an interrupted run can be continued. A model that fails does not stop
the others.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from pythia_dynamics.checkpoints.registry import Model
from pythia_dynamics.claims.scorecard import judge, save
from pythia_dynamics.claims.verdict import Verdict
from pythia_dynamics.errors import PythiaDynError, listed
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
from pythia_dynamics.measures import MEASURES
from pythia_dynamics.progress import Stage
from pythia_dynamics.results.folder import Results, results_directory
from pythia_dynamics.studies.pipeline import draw_perplexity, measure, save_findings, save_portrait
from pythia_dynamics.studies.sections import write_report
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.verify import verify_store
from pythia_dynamics.tables import plain

__all__ = ["MODELS", "PAGE", "RATES", "ModelPlan", "Reproduction", "plan", "run"]

MODELS = ("14m", "31m", "70m", "160m", "410m", "1b")
"""The six models of the paper's Table 1."""

PAGE = "report.html"
"""Name of the report in the directory of results."""

RATES = {"cpu": 1e11, "cuda": 3e13}
"""Operations per second that the plan assumes for an evaluation: a third of what two CPU cores, or a large GPU, reach
in float32 matrix products."""

_PASSAGE_TOKENS = 80
"""Tokens of a passage of LAMBADA."""

_GENERATED_TOKENS = 3200
"""Tokens that causal unmasking of a passage of t tokens generates, t²/2."""


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
        Floating-point operations of the evaluation of all of them, about.
    """

    model: Model
    fetch: FetchPlan
    checkpoints: int
    checkpoint_bytes: int
    operations: float

    @property
    def bytes(self) -> int:
        """Bytes to download."""
        return self.fetch.bytes + self.checkpoints * self.checkpoint_bytes

    @property
    def disk_bytes(self) -> int:
        """Bytes on disk: the store, the checkpoint in use and the next ones."""
        at_once = min(checkpoints_on_disk(self.checkpoint_bytes), self.checkpoints)
        return self.fetch.disk_bytes + at_once * self.checkpoint_bytes

    def seconds(self, bandwidth: float, rate: float) -> float:
        """Estimated duration. A checkpoint is evaluated while the next one is downloaded.

        Parameters
        ----------
        bandwidth
            Bytes per second.
        rate
            Operations per second.
        """
        download_seconds = self.checkpoints * self.checkpoint_bytes / bandwidth
        return self.fetch.seconds(bandwidth) + max(download_seconds, self.operations / rate)


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


def plan(
    models: Iterable[str | Path] = MODELS,
    *,
    steps: str | None = None,
    skip_perplexity: bool = False,
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
        As `preview` does.
    """
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
        # The forward and the last-word perplexity read each passage once; a token takes two operations per weight.
        operations = 2.0 * weights * limit * (2 * _PASSAGE_TOKENS + _GENERATED_TOKENS) * checkpoints
        plans.append(ModelPlan(model, fetch, checkpoints, 0 if model.is_local else whole, operations))
    return plans


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
