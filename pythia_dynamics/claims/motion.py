"""Claims of "The Garden of Forking Paths" about weights: displacement, density, rank, stationarity, quantisation.

Each claim is a function of `saved`, the `SavedResults` of one model, that returns a `Decision`. Its docstring states
the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pythia_dynamics.claims.saved import Curve, SavedResults, paper_bifurcation
from pythia_dynamics.claims.statistics import (
    MIN_EXCESS,
    SAME_STEP,
    level_shift_at,
    null_margin,
    peak,
    second_mode,
    ternary_error,
)
from pythia_dynamics.claims.verdict import Decision, not_supported, not_testable, supported
from pythia_dynamics.measures.bifurcation import first_lasting
from pythia_dynamics.measures.two_time import fit_exponent, lag_table

__all__ = [
    "ReferenceStep",
    "density_bimodal",
    "msd_peak",
    "msd_time_peak",
    "no_reference_step",
    "rank_shrinks",
    "reference_step",
    "stationary",
    "ternary_density",
    "ternary_function",
]

_MIN_STEPS = 10
"""Fewest steps for an interior peak: with fewer, one noisy value makes one."""

_MIN_STEPS_STATIONARY = 16
"""Fewest steps for the exponent: on an even grid this leaves six lags between 1/8 and 1/2 of the length."""

_SHORTEST_LAG, _LONGEST_LAG = 1 / 8, 1 / 2
"""Lags of the exponent as shares of the remaining training. Shorter lags show the noise of single steps; longer ones
are averaged over fewer waiting times than half of the steps."""

_MAX_STATIONARY_EXPONENT = 0.5
"""Half-way between 0, the exponent of a stationary process, and 1, that of a random walk."""

_MIN_RANK_DROP = 1.0
"""A rank is an integer: the mean rank must drop by one direction at least."""

_RANK_SIGMAS = 3
"""Standard errors of the rank (over random projections) that a drop must exceed."""

_CEILING_DISTANCE = 1.5
"""A rank above B − 1.5, within a half of its largest value B − 1, is at its ceiling."""

_MAX_TERNARY_ERROR = 0.05
"""Largest rounding error of weights that count as quantised: less than half of a uniform density's 0.11."""

_MAX_TERNARY_COST = 0.05
"""Largest relative increase of the perplexity that counts as "as good"."""


Origin = Literal["msd", "msd_time", "paper"]


@dataclass(frozen=True)
class ReferenceStep:
    """The step at which the claims about a bifurcation look.

    Parameters
    ----------
    step
        The step.
    origin
        Its source: the peak of the MSD (``msd``), of the MSD demeaned over time (``msd_time``), or the ``paper``.
    """

    step: int
    origin: Origin

    @property
    def description(self) -> str:
        """The step and its source in words."""
        source = {
            "msd": "the peak of the MSD",
            "msd_time": "the peak of the MSD demeaned over time",
            "paper": "the paper's bifurcation; these results have no MSD peak beyond its null",
        }
        return f"step {self.step:,} ({source[self.origin]})"


def reference_step(saved: SavedResults) -> ReferenceStep | None:
    """The step at which the MSD peaks beyond its null, by Eq 4 or else demeaned over time; else the paper's step.

    Parameters
    ----------
    saved
        The results of one model.

    Returns
    -------
    ReferenceStep or None
        None where there is no such peak and the paper gives no step inside the steps of ``msd.csv``.
    """
    tests: tuple[tuple[Origin, Callable[[SavedResults], Decision]], ...] = (
        ("msd", msd_peak),
        ("msd_time", msd_time_peak),
    )
    for origin, test in tests:
        decision = test(saved)
        step = decision.numbers.get("peak_step")
        if decision.verdict == "supported" and isinstance(step, int):
            return ReferenceStep(step, origin)
    step = paper_bifurcation(saved.name)
    table = saved.table("msd")
    if step is None or table is None or not table["step"][0] < step < table["step"][-1]:
        return None
    return ReferenceStep(step, "paper")


def no_reference_step(saved: SavedResults) -> Decision:
    """The decision on a claim about the bifurcation where there is no reference step.

    Parameters
    ----------
    saved
        The results of one model.
    """
    if saved.table("msd") is None or saved.table("order") is None:
        return not_testable(saved.missing("msd.csv", "order.csv"))
    return not_testable(
        "there is no step to look at: the MSD has no interior peak beyond its null, and the paper names a step for "
        "70M and 160M only"
    )


def msd_peak(saved: SavedResults) -> Decision:
    """The MSD of Eq 4 has an interior peak that exceeds both ends by the margin and the prominence of the null's peak.

    For 70M and 160M the peak must lie at the paper's step.
    """
    table, shape = saved.table("msd"), saved.shape
    if table is None or shape is None:
        return not_testable(saved.missing("msd.csv", "order.csv"))
    curve, null = Curve.of(table["msd"]), Curve.of(table["msd_null"])
    if len(curve) < _MIN_STEPS:
        return not_testable(f"{len(curve)} steps are too few to tell a peak from an end")
    margin, top, null_top = null_margin(shape.rows), peak(curve), peak(null)
    numbers = {
        "peak_step": top.step,
        "rise": top.rise,
        "fall": top.fall,
        "null_fall": null_top.fall,
        "paper_step": paper_bifurcation(saved.name),
        "margin": margin,
    }
    needed = margin + null_top.prominence
    if top.prominence < needed:
        where = "its end" if top.fall < needed else "its start"
        return not_supported(
            f"no interior peak: the greatest MSD (step {top.step:,}) lies within {needed:.0%} of that at {where}, as a "
            "random walk's does",
            **numbers,
        )
    finding = (
        f"the MSD peaks at step {top.step:,} and falls by {top.fall:.0%} until the end; its null falls by "
        f"{null_top.fall:.0%}"
    )
    paper = paper_bifurcation(saved.name)
    if paper is not None and abs(top.step - paper) > SAME_STEP * curve.span:
        return not_supported(f"{finding}; but the paper's peak is at about {paper:,}", **numbers)
    return supported(finding, **numbers)


def msd_time_peak(saved: SavedResults) -> Decision:
    """The ratio of the MSD demeaned over time to its null has an interior peak above 1, where the curve has its own.

    The curve alone decides nothing: that of a random walk peaks as well.
    """
    table, shape = saved.table("msd"), saved.shape
    if table is None or shape is None:
        return not_testable(saved.missing("msd.csv", "order.csv"))
    margin = null_margin(shape.rows)
    inner = table.isel(step=slice(None, -1))  # the last value is zero by construction
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = Curve.of((inner["msd_time"] / inner["msd_time_null"]).where(inner["msd_time_null"] > 0))
    curve = Curve.of(table["msd_time"])
    if len(ratio) < _MIN_STEPS:
        return not_testable(f"{len(ratio)} steps are too few to tell a peak from an end")
    top, raw, null = peak(ratio), peak(curve), peak(Curve.of(table["msd_time_null"]))
    excess = float(ratio.values.max())
    numbers = {
        "peak_step": raw.step,
        "ratio_peak_step": top.step,
        "ratio": excess,
        "null_peak_step": null.step,
        "margin": margin,
    }
    peaks = f"the MSD demeaned over time peaks at step {raw.step:,}, that of a random walk at {null.step:,}"
    if excess < 1 + margin:
        return not_supported(f"{peaks}; it nowhere exceeds the walk's by {margin:.0%}", **numbers)
    if top.prominence < margin:
        return not_supported(f"{peaks}; their ratio is greatest at an end, as for drift or mean reversion", **numbers)
    if abs(top.step - raw.step) > SAME_STEP * curve.span:
        return not_supported(f"{peaks}; it exceeds the walk's most at another step, {top.step:,}", **numbers)
    return supported(f"{peaks}; it exceeds the walk's most, {excess:.1f}-fold, at step {top.step:,}", **numbers)


def density_bimodal(saved: SavedResults) -> Decision:
    """The density has a second mode from some step to the end, and that step is the reference step.

    The modes are those of a kernel density estimate of the exact counts (`second_mode`).
    """
    result, shape = saved.array("density"), saved.shape
    if result is None or shape is None or "counts" not in result:
        return not_testable(saved.missing("density.zarr", "order.csv"))
    counts = result["counts"].to_numpy().astype(np.float64)
    known = counts.sum(axis=1) > 0
    if np.count_nonzero(known) < _MIN_STEPS:
        return not_testable(f"{np.count_nonzero(known)} steps are too few to tell a change from an end")
    steps = result["step"].to_numpy()[known]
    values = result["value"].to_numpy()
    second = np.array([second_mode(values, row, shape.rows) for row in counts[known]])
    since = first_lasting(steps, second >= 1)
    last = result.isel(step=int(np.flatnonzero(known)[-1]))
    numbers: dict[str, float | int | str | None] = {
        "bimodal_since": since,
        "second_mode_last": float(second[-1]),
        "modes_of_all_weights_last": float(last["modes"]),
        "sarle_last": float(last["bimodality"]),
        "dip_p_last": float(last["dip_p"]),
        "steps_with_two_modes": int(np.count_nonzero(second >= 1)),
        "steps": len(steps),
    }
    if since is None:
        bimodal = np.count_nonzero(second >= 1)
        return not_supported(
            f"the density has no second mode at the end that {shape.rows:,} independent rows can tell from noise"
            if second[-1] < 1
            else f"the density has two modes at {bimodal} of {len(steps)} steps, but not at the last tenth of them",
            **numbers,
        )
    if since == steps[0]:
        return not_supported("the density has two modes from the first step on: it does not turn bimodal", **numbers)
    reference = reference_step(saved)
    if reference is None:
        return not_supported(
            f"the density is bimodal from step {since:,} on, but the MSD has no peak beyond its null to go with it",
            **numbers,
        )
    numbers |= {"bifurcation_step": reference.step, "bifurcation_from": reference.origin}
    finding = (
        f"the density is bimodal from step {since:,} on (Hartigan's dip at the end: p = {float(last['dip_p']):.2g}); "
        f"compared with {reference.description}"
    )
    same = abs(since - reference.step) <= SAME_STEP * (steps[-1] - steps[0])
    return (supported if same else not_supported)(finding, **numbers)


def rank_shrinks(saved: SavedResults) -> Decision:
    """The rank drops at the reference step beyond its trend, and more than elsewhere.

    It is the mean over the paper's absolute tolerances, at the largest batch.
    """
    table = saved.table("rank")
    if table is None:
        return not_testable(saved.missing("rank.csv"))
    size = int(table["batch_size"].max())
    chosen = table.sel(batch_size=size, convention="absolute")
    curve = Curve.of(chosen["rank"].mean("tolerance"))
    if not len(curve):
        return not_testable("rank.csv holds no finite rank")
    error = float(np.nanmedian(chosen["rank_se"])) if np.isfinite(chosen["rank_se"]).any() else 0.0
    margin = max(_MIN_RANK_DROP, MIN_EXCESS * float(curve.values.max()), _RANK_SIGMAS * error)
    numbers: dict[str, float | int | str | None] = {
        "rank_first": float(curve.values[0]),
        "rank_last": float(curve.values[-1]),
        "batch_size": size,
        "margin": margin,
    }
    if curve.values.min() > size - _CEILING_DISTANCE:
        return not_testable(f"the rank is at its ceiling B − 1 = {size - 1} at every step and tolerance", **numbers)
    reference = reference_step(saved)
    if reference is None:
        return no_reference_step(saved)
    shift = level_shift_at(curve, reference.step, within=SAME_STEP * curve.span)
    if shift is None:
        return not_testable(f"too few steps around {reference.description}", **numbers)
    numbers |= {"bifurcation_step": reference.step, "change": shift.value, "change_elsewhere": shift.elsewhere}
    finding = (
        f"around {reference.description} the rank changes by {shift.value:+.2g} beyond its trend, elsewhere by "
        f"{shift.elsewhere:+.2g} at most"
    )
    drops = shift.value <= -margin and shift.value < shift.elsewhere
    return (supported if drops else not_supported)(finding, **numbers)


def stationary(saved: SavedResults) -> Decision:
    """The displacement between two steps no longer grows with the lag, a tenth of training after the reference step.

    The test is on the exponent of the displacement over the longer lags.
    """
    reference = reference_step(saved)
    if reference is None:
        return no_reference_step(saved)
    pairs = saved.array("two_time")
    if pairs is None:
        return not_testable(saved.missing("two_time.zarr"))
    steps, known = pairs["step"].to_numpy(), np.isfinite(np.diag(pairs["displacement"].to_numpy()))
    settled = reference.step + SAME_STEP * (steps[-1] - steps[0])
    kept = np.flatnonzero((steps >= settled) & known)
    steps = steps[kept]
    if len(steps) < _MIN_STEPS_STATIONARY:
        return not_testable(f"{len(steps)} steps after {reference.description} are too few")
    squared = pairs["displacement"].to_numpy()[np.ix_(kept, kept)]
    lags, table = lag_table(steps, squared)
    length = float(steps[-1] - steps[0])
    long = lags >= length * _SHORTEST_LAG
    exponent = fit_exponent(lags[long], table[:, long], longest=length * _LONGEST_LAG)
    numbers = {
        "bifurcation_step": reference.step,
        "since": int(steps[0]),
        "exponent": exponent.value,
        "exponent_low": exponent.low,
        "exponent_high": exponent.high,
    }
    finding = (
        f"after {reference.description} the displacement grows as lag^{exponent.value:.2f} (95 %: "
        f"{exponent.low:.2f} to {exponent.high:.2f}); 0 is stationary, 1 a random walk"
    )
    if not np.isfinite(exponent.high):
        return not_testable(finding, **numbers)
    return (supported if exponent.high < _MAX_STATIONARY_EXPONENT else not_supported)(finding, **numbers)


def ternary_density(saved: SavedResults) -> Decision:
    """Rounding to the best {−s, 0, +s} loses at most 5 % of Σw² at the last step, and half of the loss at the first."""
    result = saved.array("density")
    if result is None or "counts" not in result:
        return not_testable(saved.missing("density.zarr"))
    counts, values = result["counts"].to_numpy().astype(np.float64), result["value"].to_numpy()
    known = np.flatnonzero(counts.sum(axis=1) > 0)
    if not len(known):
        return not_testable("density.zarr holds no finite weight")
    _, first = ternary_error(values, counts[known[0]])
    scale, last = ternary_error(values, counts[known[-1]])
    finding = (
        f"rounding the last step's weights to {{−s, 0, +s}} with the best s = {scale:.3g} loses {last:.1%} of their "
        f"square (first step {first:.1%}; Gaussian 19 %, uniform 11 %)"
    )
    quantised = last <= _MAX_TERNARY_ERROR and last <= first / 2
    return (supported if quantised else not_supported)(finding, error_first=first, error_last=last, scale=scale)


def ternary_function(saved: SavedResults) -> Decision:
    """Rounding W_U to {−1, 0, +1}·scale raises the forward perplexity of the last step by at most 5 %."""
    table, rounded = saved.table("perplexity-forward"), saved.ternary
    if table is None or rounded is None:
        return not_testable(saved.missing("perplexity-forward.csv", "ternary/perplexity-forward.csv"))
    step, rounded_perplexity = rounded
    curve = Curve.of(table["ppl_corpus"])
    if step not in curve.steps:
        return not_testable(f"the perplexity of step {step:,} with W_U as it is is not known")
    exact = curve.at(step)
    cost = rounded_perplexity / exact - 1
    finding = (
        f"at step {step:,} rounding W_U to three values takes the perplexity from {exact:.4g} to "
        f"{rounded_perplexity:.4g}"
    )
    return (supported if cost <= _MAX_TERNARY_COST else not_supported)(
        finding, step=step, ppl=exact, ppl_ternary=rounded_perplexity, cost=cost
    )
