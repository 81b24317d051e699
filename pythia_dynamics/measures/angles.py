"""Angle between the weights of neighbouring steps, growth of their norm, and the equilibrium of AdamW.

Kosson, Messmer & Jaggi, "Rotational Equilibrium", arXiv 2305.17212. All follows from sums that `msd` needs as well, so
the measure costs no reading of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from pythia_dynamics.errors import PythiaDynError
from pythia_dynamics.history.history import History
from pythia_dynamics.measures.displacement import Integral
from pythia_dynamics.measures.learning_rate import learning_rate_integrals
from pythia_dynamics.measures.measure import Flag, Measure, Table
from pythia_dynamics.sweep.compute import Compute
from pythia_dynamics.sweep.dataset import Variable, ends, format_ends, step_dataset

if TYPE_CHECKING:
    import xarray as xr

__all__ = ["angle_from_lengths", "angles", "equilibrium_angle"]

EQUILIBRIUM = ("equilibrium_angle", "equilibrium_update", "equilibrium_norm")
"""The variables that are there only where the weight decay is given."""


def angles(
    history: Any,
    *,
    weight_decay: Annotated[
        float | None, Flag("Weight decay of AdamW, for the equilibrium that it would hold.", minimum=0)
    ] = None,
    beta1: Annotated[float, Flag("Decay of Adam's average of gradients, for the equilibrium.", minimum=0)] = 0.9,
    steps: Sequence[int] | None = None,
    compute: Compute | None = None,
) -> xr.Dataset:
    """Angle, growth of the norm and relative update between neighbouring steps, with a null and AdamW's equilibrium.

    w_t are the weights of one step as one vector, s is the present step before t, and n = t − s.

    * `norm` ‖w_t‖ and `norm_null` √(‖w_0‖² + Σ_{i≤t} ‖w_i − w_{i−1}‖²), the norm if each increment were orthogonal to
      the weights, as independent ones are on average;
    * `norm_growth` ln(‖w_t‖ / ‖w_s‖) / n, per training step;
    * `relative_update` ‖w_t − w_s‖ / ‖w_s‖;
    * `angle` ∠(w_s, w_t) = 2 atan2(√(‖w_t − w_s‖² − (‖w_t‖ − ‖w_s‖)²), √((‖w_t‖ + ‖w_s‖)² − ‖w_t − w_s‖²)), in degrees
      (see `angle_from_lengths`), and `angle_null` = atan(`relative_update`), that of an orthogonal increment;
    * `interval` n in steps. A gap is not filled: the pair that spans it has its own, longer interval.

    With a weight decay λ, and with the learning rate η of the history, the equilibrium of AdamW for gradients that are
    independent of one another and of the weights. Adam then makes updates of root mean square 1, whose sum over steps
    diffuses as if they were independent; so the squared norm gains η² N and loses 2ηλ ‖w‖² per step, and

    * `equilibrium_norm` √(η N / 2λ), at the η of step t;
    * `equilibrium_angle` arccos(exp(−λ n̂ η̄)), with η̄ the mean of η from s to t (see `equilibrium_angle`). For
      1 ≪ n ≪ 1/ηλ it is √(2ηλ n), the √n growth of the angular update √(2ηλ) of one step; it never exceeds 90°;
    * `equilibrium_update` 2 sin(`equilibrium_angle`/2), the relative update at constant norm.

    The norm needs 1/(2ηλ) steps to reach its equilibrium, more than a whole training where λ is small.

    Parameters
    ----------
    history : History, str, Path or array_like
        The weights: a history, the name or path of a fetched model, or an array of shape (T, …).
    weight_decay : float, optional
        λ of AdamW's decoupled decay, w ← w − ηλ w. Without it there is no equilibrium.
    beta1 : float
        β₁ of Adam, at least 0 and below 1. It matters for intervals of a few 1/(1 − β₁) steps only.
    steps : sequence of int, optional
        Step numbers: of an array one for each of T, by default 0 … T−1; of a history those to use, by default all.
    compute : Compute, optional
        How to compute.

    Returns
    -------
    xarray.Dataset
        The curves over `step`, NaN at missing steps and at steps with weights that are not finite. What compares two
        steps is stored at the later one, NaN at the first present step. Angles and relative changes are NaN beside
        weights that are all zero.

    Raises
    ------
    PythiaDynError
        The squares of the weights are not finite. A weight decay that is not positive, β₁ outside [0, 1), or a weight
        decay for a history whose learning rate is not known.
    """
    return ANGLES(history, weight_decay=weight_decay, beta1=beta1, steps=steps, compute=compute)


def angle_from_lengths(first: ArrayLike, second: ArrayLike, difference: ArrayLike) -> NDArray[np.float64]:
    """The angle between two vectors from their lengths and that of their difference.

    Half of it has the tangent √(d² − (a − b)²) / √((a + b)² − d²). The arccosine of the inner product would lose every
    angle below 1e-8 in float64, and below 3e-4 in float32. This formula has the relative error of a, b and d; where the
    vectors differ mostly in length, it has an absolute error of √(2δ d/a) for a relative error δ of the lengths.

    Parameters
    ----------
    first, second
        a and b, the lengths of the vectors; any shape.
    difference
        d, the length of their difference.

    Returns
    -------
    array of float64
        In radians, from 0 to π. NaN where a or b is zero.
    """
    a, b, d = (np.asarray(length, dtype=np.float64) for length in (first, second, difference))
    with np.errstate(divide="ignore", invalid="ignore"):  # two zeros have no angle
        a, b, d = (length / np.maximum(a, b) for length in (a, b, d))  # the squares below have a float64
    # Products of sums and differences: squares would lose the digits of a − b. Rounding can make either negative.
    across = np.maximum((d - (a - b)) * (d + (a - b)), 0)
    along = np.maximum((a + b - d) * (a + b + d), 0)
    return np.where((a > 0) & (b > 0), 2 * np.arctan2(np.sqrt(across), np.sqrt(along)), np.nan)


def equilibrium_angle(
    rate: ArrayLike, weight_decay: float, interval: ArrayLike, *, beta1: float = 0.9
) -> NDArray[np.float64]:
    """The angle between weights n optimiser steps apart in the equilibrium of AdamW, arccos(exp(−λη n̂)).

    Decay and independent gradients make the weights an Ornstein-Uhlenbeck process, with the autocorrelation
    exp(−ληn). Adam's updates are averages of past gradients, so that those of n steps add up to less:
    n̂ = n − 2β₁(1 − β₁ⁿ)/(1 − β₁²). For n = 1 this is √(2ηλ(1 − β₁)/(1 + β₁)) to first order, the expected angular
    update of AdamW in Kosson et al.; for n ≫ 1/(1 − β₁) the average does not matter.

    Parameters
    ----------
    rate
        η, the mean learning rate over the interval; any shape.
    weight_decay
        λ.
    interval
        n, in optimiser steps.
    beta1
        β₁.

    Returns
    -------
    array of float64
        In radians, from 0 to π/2.
    """
    n = np.asarray(interval, dtype=np.float64)
    effective = n - 2 * beta1 * (1 - beta1**n) / (1 - beta1**2)
    decay = weight_decay * np.asarray(rate, dtype=np.float64) * effective
    # arccos(e^−x) as arctan √(e^2x − 1), which does not lose small angles.
    return np.asarray(np.arctan(np.sqrt(np.expm1(2 * np.minimum(decay, 300)))))


def _finish(history: History, integral: Integral, *, weight_decay: float | None, beta1: float) -> xr.Dataset:
    at, size, shift = integral.indices, integral.size, integral.shift
    sums = integral.total
    if not np.isfinite(sums).all():
        if np.isfinite(sums[:, 1]).any():
            raise PythiaDynError(f"the weights of {history.name} are too large for their squares; scale them")
        sums[:] = np.nan  # no step is finite, so the sweep left out none
    mean = sums[:, 0] / size
    # As a hypotenuse: the square of weights near 1e200 has no float64, their norm has.
    norm = np.hypot(np.sqrt(np.maximum(sums[:, 1] - size * mean**2, 0)), np.sqrt(size) * (shift + mean))
    moved = np.sqrt(sums[:, 4])
    before = np.concatenate([[np.nan], norm[:-1]])
    interval = np.diff(history.steps[at].astype(np.float64), prepend=np.nan) + 0 * moved
    with np.errstate(divide="ignore", invalid="ignore"):
        update = np.where(before > 0, moved / before, np.nan)
        growth = np.where((before > 0) & (norm > 0), np.log(norm / before), np.nan) / interval
    angle = angle_from_lengths(before, norm, moved)
    null = np.hypot(norm[0], np.sqrt(np.cumsum(np.append(0, sums[1:, 4]))))
    since = "since the step before"
    variables = {
        "interval": Variable(interval, f"training steps {since}", "step"),
        "norm": Variable(norm, "norm of the weights", "weight"),
        "norm_null": Variable(null, "norm of the weights if increments were orthogonal to them", "weight"),
        "norm_growth": Variable(growth, f"relative growth of the norm per training step {since}", "1/step"),
        "relative_update": Variable(update, f"relative update {since}"),
        "angle": Variable(np.degrees(angle), f"angle to the weights of the step before {since}", "degree"),
        "angle_null": Variable(np.degrees(np.arctan(update)), f"angle of an orthogonal increment {since}", "degree"),
    }
    if weight_decay is not None:
        variables |= _equilibrium(history, at, interval, size, weight_decay, beta1)
    return step_dataset(history, variables, at=at)


def _equilibrium(
    history: History,
    at: NDArray[np.intp],
    interval: NDArray[np.float64],
    size: int,
    weight_decay: float,
    beta1: float,
) -> dict[str, Variable]:
    """The variables of the equilibrium, at the present steps."""
    if not (np.isfinite(weight_decay) and weight_decay > 0):
        raise PythiaDynError(f"a weight decay must be positive; got {weight_decay:g}")
    if not 0 <= beta1 < 1:
        raise PythiaDynError(f"beta1 of Adam must be at least 0 and below 1; got {beta1:g}")
    rate = history.coordinates.get("learning_rate")
    if rate is None or not np.isfinite(rate[at]).any():
        raise PythiaDynError(
            f"the equilibrium of AdamW needs the learning rate of {history.name}, which is not known; give it, or "
            "leave out the weight decay"
        )
    covered = learning_rate_integrals(history.steps, rate)
    spans = [covered[first:last].sum() for first, last in pairwise(at.tolist())]
    angle = equilibrium_angle(np.append(np.nan, spans) / interval, weight_decay, interval, beta1=beta1)
    of_adamw = "in the equilibrium of AdamW"
    attrs = {"weight_decay": weight_decay, "beta1": beta1}
    values = (
        (np.degrees(angle), f"angle {of_adamw}", "degree"),
        (2 * np.sin(angle / 2), f"relative update {of_adamw}", "1"),
        (np.sqrt(rate[at] * size / (2 * weight_decay)), f"norm of the weights {of_adamw}", "weight"),
    )
    return {
        name: Variable(curve, label, units, attrs=attrs)
        for name, (curve, label, units) in zip(EQUILIBRIUM, values, strict=True)
    }


def _summarise(dataset: xr.Dataset) -> tuple[str, dict[str, Any]]:
    facts: dict[str, Any] = {name: ends(dataset[name]) for name in ("norm", "angle", "relative_update")}
    sentence = f"norm {format_ends(facts['norm'])}, angle between neighbouring steps {format_ends(facts['angle'])}"
    sentence += "°" if np.isfinite(facts["angle"]).all() else ""
    if EQUILIBRIUM[0] in dataset:
        facts |= {name: ends(dataset[name]) for name in EQUILIBRIUM}
        sentence += (
            f"; in AdamW's equilibrium the angle would be {format_ends(facts['equilibrium_angle'])}°, the norm "
            f"{format_ends(facts['equilibrium_norm'])}"
        )
    return sentence, facts


ANGLES: Measure = Measure(
    name="angles",
    title="Angular update and norm",
    source="Kosson, Messmer & Jaggi, arXiv 2305.17212",
    function=angles,
    accumulators=(Integral,),
    finish=_finish,
    tables={
        "angles": Table(
            (
                *("step", "interval", "norm", "norm_null", "norm_growth", "relative_update", "angle", "angle_null"),
                *EQUILIBRIUM,
            ),
            title="Angular update and norm",
            optional=EQUILIBRIUM,
        )
    },
    summarise=_summarise,
)
