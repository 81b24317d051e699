"""Claims about the loss: perplexity at the bifurcation, loss against the order parameter, the gain after a stop.

Each claim is a function of `saved`, the `SavedResults` of one model, that returns a `Decision` or raises
`NotTestableError`. Its docstring states the test.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.motion import reference_step, stationary
from pythia_dynamics.claims.saved import Curve, SavedResults
from pythia_dynamics.claims.statistics import (
    MAX_B_FALL,
    MAX_BREAK_P,
    MAX_LOSS_RISE,
    SAME_STEP,
    cubic_residual,
    drawdown,
    level_shift_at,
)
from pythia_dynamics.claims.verdict import Decision, NotTestableError, Number, decision_of
from pythia_dynamics.measures.order import break_in_line

__all__ = [
    "b_monotone",
    "below_one",
    "loss_falls_with_b",
    "nothing_to_gain",
    "perplexity_drops",
    "slope_changes",
    "unmasking_drops",
]

_MAX_LOG_CHANGE = float(np.log(0.9))
"""Change of the logarithm of the perplexity that counts as a drop: 10 %, as `MIN_EXCESS`."""

_MAX_CORRELATION = -0.9
"""Largest rank correlation of loss and b that counts as "falls with b"; −1 is a strictly monotone fall."""

_MIN_SLOPE_RATIO = 2.0
"""Least ratio of the two slopes of a broken line. A smooth convex curve has slopes that differ a little as well."""

_MAX_RESIDUAL_RATIO = 0.8
"""Largest residual of the broken line relative to that of a cubic: a smooth bend, which a cubic fits, is no break."""

_MAX_GAIN = 0.01
"""Largest relative fall of the loss after the reference step that counts as "nothing to gain"."""

_MIN_STEPS_B, _MIN_STEPS_LOSS = 3, 6
"""Fewest steps: b needs one step between its ends; `break_in_line` needs six points too."""

_PERPLEXITIES = {"forward": "ppl_corpus", "unmask": "ppl_corpus", "last-word": "ppl"}
"""The column of each perplexity table."""


def perplexity_drops(saved: SavedResults) -> Decision:
    """The forward perplexity drops by 10 % at the reference step beyond its trend, and more than elsewhere."""
    return _drops(saved, "forward")


def unmasking_drops(saved: SavedResults) -> Decision:
    """The causal-unmasking perplexity drops by 10 % at the reference step beyond its trend, and more than elsewhere."""
    return _drops(saved, "unmask")


def _drops(saved: SavedResults, mode: str) -> Decision:
    """The test of both claims for the perplexity of one mode."""
    (table,) = saved.read(f"perplexity-{mode}.csv", known=_published(saved))
    reference = reference_step(saved)
    known = Curve.of(table["ppl_corpus"].where(table["ppl_corpus"] >= 1))
    curve = Curve(known.steps, np.log(known.values))
    shift = level_shift_at(curve, reference.step, within=SAME_STEP * curve.span)
    if shift is None:
        raise NotTestableError(f"too few steps around {reference.description}", _published(saved))
    change, elsewhere = float(np.expm1(shift.value)), float(np.expm1(shift.elsewhere))
    numbers: dict[str, Number] = {"bifurcation_step": reference.step, "step": shift.step}
    numbers |= {"change": change, "change_elsewhere": elsewhere, "steps": len(curve)}
    numbers |= {"ppl_there": float(np.exp(curve.at(reference.step))), "ppl_last": float(np.exp(curve.values[-1]))}
    numbers |= _published(saved, reference.step)
    finding = (
        f"around {reference.description} the perplexity changes by {change:+.1%} beyond its trend, elsewhere by "
        f"{elsewhere:+.1%} at most{saved.fewer_steps(f'perplexity-{mode}', len(curve))}"
    )
    if saved.published is not None:
        finding += (
            f"; EleutherAI's last-word perplexity goes from {numbers['published_before']:.4g} (step "
            f"{numbers['published_before_step']:,}) to {numbers['published_last']:.4g} at the end"
        )
    return Decision.of(shift.value <= _MAX_LOG_CHANGE and shift.value < shift.elsewhere, finding, numbers)


def _published(saved: SavedResults, step: int | None = None) -> dict[str, float | int]:
    """EleutherAI's last-word perplexity: its least and last value, and that at the last step up to `step`."""
    table = saved.published
    if table is None:
        return {}
    curve = Curve.of(table["ppl"])
    places = {"best": int(np.argmin(curve.values)), "last": -1}
    if step is not None:
        places["before"] = max(int(np.searchsorted(curve.steps, step, side="right")) - 1, 0)
    numbers: dict[str, float | int] = {}
    for name, i in places.items():
        numbers |= {f"published_{name}": float(curve.values[i]), f"published_{name}_step": int(curve.steps[i])}
    return numbers


def below_one(saved: SavedResults) -> Decision:
    """No perplexity lies below 1: exp(mean NLL) of a probability cannot, so the claim is never supported."""
    least: dict[str, float] = {}
    steps: dict[str, int] = {}
    nonfinite = 0
    for mode, column in _PERPLEXITIES.items():
        table = saved.find(f"perplexity-{mode}.csv")
        if table is not None:
            curve = Curve.of(table[column])
            if len(curve):
                least[mode], steps[f"steps_{mode}"] = float(curve.values.min()), len(curve)
            nonfinite += int(np.nansum(table["nonfinite"].to_numpy() + table["overflow"].to_numpy()))
    if not least:
        saved.read("perplexity-forward.csv", known=_published(saved))
        raise NotTestableError("perplexity-forward.csv has no finite perplexity", _published(saved))
    impossible = {mode: value for mode, value in least.items() if value < 1}
    if impossible:
        named = ", ".join(f"{mode} {value:.3g}" for mode, value in impossible.items())
        reason = f"the tables hold values below 1 ({named}); these are computed wrongly, a perplexity is at least 1"
    else:
        named = ", ".join(f"{mode} {value:.4g}" for mode, value in least.items())
        reason = f"the least perplexity is {named}; {nonfinite} sentences have none (not finite, or below 1)"
    numbers = {f"least_{mode}": value for mode, value in least.items()}
    return Decision.of(False, reason, {**numbers, **steps, "nonfinite": nonfinite})


def b_monotone(saved: SavedResults) -> Decision:
    """b ends above its start and never falls below an earlier value by more than 1 % of its range."""
    (table,) = saved.read("order.csv")
    curve = Curve.of(table["order_parameter"])
    if len(curve) < _MIN_STEPS_B:
        raise NotTestableError(f"{len(curve)} steps are too few")
    fall = drawdown(curve.values)
    first, last = float(curve.values[0]), float(curve.values[-1])
    top = int(curve.steps[int(np.argmax(curve.values))])
    finding = (
        f"b goes from {first:.4g} to {last:.4g}; its largest fall is {fall:.1%} of its range (greatest at {top:,})"
    )
    grows = last > first and fall <= MAX_B_FALL
    if grows:
        finding += "; the norm of a random walk grows as well"
    return Decision.of(grows, finding, {"first": first, "last": last, "largest_fall": fall, "greatest_at": top})


def _b_and_loss(saved: SavedResults) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """b and the loss (n,) at the steps at which both are known."""
    (table,) = saved.read("order.csv")
    if "loss" not in table:
        return np.empty(0), np.empty(0)
    both = table[["order_parameter", "loss"]].where(np.isfinite).dropna("step")
    return both["order_parameter"].to_numpy(), both["loss"].to_numpy()


def _no_loss(saved: SavedResults, needed: str) -> NotTestableError:
    """The error where ``order.csv`` has no loss at the steps that are `needed`."""
    return NotTestableError(f"order.csv has no loss at {needed}: run {saved.command_for('order.csv')} --loss FILE")


def loss_falls_with_b(saved: SavedResults) -> Decision:
    """In the order of b, the loss correlates by rank at −0.9 or less and never rises by more than 5 % of its range."""
    from scipy.stats import spearmanr

    b, loss = _b_and_loss(saved)
    if len(b) < _MIN_STEPS_LOSS:
        raise _no_loss(saved, "six steps or more")
    if np.ptp(b) == 0 or np.ptp(loss) == 0:
        raise NotTestableError("b or the loss does not change")
    correlation = float(spearmanr(b, loss).statistic)
    rise = drawdown(-loss[np.argsort(b, kind="stable")])
    finding = (
        f"rank correlation of loss and b at {len(b)} steps {correlation:.3f}; along growing b the loss rises by "
        f"{rise:.1%} of its range at most"
    )
    falls = correlation <= _MAX_CORRELATION and rise <= MAX_LOSS_RISE
    return Decision.of(falls, finding, {"rank_correlation": correlation, "largest_rise": rise, "steps": len(b)})


def slope_changes(saved: SavedResults) -> Decision:
    """Loss against b: a line with one break fits better than one line, and than a cubic, with as many parameters."""
    b, loss = _b_and_loss(saved)
    fit = break_in_line(b, loss)
    if fit is None:
        raise _no_loss(saved, "six steps of different b")
    before, after = abs(fit.slope_before), abs(fit.slope_after)
    ratio = max(before, after) / max(min(before, after), np.finfo(float).tiny)
    turned = fit.slope_before * fit.slope_after < 0
    residual = _broken_residual(b, loss, fit.at) / max(cubic_residual(b, loss), np.finfo(float).tiny)
    numbers = {"break_b": fit.at, "slope_before": fit.slope_before, "slope_after": fit.slope_after, "p": fit.p}
    numbers |= {"residual_against_cubic": residual, "steps": len(b)}
    finding = (
        f"dL/db goes from {fit.slope_before:.3g} to {fit.slope_after:.3g} at b = {fit.at:.4g} (p = {fit.p:.3g} against "
        f"one line, {len(b)} steps); a broken line leaves {residual:.2g} times what a smooth cubic leaves"
    )
    changed = fit.p <= MAX_BREAK_P and (ratio >= _MIN_SLOPE_RATIO or turned)
    return Decision.of(changed and residual <= _MAX_RESIDUAL_RATIO, finding, numbers)


def _broken_residual(x: NDArray[np.float64], y: NDArray[np.float64], at: float) -> float:
    """Residual sum of squares of the continuous line with a break at x = `at`."""
    design = np.column_stack([np.ones_like(x), x, np.maximum(x - at, 0)])
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    return float(np.sum((y - design @ coefficients) ** 2))


def nothing_to_gain(saved: SavedResults) -> Decision:
    """Where the weights are stationary after the reference step, the loss falls by at most 1 % from it to the end."""
    rest = decision_of(stationary, saved)
    if rest.verdict == "not testable here":
        raise NotTestableError(rest.reason)
    if rest.verdict == "not supported":
        raise NotTestableError(
            "the weights are not known to be stationary after any step, so the protocol does not stop"
        )
    reference = reference_step(saved)
    (table,) = saved.read("perplexity-forward.csv")
    curve = Curve.of(table["nll_mean"])
    start, last = curve.at(reference.step), float(curve.values[-1])
    gain = (start - last) / start
    finding = f"from {reference.description} to the end the loss goes from {start:.4g} to {last:.4g} nats per token"
    finding += saved.fewer_steps("perplexity-forward", len(curve))
    numbers = {"bifurcation_step": reference.step, "gain": gain, "steps": len(curve)}
    return Decision.of(gain <= _MAX_GAIN, finding, numbers)
