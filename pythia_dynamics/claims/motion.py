"""Claims of "The Garden of Forking Paths" about weights: displacement, density, rank, stationarity, quantisation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pythia_dynamics.claims.saved import Curve, Saved, paper_step
from pythia_dynamics.claims.statistics import (
    FALL,
    change_at,
    first_lasting,
    null_margin,
    peak,
    second_mode,
    ternary_error,
)
from pythia_dynamics.claims.verdict import Decision, no, untestable, yes
from pythia_dynamics.measures.two_time import fit_exponent, lag_table

__all__ = [
    "NEAR",
    "Bifurcation",
    "bifurcation",
    "density_bimodal",
    "msd_peak",
    "msd_time_peak",
    "no_step",
    "rank_shrinks",
    "stationary",
    "ternary_density",
    "ternary_function",
]

NEAR = 0.1
"""Two steps are the same when they differ by no more than this share of the training that was looked at."""

_TERNARY_ERROR = 0.05
_TERNARY_COST = 0.05
_STATIONARY_EXPONENT = 0.5


@dataclass(frozen=True)
class Bifurcation:
    """The step at which everything is said to happen, and how it is known: ``msd``, ``msd_time`` or ``paper``."""

    step: int
    origin: str

    @property
    def said(self) -> str:
        """In words."""
        source = {
            "msd": "the peak of the MSD",
            "msd_time": "the peak of the MSD demeaned over time",
            "paper": "the paper's bifurcation; these results have no MSD peak beyond its null",
        }
        return f"step {self.step:,} ({source[self.origin]})"


def bifurcation(saved: Saved) -> Bifurcation | None:
    """Where the MSD peaks beyond its null, by Eq 4 or else demeaned over time; else the paper's step; or None."""
    for origin, decide in (("msd", msd_peak), ("msd_time", msd_time_peak)):
        decision = decide(saved)
        step = decision.numbers.get("peak_step")
        if decision.verdict == "supported" and isinstance(step, int):
            return Bifurcation(step, origin)
    step = paper_step(saved.name)
    table = saved.table("msd")
    if step is None or table is None or not table["step"][0] < step < table["step"][-1]:
        return None
    return Bifurcation(step, "paper")


def no_step() -> Decision:
    """What follows where there is no bifurcation to look at."""
    return untestable(
        "there is no step to look at: the MSD has no interior peak beyond its null, and the paper names a step for "
        "70M and 160M only"
    )


def msd_peak(saved: Saved) -> Decision:
    """Eq 4 as printed: an interior peak that stands out on both sides, where the null of a random walk has none."""
    table, shape = saved.table("msd"), saved.shape
    if table is None or shape is None:
        return untestable("msd.csv and order.csv are needed")
    curve, null = Curve.of(table["msd"]), Curve.of(table["msd_null"])
    if len(curve) < 10:
        return untestable(f"{len(curve)} steps are too few to tell a peak from an end")
    margin, top, of_null = null_margin(shape.rows), peak(curve), peak(null)
    numbers = {
        "peak_step": top.step,
        "rise": top.rise,
        "fall": top.fall,
        "null_fall": of_null.fall,
        "paper_step": paper_step(saved.name),
        "margin": margin,
    }
    needed = margin + of_null.prominence
    if top.prominence < needed:
        where = "its end" if top.fall < needed else "its start"
        return no(
            f"no interior peak: the greatest MSD (step {top.step:,}) lies within {needed:.0%} of that at {where}, as a "
            "random walk's does",
            **numbers,
        )
    found = f"the MSD peaks at step {top.step:,} and falls by {top.fall:.0%} until the end; its null falls by "
    found += f"{of_null.fall:.0%}"
    paper = paper_step(saved.name)
    if paper is not None and abs(top.step - paper) > NEAR * curve.span:
        return no(f"{found}; but the paper's peak is at about {paper:,}", **numbers)
    return yes(found, **numbers)


def msd_time_peak(saved: Saved) -> Decision:
    """Demeaned over time: the ratio to the null, which peaks too, must itself have an interior peak above 1."""
    table, shape = saved.table("msd"), saved.shape
    if table is None or shape is None:
        return untestable("msd.csv and order.csv are needed")
    margin = null_margin(shape.rows)
    inner = table.isel(step=slice(None, -1))  # the last value is zero by construction
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = Curve.of((inner["msd_time"] / inner["msd_time_null"]).where(inner["msd_time_null"] > 0))
    curve = Curve.of(table["msd_time"])
    if len(ratio) < 10:
        return untestable(f"{len(ratio)} steps are too few to tell a peak from an end")
    top, raw, null = peak(ratio), peak(curve), peak(Curve.of(table["msd_time_null"]))
    excess = float(ratio.values.max())
    numbers = {
        "peak_step": raw.step,
        "ratio_peak_step": top.step,
        "ratio": excess,
        "null_peak_step": null.step,
        "margin": margin,
    }
    artefact = f"the MSD demeaned over time peaks at step {raw.step:,}, that of a random walk at {null.step:,}"
    if excess < 1 + margin:
        return no(f"{artefact}; it nowhere exceeds the walk's by {margin:.0%}", **numbers)
    if top.prominence < margin:
        return no(f"{artefact}; their ratio peaks at an end, as for steady drift or a pull back", **numbers)
    if abs(top.step - raw.step) > NEAR * curve.span:
        return no(f"{artefact}; it exceeds the walk's most at another step, {top.step:,}", **numbers)
    return yes(f"{artefact}; it exceeds the walk's most, {excess:.1f}-fold, at step {top.step:,}", **numbers)


def density_bimodal(saved: Saved) -> Decision:
    """From the exact counts: the first step from which the density has a second mode to the end, against S."""
    result, shape = saved.array("density"), saved.shape
    if result is None or shape is None or "counts" not in result:
        return untestable("density.zarr and order.csv are needed")
    counts = result["counts"].to_numpy().astype(np.float64)
    there = counts.sum(axis=1) > 0
    if np.count_nonzero(there) < 10:
        return untestable("too few steps")
    steps = result["step"].to_numpy()[there]
    values = result["value"].to_numpy()
    second = np.array([second_mode(values, row, shape.rows) for row in counts[there]])
    since = first_lasting(steps, second >= 1)
    last = result.isel(step=int(np.flatnonzero(there)[-1]))
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
        few = np.count_nonzero(second >= 1)
        return no(
            f"the density has no second mode at the end that {shape.rows:,} independent rows could tell from noise"
            if second[-1] < 1
            else f"the density has two modes at {few} of {len(steps)} steps, but not lastingly",
            **numbers,
        )
    at = bifurcation(saved)
    if since == steps[0]:
        return no("the density has two modes from the first step on: it does not turn bimodal", **numbers)
    if at is None:
        return no(
            f"the density is bimodal from step {since:,} on, but the MSD has no peak beyond its null to go with it",
            **numbers,
        )
    numbers |= {"bifurcation_step": at.step, "bifurcation_from": at.origin}
    found = (
        f"the density is bimodal from step {since:,} on (Hartigan's dip at the end: p = {float(last['dip_p']):.2g}); "
    )
    found += f"held against {at.said}"
    return (yes if abs(since - at.step) <= NEAR * (steps[-1] - steps[0]) else no)(found, **numbers)


def rank_shrinks(saved: Saved) -> Decision:
    """The rank, averaged over the paper's absolute tolerances at the largest batch, drops at S beyond its trend."""
    table = saved.table("rank")
    if table is None:
        return untestable("rank.csv is needed")
    size = int(table["batch_size"].max())
    chosen = table.sel(batch_size=size, convention="absolute")
    curve = Curve.of(chosen["rank"].mean("tolerance"))
    if not len(curve):
        return untestable("no rank is known")
    error = float(np.nanmedian(chosen["rank_se"])) if np.isfinite(chosen["rank_se"]).any() else 0.0
    margin = max(1.0, FALL * float(curve.values.max()), 3 * error)
    numbers: dict[str, float | int | str | None] = {
        "rank_first": float(curve.values[0]),
        "rank_last": float(curve.values[-1]),
        "batch_size": size,
        "margin": margin,
    }
    if curve.values.min() > size - 1.5:
        return untestable(f"the rank is at its ceiling B − 1 = {size - 1} at every step and tolerance", **numbers)
    at = bifurcation(saved)
    if at is None:
        return no_step()
    change = change_at(curve, at.step, within=NEAR * curve.span)
    if change is None:
        return untestable(f"too few steps around {at.said}", **numbers)
    numbers |= {"bifurcation_step": at.step, "change": change.value, "change_elsewhere": change.elsewhere}
    found = (
        f"around {at.said} the rank changes by {change.value:+.2g} beyond its trend, elsewhere by "
        f"{change.elsewhere:+.2g} at most"
    )
    return (yes if change.value <= -margin and change.value < change.elsewhere else no)(found, **numbers)


def stationary(saved: Saved) -> Decision:
    """A tenth of training after S, the displacement between two steps no longer grows with the lag, for long lags."""
    at = bifurcation(saved)
    if at is None:
        return no_step()
    pairs = saved.array("two_time")
    if pairs is None:
        return untestable("two_time.zarr is needed; run pythia-dyn two-time")
    steps, known = pairs["step"].to_numpy(), np.isfinite(np.diag(pairs["displacement"].to_numpy()))
    settled = at.step + NEAR * (steps[-1] - steps[0])
    kept = np.flatnonzero((steps >= settled) & known)
    steps = steps[kept]
    if len(steps) < 16:
        return untestable(f"{len(steps)} steps after {at.said} are too few")
    squared = pairs["displacement"].to_numpy()[np.ix_(kept, kept)]
    lags, table = lag_table(steps, squared)
    length = float(steps[-1] - steps[0])
    long = lags >= length / 8
    exponent = fit_exponent(lags[long], table[:, long], longest=length / 2)
    numbers = {
        "bifurcation_step": at.step,
        "since": int(steps[0]),
        "exponent": exponent.value,
        "exponent_low": exponent.low,
        "exponent_high": exponent.high,
    }
    found = (
        f"after {at.said} the displacement grows as lag^{exponent.value:.2f} (95 %: {exponent.low:.2f} to "
        f"{exponent.high:.2f}); 0 is stationary, 1 a random walk"
    )
    if not np.isfinite(exponent.high):
        return untestable(found, **numbers)
    return (yes if exponent.high < _STATIONARY_EXPONENT else no)(found, **numbers)


def ternary_density(saved: Saved) -> Decision:
    """The share of Σw² that rounding to the best {−s, 0, +s} leaves, at the last step and at the first."""
    result = saved.array("density")
    if result is None or "counts" not in result:
        return untestable("density.zarr is needed")
    counts, values = result["counts"].to_numpy().astype(np.float64), result["value"].to_numpy()
    there = np.flatnonzero(counts.sum(axis=1) > 0)
    if not len(there):
        return untestable("no density is known")
    _, first = ternary_error(values, counts[there[0]])
    scale, last = ternary_error(values, counts[there[-1]])
    found = (
        f"rounding the last step's weights to {{−s, 0, +s}} with the best s = {scale:.3g} loses {last:.1%} of their "
        f"square (first step {first:.1%}; Gaussian 19 %, uniform 11 %)"
    )
    quantised = last <= _TERNARY_ERROR and last <= first / 2
    return (yes if quantised else no)(found, error_first=first, error_last=last, scale=scale)


def ternary_function(saved: Saved) -> Decision:
    """Forward perplexity of the last step with W_U rounded to {−1, 0, +1}·scale, against that with W_U as it is."""
    table, rounded = saved.table("perplexity-forward"), saved.ternary
    if table is None or rounded is None:
        return untestable(
            "perplexity-forward.csv and ternary/perplexity-forward.csv (--head ternary) of the same step are needed"
        )
    step, with_three = rounded
    curve = Curve.of(table["ppl_corpus"])
    if step not in curve.steps:
        return untestable(f"the perplexity of step {step:,} with W_U as it is is not known")
    exact = curve.at(step)
    cost = with_three / exact - 1
    found = f"at step {step:,} rounding W_U to three values takes the perplexity from {exact:.4g} to {with_three:.4g}"
    return (yes if cost <= _TERNARY_COST else no)(found, step=step, ppl=exact, ppl_ternary=with_three, cost=cost)
