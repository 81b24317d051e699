"""Claims about what the weights do to the loss: perplexity at the bifurcation, the order parameter, when to stop."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pythia_dynamics.claims.motion import NEAR, bifurcation, no_step, stationary
from pythia_dynamics.claims.saved import Curve, Saved
from pythia_dynamics.claims.statistics import change_at, cubic_residual, drawdown
from pythia_dynamics.claims.verdict import Decision, no, untestable, yes
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

_DROP = float(np.log(0.9))
_B_DRAWDOWN = 0.01
_LOSS_RISE = 0.05
_CORRELATION = -0.9
_BREAK_P = 0.01
_SLOPE_RATIO = 2.0
_BEATS_CUBIC = 0.8
_GAIN = 0.01
_PERPLEXITIES = {"forward": "ppl_corpus", "unmask": "ppl_corpus", "last-word": "ppl"}


def perplexity_drops(saved: Saved) -> Decision:
    """Forward perplexity drops at S beyond its trend and beyond what it does elsewhere."""
    return _drops(saved, "forward")


def unmasking_drops(saved: Saved) -> Decision:
    """The same of the causal-unmasking perplexity."""
    return _drops(saved, "unmask")


def _drops(saved: Saved, mode: str) -> Decision:
    table = saved.table(f"perplexity-{mode}")
    if table is None:
        return untestable(f"perplexity-{mode}.csv is needed", **_published(saved))
    at = bifurcation(saved)
    if at is None:
        return no_step()
    known = Curve.of(table["ppl_corpus"].where(table["ppl_corpus"] >= 1))
    curve = Curve(known.steps, np.log(known.values))
    change = change_at(curve, at.step, within=NEAR * curve.span) if len(curve) else None
    if change is None:
        return untestable(f"too few steps around {at.said}", **_published(saved))
    numbers = {
        "bifurcation_step": at.step,
        "step": change.step,
        "change": float(np.expm1(change.value)),
        "change_elsewhere": float(np.expm1(change.elsewhere)),
        "ppl_there": float(np.exp(curve.at(at.step))),
        "ppl_last": float(np.exp(curve.values[-1])),
        **_published(saved, at.step),
    }
    found = (
        f"around {at.said} the perplexity changes by {np.expm1(change.value):+.1%} beyond its trend, elsewhere by "
        f"{np.expm1(change.elsewhere):+.1%} at most"
    )
    if saved.published is not None:
        found += (
            f"; EleutherAI's last-word perplexity goes from {numbers['published_before']:.4g} (step "
            f"{numbers['published_before_step']:,}) to {numbers['published_last']:.4g} at the end"
        )
    return (yes if change.value <= _DROP and change.value < change.elsewhere else no)(found, **numbers)


def _published(saved: Saved, step: int | None = None) -> dict[str, float | int]:
    """EleutherAI's last-word perplexity at the last step they evaluated up to `step`, and at the end."""
    table = saved.published
    if table is None:
        return {}
    curve = Curve.of(table["ppl"])
    numbers: dict[str, float | int] = {
        "published_best": float(curve.values.min()),
        "published_best_step": int(curve.steps[int(np.argmin(curve.values))]),
        "published_last": float(curve.values[-1]),
        "published_last_step": int(curve.steps[-1]),
    }
    if step is not None:
        before = max(int(np.searchsorted(curve.steps, step, side="right")) - 1, 0)
        numbers |= {
            "published_before": float(curve.values[before]),
            "published_before_step": int(curve.steps[before]),
        }
    return numbers


def below_one(saved: Saved) -> Decision:
    """Least perplexity of all tables. exp(mean NLL) is at least 1; what is less has been miscomputed."""
    least: dict[str, float] = {}
    spoilt = 0
    for mode, column in _PERPLEXITIES.items():
        table = saved.table(f"perplexity-{mode}")
        if table is not None:
            curve = Curve.of(table[column])
            if len(curve):
                least[mode] = float(curve.values.min())
            spoilt += int(np.nansum(table["nonfinite"].to_numpy()))
    if not least:
        return untestable("no perplexity has been computed", **_published(saved))
    numbers = {f"least_{mode}": value for mode, value in least.items()}
    impossible = {mode: value for mode, value in least.items() if value < 1}
    if impossible:
        named = ", ".join(f"{mode} {value:.3g}" for mode, value in impossible.items())
        reason = f"the tables hold values below 1 ({named}); they cannot be perplexities, so something miscomputed them"
    else:
        named = ", ".join(f"{mode} {value:.4g}" for mode, value in least.items())
        reason = f"the least perplexity is {named}; {spoilt} sentences had none (not finite, or below 1)"
    return no(reason, **numbers, nonfinite=spoilt)


def b_monotone(saved: Saved) -> Decision:
    """b ends above its start and never falls below an earlier value by more than 1 % of its range."""
    table = saved.table("order")
    if table is None:
        return untestable("order.csv is needed")
    curve = Curve.of(table["order_parameter"])
    if len(curve) < 3:
        return untestable(f"{len(curve)} steps are too few")
    fall = drawdown(curve.values)
    first, last = float(curve.values[0]), float(curve.values[-1])
    top = int(curve.steps[int(np.argmax(curve.values))])
    found = f"b goes from {first:.4g} to {last:.4g}; its largest fall is {fall:.1%} of its range (greatest at {top:,})"
    grows = last > first and fall <= _B_DRAWDOWN
    if grows:
        found += "; the norm of a random walk grows as well"
    return (yes if grows else no)(found, first=first, last=last, largest_fall=fall, greatest_at=top)


def _loss_and_b(saved: Saved) -> tuple[Curve, Curve] | None:
    table = saved.table("order")
    if table is None or "loss" not in table:
        return None
    both = table[["order_parameter", "loss"]].dropna("step")
    return Curve.of(both["order_parameter"]), Curve.of(both["loss"])


def loss_falls_with_b(saved: Saved) -> Decision:
    """In the order of b, the loss correlates by rank at −0.9 or less and never rises by more than 5 % of its range."""
    from scipy.stats import spearmanr

    known = _loss_and_b(saved)
    if known is None or len(known[0]) < 6:
        return untestable("order.csv with a loss at six steps or more is needed")
    b, loss = known
    if np.ptp(b.values) == 0 or np.ptp(loss.values) == 0:
        return untestable("b or the loss does not change")
    correlation = float(spearmanr(b.values, loss.values).statistic)
    rise = drawdown(-loss.values[np.argsort(b.values, kind="stable")])
    found = (
        f"rank correlation of loss and b {correlation:.3f}; along growing b the loss rises by {rise:.1%} of its range "
    )
    found += "at most"
    falls = correlation <= _CORRELATION and rise <= _LOSS_RISE
    return (yes if falls else no)(found, rank_correlation=correlation, largest_rise=rise, steps=len(b))


def slope_changes(saved: Saved) -> Decision:
    """Loss against b: a line with one break fits better than one line, and than a cubic, with as many parameters."""
    known = _loss_and_b(saved)
    fit = None if known is None else break_in_line(known[0].values, known[1].values)
    if known is None or fit is None:
        return untestable("order.csv with a loss at six steps of different b is needed")
    b, loss = known[0].values, known[1].values
    before, after = abs(fit.slope_before), abs(fit.slope_after)
    ratio = max(before, after) / max(min(before, after), np.finfo(float).tiny)
    turned = fit.slope_before * fit.slope_after < 0
    beats = _broken_residual(b, loss, fit.at) / max(cubic_residual(b, loss), np.finfo(float).tiny)
    numbers = {
        "break_b": fit.at,
        "slope_before": fit.slope_before,
        "slope_after": fit.slope_after,
        "p": fit.p,
        "residual_against_cubic": beats,
    }
    found = (
        f"dL/db goes from {fit.slope_before:.3g} to {fit.slope_after:.3g} at b = {fit.at:.4g} (p = {fit.p:.3g} against "
        f"one line); a broken line leaves {beats:.2g} times what a smooth cubic leaves"
    )
    changed = fit.p <= _BREAK_P and (ratio >= _SLOPE_RATIO or turned)
    return (yes if changed and beats <= _BEATS_CUBIC else no)(found, **numbers)


def _broken_residual(x: NDArray[np.float64], y: NDArray[np.float64], at: float) -> float:
    design = np.column_stack([np.ones_like(x), x, np.maximum(x - at, 0)])
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    return float(np.sum((y - design @ coefficients) ** 2))


def nothing_to_gain(saved: Saved) -> Decision:
    """Where the weights are stationary after S: how much the loss falls from S to the end."""
    at = bifurcation(saved)
    if at is None or stationary(saved).verdict != "supported":
        return untestable("the weights are not known to be stationary after any step, so the protocol does not stop")
    table = saved.table("perplexity-forward")
    if table is None:
        return untestable("perplexity-forward.csv is needed")
    curve = Curve.of(table["nll_mean"])
    there, last = curve.at(at.step), float(curve.values[-1])
    gain = (there - last) / there
    found = f"from {at.said} to the end the loss goes from {there:.4g} to {last:.4g} nats per token"
    return (yes if gain <= _GAIN else no)(found, bifurcation_step=at.step, gain=gain)
