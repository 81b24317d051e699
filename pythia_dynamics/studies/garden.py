"""The first paper again, whole: fetch, verify, analyses, perplexities, first and last step, figures, claims, report.

Every stage does only what is not done yet, so that an interrupted run goes on wherever it ended; a model that fails
does not keep the others.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from pythia_dynamics.claims.scorecard import judge, save
from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.evaluation.portrait import portrait
from pythia_dynamics.evaluation.runner import evaluate
from pythia_dynamics.evaluation.settings import MODES, EvaluationSettings
from pythia_dynamics.figures.gallery import TOGETHER, of_models
from pythia_dynamics.figures.plates import draw
from pythia_dynamics.history.cache import find_model
from pythia_dynamics.history.estimate import preview
from pythia_dynamics.history.fetch import download
from pythia_dynamics.history.history import History
from pythia_dynamics.history.store import Store
from pythia_dynamics.measures import MEASURES
from pythia_dynamics.progress import Stage
from pythia_dynamics.results.folder import Results, results_directory
from pythia_dynamics.studies.pipeline import draw_perplexity, keep_findings, keep_portrait, measure
from pythia_dynamics.studies.sections import write_report
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.verify import verify_store
from pythia_dynamics.tables import plain

if TYPE_CHECKING:
    from pythia_dynamics.checkpoints.registry import Model
    from pythia_dynamics.claims.verdict import Verdict
    from pythia_dynamics.history.estimate import FetchPlan

__all__ = ["MODELS", "PAGE", "RATES", "ModelPlan", "Reproduction", "plan", "run"]

MODELS = ("14m", "31m", "70m", "160m", "410m", "1b")
"""The six of the paper's Table 1."""

PAGE = "report.html"
"""The report's name in the directory of results."""

RATES = {"cpu": 1e11, "cuda": 3e13}
"""Operations per second that the plan takes an evaluation to reach: a third of what two CPU cores, or a large GPU, do
in float32 matrix products."""

_PASSAGE_TOKENS = 80  # of LAMBADA
_GENERATED_TOKENS = 3200  # by unmasking one


@dataclass(frozen=True)
class ModelPlan:
    """What is still to be done for one model: W_U to be moved, and whole checkpoints to be evaluated.

    A checkpoint has `checkpoint_bytes` to be moved; evaluating all of them takes about so many `operations`.
    """

    model: Model
    fetch: FetchPlan
    checkpoints: int
    checkpoint_bytes: int
    operations: float

    @property
    def bytes(self) -> int:
        """All that is to be moved."""
        return self.fetch.bytes + self.checkpoints * self.checkpoint_bytes

    @property
    def disk_bytes(self) -> int:
        """Disk it takes: the store, and two checkpoints, one in use and the one after it."""
        return self.fetch.disk_bytes + min(2, self.checkpoints) * self.checkpoint_bytes

    def seconds(self, bandwidth: float, rate: float) -> float:
        """Time at `bandwidth` bytes/s and `rate` operations/s; evaluating goes on while the next checkpoint comes."""
        moving = self.checkpoints * self.checkpoint_bytes / bandwidth
        return self.fetch.seconds(bandwidth) + max(moving, self.operations / rate)


@dataclass(frozen=True)
class Reproduction:
    """What came of it: verdicts by model, the files written, the models that failed and why, the steps they lack."""

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
) -> list[ModelPlan]:
    """What `run` with the same arguments has still to do. Raises as `preview`."""
    plans = []
    for name in dict.fromkeys(models):
        model = find_model(name, cache)
        fetch = preview(model, steps=steps, cache=cache)
        known = min(_evaluated(Results(model.name, results), mode) for mode in MODES)
        left = 0 if skip_perplexity else max(0, fetch.steps - fetch.missing - known)
        shape = model.architecture
        if shape is not None:
            whole, weights = shape.checkpoint_bytes, shape.parameters - shape.unembedding_parameters
        else:
            whole = fetch.full_bytes // max(fetch.revisions, 1)
            weights = whole // 2
        tokens = limit * (2 * _PASSAGE_TOKENS + _GENERATED_TOKENS)
        moved = 0 if model.is_local else whole
        plans.append(ModelPlan(model, fetch, left, moved, operations=2.0 * weights * tokens * left))
    return plans


def run(
    models: Iterable[str | Path] = MODELS,
    *,
    stage: Stage,
    steps: str | None = None,
    skip_perplexity: bool = False,
    workers: int = 8,
    cache: Path | str | None = None,
    results: Path | str | None = None,
    **evaluation: Any,
) -> Reproduction:
    """Everything for each of the models, then the figures that hold all of them, and one page.

    Of each: W_U of its `steps` (default: the papers' 143) into the cache, checked by content; every analysis; unless
    `skip_perplexity`, the three perplexities, that of the last step with a ternary head, and a portrait of both ends;
    the claims. `evaluation` are fields of `EvaluationSettings`: corpus, limit, device, dtype.

    Missing revisions are gaps. A model that fails is left out, with the reason in `Reproduction.failed`; the same call
    tries it again. Raises `PythiaDynError` when all of them failed.
    """
    done: dict[str, Results] = {}
    failed: dict[str, str] = {}
    missing: dict[str, Mapping[int, str]] = {}
    verdicts: dict[str, tuple[Verdict, ...]] = {}
    files: list[Path] = []
    settings = EvaluationSettings.from_mapping(evaluation)
    for name in dict.fromkeys(models):
        try:
            model = find_model(name, cache)
            out = Results(model.name, results)
            gaps, made = _one(model, out, stage, steps, None if skip_perplexity else settings, workers, cache)
            with stage(f"{model.name}: claims", "model") as progress:
                verdicts[model.name] = judge(out)
                files += [*made, save(out, verdicts[model.name])]
                progress(1, 1)
        except PythiaDynError as error:
            failed[str(name)] = str(error)
            continue
        missing[model.name], done[model.name] = gaps, out
    if not done:
        reasons = "; ".join(f"{name}: {why}" for name, why in failed.items())
        raise PythiaDynError(f"no model could be reproduced: {reasons or 'none is named'}")
    chosen, directory = list(done.values()), results_directory(results)
    if len(chosen) > 1:
        with stage("figures of all models", "figure") as progress:
            files += draw(of_models(chosen, directory / TOGETHER), progress=progress)
    with stage("report", "part") as progress:
        files.append(write_report(chosen, directory / PAGE, progress=progress))
    lacking = {name: gaps for name, gaps in missing.items() if gaps}
    return Reproduction(verdicts, tuple(dict.fromkeys(files)), failed, lacking)


def _one(
    model: Model,
    out: Results,
    stage: Stage,
    steps: str | None,
    settings: EvaluationSettings | None,
    workers: int,
    cache: Path | str | None,
) -> tuple[Mapping[int, str], list[Path]]:
    """Everything about one model that has not been done yet: the steps that could not be fetched, and the files."""
    with stage(f"{model.name}: fetch W_U", "step") as progress:
        fetched = download(model, steps=steps, cache=cache, workers=workers, progress=progress)
    history = next(iter(fetched.histories().values()))
    files: list[Path] = []
    if fetched.fetched or not (out.path / "verify.json").is_file():
        with stage(f"{model.name}: verify", "part") as progress:
            found = verify_store(Store.open(fetched.path), history.tensor, Compute(progress=progress))
        files.append(keep_findings(out, found))
    files += _measure(history, out, stage)
    if settings is not None:
        files += _evaluate(model, history, out, stage, settings)
        files += _measure(history, out, stage)  # the order parameter has a loss now
    return fetched.missing, files


def _measure(history: History, out: Results, stage: Stage) -> list[Path]:
    """The analyses that are not there of these weights."""
    kinds = [kind for kind in MEASURES if not _is_current(out, kind, history)]
    if not kinds:
        return []
    with stage(f"{history.name}: measure", "block") as progress:
        outcomes = measure(history, kinds, out, compute=Compute(device="auto", progress=progress))
    return [path for outcome in outcomes for path in outcome.files]


def _evaluate(model: Model, history: History, out: Results, stage: Stage, settings: EvaluationSettings) -> list[Path]:
    """The three perplexities, that of the last step with a ternary head, the first and the last step side by side."""
    first, last = _first_and_last(history)
    with stage(f"{model.name}: perplexities", "step") as progress:
        at_steps = replace(settings, steps=history.steps.tolist())
        scores = evaluate(model, MODES, at_steps, out=out.path, progress=progress)
    files = [path for outcome in draw_perplexity(out, scores) for path in outcome.files]
    ternary = out.path / "ternary"
    with stage(f"{model.name}: ternary head", "step") as progress:
        at_last = replace(settings, steps=[last], head="ternary")
        evaluate(model, ["forward"], at_last, out=ternary, progress=progress)
    files.append(ternary / "perplexity-forward.csv")
    if first < last and not _has_portrait(out, history):
        with stage(f"{model.name}: first and last step", "step") as progress:
            taken = portrait(model, steps=[first, last], device=settings.device, progress=progress)
        files += keep_portrait(out, taken)
    return files


def _is_current(out: Results, kind: str, history: History) -> bool:
    """Whether a result is of these very weights; and, of the order parameter, of the loss that is known now."""
    folder = out.of(history.tensor)
    if not (folder.path / f"{kind}.png").is_file():
        return False
    table, forward = folder.path / "order.csv", out.path / "perplexity-forward.csv"
    if kind == "order" and forward.is_file() and forward.stat().st_mtime > table.stat().st_mtime:
        return False
    known = folder.provenance().get(kind, {})
    return all(known.get(key) == value for key, value in plain(history.provenance).items())


def _has_portrait(out: Results, history: History) -> bool:
    """Whether the first and the last step have been taken of these very checkpoints."""
    try:
        taken = out.read_zarr("first_last")
    except PythiaDynError:
        return False
    commits = history.provenance["commits"]
    return bool(taken.attrs.get("commits") == {str(step): commits[str(step)] for step in _first_and_last(history)})


def _first_and_last(history: History) -> tuple[int, int]:
    """The first and the last step that are there."""
    present = history.steps[history.present]
    return int(present[0]), int(present[-1])


def _evaluated(out: Results, mode: str) -> int:
    """Steps that a perplexity is known for."""
    try:
        return int(np.isfinite(out.read_table(f"perplexity-{mode}")["sentences"]).sum())
    except PythiaDynError:
        return 0
