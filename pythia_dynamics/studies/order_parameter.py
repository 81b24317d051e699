"""The study of "A Large Language Model Order Parameter": train and measure its models, test its claims."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np

from pythia_dynamics.checkpoints.registry import resolve
from pythia_dynamics.claims.blog import Initial, Runs, decide
from pythia_dynamics.claims.scorecard import save
from pythia_dynamics.claims.verdict import Verdict
from pythia_dynamics.errors import PythiaDynError, UnknownNameError
from pythia_dynamics.figures.blog import blog_figures
from pythia_dynamics.figures.specs import save_figures
from pythia_dynamics.files import atomic_file
from pythia_dynamics.history.cache import local_directory, open_history
from pythia_dynamics.history.fetch import download
from pythia_dynamics.measures.order import backward_derivative
from pythia_dynamics.progress import Stage
from pythia_dynamics.results.folder import Results
from pythia_dynamics.results.published_blog import SOURCE, published_blog
from pythia_dynamics.studies.order_summary import write_summary
from pythia_dynamics.studies.pipeline import measure
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.tables import write_csv
from pythia_dynamics.training.choices import Initialisation
from pythia_dynamics.training.loop import new_model, train_suite
from pythia_dynamics.training.plan import SIZES, TrainingPlan, plan_of_size
from pythia_dynamics.training.sample import sample_text
from pythia_dynamics.training.suite import Suite
from pythia_dynamics.training.text import Text

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["INITIALISATIONS", "QUICK", "QUICK_SIZES", "Reproduction", "expected_b", "reproduce"]

INITIALISATIONS: tuple[Initialisation, ...] = get_args(Initialisation)

QUICK: Mapping[str, Any] = {"context": 64, "batch": 32, "max_steps": 3000, "every": 100, "eval_batches": 10}
"""The numbers of a quick run: about five minutes for both of `QUICK_SIZES` on two cores."""

QUICK_SIZES = ("10k", "0.1m")
"""The sizes of a quick run: the two for which the blog claims a change of slope."""

_CURVES = ("order_parameter", "train_loss", "validation_loss", "dloss_db", "dloss_db_backward")
_DIGITS = 10
"""Significant digits in the CSV files: more than the nine of the losses they come from."""


@dataclass(frozen=True)
class Reproduction:
    """The result of `reproduce`.

    Parameters
    ----------
    name
        The folder of the common results.
    verdicts
        The verdicts on the blog's claims.
    facts
        By size: the last step, b and losses at both ends, b of the untrained model.
    files
        Every file written.
    runs
        The curves by size, one dataset over `step` per seed.
    """

    name: str
    verdicts: tuple[Verdict, ...]
    facts: Mapping[str, Any]
    files: tuple[Path, ...]
    runs: Mapping[str, tuple[xr.Dataset, ...]]


def reproduce(
    text: Text,
    *,
    stage: Stage,
    quick: bool = False,
    sizes: Sequence[str] | None = None,
    seeds: Sequence[int] = (0,),
    out: Path | str | None = None,
    cache: Path | str | None = None,
    results: Path | str | None = None,
    device: str = "auto",
    **changes: Any,
) -> Reproduction:
    """Train the blog's models, measure b and the losses, draw the figures and test the claims.

    Beside the curves (``runs.csv``), the common folder has the table of final values over seeds (``summary.csv``,
    ``summary.md``) and the verdicts (``claims.json``). A finished suite of the same plan is used again, and an
    interrupted one is resumed.

    Parameters
    ----------
    text
        The text to train on.
    stage
        Called with the label and the unit of each stage.
    quick
        Whether `QUICK_SIZES` and the numbers of `QUICK` are the defaults. The folders are then ``order-quick-<size>``
        and ``order-parameter-quick``.
    sizes
        Sizes to train; by default all.
    seeds
        Seeds to train each size with, at least one.
    out
        Directory of the suites ``order-<size>`` (``order-<size>-seed<k>`` for several seeds); by default the cache.
    cache
        Directory of the weight stores.
    results
        Directory of the results: those of a model in ``order-<size>``, the common ones in ``order-parameter``.
    device
        Device to train on.
    **changes
        Fields of `TrainingPlan` with other values, as for `plan_of_size`. The default `arch` is the blog's,
        ``nanogpt``; with ``gpt-neox`` the folders are ``order-gpt-neox-<size>`` and ``order-parameter-gpt-neox``.

    Raises
    ------
    UnknownNameError
        For an unknown size or field.
    PythiaDynError
        Without seeds, and whatever the stages raise.
    """
    known = {name: value for name, value in changes.items() if value is not None}
    options = {"arch": "nanogpt", "initialisation": "pytorch", **(QUICK if quick else {}), **known}
    chosen = tuple(dict.fromkeys(size.lower() for size in sizes or (QUICK_SIZES if quick else SIZES)))
    plans = {size: plan_of_size(size, **options) for size in chosen}
    if not seeds:
        raise PythiaDynError("name at least one seed")
    kind = ("" if options["arch"] == "nanogpt" else f"-{options['arch']}") + ("-quick" if quick else "")
    folder, label = f"order-parameter{kind}", f"order{kind}"
    home = Path(out) if out is not None else local_directory(cache)
    runs: dict[str, tuple[xr.Dataset, ...]] = {}
    files: list[Path] = []
    common = Results(folder, results)
    for size, plan in plans.items():
        curves = []
        for seed in seeds:
            name = f"{label}-{size}" if len(seeds) == 1 else f"{label}-{size}-seed{seed}"
            curve, suite, written = _run(home / name, text, replace(plan, seed=seed), stage, cache, results, device)
            curves.append(curve)
            files += written
            if seed == seeds[0]:
                files.append(_write_sample(common, size, suite))
        runs[size] = tuple(curves)
    initial_b = {size: _initial_b(plan, text) for size, plan in plans.items()}
    verdicts = decide(runs, initial_b, {size: plan.initialisation for size, plan in plans.items()})
    files += [_write_runs(common, runs, seeds), _write_comparison(common, runs, seeds)]
    files += [_write_initial(common, initial_b), *write_summary(common, runs), save(common, verdicts)]
    with stage("draw", "figure") as progress:
        files += save_figures(blog_figures(common), progress=progress)
    facts = {}
    for size, (curve, *_) in runs.items():
        ends = {name: curve[name].to_numpy()[[0, -1]].tolist() for name in _CURVES[:3]}
        b = ends.pop("order_parameter")
        facts[size] = {"steps": int(curve["step"][-1]), "b": b, **ends, "initial_b": initial_b[size]}
    details = {"text": text.name, "sha256": text.sha256, "published": SOURCE, "options": options}
    common.record("order-parameter", {**details, "seeds": list(seeds)})
    return Reproduction(folder, verdicts, facts, tuple(files), runs)


def _run(
    path: Path,
    text: Text,
    plan: TrainingPlan,
    stage: Stage,
    cache: Path | str | None,
    results: Path | str | None,
    device: str,
) -> tuple[xr.Dataset, Suite, list[Path]]:
    """Train one suite, fetch its W_U, measure; the curves (b, both losses, dL/db over `step`) and the files."""
    with stage(f"train {path.name}", "step") as progress:
        suite = train_suite(path, text, plan, device=device, progress=progress)
    with stage(f"fetch {path.name}", "step") as progress:
        download(resolve(suite.path.resolve()), cache=cache, progress=progress, refresh=True)  # the suite is our own
    training = {row.step: row.train for row in suite.losses}
    validation = {row.step: row.validation for row in suite.losses}
    own = Results(path.name, results)
    with stage(f"measure {path.name}", "block") as progress:
        history, compute = open_history(path.name, cache=cache), Compute(progress=progress)
        (outcome,) = measure(history, ["order"], own, options={"order": {"loss": training}}, compute=compute)
    table = own.weights().read_table("order")
    curve = table[["order_parameter", "dloss_db", "dloss_db_backward"]]
    for name, losses in (("train_loss", training), ("validation_loss", validation)):
        curve[name] = ("step", [losses.get(step, math.nan) for step in table["step"].to_numpy().tolist()])
    return curve, suite, list(outcome.files)


def _initial_b(plan: TrainingPlan, text: Text) -> dict[str, dict[str, float]]:
    """b of the untrained model by initialisation: expected, its standard deviation, and measured on such a model."""
    vocab = len(set(text.content)) if plan.tokenizer == "characters" else plan.vocab
    found: dict[str, dict[str, float]] = {}
    for kind in INITIALISATIONS:
        head = new_model(replace(plan, initialisation=kind), vocab).lm_head.weight
        b, spread = expected_b(kind, vocab, plan.d_model)
        found[kind] = {"expected": b, "spread": spread, "measured": float(head.detach().double().norm()) / plan.d_model}
    return found


# -- files ----------------------------------------------------------------------------------------------------


def _write_runs(results: Results, runs: Runs, seeds: Sequence[int]) -> Path:
    """Write ``runs.csv``: every curve of every run."""
    rows = [
        (size, seed, int(step), *(float(run[name].sel(step=step)) for name in _CURVES))
        for size, curves in runs.items()
        for seed, run in zip(seeds, curves, strict=True)
        for step in run["step"].to_numpy()
    ]
    return write_csv(results.path / "runs.csv", ("model", "seed", "step", *_CURVES), rows, digits=_DIGITS)


def _write_comparison(results: Results, runs: Runs, seeds: Sequence[int]) -> Path:
    """Write ``comparison.csv``: each run beside the published numbers, at the steps that both have.

    `dloss_db_backward` is the difference to the common step before, in both.
    """
    names = _CURVES[:3]
    rows = []
    for size, curves in runs.items():
        published = published_blog(size)
        for seed, run in zip(seeds, curves, strict=True):
            steps = np.intersect1d(run["step"], published["step"])
            both = [curve.sel(step=steps) for curve in (run, published)]
            pairs = [[curve[name].to_numpy() for curve in both] for name in names]
            pairs.append([backward_derivative(b, loss) for b, loss in zip(pairs[0], pairs[1], strict=True)])
            values = np.array(pairs).reshape(-1, len(steps)).T
            rows += [(size, seed, int(step), *row) for step, row in zip(steps, values.tolist(), strict=True)]
    columns = [column for name in (*names, _CURVES[4]) for column in (name, f"{name}_published")]
    return write_csv(results.path / "comparison.csv", ("model", "seed", "step", *columns), rows, digits=_DIGITS)


def _write_initial(results: Results, initial: Initial) -> Path:
    """Write ``initial_b.csv``: b of the untrained models."""
    rows = []
    for size, kinds in initial.items():
        published = {"pytorch": float(published_blog(size)["order_parameter"][0])}
        for kind, found in kinds.items():
            own = (found[name] for name in ("expected", "spread", "measured"))
            rows.append((size, kind, *own, published.get(kind, math.nan)))
    columns = ("model", "initialisation", "expected", "standard_deviation", "measured", "published")
    return write_csv(results.path / "initial_b.csv", columns, rows, digits=_DIGITS)


def _write_sample(results: Results, size: str, suite: Suite) -> Path:
    """Write eight samples of a suite's last model."""
    path = results.path / f"sample-{size}.txt"
    sample = sample_text(suite, suite.losses[-1].step, samples=8)
    with atomic_file(path) as file:
        file.write(sample.encode())
    return path


def expected_b(initialisation: str, vocab: int, d_model: int) -> tuple[float, float]:
    """b of an untrained head, and its standard deviation over random heads.

    For ``pytorch``, uniform on ±1/√d, b = √(v/3)/d; for ``neox``, normal(0, 0.02), b = 0.02 √(v/d). With N = v·d and
    the kurtosis κ of the weights, the relative standard deviation is √((κ − 1)/N)/2, to first order in 1/N.

    Parameters
    ----------
    initialisation
        One of `INITIALISATIONS`.
    vocab
        v, the number of rows.
    d_model
        d, the number of weights in a row.

    Raises
    ------
    UnknownNameError
        For an unknown initialisation.
    """
    size = vocab * d_model
    if initialisation == "pytorch":
        b, kurtosis = math.sqrt(vocab / 3) / d_model, 1.8
    elif initialisation == "neox":
        b, kurtosis = 0.02 * math.sqrt(vocab / d_model), 3.0
    else:
        raise UnknownNameError("initialisation", initialisation, INITIALISATIONS)
    return b, b * math.sqrt((kurtosis - 1) / size) / 2
