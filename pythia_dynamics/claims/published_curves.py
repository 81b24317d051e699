"""Agreement of training runs with the curves that the order-parameter blog publishes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.claims.evidence import LEVEL, Evidence
from pythia_dynamics.claims.verdict import Claim, Decision, NotTestableError
from pythia_dynamics.results.published_blog import published_blog

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["LEAST_SEEDS", "PUBLISHED_CURVES", "judge_published_curves"]

LEAST_SEEDS = 3
"""Fewest seeds: the standard deviation of two runs is known to a factor of 12 only, that of three to one of 4."""

_MAX_DIFFERENCE = 0.05
"""Largest relative difference of curves that agree, the same as for other losses. b of two neighbouring sizes differs
by a factor of two or more."""

_CURVES = {"order_parameter": "b", "train_loss": "training loss", "validation_loss": "validation loss"}

_claim = partial(Claim, work="A Large Language Model Order Parameter")

PUBLISHED_CURVES = _claim(
    "published-curves",
    "Trained again, the models have the published curves: b, training and validation loss at every published step.",
    "Fig 3 and 4",
    "For each curve the median over the published steps of its relative difference to the mean over seeds. Its error "
    "is the standard deviation of the seeds, with the factor √(1 + 1/n), because the published run is one more seed. "
    "Two one-sided tests against a difference of 5 % (Student's distribution, n − 1 degrees of freedom); p is the "
    "largest of all curves, each of which must agree. A difference that a further run would not have refutes the "
    "agreement.",
    "at most 5 % for every curve, within the 95 % interval of a further run for all curves together (Bonferroni); at "
    "least three seeds",
    remark="Curves that agree are not known to be equal, but to within 5 %.",
)


def judge_published_curves(runs: Mapping[str, Sequence[xr.Dataset]]) -> Decision:
    """The published curves lie within the spread of the seeds.

    Where the published run is one more seed, and its deviation is the same at every step, its difference over its error
    has exactly Student's distribution; deviations that differ from step to step make the median smaller.

    Parameters
    ----------
    runs
        The curves by size, one dataset over `step` per seed, with `order_parameter`, `train_loss` and
        `validation_loss`. Runs without every published step are left out, and sizes with fewer than `LEAST_SEEDS` runs.

    Raises
    ------
    NotTestableError
        Where no size has enough runs, and where the runs of one do not differ.
    """
    from scipy.stats import t

    complete: dict[str, list[xr.Dataset]] = {}
    left_out = []
    for size, seeds in runs.items():
        steps = published_blog(size)["step"]
        curves = [run[list(_CURVES)].reindex(step=steps) for run in seeds]
        known = [curve for curve in curves if all(np.isfinite(curve[name]).all() for name in _CURVES)]
        if len(known) >= LEAST_SEEDS:
            complete[size] = known
        else:
            left_out.append(f"{size} has {len(known)} of {LEAST_SEEDS} runs that have every published step")
    if not complete:
        raise NotTestableError("; ".join(left_out) or "there is no run")
    numbers: dict[str, float | int] = {}
    sentences = []
    found: list[tuple[float, float, int, float]] = []
    for size, curves in complete.items():
        limit = float(t.ppf(1 - LEVEL / (2 * len(_CURVES) * len(complete)), len(curves) - 1))
        parts = []
        for name, label in _CURVES.items():
            statistic, difference, hidden = _deviation(curves, size, name)
            found.append((abs(difference), hidden, len(curves) - 1, abs(statistic) / limit))
            p = 2 * float(t.sf(abs(statistic), len(curves) - 1))
            numbers |= {f"{size} {label} difference": difference, f"{size} {label} t": statistic}
            numbers |= {f"{size} {label} p": p, f"{size} {label} hidden": hidden * limit}
            parts.append(f"{label} {difference:+.1%} (t = {statistic:.2g}, {hidden * limit:.1%} would be seen)")
        numbers[f"{size} limit"] = limit
        sentences.append(f"{size}, {len(curves)} seeds, limit {limit:.3g}: {', '.join(parts)}")
    reason = "; ".join([f"runs against published, median over steps: {sentences[0]}", *sentences[1:], *left_out])
    effects, errors, freedoms, ratios = (np.array(column) for column in zip(*found, strict=True))
    # Of the two one-sided tests of a curve that against the limit on the side of its difference has the larger p.
    p_values = t.sf((_MAX_DIFFERENCE - effects) / errors, freedoms)
    # A curve that is equal has a difference of at most this in so many cases; errors of curves may go together.
    room = _MAX_DIFFERENCE / errors - t.ppf(1 - LEVEL, freedoms)
    missed = np.where(room > 0, 2 * t.sf(room, freedoms), 1.0)
    largest = int(np.argmax(effects))
    half = float(t.ppf(1 - LEVEL / 2, freedoms[largest]) * errors[largest])
    evidence = Evidence(
        "largest relative difference of a published curve to the mean of the seeds",
        float(effects[largest]),
        _MAX_DIFFERENCE,
        null=f"a difference of {_MAX_DIFFERENCE:.0%}, and the spread of the seeds",
        p=float(p_values.max()),
        power=max(1 - float(missed.sum()), 0.0),
        low=max(float(effects[largest]) - half, 0.0),
        high=float(effects[largest]) + half,
        at_most=True,
    )
    return Decision(reason, numbers, evidence, refuted=bool(ratios.max() > 1))


def _deviation(curves: Sequence[xr.Dataset], size: str, name: str) -> tuple[float, float, float]:
    """t of a curve, the median relative difference of the runs, and its standard error, which has t = 1."""
    values = np.array([curve[name].to_numpy() for curve in curves])
    published = published_blog(size)[name].to_numpy()
    mean, spread = values.mean(axis=0), values.std(axis=0, ddof=1)
    if not np.all(spread > 0):
        raise NotTestableError(f"the runs of {size} do not differ: they have one seed")
    error = spread * math.sqrt(1 + 1 / len(curves))
    return (
        float(np.median((mean - published) / error)),
        float(np.median((mean - published) / published)),
        float(np.median(error / published)),
    )
