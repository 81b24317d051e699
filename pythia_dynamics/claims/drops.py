"""Claims that something drops at the bifurcation: perplexities and the covariance rank.

Each claim is a function of `saved`, the `SavedResults` of one model, that returns a `Decision` or raises
`NotTestableError`. The statistic of all of them, but for that of a perplexity below 1, is the likeliest drop near the
step of the bifurcation, beyond the trend and the noise of the curve (`scan`).
"""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import numpy as np

from pythia_dynamics.claims.bifurcation_step import ReferenceStep, reference_step
from pythia_dynamics.claims.evidence import LEAST_POWER, LEVEL, Evidence
from pythia_dynamics.claims.saved import Curve, SavedResults
from pythia_dynamics.claims.scan import scan
from pythia_dynamics.claims.verdict import Decision, NotTestableError, Number

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["perplexity_below_one", "perplexity_drops", "rank_shrinks", "sharper_at_the_end", "unmasking_drops"]

LEAST_DROP = 0.1
"""Least drop that counts, as a share. 10 % is also the prominence that the detectors of a bifurcation ask of a peak."""

_LEAST_DIRECTIONS = 1.0
"""A rank is an integer: the mean rank must drop by one direction at least."""

_CEILING_DISTANCE = 1.5
"""A rank that is above its ceiling less 1.5 at every step is at it: a mean over draws may miss it by a half."""

_PERPLEXITIES = {"forward": "ppl_corpus", "unmask": "ppl_corpus", "last-word": "ppl"}
"""The column of each perplexity table."""

_PREFIXES = "perplexity-unmask-prefix.csv"

_MIN_SENTENCES = 0.5
"""Prefix lengths are used which this share of the sentences has. The longest prefixes are those of a few sentences."""

_MIN_PREFIXES = 6
"""Fewest prefix lengths: two in each third."""

_NULL = (
    "the same search in curves without a drop, with a smooth trend and the autocorrelated noise of this curve (from "
    "white noise to a random walk)"
)


def perplexity_drops(saved: SavedResults) -> Decision:
    """The forward perplexity drops by 10 % at the reference step beyond its trend; no drop elsewhere is as likely.

    Parameters
    ----------
    saved
        The results of one model.
    """
    return _perplexity(saved, "forward")


def unmasking_drops(saved: SavedResults) -> Decision:
    """The unmasking perplexity drops by 10 % at the reference step, beyond its trend; none elsewhere is as likely.

    Parameters
    ----------
    saved
        The results of one model.
    """
    return _perplexity(saved, "unmask")


def _perplexity(saved: SavedResults, mode: str) -> Decision:
    """The test of both claims for the perplexity of one mode."""
    (table,) = saved.read(f"perplexity-{mode}.csv", known=_published(saved))
    reference = _reference(saved)
    known = Curve.of(table["ppl_corpus"].where(table["ppl_corpus"] >= 1))
    numbers: dict[str, Number] = {"steps": len(known), **_published(saved, reference.step)}
    if len(known):
        numbers |= {"ppl_there": known.at(reference.step), "ppl_last": float(known.values[-1])}
    beside = saved.fewer_steps(f"perplexity-{mode}", len(known))
    if saved.published is not None:
        beside += (
            f"; EleutherAI's last-word perplexity goes from {numbers['published_before']:.4g} (step "
            f"{numbers['published_before_step']:,}) to {numbers['published_last']:.4g} at the end"
        )
    curve = Curve(known.steps, np.log(known.values))
    return _at_the_step(curve, reference, "the perplexity", numbers, beside)


def sharper_at_the_end(saved: SavedResults) -> Decision:
    """The causal-unmasking perplexity drops by 10 % more for long prefixes than for short ones at the reference step.

    The curve is the mean of the log perplexity over the long third of the prefix lengths, less that over the short
    third.

    Parameters
    ----------
    saved
        The results of one model.
    """
    table = saved.find(_PREFIXES)
    if table is None:
        raise NotTestableError(f"{_PREFIXES} is missing: run {saved.command_for('perplexity-unmask.csv')}")
    reference = _reference(saved)
    numbers: dict[str, Number] = {}
    counts = table["sentences"].max("step")
    used = table["prefix"].to_numpy()[(counts >= _MIN_SENTENCES * float(counts.max())).to_numpy()]
    if len(used) < _MIN_PREFIXES:
        raise NotTestableError(f"{len(used)} prefix lengths are too few to compare long ones with short ones")
    third = len(used) // 3
    numbers |= {"short_prefixes": int(used[third - 1]), "long_prefixes": int(used[-third])}
    loss = table["nll_mean"].transpose("step", "prefix")
    loss = loss.where(loss >= 0)  # as below 1: no perplexity
    short, long = (loss.sel(prefix=chosen).mean("prefix", skipna=False) for chosen in (used[:third], used[-third:]))
    what = (
        f"the ratio of the unmasking perplexity for prefixes of {int(used[-third])} tokens and more to that for "
        f"{int(used[third - 1])} and fewer"
    )
    curve = Curve.of(long - short)
    return _at_the_step(curve, reference, what, {**numbers, "steps": len(curve)}, "")


def rank_shrinks(saved: SavedResults) -> Decision:
    """The rank drops at the reference step beyond its trend by 10 % of the greatest rank.

    It is the mean over the paper's absolute tolerances, at the largest batch. Its error over the random projections
    bounds the noise from below.

    Parameters
    ----------
    saved
        The results of one model.
    """
    (table,) = saved.read("rank.csv")
    size = int(table["batch_size"].max())
    chosen = table.sel(batch_size=size, convention="absolute")
    curve = Curve.of(chosen["rank"].mean("tolerance"))
    if not len(curve):
        raise NotTestableError("rank.csv holds no finite rank")
    errors = chosen["rank_se"].to_numpy()
    error = float(np.median(errors[np.isfinite(errors)])) if np.isfinite(errors).any() else 0.0
    greatest = float(curve.values.max())
    numbers: dict[str, Number] = {"rank_first": float(curve.values[0]), "rank_last": float(curve.values[-1])}
    numbers |= {"batch_size": size, "rank_error": error, "steps": len(curve)}
    ceilings = {f"B − 1 = {size - 1}": size - 1}
    if saved.find("order.csv") is not None:
        ceilings[f"d = {saved.shape.width}"] = saved.shape.width
    named = min(ceilings, key=lambda name: ceilings[name])
    if greatest <= 0 or curve.values.min() > ceilings[named] - _CEILING_DISTANCE:
        where = f"at its ceiling {named}" if greatest > 0 else "zero"
        raise NotTestableError(f"the rank is {where} at every step and tolerance", numbers)
    reference = _reference(saved, numbers)
    least = max(LEAST_DROP, _LEAST_DIRECTIONS / greatest)
    relative = Curve(curve.steps, curve.values / greatest)
    return _at_the_step(
        relative, reference, "the rank, relative to its greatest value,", numbers, "", least, error / greatest
    )


def perplexity_below_one(saved: SavedResults) -> Decision:
    """No perplexity lies below 1: exp(mean NLL) of a probability cannot, so the claim is never supported.

    Parameters
    ----------
    saved
        The results of one model.
    """
    least: dict[str, float] = {}
    numbers: dict[str, Number] = {}
    nonfinite = 0
    for mode, column in _PERPLEXITIES.items():
        table = saved.find(f"perplexity-{mode}.csv")
        if table is not None:
            curve = Curve.of(table[column])
            if len(curve):
                least[mode] = float(curve.values.min())
                numbers |= {f"least_{mode}": least[mode], f"steps_{mode}": len(curve)}
            nonfinite += int(np.nansum(table["nonfinite"].to_numpy() + table["overflow"].to_numpy()))
    if not least:
        saved.read("perplexity-forward.csv", known=_published(saved))
        raise NotTestableError("perplexity-forward.csv has no finite perplexity", _published(saved))
    impossible = {mode: value for mode, value in least.items() if value < 1}
    named = ", ".join(f"{mode} {value:.4g}" for mode, value in (impossible or least).items())
    if impossible:
        reason = f"the tables hold values below 1 ({named}); these are computed wrongly, a perplexity is at least 1"
    else:
        reason = f"the least perplexity is {named}; {nonfinite} sentences have none (not finite, or below 1)"
    evidence = Evidence.exact("least perplexity of all tables", min(least.values()), 1.0, at_most=True)
    return Decision(reason, {**numbers, "nonfinite": nonfinite}, evidence, refuted=True)


def _reference(saved: SavedResults, known: dict[str, Number] | None = None) -> ReferenceStep:
    """The reference step; the error where there is none has the numbers that are `known`."""
    try:
        return reference_step(saved)
    except NotTestableError as error:
        raise NotTestableError(str(error), {**_published(saved), **(known or {})}) from None


def _at_the_step(
    curve: Curve,
    reference: ReferenceStep,
    what: str,
    numbers: dict[str, Number],
    beside: str,
    least: float | None = None,
    error: float = 0.0,
) -> Decision:
    """The decision on a drop of a curve at the reference step.

    Parameters
    ----------
    curve
        The curve. With `least` None, the logarithm of what drops, and the least drop is 10 % of it.
    reference
        The step.
    what
        What drops, in words.
    numbers, beside
        Numbers and the end of the reason that are known already.
    least
        The least drop in units of the curve.
    error
        Known error of the values of the curve.
    """
    logarithmic = least is None
    least = LEAST_DROP if least is None else least
    numbers = {"bifurcation_step": reference.step, **numbers}
    try:
        found = scan(curve, reference.step, least=-float(np.log1p(-least)) if logarithmic else least, error=error)
    except NotTestableError as raised:
        raise NotTestableError(f"{raised} ({reference.description})", numbers) from None

    def drop(change: float) -> float:
        """A change of the curve as a drop, a share."""
        return -float(np.expm1(change)) if logarithmic else -change

    evidence = Evidence(
        statistic=f"drop of {what.rstrip(',')} near the bifurcation beyond the trend, as a share",
        effect=drop(found.change),
        least=least,
        null=_NULL,
        p=found.p,
        power=found.power,
        low=drop(found.high),
        high=drop(found.low),
    )
    numbers |= {key: _plain(value) for key, value in asdict(found).items() if key not in ("p", "power", "low", "high")}
    numbers |= {"change": -evidence.effect, "elsewhere": -drop(found.elsewhere)}
    reason = (
        f"near {reference.description} {what} changes by {-evidence.effect:+.1%} beyond its trend (steps "
        f"{found.start:,} to {found.end:,}; p = {found.p:.2g})"
    )
    if found.elsewhere_score > 0:  # it drops somewhere else
        size = -drop(found.elsewhere)
        reason += (
            f"; of all other places the likeliest drop is that at steps {found.elsewhere_start:,} to "
            f"{found.elsewhere_end:,} ({size:+.1%})"
        )
    here = found.p <= LEVEL and evidence.large_enough
    if found.is_other and not here:
        rise = found.rise_score > found.elsewhere_score or found.elsewhere_start < 0
        reason += ", and a rise of the curve is likelier" if rise else ", and likelier than the one here"
    if found.removed:
        reason += f"; {found.removed} records that are far from the others and come back are left out"
    if here and found.rises_there:
        reason += "; the curve rises there as well, and more likely so"
    elif here and not found.greatest:
        reason += "; another change of the curve is about as likely, or more so"
    open_ = evidence.large_enough and (found.rises_there or not found.greatest)
    if not evidence.large_enough and not evidence.excluded and not found.power >= LEAST_POWER:
        reason += f"; a drop of {least:.0%} could not be told from the noise of this curve (power {found.power:.0%})"
    elif evidence.large_enough and found.p > LEVEL:
        reason += "; the noise of this curve alone may do so"
    return Decision(reason + beside, numbers, evidence, refuted=found.is_other and not here, open=open_)


def _plain(value: float) -> Number:
    """A number of a decision; None for NaN."""
    return None if isinstance(value, float) and np.isnan(value) else value


def _published(saved: SavedResults, step: int | None = None) -> dict[str, Number]:
    """EleutherAI's last-word perplexity: its least and last value, and that at the last step up to `step`."""
    table: xr.Dataset | None = saved.published
    if table is None:
        return {}
    curve = Curve.of(table["ppl"])
    places = {"best": int(np.argmin(curve.values)), "last": -1}
    if step is not None:
        places["before"] = max(int(np.searchsorted(curve.steps, step, side="right")) - 1, 0)
    numbers: dict[str, Number] = {}
    for name, i in places.items():
        numbers |= {f"published_{name}": float(curve.values[i]), f"published_{name}_step": int(curve.steps[i])}
    return numbers
