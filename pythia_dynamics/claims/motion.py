"""Claims of "The Garden of Forking Paths" about weights: displacement, density, rank, stationarity, quantisation.

Each claim is a function of `saved`, the `SavedResults` of one model, that returns a `Decision` or raises
`NotTestableError`. Its docstring states the test.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

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
from pythia_dynamics.claims.verdict import Decision, NotTestableError, Number, decision_of
from pythia_dynamics.measures.bifurcation import first_lasting
from pythia_dynamics.measures.two_time import fit_exponent, lag_table

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "ReferenceStep",
    "density_bimodal",
    "msd_peak",
    "msd_time_peak",
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


def reference_step(saved: SavedResults) -> ReferenceStep:
    """The step at which the MSD peaks beyond its null, by Eq 4 or else demeaned over time; else the paper's step.

    Parameters
    ----------
    saved
        The results of one model.

    Returns
    -------
    ReferenceStep
        The step.

    Raises
    ------
    NotTestableError
        Where there is no such peak and the paper gives no step inside the steps of ``msd.csv``.
    """
    tests: dict[Origin, Callable[[SavedResults], Decision]] = {"msd": msd_peak, "msd_time": msd_time_peak}
    for origin, test in tests.items():
        decision = decision_of(test, saved)
        step = decision.numbers.get("peak_step")
        if decision.verdict == "supported" and isinstance(step, int):
            return ReferenceStep(step, origin)
    paper, msd = paper_bifurcation(saved.name), saved.find("msd.csv")
    if paper is not None and msd is not None and msd["step"][0] < paper < msd["step"][-1]:
        return ReferenceStep(paper, "paper")
    saved.read("msd.csv", "order.csv")
    raise NotTestableError(
        "there is no step to look at: the MSD has no interior peak beyond its null, and the paper names a step for "
        "70M and 160M only"
    )


def _require_steps(curve: Curve) -> None:
    """Raise `NotTestableError` where a curve is too short for a peak."""
    if len(curve) < _MIN_STEPS:
        raise NotTestableError(f"{len(curve)} steps are too few to tell a peak from an end")


def msd_peak(saved: SavedResults) -> Decision:
    """The MSD of Eq 4 has an interior peak that exceeds both ends by the margin and the prominence of the null's peak.

    For 70M and 160M the peak must lie at the paper's step.
    """
    table, _ = saved.read("msd.csv", "order.csv")
    margin, paper = null_margin(saved.shape.rows), paper_bifurcation(saved.name)
    curve, null = Curve.of(table["msd"]), Curve.of(table["msd_null"])
    _require_steps(curve)
    top, null_top = peak(curve), peak(null)
    numbers: dict[str, Number] = {"peak_step": top.step, "rise": top.rise, "fall": top.fall}
    numbers |= {"null_fall": null_top.fall, "paper_step": paper, "margin": margin}
    needed = margin + null_top.prominence
    if top.prominence < needed:
        where = "its end" if top.fall < needed else "its start"
        finding = (
            f"no interior peak: the greatest MSD (step {top.step:,}) lies within {needed:.0%} of that at {where}, as a "
            "random walk's does"
        )
        return Decision.of(False, finding, numbers)
    finding = (
        f"the MSD peaks at step {top.step:,} and falls by {top.fall:.0%} until the end; its null falls by "
        f"{null_top.fall:.0%}"
    )
    if paper is not None and abs(top.step - paper) > SAME_STEP * curve.span:
        return Decision.of(False, f"{finding}; but the paper's peak is at about {paper:,}", numbers)
    return Decision.of(True, finding, numbers)


def msd_time_peak(saved: SavedResults) -> Decision:
    """The ratio of the MSD demeaned over time to its null has an interior peak above 1, where the curve has its own.

    The curve alone decides nothing: that of a random walk peaks as well.
    """
    table, _ = saved.read("msd.csv", "order.csv")
    margin = null_margin(saved.shape.rows)
    inner = table.isel(step=slice(None, -1))  # the last value is zero by construction
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = Curve.of((inner["msd_time"] / inner["msd_time_null"]).where(inner["msd_time_null"] > 0))
    curve = Curve.of(table["msd_time"])
    _require_steps(ratio)
    top, raw, null = peak(ratio), peak(curve), peak(Curve.of(table["msd_time_null"]))
    excess = float(ratio.values.max())
    numbers: dict[str, Number] = {"peak_step": raw.step, "ratio_peak_step": top.step, "ratio": excess}
    numbers |= {"null_peak_step": null.step, "margin": margin}
    peaks = f"the MSD demeaned over time peaks at step {raw.step:,}, that of a random walk at {null.step:,}"
    if excess < 1 + margin:
        return Decision.of(False, f"{peaks}; it nowhere exceeds the walk's by {margin:.0%}", numbers)
    if top.prominence < margin:
        finding = f"{peaks}; their ratio is greatest at an end, as for drift or mean reversion"
        return Decision.of(False, finding, numbers)
    if abs(top.step - raw.step) > SAME_STEP * curve.span:
        return Decision.of(False, f"{peaks}; it exceeds the walk's most at another step, {top.step:,}", numbers)
    finding = f"{peaks}; it exceeds the walk's most, {excess:.1f}-fold, at step {top.step:,}"
    return Decision.of(True, finding, numbers)


def _counted(density: xr.Dataset) -> tuple[xr.Dataset, NDArray[np.float64]]:
    """The steps of ``density.zarr`` with finite weights, and how often each value occurs at them."""
    counts = density["counts"].to_numpy().astype(np.float64)
    known = np.flatnonzero(counts.sum(axis=1) > 0)
    return density.isel(step=known), counts[known]


def density_bimodal(saved: SavedResults) -> Decision:
    """The density has a second mode from some step to the end, and that step is the reference step.

    The modes are those of a kernel density estimate of the exact counts (`second_mode`).
    """
    result, _ = saved.read("density.zarr", "order.csv")
    rows, (known, counts) = saved.shape.rows, _counted(result)
    steps, values = known["step"].to_numpy(), known["value"].to_numpy()
    if len(steps) < _MIN_STEPS:
        raise NotTestableError(f"{len(steps)} steps are too few to tell a change from an end")
    second = np.array([second_mode(values, row, rows) for row in counts])
    since, bimodal = first_lasting(steps, second >= 1), int(np.count_nonzero(second >= 1))
    last = known.isel(step=-1)
    numbers: dict[str, Number] = {"bimodal_since": since, "second_mode_last": float(second[-1])}
    for name, variable in (("modes_of_all_weights", "modes"), ("sarle", "bimodality"), ("dip_p", "dip_p")):
        numbers[f"{name}_last"] = float(last[variable])
    numbers |= {"steps_with_two_modes": bimodal, "steps": len(steps)}
    if since is None:
        finding = f"the density has two modes at {bimodal} of {len(steps)} steps, but not at the last tenth of them"
        if second[-1] < 1:
            finding = f"the density has no second mode at the end that {rows:,} independent rows can tell from noise"
        return Decision.of(False, finding, numbers)
    if since == steps[0]:
        finding = "the density has two modes from the first step on: it does not turn bimodal"
        return Decision.of(False, finding, numbers)
    try:
        reference = reference_step(saved)
    except NotTestableError:
        finding = (
            f"the density is bimodal from step {since:,} on, but the MSD has no peak beyond its null to go with it"
        )
        return Decision.of(False, finding, numbers)
    numbers |= {"bifurcation_step": reference.step, "bifurcation_from": reference.origin}
    finding = (
        f"the density is bimodal from step {since:,} on (Hartigan's dip at the end: p = {float(last['dip_p']):.2g}); "
        f"compared with {reference.description}"
    )
    same = abs(since - reference.step) <= SAME_STEP * (steps[-1] - steps[0])
    return Decision.of(same, finding, numbers)


def rank_shrinks(saved: SavedResults) -> Decision:
    """The rank drops at the reference step beyond its trend, and more than elsewhere.

    It is the mean over the paper's absolute tolerances, at the largest batch.
    """
    (table,) = saved.read("rank.csv")
    size = int(table["batch_size"].max())
    chosen = table.sel(batch_size=size, convention="absolute")
    curve = Curve.of(chosen["rank"].mean("tolerance"))
    if not len(curve):
        raise NotTestableError("rank.csv holds no finite rank")
    error = float(np.nanmedian(chosen["rank_se"])) if np.isfinite(chosen["rank_se"]).any() else 0.0
    margin = max(_MIN_RANK_DROP, MIN_EXCESS * float(curve.values.max()), _RANK_SIGMAS * error)
    numbers: dict[str, Number] = {"rank_first": float(curve.values[0]), "rank_last": float(curve.values[-1])}
    numbers |= {"batch_size": size, "margin": margin}
    if curve.values.min() > size - _CEILING_DISTANCE:
        raise NotTestableError(f"the rank is at its ceiling B − 1 = {size - 1} at every step and tolerance", numbers)
    reference = reference_step(saved)
    shift = level_shift_at(curve, reference.step, within=SAME_STEP * curve.span)
    if shift is None:
        raise NotTestableError(f"too few steps around {reference.description}", numbers)
    numbers |= {"bifurcation_step": reference.step, "change": shift.value, "change_elsewhere": shift.elsewhere}
    finding = (
        f"around {reference.description} the rank changes by {shift.value:+.2g} beyond its trend, elsewhere by "
        f"{shift.elsewhere:+.2g} at most"
    )
    return Decision.of(shift.value <= -margin and shift.value < shift.elsewhere, finding, numbers)


def stationary(saved: SavedResults) -> Decision:
    """The displacement between two steps no longer grows with the lag, a tenth of training after the reference step.

    The test is on the exponent of the displacement over the longer lags.
    """
    reference = reference_step(saved)
    (pairs,) = saved.read("two_time.zarr")
    steps, known = pairs["step"].to_numpy(), np.isfinite(np.diag(pairs["displacement"].to_numpy()))
    settled = reference.step + SAME_STEP * (steps[-1] - steps[0])
    kept = np.flatnonzero((steps >= settled) & known)
    steps = steps[kept]
    if len(steps) < _MIN_STEPS_STATIONARY:
        raise NotTestableError(f"{len(steps)} steps after {reference.description} are too few")
    squared = pairs["displacement"].to_numpy()[np.ix_(kept, kept)]
    lags, table = lag_table(steps, squared)
    length = float(steps[-1] - steps[0])
    long = lags >= length * _SHORTEST_LAG
    exponent = fit_exponent(lags[long], table[:, long], longest=length * _LONGEST_LAG)
    numbers: dict[str, Number] = {"bifurcation_step": reference.step, "since": int(steps[0])}
    numbers |= {"exponent": exponent.value, "exponent_low": exponent.low, "exponent_high": exponent.high}
    finding = (
        f"after {reference.description} the displacement grows as lag^{exponent.value:.2f} (95 %: "
        f"{exponent.low:.2f} to {exponent.high:.2f}); 0 is stationary, 1 a random walk"
    )
    if not np.isfinite(exponent.high):
        raise NotTestableError(finding, numbers)
    return Decision.of(exponent.high < _MAX_STATIONARY_EXPONENT, finding, numbers)


def ternary_density(saved: SavedResults) -> Decision:
    """Rounding to the best {−s, 0, +s} loses at most 5 % of Σw² at the last step, and half of the loss at the first."""
    known, counts = _counted(*saved.read("density.zarr"))
    if not len(counts):
        raise NotTestableError("density.zarr holds no finite weight")
    values = known["value"].to_numpy()
    _, first = ternary_error(values, counts[0])
    scale, last = ternary_error(values, counts[-1])
    finding = (
        f"rounding the last step's weights to {{−s, 0, +s}} with the best s = {scale:.3g} loses {last:.1%} of their "
        f"square (first step {first:.1%}; Gaussian 19 %, uniform 11 %)"
    )
    quantised = last <= _MAX_TERNARY_ERROR and last <= first / 2
    return Decision.of(quantised, finding, {"error_first": first, "error_last": last, "scale": scale})


def ternary_function(saved: SavedResults) -> Decision:
    """Rounding W_U to {−1, 0, +1}·scale raises the forward perplexity of the last step by at most 5 %."""
    table, rounded = saved.read("perplexity-forward.csv", "ternary/perplexity-forward.csv")
    curve, ternary = Curve.of(table["ppl_corpus"]), Curve.of(rounded["ppl_corpus"])
    if not len(ternary) or saved.settings("ternary/perplexity-forward").get("head") != "ternary":
        raise NotTestableError("ternary/perplexity-forward.csv has no perplexity with W_U rounded to three values")
    step, rounded_perplexity = int(ternary.steps[-1]), float(ternary.values[-1])
    if step not in curve.steps:
        raise NotTestableError(f"the perplexity of step {step:,} with W_U as it is is not known")
    exact = curve.at(step)
    cost = rounded_perplexity / exact - 1
    finding = (
        f"at step {step:,} rounding W_U to three values takes the perplexity from {exact:.4g} to "
        f"{rounded_perplexity:.4g}"
    )
    numbers = {"step": step, "ppl": exact, "ppl_ternary": rounded_perplexity, "cost": cost}
    return Decision.of(cost <= _MAX_TERNARY_COST, finding, numbers)
